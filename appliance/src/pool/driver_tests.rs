use std::sync::Arc;

use super::*;
use crate::pool::PoolHandle;
use crate::pool::budget::Size;
use crate::pool::launcher::StartFailureCause;
use crate::pool::testing::{FakeLauncher, Plan};
use crate::pool::view::{Counts, PoolStatus, SessionState};
use crate::store::tests::pool as record;
use crate::store::{Change, MemoryStore, Rows, Store, StoreError, Table as StoreTable};

fn id(text: &str) -> Identifier {
    text.parse().unwrap()
}

fn start(launcher: &Arc<FakeLauncher>, max_sessions: u32) -> (PoolHandle, Records) {
    let tools = launcher.tools();
    let records = tools.records.clone();
    let pool = PoolRecord {
        max_sessions,
        ..record("alpha")
    };
    (
        PoolHandle::start(Arc::new(pool), None, Vec::new(), tools),
        records,
    )
}

/// Claims as a client does that honours `Retry-After`; for tests with simulated time.
async fn claim_when_free(pool: &PoolHandle, user: &str) -> Result<Lease, Denied> {
    loop {
        match pool.claim(id(user)).await {
            Err(Denied::Full { retry_after, .. }) => tokio::time::sleep(retry_after).await,
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn claims_at_once_over_few_identifiers_make_one_session_each() {
    let launcher = FakeLauncher::mute();
    let (pool, records) = start(&launcher, 100);
    let claims: Vec<_> = (0..200)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move { (n % 20, pool.claim(id(&format!("user-{}", n % 20))).await) })
        })
        .collect();
    let mut sessions = HashMap::new();
    for claim in claims {
        let (user, lease) = claim.await.unwrap();
        let session = lease.unwrap_or_else(|denied| panic!("{denied:?}")).session;
        assert_eq!(*sessions.entry(user).or_insert(session), session);
    }
    assert_eq!(launcher.launched(), 20);
    assert_eq!(records.sessions().await.unwrap().len(), 20);
}

#[tokio::test]
async fn session_is_in_the_store_before_its_caller_is_answered_and_out_of_it_when_gone() {
    let launcher = FakeLauncher::mute();
    let (pool, records) = start(&launcher, 1);
    let lease = pool
        .claim(id("user-1"))
        .await
        .unwrap_or_else(|denied| panic!("{denied:?}"));
    let stored = records.sessions().await.unwrap();
    assert_eq!(
        (stored[0].session, stored[0].identifier.clone()),
        (lease.session, id("user-1"))
    );
    pool.close().await;
    assert_eq!(records.sessions().await.unwrap(), []);
    assert_eq!(launcher.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn session_idle_for_the_cooldown_is_gone_and_its_place_is_free() {
    let launcher = FakeLauncher::mute();
    let (pool, _) = start(&launcher, 1);
    let lease = pool
        .claim(id("user-1"))
        .await
        .unwrap_or_else(|denied| panic!("{denied:?}"));
    assert!(matches!(
        pool.claim(id("user-2")).await,
        Err(Denied::Full {
            max_sessions: 1,
            ..
        })
    ));
    let begin = Instant::now();
    drop(lease);
    launcher.wait_alive(0).await;
    let lived = begin.elapsed().as_secs();
    assert!((300..302).contains(&lived), "ended after {lived} s");
    assert!(claim_when_free(&pool, "user-2").await.is_ok());
    assert!(begin.elapsed().as_secs() < 305, "its place was not free");
    assert_eq!(launcher.launched(), 2);
}

#[tokio::test(start_paused = true)]
async fn open_request_holds_the_session_beyond_the_cooldown() {
    let launcher = FakeLauncher::mute();
    let (pool, _) = start(&launcher, 1);
    let lease = pool
        .claim(id("user-1"))
        .await
        .unwrap_or_else(|denied| panic!("{denied:?}"));
    let session = lease.session;
    tokio::time::advance(Duration::from_secs(4000)).await;
    let again = pool
        .claim(id("user-1"))
        .await
        .unwrap_or_else(|denied| panic!("{denied:?}"));
    assert_eq!(again.session, session);
}

#[tokio::test(start_paused = true)]
async fn caller_that_hangs_up_during_a_claim_leaks_neither_slot_nor_session() {
    let launcher = FakeLauncher::mute();
    launcher
        .gate
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let (pool, records) = start(&launcher, 1);
    let caller = tokio::spawn({
        let pool = pool.clone();
        async move { pool.claim(id("user-1")).await.is_ok() }
    });
    launcher.wait_alive(1).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    launcher.gate.add_permits(1);
    // Nobody comes for the slot, so it is given up after a while.
    launcher.wait_alive(0).await;
    launcher.gate.add_permits(1);
    assert!(claim_when_free(&pool, "user-2").await.is_ok());
    assert_eq!(launcher.launched(), 2);
    pool.close().await;
    assert_eq!(records.sessions().await.unwrap(), []);
}

#[tokio::test]
async fn container_that_exits_at_start_is_reported_with_its_last_lines() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::ExitAtStart(vec!["cannot open /etc/app.conf".into()]));
    let (pool, _) = start(&launcher, 1);
    let Err(Denied::StartFailed(failure)) = pool.claim(id("user-1")).await else {
        panic!("not refused")
    };
    assert_eq!(failure.console, ["cannot open /etc/app.conf"]);
    let how = "exit status 3".to_owned();
    assert_eq!(failure.cause, StartFailureCause::Exited { how, port: 8080 });
    launcher.wait_alive(0).await;
    launcher.plan(Plan::Ready);
    assert!(
        pool.claim(id("user-1")).await.is_ok(),
        "a failed start must not poison the identifier"
    );
}

#[tokio::test(start_paused = true)]
async fn container_that_never_listens_times_out_and_is_stopped() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::Silent);
    let (pool, _) = start(&launcher, 1);
    let Err(Denied::StartFailed(failure)) = pool.claim(id("user-1")).await else {
        panic!("not refused")
    };
    let after = Duration::from_secs(60);
    assert_eq!(
        failure.cause,
        StartFailureCause::TimedOut { after, port: 8080 }
    );
    launcher.wait_alive(0).await;
}

#[tokio::test(start_paused = true)]
async fn launch_that_is_refused_says_why_and_frees_its_place() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::Refuse("no memory".into()));
    let (pool, _) = start(&launcher, 1);
    for user in ["user-1", "user-1", "user-2"] {
        let Err(Denied::StartFailed(failure)) = claim_when_free(&pool, user).await else {
            panic!("not refused")
        };
        assert!(failure.cause.to_string().contains("no memory"));
    }
}

#[tokio::test]
async fn container_that_exits_later_ends_its_session_and_the_next_claim_gets_a_new_one() {
    let launcher = FakeLauncher::mute();
    let (pool, _) = start(&launcher, 1);
    let mut seen = Vec::new();
    for (guest, end) in [FakeLauncher::exit, FakeLauncher::kill]
        .into_iter()
        .enumerate()
    {
        seen.push(new_session(&pool, &seen).await);
        assert_eq!(launcher.launched(), guest + 1);
        end(&launcher, guest);
        launcher.wait_alive(0).await;
    }
    new_session(&pool, &seen).await;
    assert_eq!(launcher.launched(), 3);
}

/// Claims until the session is none of those: a death takes a moment to be noticed.
async fn new_session(pool: &PoolHandle, old: &[Uuid]) -> Uuid {
    let claims = async {
        loop {
            let lease = pool.claim(id("user-1")).await;
            let session = lease.unwrap_or_else(|denied| panic!("{denied:?}")).session;
            if !old.contains(&session) {
                return session;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), claims)
        .await
        .expect("the old session stays")
}

#[tokio::test]
async fn closed_pool_answers_those_who_wait_and_leaves_nothing() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::Silent);
    let (pool, _) = start(&launcher, 4);
    let caller = tokio::spawn({
        let pool = pool.clone();
        async move { pool.claim(id("user-1")).await.err() }
    });
    launcher.wait_alive(1).await;
    pool.close().await;
    assert_eq!(caller.await.unwrap(), Some(Denied::Closing));
    assert_eq!(launcher.alive(), 0);
    assert_eq!(pool.claim(id("user-1")).await.err(), Some(Denied::Closing));
}

#[tokio::test]
async fn changed_pool_admits_by_its_new_limit() {
    let launcher = FakeLauncher::mute();
    let (pool, _) = start(&launcher, 1);
    let _first = pool
        .claim(id("user-1"))
        .await
        .unwrap_or_else(|denied| panic!("{denied:?}"));
    assert!(matches!(
        pool.claim(id("user-2")).await,
        Err(Denied::Full { .. })
    ));
    pool.update(Arc::new(PoolRecord {
        max_sessions: 2,
        ..record("alpha")
    }));
    assert!(pool.claim(id("user-2")).await.is_ok());
}

/// Refuses to write sessions.
struct FullDisk(MemoryStore);

impl Store for FullDisk {
    fn get(&self, table: StoreTable, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(table, key)
    }

    fn scan(&self, table: StoreTable, prefix: &[u8]) -> Result<Rows, StoreError> {
        self.0.scan(table, prefix)
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        if changes
            .iter()
            .any(|change| matches!(change, Change::Put { .. }))
        {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(StoreError::Disk {
                attempt: "write",
                path: "/store".into(),
                source,
            });
        }
        self.0.apply(changes)
    }
}

#[tokio::test]
async fn session_that_cannot_be_recorded_is_not_handed_out() {
    let launcher = FakeLauncher::mute();
    let mut tools = launcher.tools();
    tools.records = Records::new(Arc::new(FullDisk(MemoryStore::default())));
    let pool = PoolHandle::start(Arc::new(record("alpha")), None, Vec::new(), tools);
    assert_eq!(
        pool.claim(id("user-1")).await.err(),
        Some(Denied::NotRecorded)
    );
    launcher.wait_alive(0).await;
}

const ONE: Uuid = Uuid::from_u128(7);
const TWO: Uuid = Uuid::from_u128(8);
const THREE: Uuid = Uuid::from_u128(9);

fn stocked(max_sessions: u32, ready_sessions: u32) -> PoolRecord {
    PoolRecord {
        max_sessions,
        ready_sessions,
        ..record("alpha")
    }
}

fn with(revision: Uuid, pool: &PoolRecord) -> Arc<PoolRecord> {
    Arc::new(PoolRecord {
        revision,
        ..pool.clone()
    })
}

fn start_pool(launcher: &Arc<FakeLauncher>, pool: &PoolRecord) -> PoolHandle {
    PoolHandle::start(Arc::new(pool.clone()), None, Vec::new(), launcher.tools())
}

/// Starts nothing more until permits are added.
fn shut(launcher: &FakeLauncher) {
    launcher
        .gate
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
}

async fn lease(pool: &PoolHandle, user: &str) -> Lease {
    let lease = pool.claim(id(user)).await;
    lease.unwrap_or_else(|denied| panic!("{denied:?}"))
}

/// Waits until the pool is like this; for tests with simulated time.
async fn until_status(pool: &PoolHandle, is: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
    for _ in 0..400_000 {
        let status = pool.status().await;
        if is(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the pool stays {:?}", pool.status().await);
}

fn ready(count: u32) -> impl Fn(&PoolStatus) -> bool {
    move |status| status.active.counts.ready == count
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_ready_slot_waits_for_no_start_and_the_next_one_is_ordered_at_once() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 2));
    until_status(&pool, ready(2)).await;
    shut(&launcher);
    let [first, second] = [lease(&pool, "user-1").await, lease(&pool, "user-2").await];
    assert_ne!(first.session, second.session);
    launcher.wait_ordered(4).await;
    assert_eq!(launcher.orders(), [(ONE, Urgency::Refill); 4]);
}

#[tokio::test(start_paused = true)]
async fn start_that_somebody_waits_for_is_ordered_as_urgent() {
    let launcher = FakeLauncher::mute();
    shut(&launcher);
    let pool = start_pool(&launcher, &stocked(10, 1));
    launcher.wait_ordered(1).await;
    let claim = tokio::spawn({
        let pool = pool.clone();
        async move { pool.claim(id("user-1")).await.is_ok() }
    });
    launcher.wait_ordered(2).await;
    assert_eq!(
        launcher.orders(),
        [(ONE, Urgency::Refill), (ONE, Urgency::Claim)]
    );
    launcher.gate.add_permits(2);
    assert!(claim.await.unwrap());
    until_status(&pool, ready(1)).await;
    assert_eq!(launcher.orders().len(), 2, "what was started twice is kept");
}

#[tokio::test(start_paused = true)]
async fn failed_refills_are_tried_ever_more_rarely_and_a_claim_does_not_wait_for_them() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::Refuse("no disk".into()));
    let pool = start_pool(&launcher, &stocked(10, 3));
    tokio::time::sleep(Duration::from_secs(130)).await;
    let tried = launcher.orders().len();
    // Three at once, then one after 1, 2, 4, 8, 16, 32 and 60 seconds, give or take a fifth.
    assert!((9..=10).contains(&tried), "{tried} starts");
    let begin = Instant::now();
    let Err(Denied::StartFailed(failure)) = pool.claim(id("user-1")).await else {
        panic!("not refused")
    };
    assert!(failure.cause.to_string().contains("no disk"));
    assert_eq!(begin.elapsed(), Duration::ZERO);
    let status = pool.status().await;
    assert!(status.active.counts.failed >= 9, "{status:?}");
    assert!(status.active.last_failure.unwrap().contains("no disk"));
    launcher.plan(Plan::Ready);
    until_status(&pool, ready(3)).await;
    assert!(begin.elapsed() < Duration::from_secs(75));
    assert_eq!(pool.status().await.active.counts.failed, 0);
}

#[tokio::test(start_paused = true)]
async fn change_takes_effect_when_the_first_slot_of_it_is_ready() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 2));
    until_status(&pool, ready(2)).await;
    let old = lease(&pool, "user-1").await;
    until_status(&pool, ready(2)).await;
    shut(&launcher);
    let mut active = pool.active();
    active.borrow_and_update();
    pool.update(with(TWO, &stocked(10, 2)));
    let status = until_status(&pool, |status| {
        let desired = status.desired.as_ref();
        desired.is_some_and(|desired| desired.counts.pending == 2)
    });
    assert_eq!(status.await.active.counts.ready, 2);
    let before = lease(&pool, "user-2").await;
    let view = pool.session(id("user-2")).await.unwrap();
    assert_eq!((view.session, view.revision), (before.session, ONE));

    launcher.gate.add_permits(100);
    active.changed().await.unwrap();
    assert_eq!(active.borrow().revision, TWO);
    let status = until_status(&pool, |status| status.desired.is_none()).await;
    assert_eq!(status.active.revision, TWO);
    let _after = lease(&pool, "user-3").await;
    assert_eq!(pool.session(id("user-3")).await.unwrap().revision, TWO);
    // Sessions live on in what they were made of.
    assert_eq!(lease(&pool, "user-1").await.session, old.session);
    until_status(&pool, ready(2)).await;
    launcher.wait_alive(5).await;
}

#[tokio::test(start_paused = true)]
async fn change_that_never_comes_up_leaves_the_old_revision_serving_until_a_better_one_comes() {
    let launcher = FakeLauncher::mute();
    launcher.plan_for(TWO, Plan::ExitAtStart(vec!["no such file: app.py".into()]));
    let pool = start_pool(&launcher, &stocked(10, 1));
    until_status(&pool, ready(1)).await;
    pool.update(with(TWO, &stocked(10, 1)));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let status = pool.status().await;
    let desired = status.desired.unwrap();
    assert_eq!((status.active.revision, desired.revision), (ONE, TWO));
    assert_eq!(status.active.counts.ready, 1);
    assert!((5..20).contains(&desired.counts.failed), "{desired:?}");
    let failure = desired.last_failure.unwrap();
    assert!(
        failure.contains("exit status 3") && failure.ends_with("no such file: app.py"),
        "{failure}"
    );
    let _lease = lease(&pool, "user-1").await;
    assert_eq!(pool.session(id("user-1")).await.unwrap().revision, ONE);
    pool.update(with(THREE, &stocked(10, 1)));
    until_status(&pool, |status| status.active.revision == THREE).await;
}

#[tokio::test(start_paused = true)]
async fn pool_that_was_changing_when_it_was_stopped_goes_on_changing_when_it_is_started() {
    let launcher = FakeLauncher::mute();
    launcher.plan_for(TWO, Plan::Silent);
    let (own, serving) = (with(TWO, &stocked(7, 1)), with(ONE, &stocked(3, 0)));
    let pool = PoolHandle::start(own, Some(serving), Vec::new(), launcher.tools());
    until_status(&pool, ready(1)).await;
    let status = pool.status().await;
    assert_eq!(status.active.revision, ONE);
    assert_eq!(status.desired.unwrap().counts.pending, 1);
}

#[tokio::test(start_paused = true)]
async fn pool_that_is_closed_while_it_warms_leaves_nothing() {
    let launcher = FakeLauncher::mute();
    launcher.plan(Plan::Silent);
    let pool = start_pool(&launcher, &stocked(10, 3));
    pool.update(with(TWO, &stocked(10, 3)));
    launcher.wait_alive(6).await;
    pool.close().await;
    assert_eq!(launcher.alive(), 0);
    assert_eq!(pool.sessions().await, []);
    assert_eq!(pool.status().await.active.counts, Counts::default());
}

#[tokio::test(start_paused = true)]
async fn full_host_refuses_claims_with_its_numbers_and_takes_them_when_something_ended() {
    let launcher = FakeLauncher::mute();
    // The record's 512 MiB, and something for the worker.
    let room = Size {
        mem_mib: 3 * 528,
        cpu_millis: 1 << 20,
    };
    launcher.budget(Budget::new(room));
    let pool = start_pool(&launcher, &stocked(10, 0));
    let beta = start_pool(&launcher, &record("beta"));
    let leases = [lease(&pool, "user-1").await, lease(&pool, "user-2").await];
    let _third = lease(&beta, "user-1").await;
    for pool in [&pool, &beta] {
        let Err(Denied::HostFull { shortage, .. }) = pool.claim(id("user-3")).await else {
            panic!("not refused")
        };
        let numbers = "takes 528 MiB: 1584 MiB of 1584 MiB are taken";
        assert!(shortage.to_string().contains(numbers), "{shortage}");
    }
    drop(leases);
    pool.stop(id("user-1")).await.unwrap();
    assert!(beta.claim(id("user-3")).await.is_ok());
    pool.close().await;
    beta.close().await;
    assert_eq!(launcher.alive(), 0);
    assert!(launcher.tools().budget.reserve(&stocked(1, 0)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn stopped_session_is_gone_when_that_is_answered_and_the_next_claim_gets_another() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    let first = lease(&pool, "user-1").await;
    launcher.hold_stops();
    let stop = || {
        let pool = pool.clone();
        tokio::spawn(async move { pool.stop(id("user-1")).await })
    };
    let [one, two] = [stop(), stop()];
    launcher.wait_stopping().await;
    let view = pool.session(id("user-1")).await.unwrap();
    assert_eq!(
        (view.state, view.expires_at_ms),
        (SessionState::Ending, None)
    );
    assert!(!one.is_finished() && !two.is_finished());
    launcher.release_stops();
    let view = one.await.unwrap().unwrap();
    assert_eq!((view.session, view.open_requests), (first.session, 1));
    assert!(two.await.unwrap().is_some());
    assert_eq!(pool.stop(id("user-1")).await, None);
    assert_eq!(launcher.alive(), 0);
    assert_ne!(lease(&pool, "user-1").await.session, first.session);
}

#[tokio::test(start_paused = true)]
async fn looking_at_sessions_starts_none_and_keeps_none_alive() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    assert_eq!(pool.session(id("user-1")).await, None);
    assert_eq!(launcher.launched(), 0);
    for user in ["user-2", "USER-1", "user-1"] {
        drop(lease(&pool, user).await);
    }
    let sessions = pool.sessions().await;
    let order: Vec<_> = sessions
        .iter()
        .map(|view| view.identifier.clone())
        .collect();
    assert_eq!(order, ["USER-1", "user-1", "user-2"].map(id));
    let view = &sessions[0];
    assert_eq!((view.state, view.open_requests), (SessionState::Active, 0));
    assert_eq!(view.expires_at_ms, Some(view.last_accessed_at_ms + 300_000));
    assert!(view.created_at_ms <= view.last_accessed_at_ms);
    for _ in 0..29 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(pool.sessions().await.len(), 3);
        assert!(pool.session(id("user-1")).await.is_some());
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(pool.sessions().await, []);
}

#[tokio::test(start_paused = true)]
async fn callers_that_hang_up_in_the_queue_make_no_session() {
    let launcher = FakeLauncher::mute();
    shut(&launcher);
    let pool = start_pool(&launcher, &stocked(3, 0));
    let callers: Vec<_> = ["user-1", "user-1", "user-2"]
        .into_iter()
        .map(|user| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.claim(id(user)).await.is_ok() })
        })
        .collect();
    launcher.wait_alive(2).await;
    for caller in callers {
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    launcher.gate.add_permits(2);
    until_status(&pool, ready(2)).await;
    assert_eq!(pool.sessions().await, []);
    // For a while they are there for those who come again.
    drop(lease(&pool, "user-1").await);
    until_status(&pool, ready(0)).await;
    assert_eq!(launcher.launched(), 2);
}

#[tokio::test(start_paused = true)]
async fn session_that_lives_until_its_container_exits_has_a_longest_life() {
    let launcher = FakeLauncher::mute();
    let lifecycle = Lifecycle::OnContainerExit {
        max_alive_seconds: 1000,
    };
    let pool = PoolRecord {
        lifecycle,
        ..stocked(10, 0)
    };
    let pool = start_pool(&launcher, &pool);
    let begin = Instant::now();
    let _held = lease(&pool, "user-1").await;
    drop(lease(&pool, "user-2").await);
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(launcher.alive(), 2);
    launcher.exit(1);
    launcher.wait_alive(1).await;
    let left = pool.session(id("user-1")).await.unwrap();
    let expires = left.expires_at_ms.unwrap();
    assert!(
        expires.abs_diff(left.last_accessed_at_ms + 1_000_000) < 1000,
        "{left:?}"
    );
    launcher.wait_alive(0).await;
    assert_eq!(begin.elapsed().as_secs(), 1000);
}

#[tokio::test(start_paused = true)]
async fn slot_that_nobody_waits_for_may_wait_long_for_its_turn_and_a_caller_may_not() {
    let launcher = FakeLauncher::mute();
    launcher
        .turns
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let pool = start_pool(&launcher, &stocked(10, 1));
    let begin = Instant::now();
    let Err(Denied::StartFailed(failure)) = pool.claim(id("user-1")).await else {
        panic!("not refused")
    };
    assert!(matches!(failure.cause, StartFailureCause::TimedOut { .. }));
    assert_eq!(begin.elapsed().as_secs(), 60);
    tokio::time::sleep(Duration::from_secs(600)).await;
    launcher.turns.add_permits(10);
    let status = until_status(&pool, ready(1)).await;
    assert_eq!(status.active.counts.failed, 0);
    // The refill, the claim's own that came too late, and nothing else.
    assert_eq!(launcher.orders().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn visit_begins_no_session_and_holds_one_that_serves_and_a_look_does_not() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    assert!(pool.visit(id("user-1")).await.is_none());
    assert!(pool.guest(id("user-1")).await.is_none());
    assert_eq!(launcher.launched(), 0);
    let first = lease(&pool, "user-1").await.session;
    let visit = pool.visit(id("user-1")).await.unwrap();
    assert_eq!(visit.session, first);
    tokio::time::sleep(Duration::from_secs(4000)).await;
    assert_eq!(launcher.alive(), 1, "somebody is at work in it");
    assert!(pool.guest(id("user-1")).await.is_some());
    drop(visit);
    // Looking again and again does not keep it.
    for _ in 0..40 {
        pool.guest(id("user-1")).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
    }
    launcher.wait_alive(0).await;
    assert!(pool.guest(id("user-1")).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn session_that_starts_or_ends_is_not_visited() {
    let launcher = FakeLauncher::mute();
    shut(&launcher);
    let pool = start_pool(&launcher, &stocked(10, 0));
    let claim = tokio::spawn({
        let pool = pool.clone();
        async move { lease(&pool, "user-1").await }
    });
    launcher.wait_alive(1).await;
    assert!(pool.visit(id("user-1")).await.is_none());
    assert!(pool.guest(id("user-1")).await.is_none());
    launcher.gate.add_permits(1);
    let _lease = claim.await.unwrap();
    assert!(pool.visit(id("user-1")).await.is_some());
    launcher.hold_stops();
    let stop = tokio::spawn({
        let pool = pool.clone();
        async move { pool.stop(id("user-1")).await }
    });
    launcher.wait_stopping().await;
    assert!(pool.visit(id("user-1")).await.is_none());
    assert!(pool.guest(id("user-1")).await.is_none());
    launcher.release_stops();
    assert!(stop.await.unwrap().is_some());
}

/// What comes without the driver's task: nobody else runs meanwhile.
fn claim_at_once(pool: &PoolHandle, user: &str) -> Option<Result<Lease, Denied>> {
    let claim = std::pin::pin!(pool.claim(id(user)));
    match claim.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(answer) => Some(answer),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn session_that_serves_is_claimed_and_released_without_the_drivers_task_and_ends_in_time() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    assert!(claim_at_once(&pool, "user-1").is_none(), "it is not there");
    let first = lease(&pool, "user-1").await.session;
    let open = async || pool.session(id("user-1")).await.unwrap().open_requests;
    let again = claim_at_once(&pool, "user-1").unwrap().unwrap();
    assert_eq!((again.session, open().await), (first, 1));
    drop(again);
    assert_eq!(open().await, 0);
    // Its idle time began with the last of them.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(claim_at_once(&pool, "user-1").unwrap().is_ok());
    }
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert_eq!(launcher.alive(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    launcher.wait_alive(0).await;
    assert!(claim_at_once(&pool, "user-1").is_none());
}

#[tokio::test(start_paused = true)]
async fn session_that_is_released_at_once_ends_at_once_when_its_pool_is_emptied() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    drop(lease(&pool, "user-1").await);
    let used = claim_at_once(&pool, "user-1").unwrap().unwrap();
    pool.drain(Drain::Begin);
    assert_eq!(pool.slots_in_use().await, 1);
    drop(used);
    launcher.wait_alive(0).await;
}

#[tokio::test(start_paused = true)]
async fn pool_that_was_left_to_another_appliance_gives_nothing_at_once() {
    let launcher = FakeLauncher::mute();
    let pool = start_pool(&launcher, &stocked(10, 0));
    drop(lease(&pool, "user-1").await);
    pool.detach().await;
    assert!(claim_at_once(&pool, "user-1").is_none());
}
