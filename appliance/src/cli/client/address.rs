//! Paths of what the appliance is asked for.

use crate::cli::args::{Group, SessionTarget};

/// The newest shape of a pool that has all there is.
const API_VERSION: &str = "2025-10-02-preview";

/// The path of a pool.
pub fn pool_path(group: &Group, name: &str) -> String {
    pools(&group.subscription, Some(&group.resource_group), Some(name))
}

/// The path of all pools of a group, or of a subscription.
pub fn pools_path(subscription: &str, group: Option<&str>) -> String {
    pools(subscription, group, None)
}

fn pools(subscription: &str, group: Option<&str>, name: Option<&str>) -> String {
    let group = group.map(|group| format!("/resourceGroups/{}", escape(group)));
    let name = name.map(|name| format!("/{}", escape(name)));
    format!(
        "/subscriptions/{}{}/providers/Microsoft.App/sessionPools{}?api-version={API_VERSION}",
        escape(subscription),
        group.unwrap_or_default(),
        name.unwrap_or_default()
    )
}

/// The path of a session, or of all sessions of a pool when `identifier` is absent.
pub fn session_path(group: &Group, pool: &str, identifier: Option<&str>) -> String {
    let pool = pool_path(group, pool);
    let identifier = identifier
        .map(|identifier| format!("/{}", escape(identifier)))
        .unwrap_or_default();
    match pool.split_once('?') {
        Some((path, query)) => format!("{path}/sessions{identifier}?{query}"),
        None => format!("{pool}/sessions{identifier}"),
    }
}

/// The path of a call about the inside of a session, with further parameters.
pub fn inside_path(target: &SessionTarget, call: &str, parameters: &[(&str, String)]) -> String {
    let identifier = String::from(target.identifier.clone());
    let session = session_path(&target.group, &target.name, Some(&identifier));
    let (session, version) = session.split_once('?').unwrap_or((&session, ""));
    let more: String = parameters
        .iter()
        .map(|(name, value)| format!("&{name}={}", escape(value)))
        .collect();
    format!("{session}/{call}?{version}{more}")
}

/// The path of a management call on a pool, as any client of the front door may make it.
pub fn management_path(group: &Group, pool: &str, call: &str, identifier: Option<&str>) -> String {
    let identifier = identifier
        .map(|identifier| format!("&identifier={}", escape(identifier)))
        .unwrap_or_default();
    format!(
        "/subscriptions/{}/resourceGroups/{}/sessionPools/{}/.management/{call}?api-version={API_VERSION}{identifier}",
        escape(&group.subscription),
        escape(&group.resource_group),
        escape(pool)
    )
}

/// Percent-encodes everything but the unreserved characters of RFC 3986 §2.3.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(escape("a/b:1?x=ä"), "a%2Fb%3A1%3Fx%3D%C3%A4");
        let group = Group {
            subscription: "s".into(),
            resource_group: "r/g".into(),
        };
        let path = pool_path(&group, "p/../q");
        assert!(
            path.starts_with("/subscriptions/s/resourceGroups/r%2Fg/providers/"),
            "{path}"
        );
        assert!(path.contains("/sessionPools/p%2F..%2Fq?"), "{path}");
        let path = session_path(&group, "p", Some("a/b?"));
        assert!(
            path.contains("/sessionPools/p/sessions/a%2Fb%3F?api-version="),
            "{path}"
        );
        assert!(session_path(&group, "p", None).contains("/p/sessions?api-version="));
        let path = management_path(&group, "p", "stopSession", Some("a&b"));
        assert!(
            path.contains("/resourceGroups/r%2Fg/sessionPools/p/.management/stopSession?"),
            "{path}"
        );
        assert!(path.ends_with("&identifier=a%26b"), "{path}");
        let target = SessionTarget {
            name: "p".into(),
            identifier: "a/b?".parse().unwrap(),
            group,
        };
        let path = inside_path(&target, "logs", &[("tail", "1&2".into())]);
        assert!(path.contains("/p/sessions/a%2Fb%3F/logs?api-version="));
        assert!(path.ends_with("&tail=1%262"), "{path}");
    }

    #[test]
    fn pools_of_a_subscription_have_no_group_in_their_path() {
        let path = pools_path("s", None);
        assert!(
            path.starts_with("/subscriptions/s/providers/Microsoft.App/sessionPools?"),
            "{path}"
        );
        assert!(pools_path("s", Some("g")).contains("/resourceGroups/g/providers/"));
    }
}
