//! When sessions were last used, on its way to the store.
//!
//! Requests do not wait for it: what changes is kept here, and written every few seconds in one batch for all pools. So
//! what the store says may be late by [`LATE`], and who reads it after a restart adds that much.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;

use crate::store::{Records, Use};

/// From a change to the batch that has it. Short beside any cooldown, and long beside what a flush of the disk takes.
const EVERY: Duration = Duration::from_secs(3);
/// How late the store may be, the time for the batch on a busy disk included.
pub const LATE: Duration = Duration::from_secs(5);

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Uses {
    inner: Arc<Inner>,
}

struct Inner {
    records: Records,
    unwritten: Mutex<HashMap<Uuid, Use>>,
    changed: Arc<Notify>,
    /// Held while a batch is written, so that an older one never comes after a newer one.
    writing: tokio::sync::Mutex<()>,
}

impl Uses {
    /// Writes for as long as anybody holds a clone of it; needs a running tokio.
    pub fn keep(records: Records) -> Self {
        let inner = Arc::new(Inner {
            records,
            unwritten: Mutex::default(),
            changed: Arc::default(),
            writing: tokio::sync::Mutex::default(),
        });
        let changed = Arc::clone(&inner.changed);
        tokio::spawn(write_now_and_then(Arc::downgrade(&inner), changed));
        Self { inner }
    }

    /// The session was used, or is in use.
    pub fn note(&self, session: Uuid, used: Use) {
        self.inner.unwritten().insert(session, used);
        self.inner.changed.notify_one();
    }

    /// The session is gone.
    pub fn forget(&self, session: Uuid) {
        self.inner.unwritten().remove(&session);
    }

    /// Writes what is not written yet.
    pub async fn write(&self) {
        self.inner.write().await;
    }
}

impl Inner {
    fn unwritten(&self) -> MutexGuard<'_, HashMap<Uuid, Use>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self) {
        let _writing = self.writing.lock().await;
        let batch = std::mem::take(&mut *self.unwritten());
        if batch.is_empty() {
            return;
        }
        if let Err(error) = self.records.put_uses(batch.clone()).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(
                error,
                sessions = batch.len(),
                "it could not be recorded when sessions were used"
            );
            let mut unwritten = self.unwritten();
            for (session, used) in batch {
                // What came meanwhile is newer.
                unwritten.entry(session).or_insert(used);
            }
            drop(unwritten);
            self.changed.notify_one();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The task looks whether anybody is left.
        self.changed.notify_one();
    }
}

async fn write_now_and_then(inner: Weak<Inner>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        tokio::time::sleep(EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.write().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryStore, Records};

    const ONE: Uuid = Uuid::from_u128(1);
    const TWO: Uuid = Uuid::from_u128(2);

    fn used(last_used_at_ms: u64) -> Use {
        Use {
            last_used_at_ms,
            in_use: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_written_in_one_batch_that_is_never_later_than_said() {
        let records = Records::new(Arc::new(MemoryStore::default()));
        let uses = Uses::keep(records.clone());
        for at in [10, 20] {
            uses.note(ONE, used(at));
            uses.note(TWO, used(at + 1));
        }
        assert!(records.uses().await.unwrap().is_empty());
        tokio::time::sleep(LATE).await;
        let expected = HashMap::from([(ONE, used(20)), (TWO, used(21))]);
        assert_eq!(records.uses().await.unwrap(), expected);
        uses.note(ONE, used(30));
        tokio::time::sleep(LATE).await;
        assert_eq!(records.uses().await.unwrap()[&ONE], used(30));
    }

    #[tokio::test(start_paused = true)]
    async fn session_that_is_gone_is_not_written_any_more() {
        let records = Records::new(Arc::new(MemoryStore::default()));
        let uses = Uses::keep(records.clone());
        uses.note(ONE, used(10));
        uses.note(TWO, used(20));
        uses.forget(ONE);
        uses.write().await;
        assert_eq!(
            records.uses().await.unwrap(),
            HashMap::from([(TWO, used(20))])
        );
    }
}
