//! Bearer tokens: made and checked by this appliance.
//!
//! A token is a JWT signed with Ed25519 by a key that never leaves the store. It says which roles it
//! carries and for which pools; nothing about it is kept, so it is valid until it expires.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::refusal::{Code, Refusal};
use crate::pool::{PoolName, unix_millis};

/// The audience that clients of the cloud service ask for.
pub const AUDIENCE: &str = "https://dynamicsessions.io";
/// The role that may use sessions.
pub const SESSION_EXECUTOR: &str = "session-executor";

const ISSUER: &str = "cabana";
/// Clocks of hosts that make tokens and hosts that check them may differ by so much.
const LEEWAY_SECONDS: u64 = 5;
/// No real token is longer; what is longer is not even hashed.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Checked tokens that are remembered. Checking a signature costs more than all else in a request.
const REMEMBERED: usize = 1024;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
    roles: Vec<String>,
    /// Empty: all pools.
    #[serde(default)]
    pools: Vec<PoolName>,
}

impl Claims {
    /// Whether the bearer may use sessions of this pool.
    pub fn permit(&self, role: &str, pool: &PoolName) -> Result<(), Refusal> {
        if !self.roles.iter().any(|held| held == role) {
            let message =
                format!("The token does not carry the role {role}, which this call needs");
            return Err(Refusal::new(Code::Forbidden, message));
        }
        if !self.pools.is_empty() && !self.pools.contains(pool) {
            let message = format!("The token carries the role {role}, but not for the pool {pool}");
            return Err(Refusal::new(Code::Forbidden, message));
        }
        Ok(())
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

/// Makes and checks tokens.
pub struct Authority {
    signing: EncodingKey,
    checking: DecodingKey,
    rules: Validation,
    /// SHA-256 of a token → what it says. Only tokens whose signature was right.
    checked: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
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

    /// Makes a token. No pools: all of them.
    pub fn issue(
        &self,
        roles: &[&str],
        pools: &[PoolName],
        ttl: Duration,
    ) -> Result<Issued, SignError> {
        let now = unix_millis() / 1000;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
            jti: Uuid::new_v4().to_string(),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            pools: pools.to_vec(),
        };
        let token = self.sign(&claims).map_err(SignError)?;
        Ok(Issued {
            token,
            expires_at: claims.exp,
        })
    }

    /// Checks the token of a request. The refusal says what is missing.
    pub fn check(&self, headers: &HeaderMap) -> Result<Arc<Claims>, Refusal> {
        let token = bearer(headers)?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.remembered(&key) {
            return Ok(claims);
        }
        let checked = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.rules);
        let claims = Arc::new(checked.map_err(|error| invalid(error.kind()))?.claims);
        let mut remembered = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, Arc::clone(&claims));
        Ok(claims)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Arc<Claims>> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = checked.get(key)?;
        if claims.exp.saturating_add(LEEWAY_SECONDS) > unix_millis() / 1000 {
            return Some(Arc::clone(claims));
        }
        checked.remove(key);
        None
    }

    fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.signing)
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let message = "The Authorization header is missing; send \"Authorization: Bearer <token>\"";
        // RFC 6750 section 3.1: no error code when nothing was presented.
        return Err(Refusal::new(Code::Unauthorized, message)
            .header(header::WWW_AUTHENTICATE, "Bearer realm=\"cabana\""));
    };
    if values.next().is_some() {
        return Err(challenge(
            "invalid_request",
            "The Authorization header is there more than once",
        ));
    }
    let value = value.to_str().unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer")
                && !token.trim().is_empty()
                && token.len() <= MAX_TOKEN_BYTES =>
        {
            Ok(token.trim())
        }
        _ => Err(challenge(
            "invalid_request",
            "The Authorization header is not of the form Bearer <token>",
        )),
    }
}

fn invalid(kind: &ErrorKind) -> Refusal {
    let message = match kind {
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
    };
    challenge("invalid_token", message)
}

fn challenge(error: &str, message: &str) -> Refusal {
    let value =
        format!("Bearer realm=\"cabana\", error=\"{error}\", error_description=\"{message}\"");
    Refusal::new(Code::Unauthorized, message).header(header::WWW_AUTHENTICATE, &value)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn authority() -> Authority {
        Authority::new(&Authority::new_key().unwrap()).unwrap()
    }

    fn headers(value: &str) -> HeaderMap {
        [(header::AUTHORIZATION, value.parse().unwrap())]
            .into_iter()
            .collect()
    }

    fn claims() -> Claims {
        let now = unix_millis() / 1000;
        Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            iat: now,
            exp: now + 60,
            jti: "1".into(),
            roles: vec![SESSION_EXECUTOR.into()],
            pools: vec![],
        }
    }

    #[test]
    fn token_that_was_issued_is_accepted_again_and_again() {
        let authority = authority();
        let issued = authority
            .issue(&[SESSION_EXECUTOR], &[], Duration::from_secs(60))
            .unwrap();
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let claims = authority
                .check(&headers(&format!("{scheme} {}", issued.token)))
                .unwrap();
            assert_eq!(claims.exp, issued.expires_at);
        }
    }

    #[test]
    fn every_flaw_of_a_token_is_named() {
        let authority = authority();
        let other = tests::authority();
        let sign = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            format!("Bearer {}", authority.sign(&claims).unwrap())
        };
        let good = authority.sign(&claims()).unwrap();
        let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
        let hmac = jsonwebtoken::encode(
            &Header::default(),
            &claims(),
            &EncodingKey::from_secret(b"x"),
        );
        for (value, expected) in [
            (sign(|claims| claims.exp = 1000), "expired"),
            (
                sign(|claims| claims.aud = "https://management.azure.com/".into()),
                "another audience",
            ),
            (
                sign(|claims| claims.iss = "stranger".into()),
                "unknown issuer",
            ),
            (
                format!("Bearer {}", other.sign(&claims()).unwrap()),
                "not signed by this appliance",
            ),
            (format!("Bearer {unsigned}"), "not signed by this appliance"),
            (format!("Bearer {}", hmac.unwrap()), "another algorithm"),
            ("Bearer x.y.z".into(), "malformed"),
            ("Bearer".into(), "not of the form"),
            ("Bearer ".into(), "not of the form"),
            ("Basic dXNlcjpwdw==".into(), "not of the form"),
            (
                format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1)),
                "not of the form",
            ),
        ] {
            let refusal = authority.check(&headers(&value)).unwrap_err();
            assert_eq!(refusal.code, Code::Unauthorized);
            assert!(
                refusal.message.contains(expected),
                "{expected}: {}",
                refusal.message
            );
            assert!(refusal.headers.contains_key(header::WWW_AUTHENTICATE));
        }
        let missing = authority.check(&HeaderMap::new()).unwrap_err();
        assert_eq!(
            missing.headers[header::WWW_AUTHENTICATE],
            "Bearer realm=\"cabana\""
        );
        let mut twice = headers(&format!("Bearer {good}"));
        twice.append(
            header::AUTHORIZATION,
            format!("Bearer {good}").parse().unwrap(),
        );
        assert!(
            authority
                .check(&twice)
                .unwrap_err()
                .message
                .contains("more than once")
        );
    }

    #[test]
    fn role_and_pool_are_named_when_they_are_missing() {
        let [alpha, beta] = ["alpha", "beta"].map(|name| name.parse::<PoolName>().unwrap());
        let bound = Claims {
            pools: vec![alpha.clone()],
            ..claims()
        };
        assert!(bound.permit(SESSION_EXECUTOR, &alpha).is_ok());
        let refusal = bound.permit(SESSION_EXECUTOR, &beta).unwrap_err();
        assert!(refusal.message.contains("beta"), "{}", refusal.message);
        let reader = Claims {
            roles: vec!["reader".into()],
            ..claims()
        };
        let refusal = reader.permit(SESSION_EXECUTOR, &alpha).unwrap_err();
        assert!(
            refusal.message.contains(SESSION_EXECUTOR),
            "{}",
            refusal.message
        );
        assert!(claims().permit(SESSION_EXECUTOR, &beta).is_ok());
    }

    #[test]
    fn remembered_token_expires_like_any_other() {
        let authority = authority();
        let token = "remembered";
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let old = Claims {
            exp: unix_millis() / 1000 - LEEWAY_SECONDS - 1,
            ..claims()
        };
        authority.checked.lock().unwrap().insert(key, Arc::new(old));
        assert!(
            authority
                .check(&headers(&format!("Bearer {token}")))
                .is_err()
        );
        assert!(authority.checked.lock().unwrap().is_empty());
    }
}
