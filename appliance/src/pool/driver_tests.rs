use std::sync::Arc;

use super::*;
use crate::pool::launcher::StartFailureCause;
use crate::pool::testing::{FakeLauncher, Plan};
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
    (PoolHandle::start(Arc::new(pool), tools), records)
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
    // Nobody uses the session, so it ends like any idle one.
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
    let pool = PoolHandle::start(Arc::new(record("alpha")), tools);
    assert_eq!(
        pool.claim(id("user-1")).await.err(),
        Some(Denied::NotRecorded)
    );
    launcher.wait_alive(0).await;
}
