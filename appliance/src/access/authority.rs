//! Makes and checks tokens.
//!
//! A token is a JWT signed with Ed25519 by a key that never leaves the store. It says which roles it
//! carries, and where.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::bearer::{self, invalid};
use super::{Claims, Grant};
use crate::front::refusal::Refusal;
use crate::pool::{PoolName, unix_millis};

/// The audience that clients of the cloud service ask for.
pub const AUDIENCE: &str = "https://dynamicsessions.io";

const ISSUER: &str = "cabana";
/// Clocks of hosts that make tokens and hosts that check them may differ by so much.
const LEEWAY_SECONDS: u64 = 5;
/// Checked tokens that are remembered. Checking a signature costs more than all else in a request.
const REMEMBERED: usize = 1024;

/// What a token says, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payload {
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
    /// An older build finds no roles then and refuses the token: it does not know all limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<Grant>,
    /// As older builds said it.
    #[serde(default, skip_serializing)]
    roles: Vec<String>,
    #[serde(default, skip_serializing)]
    pools: Vec<PoolName>,
}

impl Payload {
    fn claims(self) -> Claims {
        let grant = self.grant.unwrap_or_else(|| Grant {
            roles: self
                .roles
                .iter()
                .filter_map(|role| role.parse().ok())
                .collect(),
            pools: self.pools,
            ..Grant::default()
        });
        Claims::new(vec![grant])
    }
}

/// A token and when it ends, in seconds since the Unix epoch.
#[derive(Debug, Clone)]
pub struct Issued {
    pub token: String,
    pub expires_at: u64,
}

/// The signing key is not one.
#[derive(Debug, thiserror::Error)]
#[error("The signing key in the store cannot be used")]
pub struct SigningKeyError(#[source] rcgen::Error);

/// The token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("A token could not be signed")]
pub struct SignError(#[source] jsonwebtoken::errors::Error);

/// What is known of a token whose signature was right.
#[derive(Clone)]
struct Checked {
    claims: Arc<Claims>,
    expires_at: u64,
}

/// Makes and checks tokens.
pub struct Authority {
    signing: EncodingKey,
    checking: DecodingKey,
    rules: Validation,
    /// By the SHA-256 of the token.
    checked: Mutex<HashMap<[u8; 32], Checked>>,
}

impl Authority {
    /// A new signing key, for the store.
    pub fn new_key() -> Result<Vec<u8>, SigningKeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(SigningKeyError)?;
        Ok(pair.serialize_der())
    }

    /// Uses a key of [`new_key`](Self::new_key).
    pub fn new(key: &[u8]) -> Result<Self, SigningKeyError> {
        let pair = rcgen::KeyPair::try_from(key).map_err(SigningKeyError)?;
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        rules.set_required_spec_claims(&["exp", "aud", "iss"]);
        rules.leeway = LEEWAY_SECONDS;
        Ok(Self {
            signing: EncodingKey::from_ed_der(key),
            checking: DecodingKey::from_ed_der(pair.public_key_raw()),
            rules,
            checked: Mutex::new(HashMap::new()),
        })
    }

    /// Makes a token.
    pub fn sign(&self, grant: &Grant, ttl: Duration) -> Result<Issued, SignError> {
        let now = unix_millis() / 1000;
        let payload = Payload {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
            jti: Uuid::new_v4().to_string(),
            grant: Some(grant.clone()),
            roles: Vec::new(),
            pools: Vec::new(),
        };
        let token = self.signed(&payload).map_err(SignError)?;
        Ok(Issued {
            token,
            expires_at: payload.exp,
        })
    }

    /// Checks the token of a request. The refusal says what is missing.
    pub async fn check(&self, headers: &HeaderMap) -> Result<Arc<Claims>, Refusal> {
        let token = bearer::token(headers)?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.remembered(&key) {
            return Ok(claims);
        }
        let decoded = jsonwebtoken::decode::<Payload>(token, &self.checking, &self.rules);
        let payload = decoded.map_err(|error| invalid(flaw(error.kind())))?.claims;
        let checked = Checked {
            expires_at: payload.exp,
            claims: Arc::new(payload.claims()),
        };
        let claims = Arc::clone(&checked.claims);
        let mut remembered = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, checked);
        Ok(claims)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Arc<Claims>> {
        let mut remembered = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = remembered.get(key)?;
        if checked.expires_at.saturating_add(LEEWAY_SECONDS) > unix_millis() / 1000 {
            return Some(Arc::clone(&checked.claims));
        }
        remembered.remove(key);
        None
    }

    fn signed(&self, payload: &Payload) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), payload, &self.signing)
    }
}

fn flaw(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "The token has expired",
        ErrorKind::InvalidSignature => "The token was not signed by this appliance",
        ErrorKind::InvalidAudience => {
            "The token is for another audience than https://dynamicsessions.io"
        }
        ErrorKind::InvalidIssuer => "The token is of an unknown issuer",
        ErrorKind::ImmatureSignature => "The token is not valid yet",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "The token is signed with another algorithm than EdDSA"
        }
        ErrorKind::MissingRequiredClaim(_) => "The token lacks a required claim (exp, aud, iss)",
        _ => "The token is malformed",
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;
    use crate::access::{Role, Scope, testing};
    use crate::front::refusal::Code;

    fn headers(value: &str) -> HeaderMap {
        [(header::AUTHORIZATION, value.parse().unwrap())]
            .into_iter()
            .collect()
    }

    fn payload() -> Payload {
        let now = unix_millis() / 1000;
        Payload {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            iat: now,
            exp: now + 60,
            jti: "1".into(),
            grant: Some(Grant::of(Role::SessionExecutor)),
            roles: vec![],
            pools: vec![],
        }
    }

    #[tokio::test]
    async fn token_that_was_issued_is_accepted_again_and_again() {
        let authority = testing::authority().await;
        let grant = Grant::of(Role::SessionExecutor);
        let issued = authority.sign(&grant, Duration::from_secs(60)).unwrap();
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let value = format!("{scheme} {}", issued.token);
            let claims = authority.check(&headers(&value)).await.unwrap();
            assert_eq!(*claims, testing::claims(grant.clone()));
        }
    }

    #[tokio::test]
    async fn every_flaw_of_a_token_is_named() {
        let authority = testing::authority().await;
        let other = testing::authority().await;
        let sign = |change: fn(&mut Payload)| {
            let mut payload = payload();
            change(&mut payload);
            format!("Bearer {}", authority.signed(&payload).unwrap())
        };
        let good = authority.signed(&payload()).unwrap();
        let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
        let hmac = jsonwebtoken::encode(
            &Header::default(),
            &payload(),
            &EncodingKey::from_secret(b"x"),
        );
        for (value, expected) in [
            (sign(|payload| payload.exp = 1000), "expired"),
            (
                sign(|payload| payload.aud = "https://management.azure.com/".into()),
                "another audience",
            ),
            (
                sign(|payload| payload.iss = "stranger".into()),
                "unknown issuer",
            ),
            (
                format!("Bearer {}", other.signed(&payload()).unwrap()),
                "not signed by this appliance",
            ),
            (format!("Bearer {unsigned}"), "not signed by this appliance"),
            (format!("Bearer {}", hmac.unwrap()), "another algorithm"),
            ("Bearer x.y.z".into(), "malformed"),
            ("Bearer".into(), "not of the form"),
            ("Bearer ".into(), "not of the form"),
            ("Basic dXNlcjpwdw==".into(), "not of the form"),
            (
                format!("Bearer {}", "x".repeat(bearer::MAX_TOKEN_BYTES + 1)),
                "not of the form",
            ),
        ] {
            let refusal = authority.check(&headers(&value)).await.unwrap_err();
            assert_eq!(refusal.code, Code::Unauthorized);
            assert!(
                refusal.message.contains(expected),
                "{expected}: {}",
                refusal.message
            );
            assert!(refusal.headers.contains_key(header::WWW_AUTHENTICATE));
        }
        let missing = authority.check(&HeaderMap::new()).await.unwrap_err();
        assert_eq!(
            missing.headers[header::WWW_AUTHENTICATE],
            "Bearer realm=\"cabana\""
        );
        let mut twice = headers(&format!("Bearer {good}"));
        twice.append(
            header::AUTHORIZATION,
            format!("Bearer {good}").parse().unwrap(),
        );
        let refusal = authority.check(&twice).await.unwrap_err();
        assert!(refusal.message.contains("more than once"));
    }

    /// As the first release wrote it: this test may be added to, not changed.
    #[tokio::test]
    async fn token_of_an_older_build_is_still_good_for_its_pools() {
        let authority = testing::authority().await;
        let now = unix_millis() / 1000;
        let payload = serde_json::json!({
            "iss": "cabana", "aud": "https://dynamicsessions.io", "iat": now, "exp": now + 60,
            "jti": "6fd1b5c4-3f4b-4b0c-9d0f-0d4a1f4f7c11", "roles": ["session-executor"], "pools": ["alpha"],
        });
        let header = Header::new(Algorithm::EdDSA);
        let token = jsonwebtoken::encode(&header, &payload, &authority.signing).unwrap();
        let claims = authority
            .check(&headers(&format!("Bearer {token}")))
            .await
            .unwrap();
        assert!(claims.sees(&[Role::SessionExecutor], Scope::nowhere("alpha")));
        assert!(!claims.sees(&[Role::SessionExecutor], Scope::nowhere("beta")));
    }

    #[tokio::test]
    async fn remembered_token_expires_like_any_other() {
        let authority = testing::authority().await;
        let token = "remembered";
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let old = Checked {
            claims: Arc::new(payload().claims()),
            expires_at: unix_millis() / 1000 - LEEWAY_SECONDS - 1,
        };
        authority.checked.lock().unwrap().insert(key, old);
        let value = format!("Bearer {token}");
        assert!(authority.check(&headers(&value)).await.is_err());
        assert!(authority.checked.lock().unwrap().is_empty());
    }
}
