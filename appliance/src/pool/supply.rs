//! Which slots are started and which are given up: the other half of `table.rs`. Pure.
//!
//! Starts are made in this order, as long as there is room:
//! 1. one for each claim that waits, at once, whatever failed before;
//! 2. the first slot of a desired revision, for which a ready slot of the active one gives way if
//!    all room is taken;
//! 3. what the active revision keeps ready;
//! 4. what a desired revision will keep ready.
//!
//! Under a load that takes every place as it becomes free, the second would never have its turn, so
//! after a while it goes first.

use std::time::Duration;

use uuid::Uuid;

use super::action::{Action, EndReason};
use super::budget::Shortage;
use super::launcher::Urgency;
use super::session::Moment;
use super::slot::{Slot, SlotId};
use super::stock::Stock;
use super::table::{Place, Table, deny};

/// How long a slot that nobody came for stays ready: a caller that gave up often comes again.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// How long after a start that is due and was not made it is due again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a desired revision lets claims go before it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

impl Table {
    /// How many slots are to be ready.
    pub(super) fn target(&self) -> usize {
        self.limits.ready_sessions.min(self.limits.max_sessions)
    }

    /// How many of a desired revision are to be ready before it is active: one shows that it works.
    pub(super) fn wanted_of_desired(&self) -> usize {
        self.target().max(1)
    }

    /// Starts what is wanted and has room.
    pub(super) fn fill(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.closing || self.emptying {
            return;
        }
        let desired = self.desired.as_ref();
        if desired.is_some_and(|desired| now.saturating_sub(desired.tried) >= PATIENCE) {
            self.start_first_of_desired(now, actions);
        }
        // Ready slots beside a queue are there for those who wait for their own session to end.
        while self.room() > 0 && self.active.urgent() + self.active.ready() < self.queue.len() {
            let revision = self.active.revision;
            self.start(revision, Urgency::Claim, now, actions);
        }
        self.start_first_of_desired(now, actions);
        while self.room() > self.kept_room()
            && self.active.supply() < self.wanted_of_active()
            && self.active.pace.permits(self.active.warming(), now)
        {
            let revision = self.active.revision;
            self.start(revision, Urgency::Refill, now, actions);
        }
        while self.room() > 0
            && let Some(desired) = &self.desired
            && desired.supply() < self.wanted_of_desired()
            && desired.pace.permits(desired.warming(), now)
        {
            let revision = desired.revision;
            self.start(revision, Urgency::Refill, now, actions);
        }
    }

    /// The host has no room for this slot, which was never started.
    pub fn start_refused(&mut self, slot: SlotId, shortage: Shortage, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(place) = self.slots.remove(&slot) else {
            return actions;
        };

        if let Some(stock) = self.stock(place.revision) {
            stock.remove(slot, place.ready_at);
            stock.tried = now;
            stock.last_failure = Some(shortage.to_string());
        }
        let first_of_desired = place.revision != self.active.revision && self.kept_room() > 0;
        match place.urgency {
            Urgency::Claim => {
                // What warms here, or leaves room here, is for those who came first.
                if self.queue.len() > self.active.supply() + self.draining
                    && let Some(tickets) = self.queue.take_last()
                {
                    actions.extend(deny(tickets, &Self::host_full(shortage)));
                }
            }
            Urgency::Refill => {
                let gives_way = self.active.oldest_ready();
                let gives_way = gives_way.filter(|_| first_of_desired && self.draining == 0);
                if let Some(ready) = gives_way {
                    self.drain(ready, EndReason::Superseded, now, &mut actions);
                } else if let Some(stock) = self.stock(place.revision) {
                    stock.pace.start_failed(place.started, now);
                }
            }
        }
        actions
    }

    /// Claims move over to the desired revision: nobody gets a slot of the other one any more.
    pub(super) fn activate(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(desired) = self.desired.take() else {
            return;
        };
        let revision = desired.revision;
        let before = std::mem::replace(&mut self.active, desired);
        actions.push(Action::Activate { revision });
        self.discard(&before, now, actions);
    }

    /// Makes this the revision that sessions are to be made of.
    pub(super) fn want(&mut self, revision: Uuid, now: Moment, actions: &mut Vec<Action>) {
        let desired = self.desired.as_ref().map(|desired| desired.revision);
        if desired == Some(revision) {
            return;
        }
        if let Some(given_up) = self.desired.take() {
            self.discard(&given_up, now, actions);
        }
        if revision != self.active.revision {
            self.seed = self.seed.wrapping_add(1);
            self.desired = Some(Stock::new(revision, self.seed, now));
        }
    }

    /// Gives up slots above what the limits allow and the pool keeps.
    pub(super) fn trim(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let places = self.limits.max_sessions.saturating_sub(self.leased);
        let kept = self.wanted_of_active().min(places);
        while self.active.supply() > kept
            && let Some(slot) = self.active.least_wanted()
        {
            self.drain(slot, EndReason::Surplus, now, actions);
        }
        let kept = places - kept.min(self.active.supply());
        let kept = kept.min(self.wanted_of_desired());
        while let Some(desired) = &self.desired
            && desired.supply() > kept
            && let Some(slot) = desired.least_wanted()
        {
            self.drain(slot, EndReason::Surplus, now, actions);
        }
    }

    /// Gives up slots that nobody came for.
    pub(super) fn drain_lingering(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while self.lingers_until().is_some_and(|until| until <= now)
            && let Some(slot) = self.active.youngest_ready()
        {
            self.drain(slot, EndReason::Surplus, now, actions);
        }
    }

    /// When the next decision is due that depends on time alone. It stays due until [`tick`](Self::tick) has made it: whoever
    /// asks in between, at whatever time, does not make it be forgotten.
    pub(super) fn supply_deadline(&self, now: Moment) -> Option<Moment> {
        if self.closing || self.emptying {
            return None;
        }
        let refill = || {
            let wanted = self.active.supply() < self.wanted_of_active();
            let may = self.room() > self.kept_room() && self.active.warming() == 0;
            (wanted && may).then(|| self.due(&self.active, now))?
        };
        let renewal = || {
            let desired = self.desired.as_ref()?;
            // Where a ready slot gives way, one that drains is to be gone first, and its end is an event.
            let gives_way = self.active.ready() > 0 && self.draining == 0;
            let may = self.room() > 0 || gives_way;
            (may && desired.warming() == 0).then(|| self.due(desired, now))?
        };
        let deadlines = [refill(), renewal(), self.lingers_until()];
        deadlines.into_iter().flatten().min()
    }

    /// When the next start of this revision is due, if the last one failed. Where it was due and nothing came of it, because
    /// the host has no room or a claim was tried first, it is due again after a while.
    fn due(&self, stock: &Stock, now: Moment) -> Option<Moment> {
        let resumes = stock.pace.resumes(now)?;
        let tried = stock.tried.max(self.active.tried);
        Some(if resumes > now {
            resumes
        } else {
            now.max(tried + AGAIN)
        })
    }

    fn room(&self) -> usize {
        self.limits.max_sessions.saturating_sub(self.slots.len())
    }

    fn wanted_of_active(&self) -> usize {
        self.queue.len() + self.target()
    }

    /// Room that is not for refills: it is for the first slot of the desired revision.
    fn kept_room(&self) -> usize {
        let desired = self.desired.as_ref();
        usize::from(desired.is_some_and(|desired| desired.supply() == 0))
    }

    fn lingers_until(&self) -> Option<Moment> {
        let surplus = self.active.supply() > self.wanted_of_active();
        let youngest = self.active.youngest_ready_at().filter(|_| surplus);
        youngest.map(|since| since + LINGER)
    }

    fn start_first_of_desired(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Some(desired) = &self.desired else {
            return;
        };
        if desired.supply() > 0 || !desired.pace.permits(0, now) {
            return;
        }
        let revision = desired.revision;
        if self.room() > 0 {
            self.start(revision, Urgency::Refill, now, actions);
        } else if self.draining == 0
            && let Some(slot) = self.active.oldest_ready()
        {
            self.drain(slot, EndReason::Superseded, now, actions);
        }
    }

    fn start(&mut self, revision: Uuid, urgency: Urgency, now: Moment, actions: &mut Vec<Action>) {
        let slot = self.new_slot();
        self.warm(slot, revision, urgency, now);
        if let Some(stock) = self.stock(revision) {
            stock.tried = now;
        }
        actions.push(Action::Fill {
            slot,
            revision,
            urgency,
        });
    }

    /// A name for the next slot.
    pub(super) fn new_slot(&mut self) -> SlotId {
        let slot = SlotId(self.next_slot);
        self.next_slot += 1;
        slot
    }

    /// The slot is on its way to be ready.
    pub(super) fn warm(&mut self, slot: SlotId, revision: Uuid, urgency: Urgency, now: Moment) {
        let place = Place {
            state: Slot::Warming,
            revision,
            urgency,
            started: now,
            ready_at: Duration::ZERO,
            owner: None,
        };
        self.slots.insert(slot, place);
        if let Some(stock) = self.stock(revision) {
            stock.begin(slot, urgency);
        }
    }

    /// Gives up every slot of a revision that is not wanted any more and that nobody has.
    fn discard(&mut self, stock: &Stock, now: Moment, actions: &mut Vec<Action>) {
        for slot in stock.slots() {
            self.drain(slot, EndReason::Superseded, now, actions);
        }
    }
}
