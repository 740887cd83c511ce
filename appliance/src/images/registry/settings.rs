//! What the operator says about registries: `[registries."host[:port]"]` in the configuration file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::name::RegistryHost;

/// By host as [`RegistryHost`] writes it. One that is not here has the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registries(pub BTreeMap<String, RegistrySettings>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySettings {
    /// Certificates in PEM, trusted beside those of the host.
    pub ca_file: Option<PathBuf>,
    /// Asked first, in this order, without credentials.
    pub mirrors: Vec<Mirror>,
    /// Whether the registry may be spoken to without TLS; absent: if it is on this host.
    pub allow_http: Option<bool>,
}

/// `host[:port][/prefix]`: where the repositories of another registry are, below a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mirror {
    pub host: RegistryHost,
    /// Empty, or parts of a path with a slash at the end.
    pub prefix: String,
}

impl Registries {
    pub fn of(&self, host: &RegistryHost) -> RegistrySettings {
        self.0.get(host.as_str()).cloned().unwrap_or_default()
    }

    /// Whether plain HTTP may be spoken with this host.
    pub fn may_be_plain(&self, host: &RegistryHost) -> bool {
        self.of(host).allow_http.unwrap_or(host.is_loopback())
    }
}

impl TryFrom<String> for Mirror {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (host, prefix) = match text.split_once('/') {
            Some((host, prefix)) => (host, prefix.trim_end_matches('/')),
            None => (text.as_str(), ""),
        };
        let is_part = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
        };
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(format!("'{prefix}' is not a path of a mirror"));
        }
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Ok(Self {
            host: host.parse()?,
            prefix,
        })
    }
}

impl From<Mirror> for String {
    fn from(mirror: Mirror) -> Self {
        let text = format!("{}/{}", mirror.host, mirror.prefix);
        text.trim_end_matches('/').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_unless_said_otherwise() {
        let settings = |allow_http| RegistrySettings {
            allow_http,
            ..RegistrySettings::default()
        };
        let registries = Registries(BTreeMap::from([
            ("plain.example:80".to_owned(), settings(Some(true))),
            ("localhost:5000".to_owned(), settings(Some(false))),
        ]));
        for (host, plain) in [
            ("127.0.0.1:5000", true),
            ("localhost:5001", true),
            ("localhost:5000", false),
            ("plain.example:80", true),
            ("plain.example", false),
        ] {
            assert_eq!(
                registries.may_be_plain(&host.parse().unwrap()),
                plain,
                "{host}"
            );
        }
    }

    #[test]
    fn mirror_is_a_host_with_an_optional_prefix() {
        let mirror = |text: &str| Mirror::try_from(text.to_owned());
        let with = mirror("m.example:1/docker/hub/").unwrap();
        assert_eq!(
            (with.host.as_str(), with.prefix.as_str()),
            ("m.example:1", "docker/hub/")
        );
        assert_eq!(String::from(with), "m.example:1/docker/hub");
        assert_eq!(mirror("m.example").unwrap().prefix, "");
        for bad in [
            "",
            "https://m.example",
            "m.example/../x",
            "m.example//x",
            "m.example/a b",
        ] {
            mirror(bad).unwrap_err();
        }
    }
}
