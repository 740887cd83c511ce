//! What becomes of the sessions of a pool that has probes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Check, Probe, Probes, Scheme};
use crate::pool::PoolHandle;
use crate::pool::launcher::{StartFailure, StartFailureCause};
use crate::pool::testing::{FakeLauncher, Plan};
use crate::pool::{Denied, Lease};
use crate::store::PoolRecord;
use crate::store::tests::pool;

fn probe(failure_threshold: u32) -> Probe {
    Probe {
        check: Check::HttpGet {
            scheme: Scheme::Http,
            host: None,
            path: "/healthz".into(),
            port: 9000,
            headers: Vec::new(),
        },
        initial_delay_seconds: 0,
        period_seconds: 10,
        timeout_seconds: 1,
        failure_threshold,
        success_threshold: 1,
        termination_grace_seconds: Some(2),
    }
}

fn startup(failure_threshold: u32) -> Probes {
    Probes {
        startup: Some(probe(failure_threshold)),
        liveness: None,
    }
}

fn liveness() -> Probes {
    Probes {
        startup: None,
        liveness: Some(probe(3)),
    }
}

fn start(launcher: &Arc<FakeLauncher>, probes: Probes) -> PoolHandle {
    let record = PoolRecord {
        probes,
        max_sessions: 1,
        ..pool("alpha")
    };
    PoolHandle::start(Arc::new(record), None, Vec::new(), launcher.tools())
}

/// Guests that are healthy while this says so.
fn guests(healthy: impl Fn(usize) -> bool + Send + Sync + 'static) -> Arc<FakeLauncher> {
    FakeLauncher::new(Arc::new(move |number, mut stream: UnixStream| {
        let status = if healthy(number) { 200 } else { 503 };
        tokio::spawn(async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }))
}

async fn claim(pool: &PoolHandle) -> Result<Lease, Denied> {
    pool.claim("user-1".parse().unwrap()).await
}

async fn leased(pool: &PoolHandle) -> Lease {
    let lease = claim(pool).await;
    lease.unwrap_or_else(|denied| panic!("{denied:?}"))
}

async fn failure(pool: &PoolHandle) -> StartFailure {
    match claim(pool).await {
        Err(Denied::StartFailed(failure)) => failure,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test(start_paused = true)]
async fn session_is_handed_out_when_its_startup_probe_has_succeeded_and_not_before() {
    let begun = Instant::now();
    let launcher = guests(move |_| begun.elapsed().as_secs() >= 15);
    let pool = start(&launcher, startup(3));
    leased(&pool).await;
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(launcher.ports(0), [9000; 3]);
}

#[tokio::test(start_paused = true)]
async fn startup_probe_has_its_time_on_top_of_the_start_deadline() {
    let begun = Instant::now();
    let launcher = guests(move |_| begun.elapsed().as_secs() >= 250);
    let pool = start(&launcher, startup(30));
    leased(&pool).await;
    assert_eq!(begun.elapsed().as_secs(), 250);
}

#[tokio::test(start_paused = true)]
async fn session_that_never_becomes_healthy_is_refused_with_what_its_probe_saw() {
    let launcher = guests(|_| false);
    let pool = start(&launcher, startup(3));
    let failure = failure(&pool).await;
    assert_eq!(
        failure.cause.to_string(),
        "The container is not healthy: its startup probe failed 3 times in a row, the last time \
         because GET /healthz on port 9000 was answered with status 503"
    );
    launcher.wait_alive(0).await;
    assert_eq!(launcher.last_grace(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn container_that_hangs_is_refused_too() {
    let launcher = FakeLauncher::mute();
    let pool = start(&launcher, startup(1));
    let text = failure(&pool).await.cause.to_string();
    assert!(text.contains("its startup probe failed because"), "{text}");
    launcher.wait_alive(0).await;
}

#[tokio::test(start_paused = true)]
async fn container_that_ends_while_it_is_asked_is_not_waited_for() {
    let launcher = guests(|_| false);
    let pool = start(&launcher, startup(1000));
    let claimed = tokio::spawn({
        let pool = pool.clone();
        async move { failure(&pool).await }
    });
    launcher.wait_alive(1).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    launcher.exit(0);
    let how = "exit status 0".to_owned();
    assert_eq!(
        claimed.await.unwrap().cause,
        StartFailureCause::Ended { how }
    );
    launcher.wait_alive(0).await;
}

#[tokio::test(start_paused = true)]
async fn pool_that_closes_does_not_wait_for_a_startup_probe() {
    let launcher = guests(|_| false);
    let pool = start(&launcher, startup(1000));
    let claimed = tokio::spawn({
        let pool = pool.clone();
        async move { claim(&pool).await.err() }
    });
    launcher.wait_alive(1).await;
    let begun = Instant::now();
    pool.close().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(claimed.await.unwrap(), Some(Denied::Closing));
}

#[tokio::test(start_paused = true)]
async fn session_that_turns_unhealthy_ends_and_its_identifier_gets_a_new_one() {
    let sick = Arc::new(AtomicBool::new(false));
    let launcher = guests({
        let sick = Arc::clone(&sick);
        move |number| number > 0 || !sick.load(Ordering::SeqCst)
    });
    let pool = start(&launcher, liveness());
    let lease = leased(&pool).await;
    // A stream that is open does not keep it.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(launcher.alive(), 1);
    let begun = Instant::now();
    sick.store(true, Ordering::SeqCst);
    launcher.wait_alive(0).await;
    let found = begun.elapsed().as_secs();
    assert!((20..=30).contains(&found), "after {found} s");
    assert_eq!(launcher.last_grace(), Duration::from_secs(2));
    let next = leased(&pool).await;
    assert_ne!(next.session, lease.session);
    assert_eq!(launcher.launched(), 2);
}

#[tokio::test(start_paused = true)]
async fn probes_do_not_keep_an_idle_session() {
    let launcher = guests(|_| true);
    let pool = start(&launcher, liveness());
    let begun = Instant::now();
    drop(leased(&pool).await);
    launcher.wait_alive(0).await;
    let lived = begun.elapsed().as_secs();
    assert!((300..302).contains(&lived), "ended after {lived} s");
    assert!(launcher.ports(0).len() >= 29, "it was not asked");
}

#[tokio::test(start_paused = true)]
async fn container_that_never_listens_is_not_asked() {
    let launcher = guests(|_| true);
    launcher.plan(Plan::Silent);
    let pool = start(&launcher, startup(3));
    let cause = failure(&pool).await.cause;
    assert!(
        matches!(cause, StartFailureCause::TimedOut { .. }),
        "{cause}"
    );
    assert_eq!(launcher.ports(0), [0; 0]);
}
