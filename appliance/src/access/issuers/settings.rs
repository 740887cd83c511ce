//! What an operator says of an issuer, and what its tokens are good for.

use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::access::{Grant, IdentifierRule};
use crate::pool::Identifier;

/// The claims whose words are separated by blanks (RFC 8693 section 4.2; `scp` is what Entra calls it).
const LISTS_OF_WORDS: [&str; 2] = ["scope", "scp"];

/// A trusted issuer, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IssuerSettings {
    /// `iss` of its tokens, to the letter.
    pub name: String,
    /// What its tokens are for; empty: what all tokens are for.
    pub audiences: Vec<String>,
    pub keys: KeysFrom,
    pub grants: Vec<GrantRule>,
}

/// Where its keys are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum KeysFrom {
    /// A JSON Web Key Set.
    File(PathBuf),
    /// The address that its discovery document names, over TLS that the host or this file vouches for.
    Discovery { ca_file: Option<PathBuf> },
}

/// A token in which the claim has the value gets the grant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrantRule {
    /// A name, or a path to it (RFC 6901) when it begins with a slash.
    pub claim: String,
    pub value: String,
    pub grant: Grant,
    /// The claim that says the only identifier that the token may be used with.
    pub identifier_claim: Option<String>,
}

impl IssuerSettings {
    /// What a token with these claims is good for.
    pub fn grants(&self, claims: &Map<String, Value>) -> Vec<Grant> {
        self.grants
            .iter()
            .filter_map(|rule| rule.applied(claims))
            .collect()
    }
}

impl GrantRule {
    /// A token whose claim is no identifier gets nothing: it must not become good for all of them.
    fn applied(&self, claims: &Map<String, Value>) -> Option<Grant> {
        let value = claim(claims, &self.claim)?;
        let named = self.claim.as_str();
        let matches = match value {
            Value::String(text) if LISTS_OF_WORDS.contains(&named) => {
                text.split(' ').any(|word| word == self.value)
            }
            Value::String(text) => *text == self.value,
            Value::Array(items) => items.iter().any(|item| item.as_str() == Some(&self.value)),
            _ => false,
        };
        if !matches {
            return None;
        }
        let mut grant = self.grant.clone();
        if let Some(name) = &self.identifier_claim {
            let only: Identifier = claim(claims, name)?.as_str()?.parse().ok()?;
            grant.identifiers = vec![IdentifierRule::Exactly(only)];
        }
        Some(grant)
    }
}

fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else {
        return claims.get(name);
    };
    let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    let first = first.replace("~1", "/").replace("~0", "~");
    claims.get(&first)?.pointer(rest)
}

/// Whether keys may be fetched from there: over TLS, or without from this host itself.
pub fn may_be_asked(url: &Url) -> bool {
    let is_loopback = || match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    };
    match url.scheme() {
        "https" => url.has_host(),
        "http" => is_loopback(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::access::Role;

    fn grants(rule: &GrantRule, claims: &Value) -> Vec<Grant> {
        let issuer = IssuerSettings {
            name: "https://issuer.example".into(),
            audiences: vec![],
            keys: KeysFrom::File("/keys".into()),
            grants: vec![rule.clone()],
        };
        issuer.grants(claims.as_object().unwrap())
    }

    fn rule(claim: &str) -> GrantRule {
        GrantRule {
            claim: claim.into(),
            value: "cabana-user".into(),
            grant: Grant::of(Role::SessionExecutor),
            identifier_claim: None,
        }
    }

    #[test]
    fn claim_that_has_the_value_or_holds_it_gives_the_grant() {
        for (name, claims, expected) in [
            ("roles", json!({ "roles": ["x", "cabana-user"] }), true),
            ("roles", json!({ "roles": "cabana-user" }), true),
            ("roles", json!({ "roles": "x cabana-user" }), false),
            ("scp", json!({ "scp": "x cabana-user" }), true),
            ("scope", json!({ "scope": "cabana-users" }), false),
            (
                "roles",
                json!({ "roles": ["cabana-users", 1, null] }),
                false,
            ),
            ("roles", json!({ "roles": { "cabana-user": true } }), false),
            ("roles", json!({}), false),
            (
                "/realm_access/roles",
                json!({ "realm_access": { "roles": ["cabana-user"] } }),
                true,
            ),
            (
                "/realm_access/roles",
                json!({ "realm_access": "cabana-user" }),
                false,
            ),
            (
                "https://a.example/r",
                json!({ "https://a.example/r": "cabana-user" }),
                true,
            ),
            (
                "/https:~1~1a.example~1r",
                json!({ "https://a.example/r": "cabana-user" }),
                true,
            ),
        ] {
            assert_eq!(
                grants(&rule(name), &claims).len() == 1,
                expected,
                "{name} {claims}"
            );
        }
    }

    #[test]
    fn caller_is_bound_to_the_identifier_in_its_token_or_gets_nothing() {
        let bound = GrantRule {
            identifier_claim: Some("sub".into()),
            ..rule("roles")
        };
        let of = |sub: Value| grants(&bound, &json!({ "roles": "cabana-user", "sub": sub }));
        let allows = |sub: &str, identifier: &str| {
            let grant = &of(json!(sub))[0];
            grant.allows(&identifier.parse().unwrap())
        };
        assert!(allows("anna", "anna") && !allows("anna", "anna1"));
        // What comes from a token is never the beginning of others.
        assert!(allows("ann*", "ann*") && !allows("ann*", "anna"));
        for no_identifier in [
            json!(null),
            json!(""),
            json!("abc"),
            json!("a b c d"),
            json!(["anna"]),
            json!(12345),
        ] {
            assert!(of(no_identifier.clone()).is_empty(), "{no_identifier}");
        }
        assert!(grants(&bound, &json!({ "roles": "cabana-user" })).is_empty());
    }

    #[test]
    fn keys_are_asked_for_over_tls_or_on_this_host() {
        for (url, expected) in [
            ("https://issuer.example/keys", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://[::1]/keys", true),
            ("http://localhost/keys", true),
            ("http://issuer.example/keys", false),
            ("http://127.0.0.1.example/keys", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(may_be_asked(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
