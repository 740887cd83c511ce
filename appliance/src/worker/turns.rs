//! Who may come up now: so many guests at a time, so that a burst does not take the CPUs from
//! sessions that run.

use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The turns of a host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns {
    free: Arc<Semaphore>,
    total: usize,
    ended: Arc<Notify>,
}

/// The right to come up, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    /// `None` only while dropping.
    permit: Option<OwnedSemaphorePermit>,
    ended: Arc<Notify>,
}

impl Turns {
    pub fn new(total: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
            ended: Arc::new(Notify::new()),
        }
    }

    /// In the order of the calls. `None` never comes: the semaphore is not closed.
    pub async fn take(&self) -> Option<Turn> {
        let permit = Arc::clone(&self.free).acquire_owned().await.ok()?;
        Some(Turn {
            permit: Some(permit),
            ended: Arc::clone(&self.ended),
        })
    }

    /// Nobody comes up at the moment.
    pub fn all_free(&self) -> bool {
        self.free.available_permits() == self.total
    }

    /// Resolves when a turn has ended since the last call. For one caller.
    pub async fn one_ended(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // First, so that whoever is told finds it free.
        self.permit = None;
        self.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turn_that_ends_is_told_and_is_free_by_then() {
        let turns = Turns::new(2);
        assert!(turns.all_free());
        let first = turns.take().await;
        let second = turns.take().await;
        assert!(!turns.all_free());
        drop(first);
        turns.one_ended().await;
        assert!(!turns.all_free());
        drop(second);
        turns.one_ended().await;
        assert!(turns.all_free());
    }
}
