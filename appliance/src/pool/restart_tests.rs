//! Pools that are opened again on what an earlier appliance has left.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::*;
use crate::pool::budget::{Budget, Size};
use crate::pool::launcher::{Noted, Urgency};
use crate::pool::testing::{FakeLauncher, Plan};
use crate::pool::view::{Counts, SessionState};
use crate::pool::{Identifier, Lease};
use crate::store::tests::{pool as record, session};
use crate::store::{Lifecycle, Use};

const ONE: Uuid = Uuid::from_u128(7);
const TWO: Uuid = Uuid::from_u128(8);

fn id(text: &str) -> Identifier {
    text.parse().unwrap()
}

fn stocked(max_sessions: u32, ready_sessions: u32) -> PoolRecord {
    PoolRecord {
        max_sessions,
        ready_sessions,
        ..record("alpha")
    }
}

/// One run of an appliance. When it is dropped, everything in it stops where it stands, as a killed process does.
struct Run {
    runtime: Runtime,
    pools: Pools,
}

impl Run {
    fn begin(launcher: &Arc<FakeLauncher>) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let pools = runtime.block_on(async { Pools::open(launcher.tools()).await.unwrap() });
        Self { runtime, pools }
    }

    /// A first run with this pool, whose ready slots are there.
    fn with(launcher: &Arc<FakeLauncher>, pool: PoolRecord) -> Self {
        let run = Self::begin(launcher);
        let ready = pool.ready_sessions;
        run.on(async |pools| pools.put(pool).await.unwrap());
        run.until_ready(ready);
        run
    }

    fn on<T>(&self, what: impl AsyncFnOnce(&Pools) -> T) -> T {
        self.runtime.block_on(what(&self.pools))
    }

    fn handle(&self) -> PoolHandle {
        self.pools.get(&record("alpha").name).unwrap().1
    }

    fn claim(&self, user: &str) -> Lease {
        let handle = self.handle();
        let claimed = self.runtime.block_on(handle.claim(id(user)));
        claimed.unwrap_or_else(|denied| panic!("{denied:?}"))
    }

    fn counts(&self) -> Counts {
        let handle = self.handle();
        self.runtime.block_on(handle.status()).active.counts
    }

    fn until_ready(&self, ready: u32) {
        let handle = self.handle();
        self.runtime.block_on(async {
            while handle.status().await.active.counts.ready != ready {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }

    fn pass(&self, time: Duration) {
        self.runtime
            .block_on(async { tokio::time::sleep(time).await });
    }

    fn view(&self, user: &str) -> Option<crate::pool::view::SessionView> {
        let handle = self.handle();
        self.runtime.block_on(handle.session(id(user)))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let dead = Builder::new_current_thread().build().unwrap();
        // Together with everything in it, which is never polled again.
        drop(std::mem::replace(&mut self.runtime, dead));
    }
}

#[test]
fn session_and_ready_slot_outlive_the_appliance_and_nothing_is_started_in_their_place() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(4, 1));
    let lease = run.claim("user-1");
    let session = lease.session;
    run.until_ready(1);
    assert_eq!(launcher.launched(), 2);
    drop(run);
    drop(lease);

    let run = Run::begin(&launcher);
    run.until_ready(1);
    assert_eq!(run.claim("user-1").session, session);
    let view = run.view("user-1").unwrap();
    assert_eq!((view.session, view.state), (session, SessionState::Active));
    // Whoever comes next gets the slot that was ready, and that is the first reason to start another one.
    assert_eq!(launcher.launched(), 2);
    let other = run.claim("user-2");
    assert_ne!(other.session, session);
    assert_ne!(view.worker, run.view("user-2").unwrap().worker);
    run.until_ready(1);
    assert_eq!((launcher.launched(), launcher.alive()), (3, 3));
    assert_eq!(run.counts().allocated, 2);
}

#[test]
fn appliance_that_dies_again_and_again_loses_nothing() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(9, 2));
    let mut sessions = vec![("user-0".to_owned(), run.claim("user-0").session)];
    drop(run);
    for n in 1..6 {
        let run = Run::begin(&launcher);
        for (user, session) in &sessions {
            assert_eq!(run.claim(user).session, *session);
        }
        let user = format!("user-{n}");
        let session = run.claim(&user).session;
        sessions.push((user, session));
    }
    let run = Run::begin(&launcher);
    run.until_ready(2);
    assert_eq!(run.counts().allocated, 6);
    assert_eq!(launcher.alive(), 8);
}

#[test]
fn idle_clock_goes_on_after_a_restart() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    drop(run.claim("user-1"));
    let worker = run.view("user-1").unwrap();
    run.pass(Duration::from_secs(10));
    let records = launcher.tools_in(&run.runtime).records;
    let stored = run.runtime.block_on(records.uses()).unwrap();
    assert!(!stored[&worker.session].in_use, "{stored:?}");
    // As if 280 of its 300 seconds had passed on the host's clock.
    let used = Use {
        last_used_at_ms: unix_millis() - 280_000,
        in_use: false,
    };
    let uses = HashMap::from([(worker.session, used)]);
    run.runtime.block_on(records.put_uses(uses)).unwrap();
    drop(run);

    let run = Run::begin(&launcher);
    let left = run.view("user-1").unwrap().expires_at_ms.unwrap() - unix_millis();
    assert!((15_000..=25_000).contains(&left), "{left} ms");
    run.pass(Duration::from_secs(14));
    assert!(run.view("user-1").is_some());
    run.pass(Duration::from_secs(12));
    assert!(run.view("user-1").is_none());
    assert_eq!(launcher.alive(), 0);
    assert!(run.runtime.block_on(records.uses()).unwrap().is_empty());
}

#[test]
fn request_that_was_open_counts_as_a_use_at_the_restart_and_only_at_that() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    let lease = run.claim("user-1");
    run.pass(Duration::from_secs(10));
    let records = launcher.tools_in(&run.runtime).records;
    let uses = run.runtime.block_on(records.uses()).unwrap();
    assert!(uses[&lease.session].in_use);
    let old = Use {
        last_used_at_ms: unix_millis() - 1_000_000,
        in_use: true,
    };
    let uses = HashMap::from([(lease.session, old)]);
    run.runtime.block_on(records.put_uses(uses)).unwrap();
    drop(run);

    let run = Run::begin(&launcher);
    run.pass(Duration::from_secs(10));
    assert!(run.view("user-1").is_some());
    // Nobody uses it any more.
    let uses = run.runtime.block_on(records.uses()).unwrap();
    assert!(!uses[&lease.session].in_use);
    run.pass(Duration::from_secs(295));
    assert_eq!(launcher.alive(), 0);
}

#[test]
fn longest_life_counts_from_when_the_session_was_made() {
    let launcher = FakeLauncher::mute();
    let pool = PoolRecord {
        lifecycle: Lifecycle::OnContainerExit {
            max_alive_seconds: 600,
        },
        ..stocked(2, 0)
    };
    let run = Run::with(&launcher, pool);
    run.claim("user-1");
    let records = launcher.tools_in(&run.runtime).records;
    let mut stored = run.runtime.block_on(records.sessions()).unwrap();
    let mut older = stored.pop().unwrap();
    older.created_at_ms -= 590_000;
    run.runtime.block_on(records.put_session(older)).unwrap();
    drop(run);

    let run = Run::begin(&launcher);
    run.pass(Duration::from_secs(8));
    assert!(run.view("user-1").is_some());
    run.pass(Duration::from_secs(4));
    assert!(run.view("user-1").is_none());
}

#[test]
fn host_that_was_started_anew_has_no_sessions_and_fills_its_pools_again() {
    let launcher = FakeLauncher::mute();
    let run = Run::begin(&launcher);
    let records = launcher.tools_in(&run.runtime).records;
    run.runtime.block_on(async {
        records.put_pool(stocked(4, 2)).await.unwrap();
        let of_before = session("alpha", "user-1");
        let used = Use {
            last_used_at_ms: 1,
            in_use: true,
        };
        let uses = HashMap::from([(of_before.session, used)]);
        records.put_uses(uses).await.unwrap();
        records.put_session(of_before).await.unwrap();
    });
    drop(run);
    let run = Run::begin(&launcher);
    assert_eq!(run.runtime.block_on(records.sessions()).unwrap(), []);
    assert!(run.runtime.block_on(records.uses()).unwrap().is_empty());
    run.until_ready(2);
    assert_eq!(launcher.launched(), 2);
}

#[test]
fn worker_that_died_meanwhile_takes_its_record_with_it_and_the_next_claim_gets_another() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    let session = run.claim("user-1").session;
    drop(run);
    launcher.kill(0);
    let run = Run::begin(&launcher);
    assert!(run.view("user-1").is_none());
    assert_ne!(run.claim("user-1").session, session);
}

#[test]
fn session_that_was_being_stopped_does_not_come_back() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    run.claim("user-1");
    launcher.hold_stops();
    let handle = run.handle();
    run.runtime.block_on(async {
        tokio::spawn(async move { handle.stop(id("user-1")).await });
        launcher.wait_stopping().await;
    });
    drop(run);
    let run = Run::begin(&launcher);
    assert!(run.view("user-1").is_none());
    assert_eq!(launcher.noted(0), None);
}

#[test]
fn session_whose_pool_was_deleted_is_not_taken_over() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    run.claim("user-1");
    let records = launcher.tools_in(&run.runtime).records;
    run.runtime
        .block_on(records.remove_pool(record("alpha").name))
        .unwrap();
    drop(run);
    let run = Run::begin(&launcher);
    assert!(run.pools.list().is_empty());
    assert_eq!(run.runtime.block_on(records.sessions()).unwrap(), []);
    // Nobody has taken it over, so it ends when the appliance says that it has settled.
    assert_eq!(launcher.adopted(), 0);
}

#[test]
fn slot_that_somebody_was_about_to_get_is_never_given_to_another() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(4, 1));
    drop(run);
    // The appliance died between the note and the store.
    launcher.note_leased(0);
    let run = Run::begin(&launcher);
    run.until_ready(1);
    assert_eq!((launcher.adopted(), launcher.launched()), (0, 2));
}

#[test]
fn session_of_an_earlier_revision_lives_on_and_ready_slots_of_it_do_not() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(6, 1));
    let session = run.claim("user-1").session;
    run.until_ready(1);
    let records = launcher.tools_in(&run.runtime).records;
    let changed = PoolRecord {
        revision: TWO,
        args: vec!["--quiet".into()],
        ..stocked(6, 1)
    };
    run.runtime.block_on(records.put_pool(changed)).unwrap();
    drop(run);
    let run = Run::begin(&launcher);
    let view = run.view("user-1").unwrap();
    assert_eq!((view.session, view.revision), (session, ONE));
    run.until_ready(1);
    assert_eq!(
        run.claim("user-2").session,
        run.view("user-2").unwrap().session
    );
    assert_eq!(run.view("user-2").unwrap().revision, TWO);
    run.runtime.block_on(launcher.wait_alive(3));
}

#[test]
fn new_revision_that_serves_goes_on_serving_although_that_was_not_written_down() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(6, 0));
    let changed = PoolRecord {
        revision: TWO,
        args: vec!["--quiet".into()],
        ..stocked(6, 0)
    };
    run.on(async |pools| pools.put(changed).await.unwrap());
    let mut active = run.handle().active();
    run.runtime
        .block_on(active.wait_for(|active| active.revision == TWO))
        .unwrap();
    run.claim("user-1");
    let records = launcher.tools_in(&run.runtime).records;
    run.pass(Duration::from_secs(1));
    run.runtime
        .block_on(records.put_serving(stocked(6, 0)))
        .unwrap();
    drop((active, run));

    launcher.plan(Plan::Silent);
    let run = Run::begin(&launcher);
    assert_eq!(run.view("user-1").unwrap().revision, TWO);
    assert_eq!(run.handle().active().borrow().revision, TWO);
    run.pass(Duration::from_secs(1));
    assert_eq!(run.runtime.block_on(records.serving()).unwrap(), []);
}

#[test]
fn host_that_became_smaller_keeps_its_sessions_and_starts_nothing() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(4, 0));
    let sessions = ["user-1", "user-2"].map(|user| run.claim(user).session);
    drop(run);
    launcher.budget(Budget::new(Size {
        mem_mib: 600,
        cpu_millis: 1 << 20,
    }));
    let run = Run::begin(&launcher);
    let again = ["user-1", "user-2"].map(|user| run.claim(user).session);
    assert_eq!(again, sessions);
    let handle = run.handle();
    let denied = run.runtime.block_on(handle.claim(id("user-3"))).err();
    assert!(
        matches!(denied, Some(crate::pool::Denied::HostFull { .. })),
        "{denied:?}"
    );
    assert_eq!(launcher.launched(), 2);
}

#[test]
fn adopted_container_that_exits_ends_its_session() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(2, 0));
    let session = run.claim("user-1").session;
    drop(run);
    let run = Run::begin(&launcher);
    launcher.exit(0);
    run.runtime.block_on(launcher.wait_alive(0));
    assert_ne!(run.claim("user-1").session, session);
    assert_eq!(launcher.orders().last().unwrap().1, Urgency::Claim);
}

#[test]
fn detached_pools_end_nothing_and_write_down_when_they_were_used() {
    let launcher = FakeLauncher::mute();
    let run = Run::with(&launcher, stocked(4, 1));
    let session = run.claim("user-1").session;
    run.until_ready(1);
    run.on(async |pools| pools.detach().await);
    let records = launcher.tools_in(&run.runtime).records;
    assert!(
        run.runtime
            .block_on(records.uses())
            .unwrap()
            .contains_key(&session)
    );
    // Nobody is answered any more, and dropping everything ends nothing.
    let handle = run.handle();
    run.runtime.block_on(async {
        let claimed = tokio::time::timeout(Duration::from_secs(1000), handle.claim(id("user-2")));
        assert!(claimed.await.is_err());
    });
    assert_eq!(launcher.alive(), 2);
    assert_eq!(launcher.noted(0), Some(Noted::Leased));
    assert_eq!(launcher.noted(1), Some(Noted::Ready));
    drop((handle, run));
    let run = Run::begin(&launcher);
    assert_eq!(run.claim("user-1").session, session);
    assert_eq!(launcher.alive(), 2);
}
