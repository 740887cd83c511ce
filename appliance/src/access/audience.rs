//! For whom tokens are: a service takes only what was made for it.

use serde::Deserialize;

/// What clients of the cloud service ask for: of sessions, of sessions long ago, and of the control plane.
pub const DEFAULT_AUDIENCES: [&str; 3] = [
    "https://dynamicsessions.io",
    "https://acasessions.io",
    "https://management.azure.com/",
];

/// `aud` of a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Named {
    One(String),
    Several(Vec<String>),
}

/// Audiences that are accepted. A slash at the end is no difference: clients put it there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audiences(Vec<String>);

impl Audiences {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// The one that this appliance's own tokens are for.
    pub fn first(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    pub fn accept(&self, named: &Named) -> bool {
        let known = |name: &String| self.0.iter().any(|own| bare(own) == bare(name));
        match named {
            Named::One(name) => known(name),
            Named::Several(names) => names.iter().any(known),
        }
    }

    /// For people.
    pub fn shown(&self) -> String {
        self.0.join(", ")
    }
}

fn bare(name: &str) -> &str {
    name.strip_suffix('/').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_audience_that_is_ours_is_enough_and_a_last_slash_is_none() {
        let ours = Audiences::new(DEFAULT_AUDIENCES.map(str::to_owned));
        let read = |text: &str| serde_json::from_str::<Named>(text).unwrap();
        for good in [
            r#""https://dynamicsessions.io""#,
            r#""https://dynamicsessions.io/""#,
            r#""https://management.azure.com""#,
            r#"["other","https://acasessions.io"]"#,
        ] {
            assert!(ours.accept(&read(good)), "{good}");
        }
        for bad in [
            r#""""#,
            r#"[]"#,
            r#""https://dynamicsessions.io//""#,
            r#""https://dynamicsessions.io.example""#,
            r#""HTTPS://DYNAMICSESSIONS.IO""#,
            r#"["https://other.example"]"#,
        ] {
            assert!(!ours.accept(&read(bad)), "{bad}");
        }
        assert_eq!(ours.first(), "https://dynamicsessions.io");
    }
}
