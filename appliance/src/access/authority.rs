//! Checks the tokens of requests, and makes our own.
//!
//! Checking a signature costs more than all else in a request, so what it has come to is remembered. What can
//! end a token before its time is looked at for every request all the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::audience::{Audiences, Named};
use super::bearer::{self, invalid};
use super::failures::Failures;
use super::issuers::{Issuer, IssuerSettings, Missing, NoKey};
use super::ledger::{
    ChangeError, Fallen, Issued, LEEWAY_SECONDS, Ledger, OpenError, Rotated, TokenOrder, now,
};
use super::payload::{ISSUER, Payload};
use super::{Claims, TokenHash};
use crate::front::refusal::{Code, Refusal};
use crate::store::{Records, StoreError, TokenRecord};

/// Checked tokens that are remembered.
const REMEMBERED: usize = 1024;

/// Clocks of issuers and of this host may differ by so much.
const ISSUER_LEEWAY_SECONDS: u64 = 60;
/// An issuer is asked no sooner.
const ISSUER_RETRY: Duration = Duration::from_secs(60);

const MALFORMED: &str = "The token is malformed";

/// What is known of a token whose signature was right.
#[derive(Clone)]
struct Checked {
    claims: Arc<Claims>,
    /// When it is taken no more, in seconds since the Unix epoch.
    ends_at: u64,
    origin: Origin,
}

/// What a token stands on, and falls with.
#[derive(Clone)]
enum Origin {
    Own {
        key: String,
        id: Uuid,
    },
    /// Of this state of the issuer's keys.
    Trusted {
        issuer: Arc<Issuer>,
        generation: u64,
    },
}

/// See the module documentation.
pub struct Authority {
    ledger: Arc<Ledger>,
    audiences: Audiences,
    failures: Failures,
    /// By their names.
    issuers: HashMap<String, Arc<Issuer>>,
    /// By the SHA-256 of the token.
    checked: Mutex<HashMap<[u8; 32], Checked>>,
}

impl Authority {
    /// Reads keys and tokens from the store. Keys of issuers are read when they are needed, or by
    /// [`prepare`](Self::prepare).
    pub async fn open(
        records: Records,
        audiences: Audiences,
        issuers: Vec<IssuerSettings>,
    ) -> Result<Self, OpenError> {
        let issuers = issuers.into_iter();
        let issuers = issuers.map(|settings| (settings.name.clone(), Issuer::new(settings)));
        Ok(Self {
            issuers: issuers.collect(),
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
        let hash: TokenHash = Sha256::digest(token.as_bytes()).into();
        if let Some(checked) = self.remembered(&hash)
            && checked.is_current().await
        {
            self.stands(&checked)?;
            return Ok(checked.claims);
        }
        let mut checked = self.verify(token).await?;
        checked.claims = Arc::new(Arc::unwrap_or_clone(checked.claims).of(hash));
        self.stands(&checked)?;
        let claims = Arc::clone(&checked.claims);
        self.remember(hash, checked);
        Ok(claims)
    }

    /// Begins to read the keys of issuers, so that no request has to wait for them.
    pub async fn prepare(&self) {
        for issuer in self.issuers.values() {
            issuer.keep_fresh().await;
        }
    }

    /// As [`check`](Self::check), for a request from this address. One that has failed too often is not told why any
    /// more; a good token is good from anywhere.
    pub async fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Arc<Claims>, Refusal> {
        let checked = self.check(headers).await;
        checked.map_err(|refusal| {
            if refusal.code != Code::Unauthorized {
                return refusal;
            }
            match self.failures.count(peer, Instant::now()) {
                Ok(()) => refusal,
                Err(after) => {
                    let message = "Too many requests without a good token came from this address";
                    Refusal::new(Code::TooManyFailedAttempts, message).retry_after(after)
                }
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

    async fn verify(&self, token: &str) -> Result<Checked, Refusal> {
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
            Some(name) => match self.issuers.get(name) {
                Some(issuer) => self.verify_trusted(token, &header, issuer).await,
                None => Err(invalid("The token is of an unknown issuer")),
            },
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
            origin: Origin::Own {
                key,
                id: payload.jti,
            },
            claims: Arc::new(payload.into_claims()),
        })
    }

    async fn verify_trusted(
        &self,
        token: &str,
        header: &Header,
        issuer: &Arc<Issuer>,
    ) -> Result<Checked, Refusal> {
        let found = issuer.key(header.kid.as_deref(), header.alg).await;
        let found = found.map_err(no_key)?;
        let mut rules = rules(header.alg, ISSUER_LEEWAY_SECONDS);
        rules.set_required_spec_claims(&["exp", "aud", "iss"]);
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &found.key, &rules);
        let claims = decoded.map_err(|error| {
            invalid(match error.kind() {
                ErrorKind::InvalidSignature => "The token was not signed by its issuer",
                kind => flaw(kind),
            })
        })?;
        let claims = claims.claims;
        let Times { aud, exp } = serde_json::from_value(Value::Object(claims.clone()))
            .map_err(|_| invalid(MALFORMED))?;
        let own = &issuer.settings.audiences;
        let fits = match own.is_empty() {
            true => self.audiences.accept(&aud),
            false => Audiences::new(own.iter().cloned()).accept(&aud),
        };
        if !fits {
            return Err(invalid(
                "The token is for another audience than its issuer's tokens are to be for",
            ));
        }
        Ok(Checked {
            ends_at: whole_seconds(exp).saturating_add(ISSUER_LEEWAY_SECONDS),
            claims: Arc::new(Claims::new(issuer.grants(&claims))),
            origin: Origin::Trusted {
                issuer: Arc::clone(issuer),
                generation: found.generation,
            },
        })
    }

    /// What may have changed since its signature was checked.
    fn stands(&self, checked: &Checked) -> Result<(), Refusal> {
        if checked.ends_at <= now() {
            return Err(invalid("The token has expired"));
        }
        let Origin::Own { key, id } = &checked.origin else {
            return Ok(());
        };
        self.ledger
            .standing(key, *id)
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

impl Checked {
    /// Whether the keys that it was checked with are those of today.
    async fn is_current(&self) -> bool {
        match &self.origin {
            Origin::Own { .. } => true,
            Origin::Trusted { issuer, generation } => issuer.generation().await == *generation,
        }
    }
}

fn no_key(missing: Missing) -> Refusal {
    match missing {
        Missing::Key(NoKey::Unknown) => {
            invalid("The token was signed with a key that its issuer does not publish")
        }
        Missing::Key(NoKey::Unnamed) => {
            invalid("The token does not name its key (kid), and its issuer has several")
        }
        Missing::Key(NoKey::Algorithm) => {
            invalid("The token is signed with another algorithm than its issuer's keys are for")
        }
        Missing::Issuer => {
            let message = "The keys of the token's issuer cannot be had at the moment";
            Refusal::new(Code::TokenIssuerUnavailable, message).retry_after(ISSUER_RETRY)
        }
    }
}

/// What is left of the payload of an issuer's token when the library has judged its times.
#[derive(Deserialize)]
struct Times {
    aud: Named,
    /// May have a fraction (RFC 7519 section 2).
    exp: f64,
}

/// What is beyond them is within the leeway.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is judged to be a time before"
)]
fn whole_seconds(time: f64) -> u64 {
    time as u64
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
    pub fn issuer(&self, name: &str) -> Arc<Issuer> {
        Arc::clone(&self.issuers[name])
    }

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
