//! What a [`Table`](super::table::Table) goes by and what it decides. Pure data.

use std::time::Duration;

use uuid::Uuid;

use super::Identifier;
use super::budget::Shortage;
use super::launcher::{StartFailure, Urgency};
use super::session::Ticket;
use super::slot::SlotId;

/// What the pool allows and keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_sessions: usize,
    pub ready_sessions: usize,
    pub life: Life,
}

/// When a session ends, if its container does not end before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// So long after its last request.
    Idle(Duration),
    /// So long after it got its slot.
    Alive(Duration),
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker in this new slot, or report `start_refused`.
    Fill {
        slot: SlotId,
        revision: Uuid,
        urgency: Urgency,
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
    /// From now on sessions are of this revision.
    Activate { revision: Uuid },
}

/// Why a caller gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The pool has as many sessions as it may have.
    Full {
        max_sessions: usize,
        retry_after: Duration,
    },
    /// The host has no room for one more, whatever the pool allows.
    HostFull {
        shortage: Shortage,
        retry_after: Duration,
    },
    /// The session did not come up.
    StartFailed(StartFailure),
    /// The store could not be told, so nobody may be.
    NotRecorded,
    /// An operator empties the host: nobody gets a new session for now.
    Draining,
    /// The pool is being deleted, or the appliance stops.
    Closing,
}

/// Why a slot is stopped, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Nobody used the session for the cooldown period.
    Idle,
    /// The session was as old as a session may be.
    MaxAlive,
    /// Somebody ordered it.
    Stopped,
    /// An operator empties the host.
    HostDrains,
    /// Its pool was deleted, or the appliance stops.
    Closing,
    /// The store did not take its record.
    NotRecorded,
    /// A newer revision takes its place, and nobody had it.
    Superseded,
    /// Nobody had it, and more are ready than the pool keeps.
    Surplus,
}
