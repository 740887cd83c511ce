//! Entity tags and preconditions: RFC 9110, sections 8.8.3 and 13.
//!
//! The tag is of what a pool was asked to be. What the appliance says of it besides (counts, how far it is) changes all
//! the time and is not part of it, so a `GET` is never answered "not modified".

use http::{HeaderMap, HeaderName, header};
use sha2::{Digest as _, Sha256};

use crate::front::refusal::{Code, Refusal};
use crate::store::{PoolRecord, encode};

/// Hexadecimal digits of a tag: 128 bits, so no two settings ever share one by chance.
const TAG_DIGITS: usize = 32;

/// What must hold of a pool for a change to be made.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug, Clone)]
enum Tags {
    Any,
    These(Vec<String>),
}

impl Conditions {
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            if_match: tags(headers, &header::IF_MATCH),
            if_none_match: tags(headers, &header::IF_NONE_MATCH),
        }
    }

    /// `current` is the pool as it is, if there is one.
    pub fn check(&self, current: Option<&PoolRecord>) -> Result<(), Refusal> {
        let tag = current.map(etag);
        if let Some(wanted) = &self.if_match
            && !tag.as_ref().is_some_and(|tag| wanted.match_strongly(tag))
        {
            let message = "If-Match: the pool is not (any more) what it was asked to be there";
            return Err(Refusal::new(Code::PreconditionFailed, message).target("If-Match"));
        }
        if let Some(unwanted) = &self.if_none_match
            && tag.as_ref().is_some_and(|tag| unwanted.match_weakly(tag))
        {
            let message = "If-None-Match: there is such a pool";
            return Err(Refusal::new(Code::PreconditionFailed, message).target("If-None-Match"));
        }
        Ok(())
    }
}

impl Tags {
    fn match_strongly(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|it| it == tag),
        }
    }

    fn match_weakly(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags
                .iter()
                .any(|it| it.strip_prefix("W/").unwrap_or(it) == tag),
        }
    }
}

/// `None`: the header is not there. What is malformed matches nothing.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    let values = headers.get_all(name);
    let mut texts = values
        .iter()
        .map(|value| value.to_str().unwrap_or_default());
    let first = texts.next()?;
    if first.trim() == "*" {
        return Some(Tags::Any);
    }
    // Our own tags hold no comma.
    let tags = std::iter::once(first)
        .chain(texts)
        .flat_map(|text| text.split(','))
        .map(|tag| tag.trim().to_owned());
    Some(Tags::These(tags.collect()))
}

/// The strong tag of a pool, with its quotes.
pub fn etag(pool: &PoolRecord) -> String {
    format!("\"{}\"", digest(pool))
}

/// Of the settings alone: two pools with the same were asked to be the same, whenever that was.
pub fn goal(pool: &PoolRecord) -> String {
    digest(&PoolRecord {
        revision: uuid::Uuid::nil(),
        created_at_ms: 0,
        modified_at_ms: 0,
        ..pool.clone()
    })
}

fn digest(pool: &PoolRecord) -> String {
    let digest = Sha256::digest(encode(pool));
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..TAG_DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::pool;

    fn check(name: HeaderName, value: &str, current: Option<&PoolRecord>) -> bool {
        let headers = [(name, value.parse().unwrap())].into_iter().collect();
        Conditions::of(&headers).check(current).is_ok()
    }

    #[test]
    fn conditions_hold_as_their_rfc_has_them() {
        let alpha = pool("alpha");
        let other = etag(&PoolRecord {
            max_sessions: 11,
            ..alpha.clone()
        });
        let own = etag(&alpha);
        assert_ne!(own, other);
        let weak = format!("W/{own}");
        let list = format!("{other}, {own}");
        let there = Some(&alpha);
        for (value, current, matches, none_matches) in [
            ("*", there, true, false),
            ("*", None, false, true),
            (own.as_str(), there, true, false),
            (own.as_str(), None, false, true),
            (other.as_str(), there, false, true),
            (list.as_str(), there, true, false),
            // Weak tags match for If-None-Match alone.
            (weak.as_str(), there, false, false),
            ("nonsense", there, false, true),
        ] {
            assert_eq!(check(header::IF_MATCH, value, current), matches, "{value}");
            let none = check(header::IF_NONE_MATCH, value, current);
            assert_eq!(none, none_matches, "{value}");
        }
        assert!(Conditions::default().check(None).is_ok());
    }

    #[test]
    fn goal_is_of_the_settings_alone() {
        let alpha = pool("alpha");
        let later = PoolRecord {
            created_at_ms: 9,
            modified_at_ms: 9,
            revision: uuid::Uuid::from_u128(9),
            ..alpha.clone()
        };
        assert_eq!(goal(&alpha), goal(&later));
        assert_ne!(etag(&alpha), etag(&later));
        let other = PoolRecord {
            max_sessions: 11,
            ..alpha.clone()
        };
        assert_ne!(goal(&alpha), goal(&other));
    }
}
