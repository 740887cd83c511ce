//! Certificates of an ACME server.
//!
//! ```text
//!            due (when?)                      kept (account.json, certificate.json)
//!              │                                │
//! keep ──▶ attempt ──▶ Issuer (order ─▶ http) ──┴─▶ held ──▶ the listener's certificate for its names
//!                        │
//!                        └─▶ challenges ◀── the listener (TLS-ALPN-01), plain (HTTP-01) ◀── the server looks
//! ```
//!
//! Until there is one, and for every name that it is not for, the private authority's is served. One that is had is
//! served until there is another, whatever goes wrong.
//!
//! # Not here
//! DNS-01, and so wildcards; revocation; renewal information (RFC 9773).

mod challenges;
mod due;
mod http;
mod kept;
mod order;
mod plain;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

pub use challenges::{CHALLENGE_PROTOCOL, Challenges};
pub use plain::serve_plain;

use super::facts::Facts;
use super::{Clock, TlsError, certified};
use crate::config::{AcmeChallenge, AcmeSettings};
use crate::exit::chain;
use crate::pool::launcher::BoxFuture;
use due::{Failures, Standing};
use kept::{Kept, KeptCertificate};
use order::AcmeServer;

/// The host's clock may be set, or stand still with the host: nobody sleeps longer than this without looking at it.
const LONGEST_NAP: Duration = Duration::from_secs(3600);

/// Makes certificates.
trait Issuer: Send + Sync {
    /// Asks for one; what proves the names is put among the challenges meanwhile.
    fn issue(&self, challenges: Arc<Challenges>) -> BoxFuture<'_, Result<Issued, String>>;
}

/// Both in PEM.
struct Issued {
    chain: String,
    key: String,
}

/// The certificate of an ACME server, and what is done to have it.
pub struct Acme {
    pub settings: AcmeSettings,
    pub challenges: Arc<Challenges>,
    issuer: Box<dyn Issuer>,
    kept: Kept,
    clock: Clock,
    jitter: f64,
    state: Mutex<State>,
    /// One order at a time.
    turn: tokio::sync::Mutex<()>,
    /// There was an attempt.
    changed: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failures: Option<Failures>,
    /// In this process.
    issued: Option<Timestamp>,
    last_error: Option<String>,
}

struct Held {
    certificate: Arc<CertifiedKey>,
    facts: Facts,
    directory: String,
}

impl Acme {
    /// With what is kept in `dir`. Blocks.
    pub fn open(settings: &AcmeSettings, dir: &Path, clock: Clock) -> Result<Arc<Self>, TlsError> {
        let kept = Kept::open(dir)?;
        let issuer = AcmeServer {
            settings: settings.clone(),
            kept: kept.clone(),
        };
        Self::with(settings, kept, clock, Box::new(issuer))
    }

    fn with(
        settings: &AcmeSettings,
        kept: Kept,
        clock: Clock,
        issuer: Box<dyn Issuer>,
    ) -> Result<Arc<Self>, TlsError> {
        let held = kept.certificate()?.and_then(|kept| match Held::of(&kept) {
            Ok(held) => Some(held),
            Err(cause) => {
                tracing::warn!("the certificate that is kept cannot be used: {cause}");
                None
            }
        });
        let directory = settings.directory.as_str();
        match &held {
            Some(held) => {
                let until = held.facts.not_after.to_string();
                tracing::info!(
                    directory,
                    until,
                    "serving the certificate of the ACME server"
                );
            }
            None => tracing::warn!(
                directory,
                "there is no certificate of the ACME server yet; until there is, the appliance's own authority's is served"
            ),
        }
        Ok(Arc::new(Self {
            settings: settings.clone(),
            challenges: Arc::default(),
            issuer,
            kept,
            clock,
            jitter: draw(),
            state: Mutex::new(State {
                held,
                ..State::default()
            }),
            turn: tokio::sync::Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }))
    }

    /// The certificate for a name, if there is one.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let state = self.state();
        let held = state.held.as_ref().filter(|held| held.facts.is_for(name))?;
        Some(Arc::clone(&held.certificate))
    }

    pub fn facts(&self) -> Option<Facts> {
        self.state().held.as_ref().map(|held| held.facts.clone())
    }

    /// Asks whenever it is time, for as long as it is polled.
    pub async fn keep(&self) {
        loop {
            let left = self.left();
            if left.is_zero() {
                let _turn = self.turn.lock().await;
                // Unless somebody has asked while we waited for our turn.
                if self.left().is_zero() {
                    // What came of it is in the log.
                    let _ = self.order().await;
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LONGEST_NAP)) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Asks now, or waits for who asks already and then asks.
    pub async fn attempt(&self) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        self.order().await
    }

    /// Only for who has the turn.
    async fn order(&self) -> Result<(), String> {
        let issued = self.issuer.issue(Arc::clone(&self.challenges)).await;
        let outcome = issued.and_then(|issued| self.accept(issued));
        let now = self.clock.now();
        match &outcome {
            Ok(facts) => {
                let (names, until) = (facts.names.join(" "), facts.not_after.to_string());
                tracing::info!(names, until, "the ACME server has issued a certificate");
            }
            Err(cause) => self.note_failure(cause, now),
        }
        self.changed.notify_one();
        outcome.map(|_| ())
    }

    /// Takes a certificate into use, if it is what was asked for.
    fn accept(&self, issued: Issued) -> Result<Facts, String> {
        let kept = KeptCertificate {
            directory: self.settings.directory.clone(),
            chain: issued.chain,
            key: issued.key,
        };
        let held = Held::of(&kept)?;
        let missing = self.settings.domains.iter();
        let missing: Vec<_> = missing.filter(|name| !held.facts.is_for(name)).collect();
        if !missing.is_empty() {
            return Err(format!("The certificate is not for {missing:?}"));
        }
        if held.facts.not_after <= self.clock.now() {
            return Err("The certificate has expired already".to_owned());
        }
        // Before it is served: what clients have seen is there after a restart, too.
        self.kept
            .save_certificate(&kept)
            .map_err(|error| chain(&error))?;
        let facts = held.facts.clone();
        *self.state() = State {
            held: Some(held),
            issued: Some(self.clock.now()),
            ..State::default()
        };
        Ok(facts)
    }

    fn note_failure(&self, cause: &str, now: Timestamp) {
        let mut state = self.state();
        let count = state.failures.map_or(0, |failures| failures.count);
        state.failures = Some(Failures {
            count: count.saturating_add(1),
            last: now,
        });
        state.last_error = Some(cause.to_owned());
        let is_had = state.held.is_some();
        drop(state);
        let again = self.next().map(|next| next.to_string());
        let meanwhile = match is_had {
            true => "the old one is served meanwhile",
            false => "the appliance's own authority's is served meanwhile",
        };
        tracing::warn!(
            again,
            "no certificate of the ACME server: {cause}; {meanwhile}"
        );
    }

    fn left(&self) -> Duration {
        self.next().map_or(Duration::ZERO, |next| {
            let left = next.duration_since(self.clock.now());
            Duration::try_from(left).unwrap_or_default()
        })
    }

    /// When it is asked next; `None`: at once.
    fn next(&self) -> Option<Timestamp> {
        let state = self.state();
        let wanted = |held: &&Held| {
            let names = &self.settings.domains;
            held.directory == self.settings.directory
                && names.iter().all(|name| held.facts.is_for(name))
        };
        due::next_attempt(&Standing {
            held: state.held.as_ref().filter(wanted).map(|held| &held.facts),
            failures: state.failures,
            issued: state.issued,
            jitter: self.jitter,
        })
    }

    pub fn report(&self) -> Value {
        let next = self.next().unwrap_or_else(|| self.clock.now());
        let state = self.state();
        json!({
            "directory": self.settings.directory,
            "domains": self.settings.domains,
            "challenge": match self.settings.challenge {
                AcmeChallenge::TlsAlpn01 => "tls-alpn-01",
                AcmeChallenge::Http01 { .. } => "http-01",
            },
            "nextAttempt": next.to_string(),
            "failures": state.failures.map_or(0, |failures| failures.count),
            "lastError": state.last_error,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn of(kept: &KeptCertificate) -> Result<Self, String> {
        let certificate = certified(&kept.chain, &kept.key).map_err(|error| error.to_string())?;
        Ok(Self {
            facts: Facts::of(&certificate)?,
            certificate,
            directory: kept.directory.clone(),
        })
    }
}

/// From 0 to 1.
fn draw() -> f64 {
    let mut bytes = [0; 4];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Without random bytes hosts ask together, which is no harm to this one.
    let _ = rustix::rand::getrandom(&mut bytes, flags);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
