//! The life of one session, as a pure state machine. It knows nothing of other sessions: how many
//! there may be is `table.rs`.

use std::time::Duration;

use super::slot::SlotId;

/// Names a caller that waits for an answer; never used twice within a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A point in time, as the time since the pool's clock began.
pub type Moment = Duration;

/// Where a session is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// Its slot warms up; these callers wait.
    Starting { slot: SlotId, waiting: Vec<Ticket> },
    /// Its slot is ready and the store is being told who owns it; these callers wait.
    Binding { slot: SlotId, waiting: Vec<Ticket> },
    /// It answers requests.
    Serving { slot: SlotId, use_: Use },
    /// Its slot is being stopped. Callers that came since wait for a new session of the same name,
    /// which begins when nothing is left of this one.
    Ending { slot: SlotId, waiting: Vec<Ticket> },
}

/// Whether somebody uses the session right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// This many requests or streams are open.
    Busy { open: u64 },
    /// Nobody, since then.
    Idle { since: Moment },
}

impl Session {
    /// The slot it lives in.
    pub fn slot(&self) -> SlotId {
        match self {
            Self::Starting { slot, .. }
            | Self::Binding { slot, .. }
            | Self::Serving { slot, .. }
            | Self::Ending { slot, .. } => *slot,
        }
    }

    /// A caller comes. `true`: it is answered at once. `false`: it waits.
    pub fn join(&mut self, ticket: Ticket) -> bool {
        match self {
            Self::Starting { waiting, .. }
            | Self::Binding { waiting, .. }
            | Self::Ending { waiting, .. } => {
                waiting.push(ticket);
                false
            }
            Self::Serving { use_, .. } => {
                *use_ = match *use_ {
                    Use::Busy { open } => Use::Busy { open: open + 1 },
                    Use::Idle { .. } => Use::Busy { open: 1 },
                };
                true
            }
        }
    }

    /// The slot is ready.
    pub fn ready(&mut self) {
        if let Self::Starting { slot, waiting } = self {
            *self = Self::Binding {
                slot: *slot,
                waiting: std::mem::take(waiting),
            };
        }
    }

    /// The store knows. Every caller that waited now has a request open.
    pub fn bound(&mut self, now: Moment) -> Vec<Ticket> {
        let Self::Binding { slot, waiting } = self else {
            return Vec::new();
        };
        let (slot, answered) = (*slot, std::mem::take(waiting));
        let use_ = match answered.len() {
            0 => Use::Idle { since: now },
            open => Use::Busy { open: open as u64 },
        };
        *self = Self::Serving { slot, use_ };
        answered
    }

    /// A request or stream ended.
    pub fn release(&mut self, now: Moment) {
        if let Self::Serving { use_, .. } = self {
            *use_ = match *use_ {
                Use::Busy { open } if open > 1 => Use::Busy { open: open - 1 },
                Use::Busy { .. } => Use::Idle { since: now },
                idle @ Use::Idle { .. } => idle,
            };
        }
    }

    /// It ends. Gives the callers that waited for the session that now will not be.
    pub fn end(&mut self) -> Vec<Ticket> {
        let slot = self.slot();
        match self {
            Self::Starting { waiting, .. } | Self::Binding { waiting, .. } => {
                let abandoned = std::mem::take(waiting);
                *self = Self::Ending {
                    slot,
                    waiting: Vec::new(),
                };
                abandoned
            }
            Self::Serving { .. } => {
                *self = Self::Ending {
                    slot,
                    waiting: Vec::new(),
                };
                Vec::new()
            }
            Self::Ending { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SlotId = SlotId(1);

    fn seconds(n: u64) -> Moment {
        Duration::from_secs(n)
    }

    fn serving() -> Session {
        let mut session = Session::Starting {
            slot: SLOT,
            waiting: vec![Ticket(1)],
        };
        session.ready();
        session.bound(seconds(5));
        session
    }

    #[test]
    fn callers_that_wait_are_answered_together_when_the_store_knows() {
        let mut session = Session::Starting {
            slot: SLOT,
            waiting: vec![Ticket(1)],
        };
        assert!(!session.join(Ticket(2)));
        session.ready();
        assert!(!session.join(Ticket(3)));
        assert_eq!(session.bound(seconds(5)), [Ticket(1), Ticket(2), Ticket(3)]);
        assert_eq!(
            session,
            Session::Serving {
                slot: SLOT,
                use_: Use::Busy { open: 3 }
            }
        );
    }

    #[test]
    fn idle_time_begins_when_the_last_of_several_requests_ends() {
        let mut session = serving();
        assert!(session.join(Ticket(2)));
        session.release(seconds(10));
        assert_eq!(
            session,
            Session::Serving {
                slot: SLOT,
                use_: Use::Busy { open: 1 }
            }
        );
        session.release(seconds(20));
        assert_eq!(
            session,
            Session::Serving {
                slot: SLOT,
                use_: Use::Idle { since: seconds(20) }
            }
        );
        session.release(seconds(30));
        assert_eq!(
            session,
            Session::Serving {
                slot: SLOT,
                use_: Use::Idle { since: seconds(20) }
            }
        );
    }

    #[test]
    fn session_that_ends_while_starting_gives_up_its_callers_once() {
        let mut session = Session::Starting {
            slot: SLOT,
            waiting: vec![Ticket(1)],
        };
        assert_eq!(session.end(), [Ticket(1)]);
        assert!(!session.join(Ticket(2)));
        assert_eq!(session.end(), []);
        assert_eq!(
            session,
            Session::Ending {
                slot: SLOT,
                waiting: vec![Ticket(2)]
            }
        );
    }

    #[test]
    fn ending_session_never_serves_again() {
        let mut session = serving();
        session.end();
        session.ready();
        assert_eq!(session.bound(seconds(9)), []);
        session.release(seconds(9));
        assert_eq!(
            session,
            Session::Ending {
                slot: SLOT,
                waiting: vec![]
            }
        );
    }
}
