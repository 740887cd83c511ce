//! The two names a caller uses: the pool's and its own session's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of a pool: 3 to 63 characters, lower-case letters, digits and hyphens, a letter first, no
/// hyphen last. It is a DNS label, because it becomes one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

/// The rule of [`PoolName`], as a message to people.
pub const POOL_NAME_RULE: &str = "A pool name has 3 to 63 characters: lower-case letters, digits and hyphens, \
     beginning with a letter and not ending with a hyphen";

impl PoolName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As [`str::parse`], but case is forgiven, as resource manager paths and host names do.
    pub fn parse_ignoring_case(text: &str) -> Result<Self, InvalidName> {
        text.to_ascii_lowercase().parse()
    }
}

/// The text is not a name; the message is the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(&'static str);

impl FromStr for PoolName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let well_formed = (3..=63).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && bytes[0].is_ascii_lowercase()
            && bytes[bytes.len() - 1] != b'-';
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(POOL_NAME_RULE))
        }
    }
}

impl TryFrom<String> for PoolName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a caller calls its session. Whoever knows it and has a token owns the session, so it is
/// treated as a secret: it has no `Display`, its `Debug` hides it, and logs carry its
/// [`fingerprint`](Identifier::fingerprint).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identifier(String);

/// The rule of [`Identifier`], as a message to people.
pub const IDENTIFIER_RULE: &str = "An identifier has 4 to 128 characters, each a letter, a digit or one of \
     _|}{[]:\"';<>?/.,@#$%^&*()-+=!~`";

/// The characters that are not letters or digits.
const IDENTIFIER_SYMBOLS: &[u8] = b"_|}{[]:\"';<>?/.,@#$%^&*()-+=!~`";

impl Identifier {
    /// The bytes; comparison of identifiers is comparison of these.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// A short stand-in for logs. It cannot be turned back without the appliance's own key.
    pub fn fingerprint(&self, key: &FingerprintKey) -> String {
        // HMAC (RFC 2104); the key is as short as a block, so it needs no hashing of its own.
        let pad = |byte: u8| key.0.map(|k| k ^ byte);
        let mut inner = Sha256::new();
        inner.update(pad(0x36));
        inner.update(self.as_bytes());
        let mut outer = Sha256::new();
        outer.update(pad(0x5c));
        outer.update(inner.finalize());
        outer.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl FromStr for Identifier {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let well_formed = (4..=128).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || IDENTIFIER_SYMBOLS.contains(&b));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(IDENTIFIER_RULE))
        }
    }
}

impl TryFrom<String> for Identifier {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Identifier> for String {
    fn from(identifier: Identifier) -> Self {
        identifier.0
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identifier(..)")
    }
}

/// The key of [`Identifier::fingerprint`]; 64 bytes, the block size of SHA-256.
#[derive(Clone)]
pub struct FingerprintKey([u8; 64]);

impl FingerprintKey {
    /// Uses `secret`; bytes beyond the block size are ignored.
    pub fn new(secret: &[u8]) -> Self {
        let mut key = [0; 64];
        let used = secret.len().min(key.len());
        key[..used].copy_from_slice(&secret[..used]);
        Self(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_names_follow_the_rule() {
        for good in ["abc", "my-pool-2", &"a".repeat(63)] {
            assert!(good.parse::<PoolName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            "1ab",
            "-ab",
            "ab-",
            "Abc",
            "a_b",
            "a.b",
            "äbc",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad}");
        }
        assert_eq!(
            PoolName::parse_ignoring_case("My-Pool").unwrap().as_str(),
            "my-pool"
        );
    }

    #[test]
    fn identifiers_follow_the_rule() {
        let symbols = String::from_utf8(IDENTIFIER_SYMBOLS.to_vec()).unwrap();
        for good in ["user", "0000", symbols.as_str(), &"x".repeat(128)] {
            assert!(good.parse::<Identifier>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "abc",
            "with blank",
            "tab\there",
            "back\\slash",
            "ümlaut",
            "nul\0",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<Identifier>().is_err(), "{bad}");
        }
    }

    #[test]
    fn identifiers_differ_by_case() {
        assert_ne!(
            "user".parse::<Identifier>().unwrap(),
            "USER".parse().unwrap()
        );
    }

    #[test]
    fn identifier_is_not_shown_by_debug_and_its_fingerprint_depends_on_the_key() {
        let identifier: Identifier = "secret-user".parse().unwrap();
        assert!(!format!("{identifier:?}").contains("secret"));
        let [one, two] = [b"one", b"two"].map(|key| FingerprintKey::new(key));
        assert_eq!(identifier.fingerprint(&one), identifier.fingerprint(&one));
        assert_ne!(identifier.fingerprint(&one), identifier.fingerprint(&two));
    }

    /// RFC 4231, test case 2.
    #[test]
    fn fingerprint_is_an_hmac() {
        let identifier = Identifier("what do ya want for nothing?".into());
        assert_eq!(
            identifier.fingerprint(&FingerprintKey::new(b"Jefe")),
            "5bdcc146bf60754e"
        );
    }
}
