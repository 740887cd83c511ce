//! The life of one session, as a pure state machine. It knows nothing of other sessions: how many
//! there may be is `table.rs`.

use std::time::Duration;

use super::slot::SlotId;

/// Names a caller that waits for an answer; never used twice within a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A point in time, as the time since the pool's clock began.
pub type Moment = Duration;

/// A slot that belongs to an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub slot: SlotId,
    /// When it got its slot.
    pub claimed: Moment,
    /// When a request last began or ended.
    pub accessed: Moment,
    pub phase: Phase,
}

/// Where a session is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The store is being told who owns the slot; these callers wait.
    Binding { waiting: Vec<Ticket> },
    /// It answers requests; so many requests or streams are open.
    Serving { open: u64 },
    /// Its slot is being stopped. The next session of the same name begins when nothing is left.
    Ending,
}

impl Session {
    /// One that gets its slot now.
    pub fn new(slot: SlotId, waiting: Vec<Ticket>, now: Moment) -> Self {
        Self {
            slot,
            claimed: now,
            accessed: now,
            phase: Phase::Binding { waiting },
        }
    }

    /// One that has its slot since an earlier run. Whoever used it then is gone.
    pub fn adopted(slot: SlotId, claimed: Moment, accessed: Moment) -> Self {
        Self {
            slot,
            claimed,
            accessed,
            phase: Phase::Serving { open: 0 },
        }
    }

    /// Since when nobody uses it; `None` while somebody does, or while it does not serve.
    pub fn idle_since(&self) -> Option<Moment> {
        match self.phase {
            Phase::Serving { open: 0 } => Some(self.accessed),
            Phase::Serving { .. } | Phase::Binding { .. } | Phase::Ending => None,
        }
    }

    /// A caller comes to a session that serves: it has a request open from now on. `false`: it does not serve.
    pub fn enter(&mut self, now: Moment) -> bool {
        let Phase::Serving { open } = &mut self.phase else {
            return false;
        };
        *open += 1;
        self.accessed = now;
        true
    }

    /// A caller waits until the store knows. `false`: there is nothing to wait for, this session takes nobody that
    /// could not [`enter`](Self::enter).
    pub fn wait(&mut self, ticket: Ticket) -> bool {
        let Phase::Binding { waiting } = &mut self.phase else {
            return false;
        };
        waiting.push(ticket);
        true
    }

    /// A caller that waits goes away.
    pub fn abandon(&mut self, ticket: Ticket) {
        if let Phase::Binding { waiting } = &mut self.phase {
            waiting.retain(|other| *other != ticket);
        }
    }

    /// The store knows. Every caller that waited now has a request open.
    pub fn bound(&mut self, now: Moment) -> Vec<Ticket> {
        let Phase::Binding { waiting } = &mut self.phase else {
            return Vec::new();
        };
        let answered = std::mem::take(waiting);
        self.accessed = now;
        self.phase = Phase::Serving {
            open: answered.len() as u64,
        };
        answered
    }

    /// A request or stream ended.
    pub fn release(&mut self, now: Moment) {
        if let Phase::Serving { open } = &mut self.phase
            && *open > 0
        {
            *open -= 1;
            self.accessed = now;
        }
    }

    /// It ends. Gives the callers that waited for the session that now will not be.
    pub fn end(&mut self) -> Vec<Ticket> {
        match std::mem::replace(&mut self.phase, Phase::Ending) {
            Phase::Binding { waiting } => waiting,
            Phase::Serving { .. } | Phase::Ending => Vec::new(),
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

    fn binding() -> Session {
        Session::new(SLOT, vec![Ticket(1)], seconds(4))
    }

    #[test]
    fn callers_that_wait_are_answered_together_when_the_store_knows() {
        let mut session = binding();
        assert!(!session.enter(seconds(4)) && session.wait(Ticket(2)));
        assert_eq!(session.bound(seconds(5)), [Ticket(1), Ticket(2)]);
        assert_eq!(session.phase, Phase::Serving { open: 2 });
        assert_eq!(
            (session.claimed, session.accessed),
            (seconds(4), seconds(5))
        );
    }

    #[test]
    fn session_whose_callers_all_went_away_is_idle_from_the_start() {
        let mut session = binding();
        session.abandon(Ticket(1));
        assert_eq!(session.bound(seconds(5)), []);
        assert_eq!(session.idle_since(), Some(seconds(5)));
    }

    #[test]
    fn idle_time_begins_when_the_last_of_several_requests_ends() {
        let mut session = binding();
        session.bound(seconds(5));
        assert!(session.enter(seconds(6)));
        session.release(seconds(10));
        assert_eq!(session.idle_since(), None);
        session.release(seconds(20));
        assert_eq!(session.idle_since(), Some(seconds(20)));
        session.release(seconds(30));
        assert_eq!(session.idle_since(), Some(seconds(20)));
    }

    #[test]
    fn session_that_ends_while_it_is_bound_gives_up_its_callers_once() {
        let mut session = binding();
        assert_eq!(session.end(), [Ticket(1)]);
        assert!(!session.enter(seconds(9)) && !session.wait(Ticket(2)));
        assert_eq!(session.end(), []);
    }

    #[test]
    fn ending_session_never_serves_again() {
        let mut session = binding();
        session.bound(seconds(5));
        session.end();
        assert_eq!(session.bound(seconds(9)), []);
        session.release(seconds(9));
        assert_eq!(
            (session.phase, session.accessed),
            (Phase::Ending, seconds(5))
        );
    }
}
