//! Who we are to a registry: credentials, the challenges of a 401, and tokens.
//!
//! RFC 7235 for the header, the Distribution project's "token authentication" for the rest.
//!
//! # Secrets
//! Nothing here can be printed: [`Secret`] has no text in its debug form, and messages name registries
//! and users only.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::name::RegistryHost;

/// A password or token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// User and password for one registry. No other one ever sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub server: RegistryHost,
    pub username: String,
    pub password: Secret,
}

impl Credentials {
    /// The value of an `Authorization` header (RFC 7617).
    pub fn basic(&self) -> Secret {
        let pair = format!("{}:{}", self.username, self.password.expose());
        Secret(format!("Basic {}", STANDARD.encode(pair)))
    }
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of those in the headers: a token before a password.
    pub fn of<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for (scheme, parameters) in headers.into_iter().flat_map(split) {
            let find = |name: &str| {
                let found = parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = find("realm") {
                    return Some(Self::Bearer {
                        realm,
                        service: find("service"),
                        scope: find("scope"),
                    });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// The challenges of one header: `Scheme name="value", name=value, Scheme ...`.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return challenges;
        }
        rest = after;
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let (value, after) = value(after);
                parameters.push((word.to_owned(), value));
                rest = after;
            }
            (Some(_), None) => return challenges,
            (None, _) => challenges.push((word.to_owned(), Vec::new())),
        }
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

/// What a token server answers.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    /// The same by OAuth 2; servers send either or both.
    access_token: Option<String>,
}

/// The token in the answer of a token server, as the value of an `Authorization` header.
pub fn bearer(answer: &[u8]) -> Option<Secret> {
    let answer: TokenAnswer = serde_json::from_slice(answer).ok()?;
    let token = answer.token.or(answer.access_token)?;
    (!token.is_empty()).then(|| Secret(format!("Bearer {token}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (header, expected) in [
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull""#,
                Some(bearer(
                    "https://auth.example/token",
                    Some("reg"),
                    Some("repository:a/b:pull"),
                )),
            ),
            (
                r#"BEARER Realm="https://a/?x=1,2" , service=plain"#,
                Some(bearer("https://a/?x=1,2", Some("plain"), None)),
            ),
            (
                r#"Basic realm="x", Bearer realm="https://a""#,
                Some(bearer("https://a", None, None)),
            ),
            (r#"Bearer service="no realm""#, None),
            (r#"Bearer realm="a\"b"#, Some(bearer("a\"b", None, None))),
            ("Negotiate", None),
            ("=,= \"", None),
            ("", None),
        ] {
            assert_eq!(Challenge::of([header]), expected, "{header}");
        }
        assert_eq!(
            Challenge::of(["Negotiate", "Basic realm=x"]),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn token_is_taken_from_either_field() {
        for (answer, token) in [
            (r#"{"token":"t","access_token":"u"}"#, Some("Bearer t")),
            (r#"{"access_token":"u","expires_in":60}"#, Some("Bearer u")),
            (r#"{"token":""}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            let found = bearer(answer.as_bytes());
            assert_eq!(found.as_ref().map(Secret::expose), token, "{answer}");
        }
    }

    #[test]
    fn secrets_are_not_in_the_debug_form() {
        let credentials = Credentials {
            server: "x.example".parse().unwrap(),
            username: "user".into(),
            password: Secret::new("hunter2"),
        };
        let text = format!("{credentials:?} {:?}", credentials.basic());
        assert!(
            !text.contains("hunter2") && !text.contains("Basic"),
            "{text}"
        );
        assert_eq!(credentials.basic().expose(), "Basic dXNlcjpodW50ZXIy");
    }
}
