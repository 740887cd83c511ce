//! How a table begins where an earlier one of the same pool ended: the appliance was started again, and workers of it
//! live on. Pure.
//!
//! Before anything else happens it is told the desired revision, then every session, then every ready slot; an
//! [`update`](Table::update) then starts what is missing.

use uuid::Uuid;

use super::Identifier;
use super::action::Action;
use super::launcher::Urgency;
use super::session::{Moment, Session};
use super::slot::{Slot, SlotId};
use super::table::{Place, Table};

/// A session that is there already.
#[derive(Debug, Clone)]
pub struct Left {
    pub identifier: Identifier,
    pub revision: Uuid,
    pub claimed: Moment,
    pub accessed: Moment,
}

impl Table {
    /// What sessions are to be made of, if that is something else than they are made of now. Starts nothing yet.
    pub fn resume(&mut self, desired: Uuid, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.want(desired, now, &mut actions);
        actions
    }

    /// A session that serves, with no request open. There may be more of them than the pool allows by now. `None`: the
    /// identifier has one already.
    pub fn adopt_session(&mut self, left: Left, now: Moment) -> Option<(SlotId, Vec<Action>)> {
        let Left {
            identifier,
            revision,
            claimed,
            accessed,
        } = left;
        if self.sessions.contains_key(&identifier) {
            return None;
        }
        let slot = self.new_slot();
        let place = Place {
            state: Slot::Leased,
            revision,
            urgency: Urgency::Refill,
            started: claimed,
            ready_at: claimed,
            owner: Some(identifier.clone()),
        };
        self.slots.insert(slot, place);
        self.leased += 1;
        let session = Session::adopted(slot, claimed, accessed);
        self.idle.insert((accessed, slot));
        self.living.insert((claimed, slot));
        self.sessions.insert(identifier, session);
        let mut actions = Vec::new();
        let desired = self.desired.as_ref().map(|desired| desired.revision);
        if desired == Some(revision) {
            // Claims had moved over, and nobody had time to write it down.
            self.activate(now, &mut actions);
        }
        Some((slot, actions))
    }

    /// A slot that is ready and belongs to nobody; it counts as warming until its attendant says
    /// [`slot_ready`](Table::slot_ready). `None`: nobody will come for its revision.
    pub fn adopt_ready(&mut self, revision: Uuid, now: Moment) -> Option<SlotId> {
        self.stock(revision)?;
        let slot = self.new_slot();
        self.warm(slot, revision, Urgency::Refill, now);
        Some(slot)
    }
}
