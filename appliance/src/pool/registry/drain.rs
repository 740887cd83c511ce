//! A host that is emptied: all of its pools, and those that are made meanwhile.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::Pools;
use crate::pool::handle::Drain;

/// How far the host is with being emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draining {
    /// Whether it is being emptied, or is empty and begins nothing.
    pub is_on: bool,
    /// Slots of all pools, whatever is in them.
    pub slots_in_use: usize,
}

impl Pools {
    /// Empties the host: no session is begun, sessions end when nobody uses them, and those that are used still after `timeout` end
    /// then. Until [`end_drain`](Self::end_drain); said again, the new timeout holds.
    pub fn drain(&self, timeout: Duration) {
        let inner = Arc::downgrade(&self.inner);
        let hurry = tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            if let Some(inner) = inner.upgrade() {
                Self { inner }.tell_all(Drain::Hurry);
            }
        });
        if let Some(earlier) = self.lock_draining().replace(hurry.abort_handle()) {
            earlier.abort();
        }
        self.tell_all(Drain::Begin);
    }

    /// Serves again as ever.
    pub fn end_drain(&self) {
        if let Some(hurry) = self.lock_draining().take() {
            hurry.abort();
        }
        self.tell_all(Drain::End);
    }

    /// How far the host is with being emptied.
    pub async fn draining(&self) -> Draining {
        let mut slots_in_use = 0;
        for handle in self.handles() {
            slots_in_use += handle.slots_in_use().await;
        }
        Draining {
            is_on: self.lock_draining().is_some(),
            slots_in_use,
        }
    }

    fn tell_all(&self, how: Drain) {
        for handle in self.handles() {
            handle.drain(how);
        }
    }

    pub(super) fn lock_draining(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        let draining = &self.inner.draining;
        draining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
