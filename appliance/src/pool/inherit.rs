//! What an earlier appliance has left: which of its guests are sessions and which are ready slots.
//!
//! | note beside the guest | session in the store that names it | it is |
//! | --- | --- | --- |
//! | leased | of a pool that is there | that session |
//! | ready | none | a ready slot of its pool, if its revision is wanted |
//! | anything else | | nothing that can be proved, and ends |
//!
//! The note becomes "leased" before the store is written, which is before anybody is told; so a guest that somebody used is never
//! taken for a ready slot, whenever the appliance died.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::budget::{Budget, Reservation};
use super::driver::Tools;
use super::launcher::{Launched, Noted, Survivor};
use super::uses::LATE;
use super::{PoolName, unix_millis};
use crate::store::{PoolRecord, Records, SessionRecord, StoreError, Use};

/// A guest that lives on as a slot of its pool.
pub struct Legacy {
    /// What it was made of.
    pub record: Arc<PoolRecord>,
    pub launched: Launched,
    pub reservation: Reservation,
    /// `None`: it is ready, and nobody had it.
    pub session: Option<SessionLegacy>,
}

/// A session that lives on.
pub struct SessionLegacy {
    pub record: SessionRecord,
    pub claimed_ago: Duration,
    pub idle_for: Duration,
    /// Somebody was using it, so that its idle clock begins now.
    pub in_use: bool,
}

/// What the notes and the store say together. Not all of these guests need live.
#[derive(Debug, Default)]
struct Plan {
    kept: Vec<(Survivor, Option<SessionRecord>)>,
    /// Sessions without a guest.
    gone: Vec<SessionRecord>,
}

impl Legacy {
    /// Since when there is something to remember.
    pub fn longest_ago(legacies: &[Self]) -> Duration {
        let sessions = legacies.iter().filter_map(|legacy| legacy.session.as_ref());
        let ages = sessions.map(|session| session.claimed_ago.max(session.idle_for));
        ages.max().unwrap_or_default()
    }
}

/// Takes over what can be proved, and removes the records of sessions that are gone.
pub(super) async fn inherit(
    tools: &Tools,
    pools: &[PoolRecord],
) -> Result<HashMap<PoolName, Vec<Legacy>>, StoreError> {
    let Tools {
        launcher,
        records,
        budget,
        ..
    } = tools;
    let uses = records.uses().await?;
    let plan = plan(pools, records.sessions().await?, launcher.survivors());
    let now_ms = unix_millis();
    let mut legacies: HashMap<_, Vec<_>> = HashMap::new();
    let mut gone = plan.gone;
    let mut kept = HashSet::new();
    for (survivor, session) in plan.kept {
        let Survivor { worker, pool, .. } = survivor;
        match launcher.adopt(worker).await {
            Ok(launched) => {
                kept.extend(session.as_ref().map(|session| session.session));
                let session = session.map(|record| SessionLegacy::of(record, &uses, now_ms));
                let legacy = legacy(pool, launched, budget, session);
                let name = legacy.record.name.clone();
                legacies.entry(name).or_default().push(legacy);
            }
            Err(error) => {
                tracing::info!(pool = %pool.name, %worker, %error, "worker of an earlier run could not be taken over");
                gone.extend(session);
            }
        }
    }
    forget(tools, gone).await?;
    forget_uses(records, &uses, &kept).await?;
    Ok(legacies)
}

fn legacy(
    record: Arc<PoolRecord>,
    launched: Launched,
    budget: &Budget,
    session: Option<SessionLegacy>,
) -> Legacy {
    Legacy {
        reservation: budget.reserve_anyway(&record),
        record,
        launched,
        session,
    }
}

async fn forget(tools: &Tools, gone: Vec<SessionRecord>) -> Result<(), StoreError> {
    for session in gone {
        tracing::info!(
            pool = %session.pool,
            session = %session.session,
            identifier_hash = %session.identifier.fingerprint(&tools.fingerprints),
            "session of an earlier run is gone; its record is removed"
        );
        let SessionRecord {
            pool,
            identifier,
            session,
            ..
        } = session;
        tools
            .records
            .remove_session(pool, identifier, session)
            .await?;
    }
    Ok(())
}

/// A batch may have been on its way when a session ended.
async fn forget_uses(
    records: &Records,
    uses: &HashMap<Uuid, Use>,
    kept: &HashSet<Uuid>,
) -> Result<(), StoreError> {
    let stale: Vec<_> = uses
        .keys()
        .filter(|session| !kept.contains(session))
        .copied()
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    records.remove_uses(stale).await
}

/// Compares what the store says with what is there.
fn plan(pools: &[PoolRecord], sessions: Vec<SessionRecord>, survivors: Vec<Survivor>) -> Plan {
    let is_there = |name: &PoolName| pools.iter().any(|pool| pool.name == *name);
    let mut sessions: HashMap<_, Vec<_>> =
        sessions
            .into_iter()
            .fold(HashMap::new(), |mut by_worker, session| {
                let of_worker: &mut Vec<_> = by_worker.entry(session.worker).or_default();
                of_worker.push(session);
                by_worker
            });
    let mut plan = Plan::default();
    for survivor in survivors {
        let mut owners = sessions.remove(&survivor.worker).unwrap_or_default();
        let named = is_there(&survivor.pool.name);
        match (survivor.noted, owners.pop()) {
            (Noted::Ready, None) if named => plan.kept.push((survivor, None)),
            // Two sessions of one guest cannot be, and neither is to be believed.
            (Noted::Leased, Some(session))
                if named && owners.is_empty() && session.pool == survivor.pool.name =>
            {
                plan.kept.push((survivor, Some(session)));
            }
            (_, owner) => plan.gone.extend(owner),
        }
        plan.gone.extend(owners);
    }
    plan.gone.extend(sessions.into_values().flatten());
    plan
}

impl SessionLegacy {
    /// The host's clock may have been set meanwhile: nothing is in the future, and a use is as late as the store may be.
    fn of(record: SessionRecord, uses: &HashMap<Uuid, Use>, now_ms: u64) -> Self {
        let ago = |at_ms| Duration::from_millis(now_ms.saturating_sub(at_ms));
        let used = uses.get(&record.session);
        let in_use = used.is_some_and(|used| used.in_use);
        let last_used_at_ms = used.map_or(record.created_at_ms, |used| used.last_used_at_ms);
        let idle_for = match in_use {
            true => Duration::ZERO,
            false => ago(last_used_at_ms).saturating_sub(LATE),
        };
        Self {
            claimed_ago: ago(record.created_at_ms),
            idle_for,
            in_use,
            record,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{pool, session};

    fn survivor(worker: u128, pool_name: &str, noted: Noted) -> Survivor {
        Survivor {
            worker: Uuid::from_u128(worker),
            pool: Arc::new(pool(pool_name)),
            noted,
        }
    }

    fn owned(worker: u128, identifier: &str) -> SessionRecord {
        SessionRecord {
            worker: Uuid::from_u128(worker),
            ..session("alpha", identifier)
        }
    }

    /// Workers that are kept and whose they are, and who is gone.
    fn planned(
        sessions: Vec<SessionRecord>,
        survivors: Vec<Survivor>,
    ) -> (Vec<(u128, Option<String>)>, Vec<String>) {
        let name = |session: SessionRecord| {
            String::from_utf8_lossy(session.identifier.as_bytes()).into_owned()
        };
        let Plan { kept, gone } = plan(&[pool("alpha")], sessions, survivors);
        let kept = kept.into_iter();
        let kept = kept.map(|(it, session)| (it.worker.as_u128(), session.map(name)));
        (kept.collect(), gone.into_iter().map(name).collect())
    }

    #[test]
    fn guest_is_a_session_or_a_ready_slot_only_if_note_and_store_agree() {
        let ready = || survivor(1, "alpha", Noted::Ready);
        let leased = || survivor(1, "alpha", Noted::Leased);
        let owner = || owned(1, "user-1");
        let user = || "user-1".to_owned();
        assert_eq!(planned(vec![], vec![ready()]), (vec![(1, None)], vec![]));
        assert_eq!(
            planned(vec![owner()], vec![leased()]),
            (vec![(1, Some(user()))], vec![])
        );
        // Leased, and the store was never told: somebody might have been about to use it.
        assert_eq!(planned(vec![], vec![leased()]), (vec![], vec![]));
        assert_eq!(
            planned(vec![owner()], vec![ready()]),
            (vec![], vec![user()])
        );
        assert_eq!(planned(vec![owner()], vec![]), (vec![], vec![user()]));
    }

    #[test]
    fn guest_of_another_pool_than_its_session_is_not_kept() {
        let beta = || survivor(1, "beta", Noted::Leased);
        assert_eq!(
            planned(vec![owned(1, "user-1")], vec![beta()]),
            (vec![], vec!["user-1".to_owned()])
        );
        let beta = survivor(1, "beta", Noted::Ready);
        assert_eq!(planned(vec![], vec![beta]), (vec![], vec![]));
    }

    #[test]
    fn two_sessions_that_name_one_guest_are_both_gone() {
        let sessions = vec![owned(1, "user-1"), owned(1, "user-2"), owned(2, "user-3")];
        let survivors = vec![
            survivor(1, "alpha", Noted::Leased),
            survivor(2, "alpha", Noted::Leased),
        ];
        let (kept, mut gone) = planned(sessions, survivors);
        gone.sort();
        assert_eq!(kept, [(2, Some("user-3".to_owned()))]);
        assert_eq!(gone, ["user-1", "user-2"]);
    }

    #[test]
    fn idle_clock_goes_on_and_no_clock_that_was_set_makes_it_run_backwards() {
        let record = owned(1, "user-1");
        let legacy = |used, now_ms| {
            let uses = HashMap::from([(record.session, used)]);
            SessionLegacy::of(record.clone(), &uses, now_ms)
        };
        let used = Use {
            last_used_at_ms: 100_000,
            in_use: false,
        };
        let kept = legacy(used, 160_000);
        assert_eq!(kept.idle_for, Duration::from_secs(60) - LATE);
        assert_eq!(kept.claimed_ago, Duration::from_millis(160_000 - 3));
        assert_eq!(legacy(used, 50_000).idle_for, Duration::ZERO);
        assert_eq!(legacy(used, 1).claimed_ago, Duration::ZERO);
        let in_use = Use {
            in_use: true,
            ..used
        };
        assert_eq!(legacy(in_use, 160_000).idle_for, Duration::ZERO);
        // Never used since it was made, as far as the store knows.
        let unused = SessionLegacy::of(record.clone(), &HashMap::new(), 10_003);
        assert_eq!(unused.idle_for, Duration::from_secs(10) - LATE);
    }
}
