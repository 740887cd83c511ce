//! What this appliance has issued: its signing keys, and a record of each token that is not the token.
//!
//! Changes happen one by one, and in a task of their own: a caller that goes away leaves none half made.
//! What takes rights away holds from the moment it is asked for, also where the store then fails.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use uuid::Uuid;

use super::Grant;
use super::keys::{Key, Keyring, SigningKeyError};
use super::payload::{self, SignError};
use crate::pool::unix_millis;
use crate::store::{Records, StoreError, TokenRecord};

/// Clocks of hosts that make tokens and hosts that check them may differ by so much.
pub const LEEWAY_SECONDS: u64 = 5;
/// Longest life of a token.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// The keys could not be read from the store, or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] SigningKeyError),
}

/// A change was not made, or not written.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] SigningKeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The task that made the change was lost.
    #[error("The change was lost because the process is stopping")]
    Stopping,
}

/// What a token is to be.
#[derive(Debug, Clone)]
pub struct TokenOrder {
    pub label: Option<String>,
    pub grant: Grant,
    pub ttl: Duration,
}

/// A token, and what is kept of it.
pub struct Issued {
    pub token: String,
    pub record: TokenRecord,
}

/// What a rotation of the keys has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The key that signs from now on.
    pub key: String,
    /// Older keys that still check.
    pub older: usize,
    /// Tokens that were good before and no longer are.
    pub revoked: usize,
}

/// Why a token whose signature is right is not good any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallen {
    Revoked,
    KeyDropped,
}

/// See the module documentation.
pub struct Ledger {
    records: Records,
    state: RwLock<State>,
    /// Held while something is changed in state and store.
    changing: tokio::sync::Mutex<()>,
}

struct State {
    keys: Keyring,
    /// All that have not expired.
    tokens: HashMap<Uuid, TokenRecord>,
}

impl Ledger {
    /// Reads the store, or makes the first key.
    pub async fn open(records: Records) -> Result<Arc<Self>, OpenError> {
        let now = now();
        let keys = match records.signing_keys().await? {
            Some(bytes) => Keyring::from_bytes(&bytes)?,
            None => {
                let key = match records.unnamed_signing_key().await? {
                    Some(der) => Key::unnamed(der, now)?,
                    None => Key::generate(now)?,
                };
                let keys = Keyring::new(key);
                records
                    .put_signing_keys(keys.to_bytes(), keys.has_unnamed(), Vec::new())
                    .await?;
                keys
            }
        };
        let tokens = records.tokens().await?.into_iter();
        let tokens = tokens.map(|record| (record.id, record)).collect();
        let ledger = Arc::new(Self {
            records,
            state: RwLock::new(State { keys, tokens }),
            changing: tokio::sync::Mutex::default(),
        });
        ledger.tidy().await?;
        Ok(ledger)
    }

    /// The id of the key that a token names, and what its signature is checked with.
    pub fn key(&self, named: Option<&str>) -> Option<(String, Arc<DecodingKey>)> {
        self.read(|state| {
            let key = state.keys.find(named, now())?;
            Some((key.id().to_owned(), key.checking()))
        })
    }

    /// Whether a token that was good once still is.
    pub fn standing(&self, key: &str, token: Uuid) -> Result<(), Fallen> {
        self.read(|state| {
            let revoked = |record: &TokenRecord| record.revoked_at.is_some();
            if state.tokens.get(&token).is_some_and(revoked) {
                Err(Fallen::Revoked)
            } else if state.keys.find(Some(key), now()).is_none() {
                Err(Fallen::KeyDropped)
            } else {
                Ok(())
            }
        })
    }

    /// The records of tokens that have not expired, the oldest first.
    pub fn list(&self) -> Vec<TokenRecord> {
        let now = now();
        let live = |record: &&TokenRecord| !has_expired(record, now);
        let mut tokens: Vec<_> =
            self.read(|state| state.tokens.values().filter(live).cloned().collect());
        tokens.sort_by_key(|record| (record.made_at, record.id));
        tokens
    }

    pub fn get(&self, id: Uuid) -> Option<TokenRecord> {
        let found = self.read(|state| state.tokens.get(&id).cloned());
        found.filter(|record| !has_expired(record, now()))
    }

    /// Makes a token. It is recorded before anybody has it.
    pub async fn issue(
        self: &Arc<Self>,
        order: TokenOrder,
        audience: String,
    ) -> Result<Issued, ChangeError> {
        self.change(move |ledger| async move {
            let issued = ledger.sign(order, &audience)?;
            ledger.records.put_token(issued.record.clone()).await?;
            let record = issued.record.clone();
            ledger.write(|state| state.tokens.insert(record.id, record));
            Ok(issued)
        })
        .await
    }

    /// Signs and records nothing.
    pub fn sign(&self, order: TokenOrder, audience: &str) -> Result<Issued, SignError> {
        let made_at = now();
        self.read(|state| {
            let key = state.keys.newest();
            let record = TokenRecord {
                id: Uuid::new_v4(),
                label: order.label,
                grant: order.grant,
                key: key.id().to_owned(),
                made_at,
                expires_at: made_at.saturating_add(order.ttl.as_secs()),
                revoked_at: None,
            };
            let token = payload::sign(&record, audience, key)?;
            Ok(Issued { token, record })
        })
    }

    /// Ends a token. `None`: there is no record of it. One that was revoked before stays as it was.
    pub async fn revoke(self: &Arc<Self>, id: Uuid) -> Result<Option<TokenRecord>, ChangeError> {
        self.change(move |ledger| async move {
            let revoked = ledger.write(|state| {
                let record = state.tokens.get_mut(&id)?;
                record.revoked_at.get_or_insert_with(now);
                Some(record.clone())
            });
            if let Some(record) = &revoked {
                ledger.records.put_token(record.clone()).await?;
            }
            Ok(revoked)
        })
        .await
    }

    /// Signs with a new key from now on. The older ones check until their tokens have ended or, with
    /// `revoke_old`, no more.
    pub async fn rotate(self: &Arc<Self>, revoke_old: bool) -> Result<Rotated, ChangeError> {
        self.change(move |ledger| async move {
            let now = now();
            let fresh = Key::generate(now)?;
            let (keys, revoked, rotated) = ledger.write(|state| {
                let until = |key: &Key| match revoke_old {
                    true => now,
                    false => last_end(&state.tokens, key, now),
                };
                let mut keys = state.keys.rotated(fresh, now, until);
                if revoke_old {
                    keys.keep_newest();
                }
                let mut revoked = Vec::new();
                if revoke_old {
                    for record in state.tokens.values_mut() {
                        if record.revoked_at.is_none() && !has_expired(record, now) {
                            record.revoked_at = Some(now);
                            revoked.push(record.clone());
                        }
                    }
                }
                let rotated = Rotated {
                    key: keys.newest().id().to_owned(),
                    older: keys.len() - 1,
                    revoked: revoked.len(),
                };
                state.keys = keys;
                (
                    (state.keys.to_bytes(), state.keys.has_unnamed()),
                    revoked,
                    rotated,
                )
            });
            let (bytes, unnamed) = keys;
            ledger
                .records
                .put_signing_keys(bytes, unnamed, revoked)
                .await?;
            Ok(rotated)
        })
        .await
    }

    /// Forgets tokens that have expired, and keys that checked nothing else.
    pub async fn tidy(self: &Arc<Self>) -> Result<(), StoreError> {
        let tidied = self.change(move |ledger| async move {
            let now = now();
            let (expired, keys) = ledger.write(|state| {
                let old = |record: &&TokenRecord| has_expired(record, now);
                let expired: Vec<_> = state.tokens.values().filter(old).map(|it| it.id).collect();
                for id in &expired {
                    state.tokens.remove(id);
                }
                let dropped = state.keys.tidy(now);
                let keys = (state.keys.to_bytes(), state.keys.has_unnamed());
                (expired, dropped.then_some(keys))
            });
            if let Some((bytes, unnamed)) = keys {
                ledger
                    .records
                    .put_signing_keys(bytes, unnamed, Vec::new())
                    .await?;
            }
            if !expired.is_empty() {
                ledger.records.remove_tokens(expired).await?;
            }
            Ok(())
        });
        match tidied.await {
            Err(ChangeError::Store(error)) => Err(error),
            Err(_) => Err(StoreError::Stopping),
            Ok(()) => Ok(()),
        }
    }

    async fn change<T, F>(
        self: &Arc<Self>,
        change: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, ChangeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ChangeError>> + Send,
    {
        let ledger = Arc::clone(self);
        let task = tokio::spawn(async move {
            let ours = Arc::clone(&ledger);
            let _turn = ledger.changing.lock().await;
            change(ours).await
        });
        task.await.unwrap_or(Err(ChangeError::Stopping))
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When the last token that a key has signed is no longer taken.
fn last_end(tokens: &HashMap<Uuid, TokenRecord>, key: &Key, now: u64) -> u64 {
    if key.is_unnamed() {
        return now.saturating_add(MAX_TOKEN_TTL.as_secs());
    }
    let live = |record: &&TokenRecord| record.key == key.id() && record.revoked_at.is_none();
    let ends = tokens.values().filter(live).map(|record| record.expires_at);
    ends.max()
        .map_or(now, |end| end.saturating_add(LEEWAY_SECONDS))
}

fn has_expired(record: &TokenRecord, now: u64) -> bool {
    record.expires_at.saturating_add(LEEWAY_SECONDS) <= now
}

/// In seconds since the Unix epoch.
pub fn now() -> u64 {
    unix_millis() / 1000
}
