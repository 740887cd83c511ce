//! Changes of one pool happen one by one.
//!
//! A patch is read, applied and written. Of two at the same time the second must see what the first
//! has made, or it would take it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One lock per name that is being changed.
#[derive(Debug, Default)]
pub struct Changes {
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Nobody else changes the pool while this lives.
pub type Turn = OwnedMutexGuard<()>;

impl Changes {
    /// Waits until nobody changes the pool of this name.
    pub async fn begin(&self, name: &str) -> Turn {
        let lock = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever holds or awaits a lock has a reference to it.
            names.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(names.entry(name.to_ascii_lowercase()).or_default())
        };
        lock.lock_owned().await
    }
}
