//! What a driver tells of its slots and sessions: to those who ask, and in the log.

use std::sync::Arc;
use std::time::Duration;

use super::Driver;
use crate::pool::Identifier;
use crate::pool::launcher::StartFailure;
use crate::pool::session::Moment;
use crate::pool::slot::SlotId;
use crate::pool::view::{PoolStatus, RevisionStatus, SessionView};
use crate::store::PoolRecord;

impl Driver {
    pub(super) fn view(&self, identifier: &Identifier, now: Moment) -> Option<SessionView> {
        let look = self.table.look(identifier, now)?;
        let live = self.slots.get(&look.slot)?;
        let (session, (worker, _)) = (live.session.as_ref()?, live.guest.as_ref()?);
        Some(SessionView {
            identifier: identifier.clone(),
            session: session.id,
            worker: *worker,
            revision: live.record.revision,
            state: look.state,
            created_at_ms: session.created_at_ms,
            last_accessed_at_ms: self.clock.wall(look.accessed),
            expires_at_ms: look.expires.map(|expires| self.clock.wall(expires)),
            open_requests: look.open,
        })
    }

    pub(super) fn status(&self) -> PoolStatus {
        let of = |record: &Arc<PoolRecord>| RevisionStatus {
            revision: record.revision,
            record: Arc::clone(record),
            counts: self.table.counts(record.revision),
            last_failure: self.table.last_failure(record.revision).map(str::to_owned),
        };
        PoolStatus {
            active: of(&self.active),
            desired: self.desired.as_ref().map(of),
            earlier: self.table.counts_of_earlier(),
        }
    }

    /// One line about a session; none about a slot that never had one.
    pub(super) fn log(&self, slot: SlotId, what: &str, reason: Option<&dyn std::fmt::Display>) {
        let Some(live) = self.slots.get(&slot) else {
            return;
        };
        let (Some(session), Some((worker, _))) = (&live.session, &live.guest) else {
            return;
        };
        let reason = reason.map(tracing::field::display);
        tracing::info!(
            pool = %live.record.name,
            session = %session.id,
            identifier_hash = %session.fingerprint,
            revision = %live.record.revision,
            %worker,
            age_ms = self.age(session.since).as_millis(),
            slot_age_ms = self.age(live.since).as_millis(),
            reason,
            "{what}"
        );
    }

    fn age(&self, since: Moment) -> Duration {
        self.clock.now().saturating_sub(since)
    }

    pub(super) fn log_failure(&self, slot: SlotId, failure: &StartFailure) {
        let Some(live) = self.slots.get(&slot) else {
            return;
        };
        if live.session.is_some() {
            return self.log(slot, "session ends", Some(&failure.cause));
        }
        tracing::warn!(
            pool = %live.record.name,
            revision = %live.record.revision,
            urgency = ?live.urgency,
            slot_age_ms = self.age(live.since).as_millis(),
            reason = %failure.cause,
            "slot failed before anybody had it"
        );
    }
}
