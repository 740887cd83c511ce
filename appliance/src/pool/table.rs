//! All sessions and slots of one pool, as a pure state machine: what happened goes in, what must be
//! done comes out. No clock, no task, no I/O: `driver.rs` brings those.
//!
//! Invariants, checked by a model test: at most one session per identifier, at most
//! `max_sessions` slots, every ticket answered exactly once, no slot leased twice.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Identifier;
use super::launcher::StartFailure;
use super::session::{Moment, Session, Ticket, Use};
use super::slot::{Slot, SlotEvent, SlotId};

/// What a caller is told to wait when the pool is full and something is about to leave it.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// What the pool allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_sessions: usize,
    pub cooldown: Duration,
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker in this new slot. The identifier is the one it is meant for.
    Fill {
        slot: SlotId,
        identifier: Identifier,
    },
    /// Write that the slot belongs to this identifier, then report `bound` or `bind_failed`.
    Bind {
        slot: SlotId,
        identifier: Identifier,
    },
    /// Tell the caller. `Ok`: the caller has a request open in this slot.
    Answer {
        ticket: Ticket,
        answer: Result<SlotId, Denied>,
    },
    /// Stop the worker, then report `slot_gone`.
    Drain { slot: SlotId, reason: EndReason },
}

/// Why a caller gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The pool has as many sessions as it may have.
    Full {
        max_sessions: usize,
        retry_after: Duration,
    },
    /// The session did not come up.
    StartFailed(StartFailure),
    /// The store could not be told, so nobody may be.
    NotRecorded,
    /// The pool is being deleted, or the appliance stops.
    Closing,
}

/// Why a session ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Nobody used it for the cooldown period.
    Idle,
    /// Its pool was deleted, or the appliance stops.
    Closing,
    /// The store did not take its record.
    NotRecorded,
}

/// The state. See the module documentation.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    slots: HashMap<SlotId, Slot>,
    sessions: HashMap<Identifier, Session>,
    owner: HashMap<SlotId, Identifier>,
    /// Idle sessions, the longest idle first.
    idle: BTreeSet<(Moment, SlotId)>,
    next_slot: u64,
    closing: bool,
}

impl Table {
    /// An empty pool.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: HashMap::new(),
            sessions: HashMap::new(),
            owner: HashMap::new(),
            idle: BTreeSet::new(),
            next_slot: 0,
            closing: false,
        }
    }

    /// Changes the limits; sessions above a lowered maximum live on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Slots in use, those that drain included.
    pub fn slots_in_use(&self) -> usize {
        self.slots.len()
    }

    /// When [`tick`](Self::tick) next has something to do.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.idle
            .first()
            .map(|(since, _)| *since + self.limits.cooldown)
    }

    /// Somebody wants the session of this identifier.
    pub fn claim(&mut self, ticket: Ticket, identifier: &Identifier, now: Moment) -> Vec<Action> {
        if self.closing {
            return vec![Action::Answer {
                ticket,
                answer: Err(Denied::Closing),
            }];
        }
        let Some(session) = self.sessions.get_mut(identifier) else {
            return self.start(identifier, vec![ticket], now);
        };
        if let Session::Serving {
            slot,
            use_: Use::Idle { since },
        } = session
        {
            self.idle.remove(&(*since, *slot));
        }
        if session.join(ticket) {
            vec![Action::Answer {
                ticket,
                answer: Ok(session.slot()),
            }]
        } else {
            Vec::new()
        }
    }

    /// A request or stream of this slot ended.
    pub fn released(&mut self, slot: SlotId, now: Moment) {
        let Some(session) = self.session_in(slot) else {
            return;
        };
        session.release(now);
        if let Session::Serving {
            use_: Use::Idle { since },
            ..
        } = *session
        {
            self.idle.insert((since, slot));
        }
    }

    /// The container in this slot answers.
    pub fn slot_ready(&mut self, slot: SlotId) -> Vec<Action> {
        // Ready and leased in one step for as long as a slot is only filled for a session that waits.
        if !self.step(slot, SlotEvent::WorkerReady) || !self.step(slot, SlotEvent::Lease) {
            return Vec::new();
        }
        let Some(identifier) = self.owner.get(&slot).cloned() else {
            return Vec::new();
        };
        if let Some(session) = self.sessions.get_mut(&identifier) {
            session.ready();
        }
        vec![Action::Bind { slot, identifier }]
    }

    /// The store knows who owns this slot.
    pub fn bound(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let Some(session) = self.session_in(slot) else {
            return Vec::new();
        };
        let answered = session.bound(now);
        if let Session::Serving {
            use_: Use::Idle { since },
            ..
        } = *session
        {
            self.idle.insert((since, slot));
        }
        let answer = |ticket| Action::Answer {
            ticket,
            answer: Ok(slot),
        };
        answered.into_iter().map(answer).collect()
    }

    /// The store did not take the record.
    pub fn bind_failed(&mut self, slot: SlotId) -> Vec<Action> {
        let mut actions = self.end(slot, &Denied::NotRecorded);
        actions.push(Action::Drain {
            slot,
            reason: EndReason::NotRecorded,
        });
        actions
    }

    /// The worker did not come up, or its container ended. Whoever reports this stops the worker
    /// too, so nothing is asked for it here.
    pub fn slot_failed(&mut self, slot: SlotId, failure: StartFailure) -> Vec<Action> {
        self.end(slot, &Denied::StartFailed(failure))
    }

    /// Nothing is left of the slot.
    pub fn slot_gone(&mut self, slot: SlotId, now: Moment) -> Vec<Action> {
        let mut actions = self.end(slot, &Denied::StartFailed(StartFailure::vanished()));
        self.slots.remove(&slot);
        let Some(identifier) = self.owner.remove(&slot) else {
            return actions;
        };
        if let Some(Session::Ending { waiting, .. }) = self.sessions.remove(&identifier)
            && !waiting.is_empty()
        {
            actions.extend(self.start(&identifier, waiting, now));
        }
        actions
    }

    /// Time has passed: ends every session that was idle for the cooldown period.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(&(since, slot)) = self.idle.first()
            && since + self.limits.cooldown <= now
        {
            actions.extend(self.end(slot, &Denied::Closing));
            actions.push(Action::Drain {
                slot,
                reason: EndReason::Idle,
            });
        }
        actions
    }

    /// Ends everything and accepts nothing more. Done when no slot is in use.
    pub fn close(&mut self) -> Vec<Action> {
        self.closing = true;
        let mut actions = Vec::new();
        let mut slots: Vec<_> = self.slots.keys().copied().collect();
        slots.sort_unstable();
        for slot in slots {
            let draining = self.slots.get(&slot) == Some(&Slot::Draining);
            actions.extend(self.end(slot, &Denied::Closing));
            if !draining {
                actions.push(Action::Drain {
                    slot,
                    reason: EndReason::Closing,
                });
            }
            // Callers that wait for the next session of an ending one.
            if let Some(Session::Ending { waiting, .. }) = self.session_in(slot) {
                let waiting = std::mem::take(waiting);
                actions.extend(deny(waiting, &Denied::Closing));
            }
        }
        actions
    }

    fn start(&mut self, identifier: &Identifier, waiting: Vec<Ticket>, now: Moment) -> Vec<Action> {
        let max_sessions = self.limits.max_sessions;
        if self.closing || self.slots.len() >= max_sessions {
            let full = Denied::Full {
                max_sessions,
                retry_after: self.retry_after(now),
            };
            return deny(
                waiting,
                if self.closing {
                    &Denied::Closing
                } else {
                    &full
                },
            );
        }
        let slot = SlotId(self.next_slot);
        self.next_slot += 1;
        self.slots.insert(slot, Slot::Warming);
        self.owner.insert(slot, identifier.clone());
        self.sessions
            .insert(identifier.clone(), Session::Starting { slot, waiting });
        vec![Action::Fill {
            slot,
            identifier: identifier.clone(),
        }]
    }

    /// The session of the slot begins to end and the slot to drain; callers that waited are denied.
    fn end(&mut self, slot: SlotId, denied: &Denied) -> Vec<Action> {
        self.step(slot, SlotEvent::Stop);
        let Some(session) = self.session_in(slot) else {
            return Vec::new();
        };
        let was_idle = match *session {
            Session::Serving {
                use_: Use::Idle { since },
                ..
            } => Some(since),
            _ => None,
        };
        let abandoned = session.end();
        if let Some(since) = was_idle {
            self.idle.remove(&(since, slot));
        }
        deny(abandoned, denied)
    }

    fn session_in(&mut self, slot: SlotId) -> Option<&mut Session> {
        self.sessions.get_mut(self.owner.get(&slot)?)
    }

    /// `false`: the event does not fit the slot any more, for example because it drains already.
    fn step(&mut self, slot: SlotId, event: SlotEvent) -> bool {
        let next = self.slots.get(&slot).and_then(|state| state.on(event));
        next.is_some_and(|next| self.slots.insert(slot, next).is_some())
    }

    /// When a place may become free: soon if something drains, else when the longest idle session
    /// expires, else after a whole cooldown.
    fn retry_after(&self, now: Moment) -> Duration {
        if self.slots.values().any(|slot| *slot == Slot::Draining) {
            return RETRY_SOON;
        }
        let free_at = self.next_deadline().unwrap_or(now + self.limits.cooldown);
        free_at.saturating_sub(now).max(RETRY_SOON)
    }
}

fn deny(tickets: Vec<Ticket>, denied: &Denied) -> Vec<Action> {
    let answer = |ticket| Action::Answer {
        ticket,
        answer: Err(denied.clone()),
    };
    tickets.into_iter().map(answer).collect()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
