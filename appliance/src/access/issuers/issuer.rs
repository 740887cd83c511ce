//! One issuer: its keys, as they were last read, and when to read them again.
//!
//! Keys that were read once stay until others are: an issuer that is down ends nobody's work. Reading happens
//! in a task of its own, one at a time, so whoever waits for it can go away; only requests that cannot be
//! judged without new keys wait.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::keyset::{KeySet, NoKey};
use super::settings::{IssuerSettings, KeysFrom};
use super::source::{self, SourceError, Version};
use crate::access::Grant;

/// How often a file is looked at, at most: a look is one system call.
const FILE_PACE: Duration = Duration::from_secs(1);
/// How often an issuer is asked at most, whatever tokens come: they may name keys that never were.
const FETCH_PACE: Duration = Duration::from_secs(60);
/// How old keys become before they are read again, so that those that the issuer has withdrawn go.
const KEYS_AGE: Duration = Duration::from_secs(3600);
/// Discovery and the keys, two answers with a limit of their own, and some.
const FETCH_LIMIT: Duration = Duration::from_secs(12);

/// See the module documentation.
pub struct Issuer {
    pub settings: IssuerSettings,
    state: RwLock<State>,
    /// Held while keys are read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// The bytes that the keys were read from.
    bytes: Vec<u8>,
    version: Option<Version>,
    /// Changes with the keys.
    generation: u64,
    tried_at: Option<Instant>,
    read_at: Option<Instant>,
    /// So that a failure is logged once and not each second.
    failure: Option<SourceError>,
}

/// A key, and of which state of the issuer's keys it is.
pub struct Found {
    pub key: Arc<DecodingKey>,
    pub generation: u64,
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Key(NoKey),
    /// No keys were ever had from this issuer.
    Issuer,
}

impl Issuer {
    pub fn new(settings: IssuerSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            state: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// What a token with these claims is good for.
    pub fn grants(&self, claims: &Map<String, Value>) -> Vec<Grant> {
        self.settings.grants(claims)
    }

    /// The key for a token. A key that is not known may be new: the issuer is asked, if it was not just now.
    pub async fn key(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Found, Missing> {
        self.keep_fresh().await;
        match self.find(id, algorithm) {
            Err(Missing::Key(NoKey::Unknown) | Missing::Issuer) => {
                self.read_again(self.pace()).await;
                self.find(id, algorithm)
            }
            found => found,
        }
    }

    /// Which state of the keys is the last. What was checked with another is to be checked again.
    pub async fn generation(self: &Arc<Self>) -> u64 {
        self.keep_fresh().await;
        self.look(|state| state.generation)
    }

    /// Reads keys that may be old. Waits only for a look at a file.
    pub async fn keep_fresh(self: &Arc<Self>) {
        match self.settings.keys {
            KeysFrom::File(_) => self.read_again(FILE_PACE).await,
            KeysFrom::Discovery { .. } => {
                let is_old = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= KEYS_AGE);
                if self.look(|state| is_old(state.read_at)) && self.may_try(FETCH_PACE) {
                    let this = Arc::clone(self);
                    tokio::spawn(async move { this.read(FETCH_PACE).await });
                }
            }
        }
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Found, Missing> {
        self.look(|state| {
            let keys = state.keys.as_ref().ok_or(Missing::Issuer)?;
            let key = keys.find(id, algorithm).map_err(Missing::Key)?;
            Ok(Found {
                key,
                generation: state.generation,
            })
        })
    }

    fn pace(&self) -> Duration {
        match self.settings.keys {
            KeysFrom::File(_) => FILE_PACE,
            KeysFrom::Discovery { .. } => FETCH_PACE,
        }
    }

    fn may_try(&self, pace: Duration) -> bool {
        self.look(|state| state.tried_at.is_none_or(|at| at.elapsed() >= pace))
    }

    /// Reads the keys, unless that was tried just now; waits for whoever is at it.
    async fn read_again(self: &Arc<Self>, pace: Duration) {
        let idle = self.reading.try_lock().is_ok();
        if idle && !self.may_try(pace) {
            return;
        }
        let this = Arc::clone(self);
        // Not cut off when the one request that has begun it goes away.
        let _ = tokio::spawn(async move { this.read(pace).await }).await;
    }

    async fn read(&self, pace: Duration) {
        let _turn = self.reading.lock().await;
        if !self.may_try(pace) {
            return;
        }
        self.change(|state| state.tried_at = Some(Instant::now()));
        let read = tokio::time::timeout(FETCH_LIMIT, self.fetch()).await;
        let read = read.unwrap_or_else(|_| Err(SourceError::new("it took too long")));
        match read {
            Ok(None) => self.change(|state| state.failure = None),
            Ok(Some((keys, bytes, version))) => self.install(keys, bytes, version),
            Err(failure) => {
                let is_new = self.change(|state| {
                    let before = state.failure.replace(failure.clone());
                    before.as_ref() != Some(&failure)
                });
                if is_new {
                    let issuer = &self.settings.name;
                    tracing::warn!(issuer, error = %failure, "cannot read the keys of an issuer");
                }
            }
        }
    }

    /// `None`: they are as they were.
    async fn fetch(&self) -> Result<Option<(KeySet, Vec<u8>, Option<Version>)>, SourceError> {
        let (bytes, version) = match &self.settings.keys {
            KeysFrom::File(path) => {
                let known = self.look(|state| state.version.clone());
                match source::read_file(path, known.as_ref()).await? {
                    Some((bytes, version)) => (bytes, Some(version)),
                    None => return Ok(None),
                }
            }
            KeysFrom::Discovery { ca_file } => {
                let name = &self.settings.name;
                (source::discover(name, ca_file.clone()).await?, None)
            }
        };
        let keys = KeySet::parse(&bytes).map_err(SourceError::new)?;
        Ok(Some((keys, bytes, version)))
    }

    fn install(&self, keys: KeySet, bytes: Vec<u8>, version: Option<Version>) {
        let changed = self.change(|state| {
            state.failure = None;
            state.version = version;
            state.read_at = Some(Instant::now());
            if state.keys.is_some() && state.bytes == bytes {
                return false;
            }
            state.keys = Some(Arc::new(keys));
            state.bytes = bytes;
            state.generation += 1;
            true
        });
        if changed {
            tracing::info!(issuer = self.settings.name, "keys of an issuer read");
        }
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// As if the last attempt were long ago.
    #[cfg(test)]
    pub fn forget_attempt(&self) {
        self.change(|state| state.tried_at = None);
    }
}
