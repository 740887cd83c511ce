//! One grant: roles, and where they hold. What is empty limits nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Role, Scope};
use crate::pool::{Identifier, PoolName};

/// Longest text of a rule: an identifier, and the star behind it.
const MAX_RULE_BYTES: usize = 128;
/// Stands in for the missing characters where a prefix is judged by the rule of identifiers: one that
/// they may all have.
const FILLER: &str = "----";

/// Roles, and what they are limited to.
///
/// A limit that this build does not know makes the grant unreadable: to leave it out would widen it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    pub roles: Vec<Role>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolName>,
    /// Which sessions may be used; the other roles are not about sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identifiers: Vec<IdentifierRule>,
}

impl Grant {
    /// The role, without limits.
    #[cfg(test)]
    pub fn of(role: Role) -> Self {
        Self {
            roles: vec![role],
            ..Self::default()
        }
    }

    pub(super) fn has_any(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|role| roles.contains(role))
    }

    /// Whether it holds here. A part that the scope leaves open is not judged.
    pub(super) fn covers(&self, scope: Scope<'_>) -> bool {
        let allows = |limit: &[String], name: &str| {
            limit.is_empty() || limit.iter().any(|it| it.eq_ignore_ascii_case(name))
        };
        let is_pool = |name: &str| {
            let mut pools = self.pools.iter();
            self.pools.is_empty() || pools.any(|pool| pool.as_str().eq_ignore_ascii_case(name))
        };
        allows(&self.subscriptions, scope.subscription)
            && scope
                .resource_group
                .is_none_or(|group| allows(&self.resource_groups, group))
            && scope.pool.is_none_or(is_pool)
    }

    pub(super) fn allows(&self, identifier: &Identifier) -> bool {
        let mut rules = self.identifiers.iter();
        self.identifiers.is_empty() || rules.any(|rule| rule.matches(identifier))
    }
}

/// Which identifiers a bearer may use. As secret as an identifier: it has no `Display`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IdentifierRule {
    Exactly(Identifier),
    /// All that begin so; never empty.
    Prefix(String),
}

/// The text is no rule for identifiers. It is not in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("An identifier rule is an identifier, or the beginning of identifiers with a * behind it")]
pub struct InvalidIdentifierRule;

impl IdentifierRule {
    fn matches(&self, identifier: &Identifier) -> bool {
        match self {
            Self::Exactly(only) => only == identifier,
            Self::Prefix(prefix) => identifier.as_bytes().starts_with(prefix.as_bytes()),
        }
    }
}

impl FromStr for IdentifierRule {
    type Err = InvalidIdentifierRule;

    fn from_str(text: &str) -> Result<Self, InvalidIdentifierRule> {
        let Some(prefix) = text.strip_suffix('*') else {
            let only = text.parse().map_err(|_| InvalidIdentifierRule)?;
            return Ok(Self::Exactly(only));
        };
        // Too short for an identifier is long enough for a prefix.
        let judged = match prefix.len() {
            0..4 => format!("{prefix}{FILLER}"),
            _ => prefix.to_owned(),
        };
        let fits = !prefix.is_empty() && prefix.len() < MAX_RULE_BYTES;
        match judged.parse::<Identifier>() {
            Ok(_) if fits => Ok(Self::Prefix(prefix.to_owned())),
            _ => Err(InvalidIdentifierRule),
        }
    }
}

impl TryFrom<String> for IdentifierRule {
    type Error = InvalidIdentifierRule;

    fn try_from(text: String) -> Result<Self, InvalidIdentifierRule> {
        text.parse()
    }
}

impl From<IdentifierRule> for String {
    fn from(rule: IdentifierRule) -> Self {
        match rule {
            IdentifierRule::Exactly(only) => only.into(),
            IdentifierRule::Prefix(prefix) => prefix + "*",
        }
    }
}

impl fmt::Debug for IdentifierRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentifierRule(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_is_an_identifier_or_a_beginning_with_a_star() {
        let fits = |rule: &str, identifier: &str| {
            let rule: IdentifierRule = rule.parse().unwrap();
            assert_eq!(String::from(rule.clone()).parse(), Ok(rule.clone()));
            rule.matches(&identifier.parse().unwrap())
        };
        assert!(
            fits("user-1", "user-1") && !fits("user-1", "user-12") && !fits("user-1", "User-1")
        );
        assert!(fits("team-7-*", "team-7-anna") && fits("t*", "team") && fits("team*", "team"));
        assert!(!fits("team-7-*", "team-8-anna") && !fits("team-7-*", "team-7"));
        // Only the last star is a rule; others are characters of identifiers.
        assert!(fits("a*b-*", "a*b-x") && !fits("a*b-*", "axb-x"));
        for bad in [
            "",
            "*",
            "abc",
            "a b*",
            "ä*",
            "user\n",
            &"x".repeat(129),
            &("x".repeat(128) + "*"),
        ] {
            assert_eq!(
                bad.parse::<IdentifierRule>(),
                Err(InvalidIdentifierRule),
                "{bad:?}"
            );
        }
        assert_eq!(
            format!("{:?}", "user-1".parse::<IdentifierRule>().unwrap()),
            "IdentifierRule(..)"
        );
    }

    #[test]
    fn grant_with_a_limit_of_a_newer_build_is_not_read() {
        let read = |text: &str| serde_json::from_str::<Grant>(text);
        assert!(read(r#"{"roles":["reader"]}"#).is_ok());
        assert!(read(r#"{"roles":["reader"],"hours":["night"]}"#).is_err());
        assert!(read(r#"{"roles":["king"]}"#).is_err());
    }
}
