//! From a request's address to a pool. Pure.
//!
//! Two forms, always both: `<pool>.<domain>` when a domain is configured, and
//! `/subscriptions/<s>/resourceGroups/<rg>/sessionPools/<pool>` on any other host. What follows is
//! the container's, byte for byte.

use http::uri::PathAndQuery;

use super::refusal::{Code, Refusal};
use crate::access::Scope;
use crate::pool::{IDENTIFIER_RULE, Identifier, PoolName};
use crate::store::PoolRecord;

/// Paths under this belong to the platform.
const MANAGEMENT: &str = "/.management";

/// Where a request is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub pool: PoolName,
    /// Subscription and resource group, when the address names them.
    pub group: Option<(String, String)>,
    /// What the container is asked for.
    pub rest: PathAndQuery,
}

impl Route {
    /// What the request is about: as the address says or, where that is only a name, as the pool of this name is.
    pub fn scope<'a>(&'a self, found: Option<&'a PoolRecord>) -> Scope<'a> {
        let pool = self.pool.as_str();
        let (subscription, group) = match (&self.group, found) {
            (Some((subscription, group)), _) => (subscription, group),
            (None, Some(record)) => (&record.subscription, &record.resource_group),
            (None, None) => return Scope::nowhere(pool),
        };
        Scope {
            subscription,
            resource_group: Some(group),
            pool: Some(pool),
        }
    }

    /// Whether the address is that of the pool, which has the name already.
    pub fn is_of(&self, record: &PoolRecord) -> bool {
        self.group.as_ref().is_none_or(|(subscription, group)| {
            record.subscription.eq_ignore_ascii_case(subscription)
                && record.resource_group.eq_ignore_ascii_case(group)
        })
    }

    /// Whether the platform answers instead of the container, and what it is asked for.
    pub fn management(&self) -> Option<&str> {
        let (start, rest) = self.rest.path().split_at_checked(MANAGEMENT.len())?;
        let named = rest.is_empty() || rest.starts_with('/');
        (named && start.eq_ignore_ascii_case(MANAGEMENT))
            .then(|| rest.strip_prefix('/').unwrap_or_default())
    }
}

/// Finds the pool. `host` is the host name without port.
pub fn route(host: &str, target: &PathAndQuery, domain: Option<&str>) -> Result<Route, Refusal> {
    if let Some(label) = domain.and_then(|domain| label_of(host, domain)) {
        let pool = PoolName::parse_ignoring_case(label).map_err(|_| no_pool(label))?;
        return Ok(Route {
            pool,
            group: None,
            rest: target.clone(),
        });
    }
    let text = target.as_str();
    let mut rest = text.strip_prefix('/').unwrap_or_default();
    let mut values = Vec::with_capacity(3);
    for keyword in ["subscriptions", "resourceGroups", "sessionPools"] {
        let (word, after) = split_segment(rest);
        if !word.eq_ignore_ascii_case(keyword) {
            return Err(nothing_here());
        }
        let (value, after) = split_segment(after.strip_prefix('/').unwrap_or_default());
        let value = percent_decode(value).and_then(|bytes| String::from_utf8(bytes).ok());
        values.push(
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(nothing_here)?,
        );
        rest = after;
        if values.len() < 3 {
            rest = rest.strip_prefix('/').ok_or_else(nothing_here)?;
        }
    }
    let [subscription, resource_group, pool] =
        <[String; 3]>::try_from(values).map_err(|_| nothing_here())?;
    let pool = PoolName::parse_ignoring_case(&pool).map_err(|_| no_pool(&pool))?;
    let rest = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    let rest = PathAndQuery::from_maybe_shared(rest).map_err(|_| nothing_here())?;
    Ok(Route {
        pool,
        group: Some((subscription, resource_group)),
        rest,
    })
}

/// Where the description of all calls is.
const DOCUMENT: &str = "/openapi.json";

/// Whether the description of all calls is meant.
pub fn is_document(host: &str, path: &str, domain: Option<&str>) -> bool {
    path == DOCUMENT && !is_of_a_pool(host, domain)
}

/// Where the certificate that clients trust is.
const AUTHORITY: &str = "/ca.pem";

/// Whether the certificate of the private authority is meant.
pub fn is_authority(host: &str, path: &str, domain: Option<&str>) -> bool {
    path == AUTHORITY && !is_of_a_pool(host, domain)
}

/// There all paths are the container's.
fn is_of_a_pool(host: &str, domain: Option<&str>) -> bool {
    domain.and_then(|domain| label_of(host, domain)).is_some()
}

/// Whether the path is of a resource, and the host no pool's own.
pub fn is_resource(host: &str, path: &str, domain: Option<&str>) -> bool {
    if is_of_a_pool(host, domain) {
        return false;
    }
    let is = |segment: Option<&str>, word: &str| {
        segment.is_some_and(|segment| segment.eq_ignore_ascii_case(word))
    };
    // Keywords and values by turns.
    let mut keywords = path.split('/').skip(1).step_by(2);
    is(keywords.next(), "subscriptions")
        && match keywords.next() {
            Some(word) if word.eq_ignore_ascii_case("resourceGroups") => {
                is(keywords.next(), "providers")
            }
            word => is(word, "providers"),
        }
}

/// The identifier in a query string: exactly one parameter of this name, percent-decoded.
pub fn identifier(query: Option<&str>) -> Result<Identifier, Refusal> {
    let wrong = |message: &str| {
        Refusal::new(Code::SessionRequestValidationFailed, message).target("identifier")
    };
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if percent_decode(name).as_deref() != Some(b"identifier") {
            continue;
        }
        if found.replace(value).is_some() {
            return Err(wrong(
                "The query parameter identifier is there more than once",
            ));
        }
    }
    let value = found.ok_or_else(|| wrong("The query parameter identifier is missing"))?;
    percent_decode(value)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong(IDENTIFIER_RULE))
}

/// `label` of `label.domain`, if the host is exactly one label below the domain.
fn label_of<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let split = host.len().checked_sub(domain.len())?;
    let (before, tail) = (host.get(..split)?, host.get(split..)?);
    let label = before.strip_suffix('.')?;
    (tail.eq_ignore_ascii_case(domain) && !label.is_empty() && !label.contains('.'))
        .then_some(label)
}

/// Up to the next slash or question mark, and the rest with it.
fn split_segment(text: &str) -> (&str, &str) {
    text.split_at(text.find(['/', '?']).unwrap_or(text.len()))
}

/// `None`: a percent sign without two hexadecimal digits.
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? * 16 + digit(bytes.next()?)?,
            other => other,
        });
    }
    Some(decoded)
}

/// The answer for a pool that does not exist.
pub fn no_pool(name: &str) -> Refusal {
    Refusal::new(
        Code::SessionPoolNotFound,
        format!("There is no session pool {name:?} here"),
    )
}

fn nothing_here() -> Refusal {
    Refusal::new(
        Code::ResourceNotFound,
        "Nothing is served here. A session is addressed as \
         /subscriptions/<subscription>/resourceGroups/<group>/sessionPools/<pool>/<path>?identifier=<id>",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/subscriptions/s/resourceGroups/rg/sessionPools/alpha";

    fn rest(host: &str, target: &str) -> Result<String, &'static str> {
        route(host, &target.parse().unwrap(), Some("cabana.example"))
            .map(|route| format!("{} {}", route.pool, route.rest))
            .map_err(|refusal| refusal.code.as_str())
    }

    #[test]
    fn remainder_is_byte_exact() {
        for tail in [
            "/",
            "/a",
            "/a/",
            "/a//b",
            "//",
            "/./..//x",
            "/%2e%2E/%2f",
            "/a;b=c,d",
            "/a?x=1&identifier=user&y",
            "/?",
            "/a?b?c/d",
            "/{x}|\"",
            "/a%20b+c",
        ] {
            let expected = Ok(format!("alpha {tail}"));
            assert_eq!(
                rest("localhost", &format!("{BASE}{tail}")),
                expected,
                "path form"
            );
            assert_eq!(rest("alpha.cabana.example", tail), expected, "host form");
        }
    }

    #[test]
    fn pool_without_a_path_is_asked_for_its_root() {
        assert_eq!(rest("localhost", BASE), Ok("alpha /".into()));
        assert_eq!(
            rest("localhost", &format!("{BASE}?identifier=x")),
            Ok("alpha /?identifier=x".into())
        );
    }

    #[test]
    fn keywords_and_pool_ignore_case_and_names_may_be_percent_encoded() {
        let target = "/SUBSCRIPTIONS/S/resourcegroups/my%28rg%29/SessionPools/Al%70ha/X"
            .parse()
            .unwrap();
        let route = route("localhost", &target, None).unwrap();
        assert_eq!(route.group, Some(("S".into(), "my(rg)".into())));
        assert_eq!((route.pool.as_str(), route.rest.as_str()), ("alpha", "/X"));
    }

    #[test]
    fn anything_else_is_not_found() {
        for target in [
            "/",
            "/x",
            "/subscriptions",
            "/subscriptions/s/resourceGroups/rg",
            "/subscriptions/s/resourceGroups/rg/sessionPools",
            "/subscriptions/s/resourceGroups/rg/sessionPools/",
            "/subscriptions//resourceGroups/rg/sessionPools/alpha/",
            "/subscriptions/s/resourceGroups/%zz/sessionPools/alpha/",
            "//subscriptions/s/resourceGroups/rg/sessionPools/alpha/",
            "/subscriptions/s?/resourceGroups/rg/sessionPools/alpha/",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/alpha",
        ] {
            assert_eq!(
                rest("localhost", target),
                Err("ResourceNotFound"),
                "{target}"
            );
        }
        assert_eq!(
            rest(
                "localhost",
                "/subscriptions/s/resourceGroups/rg/sessionPools/a_b/"
            ),
            Err("SessionPoolNotFound")
        );
    }

    #[test]
    fn host_form_takes_exactly_one_label_below_the_domain() {
        assert_eq!(rest("ALPHA.Cabana.Example.", "/x"), Ok("alpha /x".into()));
        for host in [
            "cabana.example",
            "a.alpha.cabana.example",
            "alphacabana.example",
            ".cabana.example",
        ] {
            assert_eq!(rest(host, "/x"), Err("ResourceNotFound"), "{host}");
        }
        assert_eq!(rest("a_b.cabana.example", "/x"), Err("SessionPoolNotFound"));
    }

    #[test]
    fn paths_of_providers_are_resources_unless_the_host_is_a_pools_own() {
        let domain = Some("cabana.example");
        for (host, path, expected) in [
            ("localhost", "/subscriptions/s/providers/x", true),
            ("cabana.example", "/SUBSCRIPTIONS/s/Providers/", true),
            (
                "localhost",
                "/subscriptions/s/resourcegroups/rg/providers/x/y",
                true,
            ),
            (
                "localhost",
                "/subscriptions/s/resourceGroups/rg/sessionPools/providers",
                false,
            ),
            ("localhost", "/subscriptions/providers/x", false),
            ("localhost", "/", false),
            (
                "alpha.cabana.example",
                "/subscriptions/s/providers/x",
                false,
            ),
        ] {
            assert_eq!(is_resource(host, path, domain), expected, "{host}{path}");
        }
    }

    #[test]
    fn management_paths_are_the_platforms() {
        for (tail, expected) in [
            ("/.management", true),
            ("/.management/getSession?api-version=x", true),
            ("/.Management/x", true),
            ("/.managementx", false),
            ("/a/.management/x", false),
            ("/.manage", false),
        ] {
            let route =
                route("localhost", &format!("{BASE}{tail}").parse().unwrap(), None).unwrap();
            assert_eq!(route.management().is_some(), expected, "{tail}");
        }
    }

    #[test]
    fn identifier_is_the_only_one_percent_decoded() {
        for (query, expected) in [
            ("identifier=user-1", Ok("user-1")),
            ("a=b&identifier=user%2D1&c", Ok("user-1")),
            ("%69dentifier=user", Ok("user")),
            ("identifier=a+b+c", Ok("a+b+c")),
            ("identifier=a=b=c", Ok("a=b=c")),
            ("", Err("missing")),
            ("Identifier=user-1", Err("missing")),
            ("identifiers=user-1", Err("missing")),
            ("identifier=user&identifier=user", Err("more than once")),
            ("identifier=user&%69dentifier=other", Err("more than once")),
            ("identifier", Err("4 to 128")),
            ("identifier=abc", Err("4 to 128")),
            ("identifier=a%20bc", Err("4 to 128")),
            ("identifier=abc%4", Err("4 to 128")),
            ("identifier=abc%zz", Err("4 to 128")),
            ("identifier=abc%ff", Err("4 to 128")),
            ("identifier=abc%00d", Err("4 to 128")),
        ] {
            match (identifier(Some(query)), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.as_bytes(), expected.as_bytes(), "{query}")
                }
                (Err(refusal), Err(expected)) => {
                    assert!(
                        refusal.message.contains(expected),
                        "{query}: {}",
                        refusal.message
                    );
                    assert_eq!(refusal.target.as_deref(), Some("identifier"));
                }
                (found, _) => panic!("{query}: {found:?}"),
            }
        }
        assert!(identifier(None).is_err());
    }
}
