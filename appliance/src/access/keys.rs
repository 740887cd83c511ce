//! The keys that tokens are signed with: the newest signs, older ones check until the last token that they
//! signed has ended.

use std::sync::Arc;

use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A signing key is not one.
#[derive(Debug, thiserror::Error)]
#[error("The signing key of tokens in the store cannot be used")]
pub struct SigningKeyError(#[source] Option<rcgen::Error>);

/// A key, as the store has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// `kid` of the tokens that it signs.
    id: String,
    /// PKCS #8.
    der: Vec<u8>,
    /// In seconds since the Unix epoch.
    made_at: u64,
    /// When it signs no more: until when its tokens are good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checks_until: Option<u64>,
    /// Of a build that named no key in its tokens and kept no record of them.
    #[serde(default)]
    unnamed: bool,
}

/// A key that can be used.
pub struct Key {
    record: KeyRecord,
    signing: EncodingKey,
    checking: Arc<DecodingKey>,
}

impl Key {
    /// Made just now.
    pub fn generate(now: u64) -> Result<Self, SigningKeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
        let pair = pair.map_err(|error| SigningKeyError(Some(error)))?;
        Self::open(KeyRecord {
            id: Uuid::new_v4().simple().to_string(),
            der: pair.serialize_der(),
            made_at: now,
            checks_until: None,
            unnamed: false,
        })
    }

    /// The only key of an older build.
    pub fn unnamed(der: Vec<u8>, now: u64) -> Result<Self, SigningKeyError> {
        Self::open(KeyRecord {
            id: Uuid::new_v4().simple().to_string(),
            der,
            made_at: now,
            checks_until: None,
            unnamed: true,
        })
    }

    fn open(record: KeyRecord) -> Result<Self, SigningKeyError> {
        let pair = rcgen::KeyPair::try_from(&record.der[..]);
        let pair = pair.map_err(|error| SigningKeyError(Some(error)))?;
        Ok(Self {
            signing: EncodingKey::from_ed_der(&record.der),
            checking: Arc::new(DecodingKey::from_ed_der(pair.public_key_raw())),
            record,
        })
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn signing(&self) -> &EncodingKey {
        &self.signing
    }

    pub fn checking(&self) -> Arc<DecodingKey> {
        Arc::clone(&self.checking)
    }

    /// Whether tokens may exist of which there is no record.
    pub fn is_unnamed(&self) -> bool {
        self.record.unnamed
    }
}

/// Never empty; the last one signs.
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    pub fn new(key: Key) -> Self {
        Self { keys: vec![key] }
    }

    /// As [`to_bytes`](Self::to_bytes) wrote it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SigningKeyError> {
        let records: Vec<KeyRecord> =
            serde_json::from_slice(bytes).map_err(|_| SigningKeyError(None))?;
        let keys: Result<Vec<_>, _> = records.into_iter().map(Key::open).collect();
        let keys = keys?;
        match keys.last() {
            Some(_) => Ok(Self { keys }),
            None => Err(SigningKeyError(None)),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let records: Vec<_> = self.keys.iter().map(|key| &key.record).collect();
        // Plain structs of strings and numbers: there is nothing in them that JSON cannot hold.
        serde_json::to_vec(&records).unwrap_or_default()
    }

    /// The key that signs.
    pub fn newest(&self) -> &Key {
        &self.keys[self.keys.len() - 1]
    }

    /// The key that a token was signed with, if it still checks. Tokens of older builds name none.
    pub fn find(&self, id: Option<&str>, now: u64) -> Option<&Key> {
        self.keys.iter().find(|key| {
            let named = match id {
                Some(id) => key.record.id == id,
                None => key.record.unnamed,
            };
            named && key.is_good(now)
        })
    }

    /// With `key` as the one that signs. `until` says how long another one's tokens last.
    pub fn rotated(&self, key: Key, now: u64, until: impl Fn(&Key) -> u64) -> Self {
        let retired = |old: &Key| Key {
            record: KeyRecord {
                checks_until: Some(old.record.checks_until.unwrap_or_else(|| until(old))),
                ..old.record.clone()
            },
            signing: old.signing.clone(),
            checking: old.checking(),
        };
        let mut keys: Vec<_> = self.keys.iter().map(retired).collect();
        keys.retain(|key| key.is_good(now));
        keys.push(key);
        Self { keys }
    }

    /// Nothing but the one that signs.
    pub fn keep_newest(&mut self) {
        self.keys.drain(..self.keys.len() - 1);
    }

    /// Forgets keys whose tokens have ended. Says whether there were any.
    pub fn tidy(&mut self, now: u64) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| key.is_good(now));
        self.keys.len() < before
    }

    /// Whether a key of an older build is among them.
    pub fn has_unnamed(&self) -> bool {
        self.keys.iter().any(Key::is_unnamed)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Key {
    fn is_good(&self, now: u64) -> bool {
        self.record.checks_until.is_none_or(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_key_signs_and_older_ones_check_until_their_tokens_end() {
        let first = Key::unnamed(Key::generate(0).unwrap().record.der, 0).unwrap();
        let first_id = first.id().to_owned();
        let ring = Keyring::new(first);
        assert!(ring.has_unnamed() && ring.find(None, 5).is_some());
        let ring = ring.rotated(Key::generate(10).unwrap(), 10, |_| 100);
        let ring = Keyring::from_bytes(&ring.to_bytes()).unwrap();
        assert_ne!(ring.newest().id(), first_id);
        assert!(ring.find(Some(&first_id), 99).is_some() && ring.find(None, 99).is_some());
        assert!(ring.find(Some(&first_id), 100).is_none() && ring.find(None, 100).is_none());
        assert!(ring.find(Some(ring.newest().id()), 1 << 40).is_some());
        // A second rotation does not make the first key live longer, and drops what has signed nothing.
        let mut ring = ring.rotated(Key::generate(20).unwrap(), 20, |_| 20);
        assert_eq!(ring.len(), 2);
        assert!(ring.find(Some(&first_id), 99).is_some());
        assert!(!ring.tidy(99) && ring.tidy(100) && ring.len() == 1 && !ring.has_unnamed());
    }

    #[test]
    fn what_is_not_a_list_of_keys_is_refused() {
        for bad in [
            &b""[..],
            b"[]",
            b"{}",
            br#"[{"id":"a","der":[1,2],"madeAt":0}]"#,
        ] {
            assert!(Keyring::from_bytes(bad).is_err());
        }
    }
}
