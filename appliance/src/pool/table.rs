//! All sessions and slots of one pool, as a pure state machine: what happened goes in, what must be
//! done comes out. No clock, no task, no I/O: `driver.rs` brings those. What is started and what is
//! given up is decided in `supply.rs`; what can be seen from outside is in `inspect.rs`; how one begins where an
//! earlier one ended is in `adopt.rs`, how it empties itself in `drain.rs`.
//!
//! ```text
//! claim ─▶ session ─▶ answered
//!    └───▶ ready slot, else the queue ─▶ next slot that is ready ─▶ Bind ─▶ bound ─▶ answered
//! ```
//!
//! Invariants, checked by a model test: at most one session per identifier, at most `max_sessions`
//! slots, every ticket answered exactly once, no slot leased twice, no slot of a revision leased
//! after one of a newer revision was.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use uuid::Uuid;

use super::Identifier;
use super::action::{Action, Denied, EndReason, Life, Limits};
use super::budget::Shortage;
use super::launcher::{StartFailure, Urgency};
use super::queue::Queue;
use super::session::{Moment, Session, Ticket};
use super::slot::{Slot, SlotEvent, SlotId};
use super::stock::Stock;

/// What a caller is told to wait at least.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// What a caller is told to wait at most where sessions may end at any time by themselves, and what
/// it is told when the host is full: somebody else's session has to end, and nobody knows when.
const RETRY_SOMETIME: Duration = Duration::from_secs(10);

/// One slot.
#[derive(Debug)]
pub(super) struct Place {
    pub state: Slot,
    pub revision: Uuid,
    pub urgency: Urgency,
    pub started: Moment,
    /// Without meaning until it is ready.
    pub ready_at: Moment,
    pub owner: Option<Identifier>,
}

/// The state. See the module documentation.
#[derive(Debug)]
pub struct Table {
    pub(super) limits: Limits,
    pub(super) slots: HashMap<SlotId, Place>,
    pub(super) queue: Queue,
    /// The revision that claims get.
    pub(super) active: Stock,
    /// The one that takes its place as soon as one of its slots is ready.
    pub(super) desired: Option<Stock>,
    /// How many slots are leased, and how many drain.
    pub(super) leased: usize,
    pub(super) draining: usize,
    pub(super) next_slot: u64,
    pub(super) closing: bool,
    /// Nobody gets a new session for now, see `drain.rs`.
    pub(super) emptying: bool,
    pub(super) seed: u64,
    pub(super) sessions: HashMap<Identifier, Session>,
    /// Idle sessions, the longest idle first.
    pub(super) idle: BTreeSet<(Moment, SlotId)>,
    /// Sessions that do not end yet, the oldest first.
    pub(super) living: BTreeSet<(Moment, SlotId)>,
}

impl Table {
    /// An empty pool. Ask for [`tick`](Self::tick) to begin.
    pub fn new(limits: Limits, revision: Uuid, seed: u64) -> Self {
        Self {
            limits,
            slots: HashMap::new(),
            queue: Queue::default(),
            active: Stock::new(revision, seed, Duration::ZERO),
            desired: None,
            leased: 0,
            draining: 0,
            next_slot: 0,
            closing: false,
            emptying: false,
            seed,
            sessions: HashMap::new(),
            idle: BTreeSet::new(),
            living: BTreeSet::new(),
        }
    }

    /// Slots in use, those that drain included.
    pub fn slots_in_use(&self) -> usize {
        self.slots.len()
    }

    /// When [`tick`](Self::tick) next has something to do.
    pub fn next_deadline(&self, now: Moment) -> Option<Moment> {
        let (of, after) = match self.limits.life {
            Life::Idle(cooldown) => (&self.idle, cooldown),
            Life::Alive(longest) => (&self.living, longest),
        };
        let expiry = of.first().map(|(since, _)| *since + after);
        [expiry, self.supply_deadline(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Somebody wants the session of this identifier.
    pub fn claim(&mut self, ticket: Ticket, identifier: &Identifier, now: Moment) -> Vec<Action> {
        if self.closing {
            return deny(vec![ticket], &Denied::Closing);
        }
        if let Some(slot) = self.enter(identifier, now) {
            let answer = Ok(slot);
            return vec![Action::Answer { ticket, answer }];
        }
        let mut held = false;
        if let Some(session) = self.sessions.get_mut(identifier) {
            if session.wait(ticket) {
                return Vec::new();
            }
            held = true;
        }
        if self.emptying {
            return deny(vec![ticket], &Denied::Draining);
        }
        if self.queue.join(identifier, ticket) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        match self.active.oldest_ready() {
            Some(slot) if !held => {
                self.give(slot, identifier.clone(), vec![ticket], now, &mut actions);
            }
            // Everything that is not leased will be free or ready soon.
            _ if self.leased + self.queue.len() < self.limits.max_sessions => {
                self.queue.push(identifier.clone(), vec![ticket], held);
            }
            _ => return deny(vec![ticket], &self.full(now)),
        }
        self.fill(now, &mut actions);
        actions
    }

    /// The claim of a session that serves already: nothing has to be decided and nothing follows from it. `None`: there is none.
    pub fn enter(&mut self, identifier: &Identifier, now: Moment) -> Option<SlotId> {
        if self.closing {
            return None;
        }
        let session = self.sessions.get_mut(identifier)?;
        let (idle_since, slot) = (session.idle_since(), session.slot);
        if !session.enter(now) {
            return None;
        }
        if let Some(since) = idle_since {
            self.idle.remove(&(since, slot));
        }
        Some(slot)
    }

    /// The caller went away before it was answered.
    pub fn abandon(&mut self, ticket: Ticket, identifier: &Identifier) {
        if let Some(session) = self.sessions.get_mut(identifier) {
            session.abandon(ticket);
        }
        self.queue.abandon(identifier, ticket);
    }

    /// A request or stream of this slot ended.
    pub fn released(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let Some(session) = self.session_in(slot) else {
            return Vec::new();
        };
        session.release(now);
        let idle_since = session.idle_since();
        self.idle.extend(idle_since.map(|since| (since, slot)));
        self.drain_if_idle(slot, now)
    }

    /// The container in this slot answers.
    pub fn slot_ready(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.step(slot, SlotEvent::WorkerReady, now) {
            return actions;
        }
        let revision = self.slots.get(&slot).map(|place| place.revision);
        let desired = self.desired.as_ref().map(|desired| desired.revision);
        let moves_over = desired.is_some() && desired == revision;
        if moves_over {
            self.activate(now, &mut actions);
        }
        self.active.pace.came_up();
        self.serve_queue(now, &mut actions);
        if moves_over {
            self.trim(now, &mut actions);
        }
        self.fill(now, &mut actions);
        actions
    }

    /// The store knows who owns this slot.
    pub fn bound(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let Some(session) = self.session_in(slot) else {
            return Vec::new();
        };
        let answered = session.bound(now);
        let idle_since = session.idle_since();
        self.idle.extend(idle_since.map(|since| (since, slot)));
        let answer = |ticket| Action::Answer {
            ticket,
            answer: Ok(slot),
        };
        let mut actions: Vec<_> = answered.into_iter().map(answer).collect();
        actions.extend(self.drain_if_idle(slot, now));
        actions
    }

    /// The store did not take the record.
    pub fn bind_failed(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let abandoned = self.end_session(slot);
        let mut actions = deny(abandoned, &Denied::NotRecorded);
        self.drain(slot, EndReason::NotRecorded, now, &mut actions);
        actions
    }

    /// The worker did not come up, or its container ended. Whoever reports this stops the worker
    /// too, so nothing is asked for it here.
    pub fn slot_failed(&mut self, slot: SlotId, failure: StartFailure, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(place) = self.slots.get(&slot) else {
            return actions;
        };
        let (state, urgency, revision) = (place.state, place.urgency, place.revision);
        let (started, ready_at) = (place.started, place.ready_at);
        let abandoned = match state {
            Slot::Draining => return actions,
            Slot::Leased => self.end_session(slot),
            Slot::Warming if urgency == Urgency::Claim && revision == self.active.revision => {
                self.queue.take_first().unwrap_or_default()
            }
            Slot::Warming | Slot::Ready => Vec::new(),
        };
        if let Some(stock) = self.stock(revision) {
            match state {
                Slot::Warming => stock.pace.start_failed(started, now),
                Slot::Ready => stock.pace.ready_failed(ready_at, now),
                Slot::Leased | Slot::Draining => {}
            }
            if state != Slot::Leased {
                stock.last_failure = Some(failure.describe(&failure.cause.to_string()));
                stock.tried = now;
            }
        }
        self.step(slot, SlotEvent::Stop, now);
        actions.extend(deny(abandoned, &Denied::StartFailed(failure)));
        self.fill(now, &mut actions);
        actions
    }

    /// Nothing is left of the slot.
    pub fn slot_gone(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        // Without a word before, it died.
        let mut actions = self.slot_failed(slot, StartFailure::vanished(), now);
        let Some(place) = self.slots.remove(&slot) else {
            return actions;
        };
        self.draining -= 1;
        if let Some(identifier) = place.owner {
            self.sessions.remove(&identifier);
            self.queue.release(&identifier);
            self.serve_queue(now, &mut actions);
        }
        self.fill(now, &mut actions);
        actions
    }

    /// Ends this session. `None`: there is none. What is left of it is gone with the slot.
    pub fn stop(&mut self, identifier: &Identifier, now: Moment) -> Option<(SlotId, Vec<Action>)> {
        let slot = self.sessions.get(identifier)?.slot;
        let mut actions = Vec::new();
        self.retire(slot, EndReason::Stopped, now, &mut actions);
        self.fill(now, &mut actions);
        Some((slot, actions))
    }

    /// Time has passed: ends every session whose time has come, and tries again what failed.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        loop {
            let (first, after, reason) = match self.limits.life {
                Life::Idle(cooldown) => (self.idle.first(), cooldown, EndReason::Idle),
                Life::Alive(longest) => (self.living.first(), longest, EndReason::MaxAlive),
            };
            let Some(&(since, slot)) = first else { break };
            if since + after > now {
                break;
            }
            self.retire(slot, reason, now, &mut actions);
        }
        self.drain_lingering(now, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// Changes the limits, and the revision that sessions are to be made of. Sessions that are there
    /// live on.
    pub fn update(&mut self, limits: Limits, revision: Uuid, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.limits = limits;
        self.want(revision, now, &mut actions);
        while self.leased + self.queue.len() > limits.max_sessions
            && let Some(tickets) = self.queue.take_last()
        {
            actions.extend(deny(tickets, &self.full(now)));
        }
        self.trim(now, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// Ends everything and accepts nothing more. Done when no slot is in use.
    pub fn close(&mut self, now: Moment) -> Vec<Action> {
        self.closing = true;
        let mut actions = Vec::new();
        while let Some(tickets) = self.queue.take_first() {
            actions.extend(deny(tickets, &Denied::Closing));
        }
        let mut slots: Vec<_> = self.slots.keys().copied().collect();
        slots.sort_unstable();
        for slot in slots {
            let abandoned = self.end_session(slot);
            actions.extend(deny(abandoned, &Denied::Closing));
            self.drain(slot, EndReason::Closing, now, &mut actions);
        }
        actions
    }

    /// Gives slots that are ready to those who wait.
    fn serve_queue(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(slot) = self.active.oldest_ready()
            && let Some((identifier, waiting)) = self.queue.next()
        {
            self.give(slot, identifier, waiting, now, actions);
        }
    }

    fn give(
        &mut self,
        slot: SlotId,
        identifier: Identifier,
        waiting: Vec<Ticket>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        self.step(slot, SlotEvent::Lease, now);
        self.active.pace.was_used();
        if let Some(place) = self.slots.get_mut(&slot) {
            place.owner = Some(identifier.clone());
        }
        self.living.insert((now, slot));
        let session = Session::new(slot, waiting, now);
        self.sessions.insert(identifier.clone(), session);
        actions.push(Action::Bind { slot, identifier });
    }

    /// Ends the session of a slot. Callers that wait for it asked for a session, not for this one: they
    /// get the next.
    pub(super) fn retire(
        &mut self,
        slot: SlotId,
        reason: EndReason,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let waiting = self.end_session(slot);
        let owner = self.slots.get(&slot).and_then(|place| place.owner.clone());
        if self.emptying {
            actions.extend(deny(waiting, &Denied::Draining));
        } else if let Some(identifier) = owner
            && !waiting.is_empty()
        {
            self.queue.push(identifier, waiting, true);
        }
        self.drain(slot, reason, now, actions);
    }

    /// The session of the slot begins to end, if there is one; gives the callers that waited for it.
    fn end_session(&mut self, slot: SlotId) -> Vec<Ticket> {
        let Some(session) = self.session_in(slot) else {
            return Vec::new();
        };
        let (idle_since, claimed) = (session.idle_since(), session.claimed);
        let abandoned = session.end();
        if let Some(since) = idle_since {
            self.idle.remove(&(since, slot));
        }
        self.living.remove(&(claimed, slot));
        abandoned
    }

    /// Has the slot stopped, unless it is being stopped.
    pub(super) fn drain(
        &mut self,
        slot: SlotId,
        reason: EndReason,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.step(slot, SlotEvent::Stop, now) {
            actions.push(Action::Drain { slot, reason });
        }
    }

    fn session_in(&mut self, slot: SlotId) -> Option<&mut Session> {
        let owner = self.slots.get(&slot)?.owner.as_ref()?;
        self.sessions.get_mut(owner)
    }

    pub(super) fn stock(&mut self, revision: Uuid) -> Option<&mut Stock> {
        let stocks = [Some(&mut self.active), self.desired.as_mut()];
        let mut stocks = stocks.into_iter().flatten();
        stocks.find(|stock| stock.revision == revision)
    }

    /// Moves a slot on, and everything that counts it. `false`: the event does not fit the slot any
    /// more, for example because it drains already.
    fn step(&mut self, slot: SlotId, event: SlotEvent, now: Moment) -> bool {
        let Some(place) = self.slots.get_mut(&slot) else {
            return false;
        };
        let Some(after) = place.state.on(event) else {
            return false;
        };
        let before = std::mem::replace(&mut place.state, after);
        let (revision, ready_at) = (place.revision, place.ready_at);
        if after == Slot::Ready {
            place.ready_at = now;
        }
        self.leased -= usize::from(before == Slot::Leased);
        self.leased += usize::from(after == Slot::Leased);
        self.draining += usize::from(after == Slot::Draining);
        if let Some(stock) = self.stock(revision) {
            match after {
                Slot::Ready => stock.ready_at(slot, now),
                Slot::Warming | Slot::Leased | Slot::Draining => stock.remove(slot, ready_at),
            }
        }
        true
    }

    /// The answer when no place will be free without a session ending, with the time when the first
    /// one does that by itself.
    fn full(&self, now: Moment) -> Denied {
        let (first, after, longest) = match self.limits.life {
            Life::Idle(cooldown) => (self.idle.first(), cooldown, Duration::MAX),
            // Containers exit when they like.
            Life::Alive(longest) => (self.living.first(), longest, RETRY_SOMETIME),
        };
        let since = first.map_or(now, |(since, _)| *since);
        let left = (since + after).saturating_sub(now);
        Denied::Full {
            max_sessions: self.limits.max_sessions,
            retry_after: left.min(longest).max(RETRY_SOON),
        }
    }

    /// The answer when the host has no room, whatever the pool allows.
    pub(super) fn host_full(shortage: Shortage) -> Denied {
        Denied::HostFull {
            shortage,
            retry_after: RETRY_SOMETIME,
        }
    }
}

pub(super) fn deny(tickets: Vec<Ticket>, denied: &Denied) -> Vec<Action> {
    let answer = |ticket| Action::Answer {
        ticket,
        answer: Err(denied.clone()),
    };
    tickets.into_iter().map(answer).collect()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;

#[cfg(test)]
#[path = "load_tests.rs"]
mod load_tests;
