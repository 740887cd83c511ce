//! What a caller does to the driver's state itself, without a message to the driver's task and back: two task switches less per request.
//!
//! Only what needs no decision and from which nothing follows, and only if nobody is at the state at that moment. So
//! nobody ever waits for the lock here, a caller that holds it already cannot wait for itself, and everything can still be done by message.

use std::sync::{Mutex, MutexGuard, Weak};

use tokio::sync::mpsc;

use super::Driver;
use crate::pool::Identifier;
use crate::pool::handle::{Lease, Message};
use crate::pool::slot::SlotId;

/// The driver's state, as long as its task lives.
#[derive(Clone)]
pub struct AtOnce(Weak<Mutex<Driver>>);

/// Tells the driver when a request or stream has ended.
pub struct Hold {
    pub(super) slot: SlotId,
    pub(super) at_once: AtOnce,
    pub(super) messages: mpsc::UnboundedSender<Message>,
}

impl AtOnce {
    pub(super) fn of(shared: &Weak<Mutex<Driver>>) -> Self {
        Self(Weak::clone(shared))
    }

    /// The session of this identifier, if it serves. `None` says nothing: ask the driver.
    pub fn claim(&self, identifier: &Identifier) -> Option<Lease> {
        self.with(|driver| {
            let slot = driver.table.enter(identifier, driver.clock.now())?;
            driver.note_use(slot);
            let lease = driver.lease(slot);
            if lease.is_none() {
                driver.leave(slot);
            }
            lease
        })
    }

    /// `None`: it was not done.
    fn release(&self, slot: SlotId) -> Option<()> {
        self.with(|driver| (!driver.table.is_emptying()).then(|| driver.leave(slot)))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Driver) -> Option<T>) -> Option<T> {
        let shared = self.0.upgrade()?;
        let mut driver: MutexGuard<'_, Driver> = shared.try_lock().ok()?;
        if driver.detached {
            return None;
        }
        work(&mut driver)
    }
}

impl Driver {
    /// Somebody has left the session in this slot.
    fn leave(&mut self, slot: SlotId) {
        let now = self.clock.now();
        self.then(|driver| driver.table.released(slot, now));
        self.note_use(slot);
        let next = self.table.next_deadline(now);
        if next.is_some_and(|next| self.wakes_at.is_none_or(|wakes_at| next < wakes_at)) {
            self.wake.notify_one();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.at_once.release(self.slot).is_none() {
            // Without a driver there is no idle clock either.
            let _ = self.messages.send(Message::Released(self.slot));
        }
    }
}
