//! A place in a pool, as a pure state machine.

/// Names a slot within its pool; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

/// What is in the slot. An empty slot is not kept, so there is no variant for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A worker starts.
    Warming,
    /// Its container answers; no caller has seen it.
    Ready,
    /// It belongs to one session, and never goes back: a used guest is never shared.
    Leased,
    /// It is being stopped.
    Draining,
}

/// What happens to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotEvent {
    /// The container answers.
    WorkerReady,
    /// A session takes it.
    Lease,
    /// It is to end, or ends by itself.
    Stop,
}

impl Slot {
    /// The only place where a slot changes. `None`: this event cannot happen here.
    pub fn on(self, event: SlotEvent) -> Option<Self> {
        use {Slot::*, SlotEvent::*};
        match (self, event) {
            (Warming, WorkerReady) => Some(Ready),
            (Ready, Lease) => Some(Leased),
            (Warming | Ready | Leased, Stop) => Some(Draining),
            (Warming | Ready | Leased | Draining, WorkerReady | Lease | Stop) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Slot::*, SlotEvent::*};

    #[test]
    fn leased_slot_is_never_ready_again() {
        let mut reached = vec![Leased];
        for _ in 0..4 {
            let next: Vec<_> = reached
                .iter()
                .flat_map(|slot| [WorkerReady, Lease, Stop].map(|event| slot.on(event)))
                .flatten()
                .collect();
            reached.extend(next);
        }
        assert!(
            !reached.contains(&Ready) && !reached.contains(&Warming),
            "{reached:?}"
        );
    }

    #[test]
    fn slot_that_drains_accepts_nothing() {
        assert_eq!(
            [WorkerReady, Lease, Stop].map(|event| Draining.on(event)),
            [None; 3]
        );
    }

    #[test]
    fn slot_is_leased_only_when_ready() {
        assert_eq!(
            [Warming, Ready, Leased, Draining].map(|slot| slot.on(Lease)),
            [None, Some(Leased), None, None]
        );
    }
}
