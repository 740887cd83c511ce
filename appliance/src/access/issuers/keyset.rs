//! A JSON Web Key Set (RFC 7517), as far as it can check signatures. Written by a stranger, so bounded.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// Longest key set; real ones have a few KiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Keys of one set that are looked at; issuers publish a handful.
const MAX_KEYS: usize = 64;
/// Shorter ones can be broken, longer ones make checking slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// A key, and what it checks: its type decides, and not the token.
struct IssuerKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: Arc<DecodingKey>,
}

/// The keys of an issuer that can be used; at least one.
pub struct KeySet {
    keys: Vec<IssuerKey>,
}

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// None has this id. The issuer may have a new one.
    Unknown,
    /// The token names none, and there are several.
    Unnamed,
    /// The key that it names is for other algorithms.
    Algorithm,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// What is no key that we can use is left out: issuers publish others beside.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|_| "what it sent is not a JSON Web Key Set")?;
        let keys = document.keys.into_iter().take(MAX_KEYS);
        let keys: Vec<_> = keys.filter_map(IssuerKey::of).collect();
        match keys.is_empty() {
            true => Err("there is no key in its key set that checks signatures"),
            false => Ok(Self { keys }),
        }
    }

    /// The key that a token says it was signed with.
    pub fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<DecodingKey>, NoKey> {
        let fits = |key: &&IssuerKey| key.algorithms.contains(&algorithm);
        let Some(id) = id else {
            let mut fitting = self.keys.iter().filter(fits);
            return match (fitting.next(), fitting.next()) {
                (Some(only), None) => Ok(Arc::clone(&only.key)),
                (Some(_), Some(_)) => Err(NoKey::Unnamed),
                (None, _) => Err(NoKey::Algorithm),
            };
        };
        let mut named = self
            .keys
            .iter()
            .filter(|key| key.id.as_deref() == Some(id))
            .peekable();
        if named.peek().is_none() {
            return Err(NoKey::Unknown);
        }
        named
            .find(fits)
            .map(|key| Arc::clone(&key.key))
            .ok_or(NoKey::Algorithm)
    }
}

impl IssuerKey {
    fn of(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let common = &jwk.common;
        let signs = match (&common.public_key_use, &common.key_operations) {
            (Some(usage), _) => *usage == PublicKeyUse::Signature,
            (None, Some(operations)) => operations.contains(&KeyOperations::Verify),
            (None, None) => true,
        };
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) if RSA_BITS.contains(&bits(&key.n)?) => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            // Among them secrets: who can read those can sign.
            _ => return None,
        };
        if let Some(only) = common.key_algorithm {
            let only = Algorithm::try_from(only).ok()?;
            algorithms.retain(|algorithm| *algorithm == only);
        }
        if !signs || algorithms.is_empty() {
            return None;
        }
        Some(Self {
            key: Arc::new(DecodingKey::from_jwk(&jwk).ok()?),
            id: jwk.common.key_id,
            algorithms,
        })
    }
}

fn bits(modulus: &str) -> Option<usize> {
    let bytes = URL_SAFE_NO_PAD.decode(modulus).ok()?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let first = bytes.get(zeros)?;
    Some((bytes.len() - zeros) * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(bytes: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0xff; bytes])
    }

    fn find(key: Value, id: Option<&str>, algorithm: Algorithm) -> Result<(), NoKey> {
        let set = json!({ "keys": [key] }).to_string();
        KeySet::parse(set.as_bytes())
            .unwrap()
            .find(id, algorithm)
            .map(|_| ())
    }

    #[test]
    fn type_of_the_key_decides_what_it_checks() {
        let rsa = json!({ "kty": "RSA", "kid": "a", "n": text(256), "e": "AQAB" });
        let p256 = json!({ "kty": "EC", "kid": "a", "crv": "P-256", "x": text(32), "y": text(32) });
        let ed = json!({ "kty": "OKP", "kid": "a", "crv": "Ed25519", "x": text(32) });
        let all = [
            Algorithm::HS256,
            Algorithm::RS256,
            Algorithm::PS512,
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::EdDSA,
        ];
        for (key, good) in [
            (&rsa, &[Algorithm::RS256, Algorithm::PS512][..]),
            (&p256, &[Algorithm::ES256]),
            (&ed, &[Algorithm::EdDSA]),
        ] {
            for algorithm in all {
                let found = find(key.clone(), Some("a"), algorithm);
                let expected = if good.contains(&algorithm) {
                    Ok(())
                } else {
                    Err(NoKey::Algorithm)
                };
                assert_eq!(found, expected, "{key} {algorithm:?}");
            }
            assert_eq!(find(key.clone(), Some("b"), good[0]), Err(NoKey::Unknown));
            assert_eq!(find(key.clone(), None, good[0]), Ok(()));
        }
        let mut only = rsa.clone();
        only["alg"] = json!("RS256");
        assert_eq!(find(only.clone(), Some("a"), Algorithm::RS256), Ok(()));
        assert_eq!(
            find(only, Some("a"), Algorithm::PS256),
            Err(NoKey::Algorithm)
        );
    }

    #[test]
    fn what_does_not_check_signatures_is_left_out() {
        let good = json!({ "kty": "OKP", "crv": "Ed25519", "x": text(32) });
        let with = |field: &str, value: Value| {
            let mut key = good.clone();
            key[field] = value;
            key
        };
        let nothing_left =
            |key: Value| KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).is_err();
        assert!(!nothing_left(good.clone()) && !nothing_left(with("use", json!("sig"))));
        for bad in [
            json!({ "kty": "oct", "k": text(32) }),
            json!({ "kty": "oct", "k": text(32), "alg": "HS256" }),
            json!({ "kty": "RSA", "n": text(128), "e": "AQAB" }),
            json!({ "kty": "RSA", "n": text(2048), "e": "AQAB" }),
            json!({ "kty": "EC", "crv": "P-521", "x": text(66), "y": text(66) }),
            with("use", json!("enc")),
            with("key_ops", json!(["encrypt"])),
            with("alg", json!("RS256")),
            with("alg", json!("HS256")),
            with("alg", json!("none")),
            json!({}),
            json!(7),
        ] {
            assert!(nothing_left(bad.clone()), "{bad}");
        }
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn token_that_names_no_key_needs_a_set_with_one_that_fits() {
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": text(32) });
        let p256 = json!({ "kty": "EC", "crv": "P-256", "x": text(32), "y": text(32) });
        let set = json!({ "keys": [key, p256, key] }).to_string();
        let set = KeySet::parse(set.as_bytes()).unwrap();
        assert_eq!(set.find(None, Algorithm::EdDSA).err(), Some(NoKey::Unnamed));
        assert!(set.find(None, Algorithm::ES256).is_ok());
        assert_eq!(
            set.find(None, Algorithm::RS256).err(),
            Some(NoKey::Algorithm)
        );
    }
}
