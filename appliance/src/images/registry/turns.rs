//! One at a time for each digest: two pulls of the same thing share one download and one build.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::images::digest::Digest;

#[derive(Debug, Default)]
pub struct Turns {
    locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// Nobody else has this digest while it lives.
pub type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// The turn, if nobody has it.
    pub fn take(&self, digest: &Digest) -> Option<Turn> {
        self.lock(digest).try_lock_owned().ok()
    }

    /// Waits for it.
    pub async fn begin(&self, digest: &Digest) -> Turn {
        self.lock(digest).lock_owned().await
    }

    fn lock(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds or awaits a lock has a reference to it.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(digest.clone()).or_default())
    }
}
