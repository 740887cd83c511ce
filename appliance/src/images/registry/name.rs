//! Names of images in registries, by Docker's grammar (`distribution/reference`).
//!
//! ```text
//! [host[:port]/]repository[:tag][@sha256:digest]
//! ```
//!
//! The first part is a host if it has a dot or a colon or is `localhost`; without a host the image is
//! Docker Hub's, and without a slash after that, one of its library. A digest says more than a tag:
//! with both, the tag is for people.

use std::fmt;
use std::str::FromStr;

use crate::dns_name::is_dns_name;
use crate::images::digest::Digest;
use crate::images::error::{ImageError, printable};

/// What a name without a host means.
pub const DOCKER_HUB: &str = "docker.io";
/// Other names of the same registry, seen in the wild.
const DOCKER_HUB_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];
/// Where Docker Hub answers the registry's protocol.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
const LIBRARY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Of host and repository together.
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A host with an optional port, in lower case. Docker Hub is always `docker.io`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost(String);

impl RegistryHost {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where its protocol is spoken.
    pub fn api(&self) -> &str {
        match self.0.as_str() {
            DOCKER_HUB => DOCKER_HUB_API,
            other => other,
        }
    }

    /// Without the port.
    pub fn name(&self) -> &str {
        match self
            .0
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
        {
            Some((address, _)) => address,
            None => self.0.split(':').next().unwrap_or_default(),
        }
    }

    /// Whether what is said to it stays on this host.
    pub fn is_loopback(&self) -> bool {
        let address = self.name().parse::<std::net::IpAddr>();
        self.name() == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RegistryHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.to_ascii_lowercase();
        if DOCKER_HUB_ALIASES.contains(&host.as_str()) {
            return Ok(Self(DOCKER_HUB.to_owned()));
        }
        if is_host(&host) {
            return Ok(Self(host));
        }
        let text = printable(text.as_bytes());
        Err(format!(
            "'{text}' is not the host of a registry, like registry.example:5000"
        ))
    }
}

/// A name that says which registry, which repository, and which of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub host: RegistryHost,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Digest or tag, as the registry's protocol wants it.
    pub fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same image in the same repository, whatever its tag comes to mean.
    pub fn pinned(&self, digest: &Digest) -> Self {
        Self {
            digest: Some(digest.clone()),
            ..self.clone()
        }
    }
}

/// In full, with host and tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        match (&self.tag, &self.digest) {
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, None) => write!(f, ":{DEFAULT_TAG}")?,
            (None, Some(_)) => {}
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = |why: String| {
            let text = printable(text.as_bytes());
            ImageError::name(format!("'{text}' is not the name of an image: {why}"))
        };
        if text.is_empty() {
            return Err(ImageError::name("The name of the image is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse::<Digest>()
                    .map_err(|error| wrong(error.to_string()))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong(format!(
                "the tag after ':' must be 1 to {TAG_LIMIT} letters, digits, '_', '.' and '-', and not begin with '.' or '-'"
            )));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if looks_like_host(first) => (first, path),
            _ => (DOCKER_HUB, name),
        };
        let host: RegistryHost = host.parse().map_err(wrong)?;
        let library = host.as_str() == DOCKER_HUB && !path.contains('/');
        let repository = format!("{}{path}", if library { LIBRARY } else { "" });
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(wrong(
                "upper-case letters are not allowed in a repository".into(),
            ));
        }
        if !repository.split('/').all(is_component) {
            return Err(wrong(
                "a repository is made of lower-case letters and digits, with '.', '_', '__' or '-' between them, and '/'".into(),
            ));
        }
        if host.as_str().len() + 1 + repository.len() > NAME_LIMIT {
            return Err(wrong(format!("it is longer than {NAME_LIMIT} bytes")));
        }
        Ok(Self {
            host,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Docker's rule for the first part of a name.
fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let port =
        |port: &str| port.parse::<u16>().is_ok_and(|number| number > 0) && !port.starts_with('+');
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
        return is_address && (rest.is_empty() || rest.strip_prefix(':').is_some_and(port));
    }
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (name, Some(number)),
        None => (text, None),
    };
    is_dns_name(name) && number.is_none_or(port)
}

fn is_tag(tag: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=TAG_LIMIT).contains(&tag.len()) && !tag.starts_with(['.', '-']) && tag.bytes().all(allowed)
}

/// Runs of letters and digits with one separator between them: `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_in_words =
        bytes.first().is_some_and(|b| is_word(*b)) && bytes.last().is_some_and(|b| is_word(*b));
    ends_in_words
        && bytes.split(|b| is_word(*b)).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageErrorCode;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_mean_docker_hub_and_its_library() {
        for (short, long) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/team/app:1", "docker.io/team/app:1"),
            (
                "registry-1.docker.io/library/x",
                "docker.io/library/x:latest",
            ),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("Registry.Example/app", "registry.example/app:latest"),
            ("ghcr.io/o/a-b__c.d:V_1.0-x", "ghcr.io/o/a-b__c.d:V_1.0-x"),
        ] {
            assert_eq!(full(short), long, "{short}");
            assert_eq!(full(long), long, "a full name means itself");
        }
    }

    #[test]
    fn digest_wins_over_the_tag_that_is_kept_for_people() {
        let both: Reference = format!("app:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.version(), DIGEST);
        assert_eq!(
            both.to_string(),
            format!("docker.io/library/app:1@{DIGEST}")
        );
        let only: Reference = format!("x.example:1/app@{DIGEST}").parse().unwrap();
        assert_eq!((only.tag.clone(), only.version()), (None, DIGEST));
        assert_eq!(only.to_string(), format!("x.example:1/app@{DIGEST}"));
        let tag: Reference = "app".parse().unwrap();
        assert_eq!(tag.version(), "latest");
        assert_eq!(tag.pinned(only.digest.as_ref().unwrap()).version(), DIGEST);
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (bad, reason) in [
            ("", "empty"),
            ("App", "upper-case"),
            ("team/App:1", "upper-case"),
            ("app:", "tag"),
            ("app:-x", "tag"),
            ("app:a b", "tag"),
            ("a//b", "repository"),
            ("/a", "repository"),
            ("a/", "repository"),
            ("a..b", "repository"),
            ("a___b", "repository"),
            ("-a", "repository"),
            ("../../etc", "host"),
            ("a/../b", "repository"),
            ("a?b", "repository"),
            ("host.example:x/a", "host"),
            ("host.example:0/a", "host"),
            ("host.example:65536/a", "host"),
            ("[::zz]:1/a", "host"),
            ("u:p@host.example/a", "digest"),
            ("https://host.example/a", "host"),
            ("app@sha256:12", "digest"),
            ("app@sha512:00", "digest"),
        ] {
            let error = bad.parse::<Reference>().unwrap_err();
            assert_eq!(error.code, ImageErrorCode::ImageNameInvalid, "{bad}");
            assert!(error.message.contains(reason), "{bad}: {error}");
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_known_by_name_and_by_address() {
        for (host, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.8.9.1:80", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
        ] {
            let parsed: RegistryHost = host.parse().unwrap();
            assert_eq!(parsed.is_loopback(), loopback, "{host}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_safe_in_a_url_and_means_itself(text in "[a-zA-Z0-9:/@._\\[\\]%?# -]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let name = reference.to_string();
                prop_assert_eq!(name.parse::<Reference>().unwrap(), Reference {
                    tag: reference.tag.clone().or_else(|| reference.digest.is_none().then(|| "latest".into())),
                    ..reference.clone()
                });
                prop_assert!(!reference.repository.contains(['%', '?', '#', ' ', '@', ':']));
                prop_assert!(!reference.repository.split('/').any(|part| part.starts_with('.') || part.is_empty()));
            }
        }
    }
}
