//! How a pool empties itself because its host is to be empty, and fills again. Pure.
//!
//! Until it is told otherwise nobody gets a new session. What nobody has is given up, and sessions end as soon as nobody uses
//! them; those that are used go on answering.

use super::action::{Action, Denied, EndReason};
use super::session::Moment;
use super::slot::{Slot, SlotId};
use super::table::{Table, deny};

impl Table {
    /// Begins to empty the pool. Done when no slot is in use.
    pub fn begin_drain(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.closing {
            return actions;
        }
        self.emptying = true;
        while let Some(tickets) = self.queue.take_first() {
            actions.extend(deny(tickets, &Denied::Draining));
        }
        for slot in self.slots_in_order() {
            match self.slots.get(&slot).map(|place| place.state) {
                Some(Slot::Leased) => actions.extend(self.drain_if_idle(slot, now)),
                Some(Slot::Warming | Slot::Ready) => {
                    self.drain(slot, EndReason::HostDrains, now, &mut actions);
                }
                Some(Slot::Draining) | None => {}
            }
        }
        actions
    }

    /// Ends the sessions that are still in use, too, if the pool is being emptied.
    pub fn hurry_drain(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.emptying {
            return actions;
        }
        for slot in self.slots_in_order() {
            self.retire(slot, EndReason::HostDrains, now, &mut actions);
        }
        actions
    }

    /// Sessions are begun again, and what the pool keeps ready is started.
    pub fn end_drain(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.emptying = false;
        self.fill(now, &mut actions);
        actions
    }

    /// Whether the end of a request may be the end of its session.
    pub fn is_emptying(&self) -> bool {
        self.emptying
    }

    /// Ends the session of this slot if nobody uses it and the pool is being emptied.
    pub(super) fn drain_if_idle(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_idle = self.use_of(slot).is_some_and(|(_, in_use)| !in_use);
        if self.emptying && is_idle {
            self.retire(slot, EndReason::HostDrains, now, &mut actions);
        }
        actions
    }

    fn slots_in_order(&self) -> Vec<SlotId> {
        let mut slots: Vec<_> = self.slots.keys().copied().collect();
        slots.sort_unstable();
        slots
    }
}
