//! How a driver begins where that of an earlier appliance ended.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Driver, Live, Owned};
use crate::pool::action::Action;
use crate::pool::adopt::Left;
use crate::pool::attendant::{self, Inherited};
use crate::pool::inherit::{Legacy, SessionLegacy};
use crate::pool::launcher::Urgency;
use crate::pool::session::Moment;
use crate::pool::upstream::Upstream;

impl Driver {
    /// Takes over what is there, and starts what is missing.
    pub(super) fn begin(&mut self) {
        let Some(pool) = self.desired.take() else {
            return;
        };
        let now = self.clock.now();
        let mut actions = self.table.resume(pool.revision, now);
        self.desired = (pool.revision != self.active.revision).then(|| Arc::clone(&pool));
        let legacies = std::mem::take(&mut self.legacies);
        let (sessions, ready): (Vec<_>, Vec<_>) = legacies
            .into_iter()
            .partition(|legacy| legacy.session.is_some());
        for legacy in sessions.into_iter().chain(ready) {
            actions.extend(self.adopt(legacy, now));
        }
        self.perform(actions);
        let actions = self.update(pool);
        self.perform(actions);
    }

    /// Goes on with a slot that an earlier appliance began. One that nobody wants is ended.
    fn adopt(&mut self, legacy: Legacy, now: Moment) -> Vec<Action> {
        let Legacy {
            record,
            launched,
            reservation,
            session,
        } = legacy;
        let mut live = Live {
            record: Arc::clone(&record),
            urgency: Urgency::Refill,
            orders: mpsc::unbounded_channel().0,
            guest: None,
            since: now,
            session: None,
        };
        let mut actions = Vec::new();
        let mut was_in_use = false;
        let taken = match session {
            None => self
                .table
                .adopt_ready(record.revision, now)
                .map(|slot| (slot, None)),
            Some(SessionLegacy {
                record: session,
                claimed_ago,
                idle_for,
                in_use,
            }) => {
                was_in_use = in_use;
                let left = Left {
                    identifier: session.identifier.clone(),
                    revision: record.revision,
                    claimed: now.saturating_sub(claimed_ago),
                    accessed: now.saturating_sub(idle_for),
                };
                live.since = left.claimed;
                let upstream = Upstream::new(Arc::clone(&launched.guest));
                live.guest = Some((launched.worker, upstream));
                live.session = Some(Owned {
                    id: session.session,
                    fingerprint: session.identifier.fingerprint(&self.tools.fingerprints),
                    since: left.claimed,
                    created_at_ms: session.created_at_ms,
                    stopping: Vec::new(),
                });
                let adopted = self.table.adopt_session(left, now);
                adopted.map(|(slot, follows)| {
                    actions = follows;
                    (slot, Some((session.identifier, session.session)))
                })
            }
        };
        let Some((slot, owner)) = taken else {
            tokio::spawn(attendant::give_up(launched, reservation));
            return actions;
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        live.orders = orders;
        self.slots.insert(slot, live);
        self.log(slot, "session taken over", None);
        if was_in_use {
            // Not by anybody who is still there.
            self.note_use(slot);
        }
        let attendant = self.attendant(slot, record, Urgency::Refill, reservation, inbox);
        tokio::spawn(attendant.inherit(Inherited { launched, owner }));
        actions
    }
}
