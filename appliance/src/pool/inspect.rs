//! What can be seen of a [`Table`]. Nothing here changes it.

use uuid::Uuid;

use super::Identifier;
use super::action::Life;
use super::session::{Moment, Phase};
use super::slot::{Slot, SlotId};
use super::table::{Place, Table};
use super::view::{Counts, SessionState};

/// What there is to know about one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub slot: SlotId,
    pub state: SessionState,
    pub open: u64,
    pub accessed: Moment,
    pub expires: Option<Moment>,
}

impl Table {
    /// What there is to know about this session.
    pub fn look(&self, identifier: &Identifier, now: Moment) -> Option<Look> {
        let session = self.sessions.get(identifier)?;
        let (state, open) = match &session.phase {
            Phase::Binding { waiting } => (SessionState::Starting, waiting.len() as u64),
            Phase::Serving { open } => (SessionState::Active, *open),
            Phase::Ending => (SessionState::Ending, 0),
        };
        let expires = match self.limits.life {
            // Not before a whole cooldown from now while a request is open.
            Life::Idle(cooldown) => session.idle_since().unwrap_or(now) + cooldown,
            Life::Alive(longest) => session.claimed + longest,
        };
        Some(Look {
            slot: session.slot,
            state,
            open,
            accessed: session.accessed,
            expires: (state == SessionState::Active).then_some(expires),
        })
    }

    /// When the session in this slot was last used, and whether it is in use; `None`: it serves nobody.
    pub fn use_of(&self, slot: SlotId) -> Option<(Moment, bool)> {
        let owner = self.slots.get(&slot)?.owner.as_ref()?;
        let session = self.sessions.get(owner)?;
        match session.phase {
            Phase::Serving { open } => Some((session.accessed, open > 0)),
            Phase::Binding { .. } | Phase::Ending => None,
        }
    }

    /// Everybody who has a session, in no order.
    pub fn identifiers(&self) -> impl Iterator<Item = &Identifier> {
        self.sessions.keys()
    }

    /// The slots of the active revision, or of the desired one. Looks at every slot.
    pub fn counts(&self, revision: Uuid) -> Counts {
        let desired = self.desired.as_ref();
        let desired = desired.filter(|desired| desired.revision == revision);
        let expected = match desired {
            Some(_) => self.wanted_of_desired(),
            None => self.target(),
        };
        Counts {
            expected: number(expected),
            failed: desired.unwrap_or(&self.active).pace.failed(),
            ..self.slots_that(|place| place.revision == revision)
        }
    }

    /// The slots of revisions that were active before.
    pub fn counts_of_earlier(&self) -> Counts {
        let is_current = |revision| {
            let desired = self.desired.as_ref();
            self.active.revision == revision || desired.is_some_and(|it| it.revision == revision)
        };
        self.slots_that(|place| !is_current(place.revision))
    }

    /// Those that are meant, by their state.
    fn slots_that(&self, are_meant: impl Fn(&Place) -> bool) -> Counts {
        let of = |state| {
            let slots = self.slots.values();
            number(
                slots
                    .filter(|it| it.state == state && are_meant(it))
                    .count(),
            )
        };
        Counts {
            ready: of(Slot::Ready),
            pending: of(Slot::Warming),
            allocated: of(Slot::Leased),
            draining: of(Slot::Draining),
            ..Counts::default()
        }
    }

    /// Why the last start of this revision failed.
    pub fn last_failure(&self, revision: Uuid) -> Option<&str> {
        let stocks = [Some(&self.active), self.desired.as_ref()];
        let stock = stocks
            .into_iter()
            .flatten()
            .find(|it| it.revision == revision);
        stock?.last_failure.as_deref()
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
