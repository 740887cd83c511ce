//! `[tls]` and `[tls.acme]`: whose certificate the front door shows.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::images::{table, wrong};
use crate::dns_name::is_dns_name;

/// Where Let's Encrypt begins.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// What HTTP-01 asks is asked there (RFC 8555 §8.3).
const HTTP_01_LISTEN: &str = "0.0.0.0:80";
/// Names in one certificate: the limit of Let's Encrypt.
const MAX_DOMAINS: usize = 100;
const MAX_CONTACTS: usize = 10;

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsSource {
    /// A private authority that the appliance makes.
    Own,
    Files(TlsFiles),
    /// From an ACME server; for names that it does not know, of the private authority.
    Acme(AcmeSettings),
}

/// Files in PEM, read by the appliance's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// With those that lead to its CA behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeSettings {
    /// The address of the server's directory.
    pub directory: String,
    /// `mailto:` addresses.
    pub contacts: Vec<String>,
    pub domains: Vec<String>,
    pub challenge: AcmeChallenge,
    /// Certificates that are trusted beside the host's, to speak with the server.
    pub ca_file: Option<PathBuf>,
    pub external_account: Option<ExternalAccount>,
}

/// How the names are proven to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// On the port of the front door, which the server must reach as 443.
    TlsAlpn01,
    /// On a port of its own, which the server must reach as 80.
    Http01 { listen: SocketAddr },
}

/// An account that was made elsewhere, which ours is bound to (RFC 8555 §7.3.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalAccount {
    pub key_id: String,
    /// Its HMAC key as base64url.
    pub key_file: PathBuf,
}

impl TlsSource {
    /// Where challenges are answered without TLS.
    pub fn plain_listen(&self) -> Option<SocketAddr> {
        match self {
            Self::Acme(AcmeSettings {
                challenge: AcmeChallenge::Http01 { listen },
                ..
            }) => Some(*listen),
            _ => None,
        }
    }
}

pub fn source(value: Option<toml::Value>) -> Result<TlsSource, ConfigError> {
    let Some(value) = value else {
        return Ok(TlsSource::Own);
    };
    let (mut certificate, mut key, mut acme) = (None, None, None);
    for (name, value) in table("tls", Some(value))? {
        match name.as_str() {
            "certificate" => certificate = Some(path("tls.certificate", &value)?),
            "key" => key = Some(path("tls.key", &value)?),
            "acme" => acme = Some(acme_settings(value)?),
            _ => return Err(wrong("tls", "certificate and key, or acme", &name.into())),
        }
    }
    match (certificate, key, acme) {
        (None, None, None) => Ok(TlsSource::Own),
        (Some(certificate), Some(key), None) => Ok(TlsSource::Files(TlsFiles { certificate, key })),
        (None, None, Some(acme)) => Ok(TlsSource::Acme(acme)),
        (Some(_), None, None) => Err(half("tls.key", "tls.certificate")),
        (None, Some(_), None) => Err(half("tls.certificate", "tls.key")),
        (_, _, Some(_)) => Err(ConfigError::Together {
            one: "tls.acme",
            other: "tls.certificate and tls.key",
        }),
    }
}

fn half(missing: &'static str, present: &'static str) -> ConfigError {
    ConfigError::Half { missing, present }
}

fn acme_settings(value: toml::Value) -> Result<AcmeSettings, ConfigError> {
    const KEYS: &str =
        "directory, contacts, domains, challenge, listen, ca_file, eab_key_id or eab_key_file";
    let (mut domains, mut contacts, mut directory) = (None, Vec::new(), LETS_ENCRYPT.to_owned());
    let (mut is_http, mut listen, mut ca_file) = (false, None, None);
    let (mut key_id, mut key_file) = (None, None);
    for (name, value) in table("tls.acme", Some(value))? {
        let key = format!("tls.acme.{name}");
        match name.as_str() {
            "directory" => directory = address_of(&key, &value)?,
            "contacts" => contacts = list(&key, &value, MAX_CONTACTS, CONTACTS, contact)?,
            "domains" => domains = Some(list(&key, &value, MAX_DOMAINS, DOMAINS, domain)?),
            "challenge" => {
                is_http = match value.as_str() {
                    Some("tls-alpn-01") => false,
                    Some("http-01") => true,
                    _ => return Err(wrong(&key, "\"tls-alpn-01\" or \"http-01\"", &value)),
                }
            }
            "listen" => {
                let parsed = value.as_str().and_then(|text| text.parse().ok());
                let expected = "an address with a port, like \"0.0.0.0:80\" or \"[::]:80\"";
                let parsed: SocketAddr = parsed.ok_or_else(|| wrong(&key, expected, &value))?;
                listen = Some((parsed, value));
            }
            "ca_file" => ca_file = Some(path(&key, &value)?),
            "eab_key_id" => {
                let id = value.as_str().filter(|id| is_word(id));
                key_id = Some(id.ok_or_else(|| wrong(&key, "a word", &value))?.to_owned());
            }
            "eab_key_file" => key_file = Some(path(&key, &value)?),
            _ => return Err(wrong("tls.acme", KEYS, &name.into())),
        }
    }
    let challenge = match (is_http, listen) {
        (false, None) => AcmeChallenge::TlsAlpn01,
        (false, Some((_, found))) => {
            let expected = "left out unless challenge is \"http-01\"";
            return Err(wrong("tls.acme.listen", expected, &found));
        }
        (true, None) => AcmeChallenge::Http01 {
            listen: default_listen(),
        },
        (true, Some((listen, _))) => AcmeChallenge::Http01 { listen },
    };
    let external_account = match (key_id, key_file) {
        (None, None) => None,
        (Some(key_id), Some(key_file)) => Some(ExternalAccount { key_id, key_file }),
        (Some(_), None) => return Err(half("tls.acme.eab_key_file", "tls.acme.eab_key_id")),
        (None, Some(_)) => return Err(half("tls.acme.eab_key_id", "tls.acme.eab_key_file")),
    };
    let domains = domains.ok_or_else(|| wrong("tls.acme.domains", DOMAINS, &"nothing".into()))?;
    Ok(AcmeSettings {
        directory,
        contacts,
        domains,
        challenge,
        ca_file,
        external_account,
    })
}

fn default_listen() -> SocketAddr {
    let fallback = SocketAddr::from(([0, 0, 0, 0], 80));
    HTTP_01_LISTEN.parse().unwrap_or(fallback)
}

const DOMAINS: &str = "a list of 1 to 100 DNS names in lower case, without wildcards, which no challenge \
     that is built in can prove";
const CONTACTS: &str = "a list of at most 10 mail addresses";

fn list(
    key: &str,
    value: &toml::Value,
    most: usize,
    expected: &str,
    parse: fn(&str) -> Option<String>,
) -> Result<Vec<String>, ConfigError> {
    let items = value.as_array().filter(|items| items.len() <= most);
    let items = items.filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| wrong(key, expected, value))?;
    let mut parsed = Vec::new();
    for item in items {
        let one = item.as_str().and_then(parse);
        let one = one.ok_or_else(|| wrong(key, expected, item))?;
        if !parsed.contains(&one) {
            parsed.push(one);
        }
    }
    Ok(parsed)
}

fn domain(text: &str) -> Option<String> {
    let is_name = is_dns_name(text) && text.parse::<IpAddr>().is_err();
    is_name.then(|| text.to_owned())
}

fn contact(text: &str) -> Option<String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let (name, host) = address.split_once('@')?;
    (is_word(name) && is_word(host) && !host.contains('@')).then(|| format!("mailto:{address}"))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn address_of(key: &str, value: &toml::Value) -> Result<String, ConfigError> {
    let url = value.as_str().and_then(|text| text.parse::<Url>().ok());
    let url = url.filter(|url| {
        url.scheme() == "https" && url.username().is_empty() && url.password().is_none()
    });
    let expected = "the https:// address of an ACME server's directory";
    Ok(url.ok_or_else(|| wrong(key, expected, value))?.into())
}

fn path(key: &str, value: &toml::Value) -> Result<PathBuf, ConfigError> {
    let path = value.as_str().filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| wrong(key, "an absolute path", value))?;
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TlsSource, String> {
        let mut file: toml::Table = text.parse().unwrap();
        source(file.remove("tls")).map_err(|error| error.to_string())
    }

    fn acme(text: &str) -> Result<AcmeSettings, String> {
        match read(&format!("[tls.acme]\n{text}"))? {
            TlsSource::Acme(settings) => Ok(settings),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn acme_needs_only_the_names() {
        let settings = acme("domains = [\"a.example\", \"b.example\", \"a.example\"]").unwrap();
        assert_eq!(settings.directory, LETS_ENCRYPT);
        assert_eq!(settings.domains, ["a.example", "b.example"]);
        assert_eq!(settings.challenge, AcmeChallenge::TlsAlpn01);
        assert_eq!((settings.ca_file, settings.external_account), (None, None));
        assert!(settings.contacts.is_empty());
    }

    #[test]
    fn acme_takes_another_server_contacts_http_and_an_external_account() {
        let settings = acme(
            "directory = \"https://ca.example:14000/dir\"\ncontacts = [\"o@a.example\", \"mailto:p@a.example\"]\n\
             domains = [\"a.example\"]\nchallenge = \"http-01\"\nca_file = \"/ca.pem\"\neab_key_id = \"k\"\n\
             eab_key_file = \"/k\"",
        )
        .unwrap();
        assert_eq!(settings.directory, "https://ca.example:14000/dir");
        assert_eq!(
            settings.contacts,
            ["mailto:o@a.example", "mailto:p@a.example"]
        );
        let listen: SocketAddr = HTTP_01_LISTEN.parse().unwrap();
        assert_eq!(settings.challenge, AcmeChallenge::Http01 { listen });
        assert_eq!(TlsSource::Acme(settings).plain_listen(), Some(listen));
        let moved =
            acme("domains = [\"a.example\"]\nchallenge = \"http-01\"\nlisten = \"127.0.0.1:5002\"");
        let listen = "127.0.0.1:5002".parse().unwrap();
        assert_eq!(moved.unwrap().challenge, AcmeChallenge::Http01 { listen });
    }

    #[test]
    fn wrong_value_of_acme_is_one_line_that_names_its_key() {
        for (text, key) in [
            ("", "tls.acme.domains"),
            ("domains = []", "tls.acme.domains"),
            ("domains = \"a.example\"", "tls.acme.domains"),
            ("domains = [\"*.a.example\"]", "tls.acme.domains"),
            ("domains = [\"A.example\"]", "tls.acme.domains"),
            ("domains = [\"192.0.2.1\"]", "tls.acme.domains"),
            ("directory = \"http://a.example\"", "tls.acme.directory"),
            (
                "directory = \"https://u:p@a.example\"",
                "tls.acme.directory",
            ),
            ("contacts = [\"a.example\"]", "tls.acme.contacts"),
            ("contacts = [\"a b@a.example\"]", "tls.acme.contacts"),
            ("challenge = \"dns-01\"", "tls.acme.challenge"),
            (
                "domains = [\"a\"]\nlisten = \"0.0.0.0:80\"",
                "tls.acme.listen",
            ),
            ("listen = \"80\"", "tls.acme.listen"),
            ("ca_file = \"ca.pem\"", "tls.acme.ca_file"),
            ("eab_key_id = \"\"", "tls.acme.eab_key_id"),
            (
                "domains = [\"a\"]\neab_key_id = \"k\"",
                "tls.acme.eab_key_file",
            ),
            (
                "domains = [\"a\"]\neab_key_file = \"/k\"",
                "tls.acme.eab_key_id",
            ),
            ("password = \"x\"", "tls.acme"),
        ] {
            let line = acme(text).unwrap_err();
            assert!(line.contains(&format!("`{key}`")), "{text}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn half_of_a_pair_is_one_sentence_with_the_remedy() {
        assert_eq!(
            read("[tls]\ncertificate = \"/c.pem\"").unwrap_err(),
            "`tls.key` is missing: `tls.certificate` is of no use without it, so name both or neither"
        );
        let line = read("[tls]\nkey = \"/k.pem\"").unwrap_err();
        assert!(line.starts_with("`tls.certificate` is missing"), "{line}");
        let both = "[tls]\ncertificate = \"/c\"\nkey = \"/k\"\n[tls.acme]\ndomains = [\"a\"]";
        let line = read(both).unwrap_err();
        assert!(
            line.contains("`tls.acme`") && line.contains("remove"),
            "{line}"
        );
        assert_eq!(read("[tls]\n").unwrap(), TlsSource::Own);
    }
}
