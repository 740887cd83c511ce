//! Secrets of pools at rest: AES-256-GCM with a key that is in the store's table of keys, so that an
//! export without keys tells nobody anything.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::images::registry::Secret;
use crate::store::{PoolSecret, SealedText};

/// Bytes of a key, made at random once.
pub const KEY_BYTES: usize = 32;

/// Seals and opens.
pub struct Vault {
    key: RandomizedNonceKey,
}

/// Only a store that was put together from several can lead here.
#[derive(Debug, thiserror::Error)]
#[error("it was sealed with another key than this store's")]
pub struct WrongKey;

impl Vault {
    pub fn new(key: &[u8]) -> Result<Self, WrongKey> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| WrongKey)?;
        Ok(Self { key })
    }

    /// The secret of a pool; good for this pool and this name alone.
    pub fn seal(&self, pool: &str, name: &str, value: &str) -> Result<PoolSecret, WrongKey> {
        let mut text = value.as_bytes().to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(place(pool, name), &mut text);
        let nonce = nonce.map_err(|_| WrongKey)?;
        let sealed = [nonce.as_ref().as_slice(), &text].concat();
        Ok(PoolSecret {
            name: name.to_owned(),
            sealed: SealedText(STANDARD.encode(sealed)),
        })
    }

    pub fn open(&self, pool: &str, secret: &PoolSecret) -> Result<Secret, WrongKey> {
        let sealed = STANDARD.decode(&secret.sealed.0).map_err(|_| WrongKey)?;
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(WrongKey)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| WrongKey)?;
        let mut text = text.to_vec();
        let opened = self
            .key
            .open_in_place(nonce, place(pool, &secret.name), &mut text);
        let value = str::from_utf8(opened.map_err(|_| WrongKey)?).map_err(|_| WrongKey)?;
        Ok(Secret::new(value))
    }
}

/// What a sealed secret is bound to: neither part can hold the zero byte.
fn place(pool: &str, name: &str) -> Aad<Vec<u8>> {
    Aad::from([pool.as_bytes(), b"\0", name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_opens_with_its_key_in_its_place_only() {
        let vault = Vault::new(&[7; KEY_BYTES]).unwrap();
        let sealed = vault.seal("alpha", "password", "hunter2").unwrap();
        assert_eq!(vault.open("alpha", &sealed).unwrap().expose(), "hunter2");
        assert!(!format!("{sealed:?}").contains(&sealed.sealed.0));
        assert_ne!(sealed, vault.seal("alpha", "password", "hunter2").unwrap());
        assert!(vault.open("beta", &sealed).is_err());
        let renamed = PoolSecret {
            name: "other".into(),
            ..sealed.clone()
        };
        assert!(vault.open("alpha", &renamed).is_err());
        let other = Vault::new(&[8; KEY_BYTES]).unwrap();
        assert!(other.open("alpha", &sealed).is_err());
        for damaged in ["", "AAAA", "?"] {
            let sealed = PoolSecret {
                sealed: SealedText(damaged.into()),
                ..sealed.clone()
            };
            assert!(vault.open("alpha", &sealed).is_err());
        }
        assert!(Vault::new(b"short").is_err());
    }
}
