//! Checks the tokens of requests, and makes our own.
//!
//! Checking a signature costs more than all else in a request, so what it has come to is remembered. What can
//! end a token before its time is looked at for every request all the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::HeaderMap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Claims;
use super::audience::Audiences;
use super::bearer::{self, invalid};
use super::failures::Failures;
use super::ledger::{
    ChangeError, Fallen, Issued, LEEWAY_SECONDS, Ledger, OpenError, Rotated, TokenOrder, now,
};
use super::payload::{ISSUER, Payload};
use crate::front::refusal::{Code, Refusal};
use crate::store::{Records, StoreError, TokenRecord};

/// Checked tokens that are remembered.
const REMEMBERED: usize = 1024;

const MALFORMED: &str = "The token is malformed";

/// What is known of a token whose signature was right.
#[derive(Clone)]
struct Checked {
    claims: Arc<Claims>,
    /// When it is taken no more, in seconds since the Unix epoch.
    ends_at: u64,
    key: String,
    id: Uuid,
}

/// See the module documentation.
pub struct Authority {
    ledger: Arc<Ledger>,
    audiences: Audiences,
    failures: Failures,
    /// By the SHA-256 of the token.
    checked: Mutex<HashMap<[u8; 32], Checked>>,
}

impl Authority {
    /// Reads keys and tokens from the store.
    pub async fn open(records: Records, audiences: Audiences) -> Result<Self, OpenError> {
        Ok(Self {
            ledger: Ledger::open(records).await?,
            audiences,
            failures: Failures::new(Instant::now()),
            checked: Mutex::default(),
        })
    }

    /// Checks the token of a request. The refusal says what is missing.
    pub async fn check(&self, headers: &HeaderMap) -> Result<Arc<Claims>, Refusal> {
        let token = bearer::token(headers)?;
        // Found by its hash, so that the time of a look-up says nothing about tokens.
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let known = self.remembered(&hash);
        let checked = match &known {
            Some(checked) => checked.clone(),
            None => self.verify(token)?,
        };
        self.stands(&checked)?;
        let claims = Arc::clone(&checked.claims);
        if known.is_none() {
            self.remember(hash, checked);
        }
        Ok(claims)
    }

    /// As [`check`](Self::check), for a request from this address. One that has failed too often is not told why any
    /// more; a good token is good from anywhere.
    pub async fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Arc<Claims>, Refusal> {
        let checked = self.check(headers).await;
        checked.map_err(|refusal| match self.failures.count(peer, Instant::now()) {
            Ok(()) => refusal,
            Err(after) => {
                let message = "Too many requests without a good token came from this address";
                Refusal::new(Code::TooManyFailedAttempts, message).retry_after(after)
            }
        })
    }

    /// Makes a token.
    pub async fn issue(&self, order: TokenOrder) -> Result<Issued, ChangeError> {
        let audience = self.audiences.first().to_owned();
        self.ledger.issue(order, audience).await
    }

    /// The records of tokens that this appliance has made and that have not expired.
    pub fn tokens(&self) -> Vec<TokenRecord> {
        self.ledger.list()
    }

    pub fn token(&self, id: Uuid) -> Option<TokenRecord> {
        self.ledger.get(id)
    }

    /// Ends a token, for requests that come from now on.
    pub async fn revoke(&self, id: Uuid) -> Result<Option<TokenRecord>, ChangeError> {
        self.ledger.revoke(id).await
    }

    /// Signs with a new key from now on.
    pub async fn rotate(&self, revoke_old: bool) -> Result<Rotated, ChangeError> {
        self.ledger.rotate(revoke_old).await
    }

    /// Forgets what has expired.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        self.ledger.tidy().await
    }

    fn verify(&self, token: &str) -> Result<Checked, Refusal> {
        let decode = |error: jsonwebtoken::errors::Error| invalid(flaw(error.kind()));
        let header = jsonwebtoken::decode_header(token).map_err(decode)?;
        if header.crit.is_some() {
            return Err(invalid(
                "The token asks for extensions that are not known here (crit)",
            ));
        }
        // Whose key must have signed it; nothing else of it is believed before.
        let Peek { iss } =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(decode)?;
        match iss.as_deref() {
            Some(ISSUER) => self.verify_own(token, &header),
            Some(_) => Err(invalid("The token is of an unknown issuer")),
            None => Err(invalid("The token does not name its issuer (iss)")),
        }
    }

    fn verify_own(&self, token: &str, header: &Header) -> Result<Checked, Refusal> {
        if header.alg != Algorithm::EdDSA {
            return Err(invalid(
                "The token is signed with another algorithm than EdDSA",
            ));
        }
        let found = self.ledger.key(header.kid.as_deref());
        let (key, checking) = found.ok_or_else(|| {
            invalid("The token was not signed by this appliance, or its key was dropped")
        })?;
        let mut rules = rules(Algorithm::EdDSA, LEEWAY_SECONDS);
        rules.set_required_spec_claims(&["exp", "aud", "iss"]);
        let decoded = jsonwebtoken::decode::<Value>(token, &checking, &rules);
        let payload = decoded.map_err(|error| invalid(flaw(error.kind())))?.claims;
        // After its times were judged: what is missing is named.
        let payload: Payload = serde_json::from_value(payload).map_err(|_| invalid(MALFORMED))?;
        if !self.audiences.accept(&payload.aud) {
            return Err(self.wrong_audience());
        }
        Ok(Checked {
            ends_at: payload.exp.saturating_add(LEEWAY_SECONDS),
            key,
            id: payload.jti,
            claims: Arc::new(payload.into_claims()),
        })
    }

    /// What may have changed since its signature was checked.
    fn stands(&self, checked: &Checked) -> Result<(), Refusal> {
        if checked.ends_at <= now() {
            return Err(invalid("The token has expired"));
        }
        self.ledger
            .standing(&checked.key, checked.id)
            .map_err(|fallen| match fallen {
                Fallen::Revoked => invalid("The token was revoked"),
                Fallen::KeyDropped => invalid("The key that the token was signed with was dropped"),
            })
    }

    fn wrong_audience(&self) -> Refusal {
        let ours = self.audiences.shown();
        invalid(&format!("The token is for another audience than {ours}"))
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Checked> {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.get(hash).cloned()
    }

    fn remember(&self, hash: [u8; 32], checked: Checked) {
        let mut remembered = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(hash, checked);
    }
}

#[derive(Deserialize)]
struct Peek {
    #[serde(default)]
    iss: Option<String>,
}

/// Times are judged by the library; issuer and audience by us.
fn rules(algorithm: Algorithm, leeway: u64) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.leeway = leeway;
    rules.validate_nbf = true;
    rules.validate_aud = false;
    rules
}

fn flaw(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "The token has expired",
        ErrorKind::InvalidSignature => "The token was not signed by this appliance",
        ErrorKind::ImmatureSignature => "The token is not valid yet",
        ErrorKind::MissingRequiredClaim(_) => "The token lacks a required claim (exp, aud, iss)",
        _ => MALFORMED,
    }
}

#[cfg(test)]
impl Authority {
    /// A token that is not in the records.
    pub fn sign(
        &self,
        grant: &super::Grant,
        ttl: std::time::Duration,
    ) -> Result<Issued, super::payload::SignError> {
        let order = TokenOrder {
            label: None,
            grant: grant.clone(),
            ttl,
        };
        self.ledger.sign(order, self.audiences.first())
    }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
