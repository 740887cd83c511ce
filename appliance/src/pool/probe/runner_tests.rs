use std::io;
use std::sync::Mutex;

use tokio::net::UnixStream;

use super::*;
use crate::pool::launcher::BoxFuture;
use crate::pool::probe::Check;
use crate::store::tests::pool;

fn tcp(port: u16) -> Probe {
    Probe {
        check: Check::TcpSocket { port },
        initial_delay_seconds: 0,
        period_seconds: 10,
        timeout_seconds: 1,
        failure_threshold: 3,
        success_threshold: 1,
        termination_grace_seconds: None,
    }
}

const STARTUP: u16 = 1;
const LIVENESS: u16 = 2;

fn both() -> PoolRecord {
    PoolRecord {
        probes: Probes {
            startup: Some(tcp(STARTUP)),
            liveness: Some(tcp(LIVENESS)),
        },
        ..pool("alpha")
    }
}

/// Refuses connections from some second on, or up to it, and writes down when it was asked.
struct Container {
    begun: Instant,
    healthy: fn(u64) -> bool,
    asked: Mutex<Vec<(u16, u64)>>,
}

impl Container {
    fn new(healthy: fn(u64) -> bool) -> Self {
        Self {
            begun: Instant::now(),
            healthy,
            asked: Mutex::default(),
        }
    }

    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>> {
        let second = self.begun.elapsed().as_secs();
        self.asked.lock().unwrap().push((port, second));
        let healthy = (self.healthy)(second);
        Box::pin(async move {
            match healthy {
                true => UnixStream::pair().map(|(near, _)| near),
                false => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn seconds(&self, port: u16) -> Vec<u64> {
        let asked = self.asked.lock().unwrap();
        let of_port = asked.iter().filter(|(asked, _)| *asked == port);
        of_port.map(|(_, second)| *second).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn slow_container_has_started_with_its_first_success() {
    let container = Container::new(|second| second >= 15);
    let connect = |port| container.connect(port);
    let mut prober = Prober::of_slot(&both());
    prober.started(&connect).await.unwrap();
    assert_eq!(container.seconds(STARTUP), [0, 10, 20]);
    assert_eq!(container.seconds(LIVENESS), [0; 0], "it was not its turn");
}

#[tokio::test(start_paused = true)]
async fn container_that_never_starts_is_told_with_what_it_was_asked() {
    let container = Container::new(|_| false);
    let connect = |port| container.connect(port);
    let mut pool = both();
    pool.probes.startup = Some(Probe {
        initial_delay_seconds: 7,
        termination_grace_seconds: Some(0),
        ..tcp(STARTUP)
    });
    let mut prober = Prober::of_slot(&pool);
    assert_eq!(prober.grace(), wire::timing::STOP_GRACE);
    let unhealthy = prober.started(&connect).await.unwrap_err();
    assert_eq!(container.seconds(STARTUP), [7, 17, 27]);
    assert_eq!(
        unhealthy.to_string(),
        "its startup probe failed 3 times in a row, the last time because a connection to port 1 \
         was refused"
    );
    assert_eq!(prober.grace(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn container_that_turns_unhealthy_is_found_and_one_bad_moment_is_forgiven() {
    let container = Container::new(|second| second < 60 && !(30..40).contains(&second));
    let connect = |port| container.connect(port);
    let mut prober = Prober::of_slot(&both());
    prober.started(&connect).await.unwrap();
    let unhealthy = prober.unhealthy(&connect).await;
    let found = container.begun.elapsed().as_secs();
    assert!((80..100).contains(&found), "after {found} s");
    let text = unhealthy.to_string();
    assert!(
        text.starts_with("its liveness probe failed 3 times"),
        "{text}"
    );
    let asked = container.seconds(LIVENESS);
    assert!(
        asked.is_sorted_by(|one, next| one + 10 == *next),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn futures_that_are_dropped_and_made_anew_forget_nothing() {
    let container = Container::new(|second| second < 25);
    let connect = |port| container.connect(port);
    let mut prober = Prober::of_slot(&both());
    prober.started(&connect).await.unwrap();
    let moment = Duration::from_millis(700);
    let unhealthy = loop {
        if let Ok(found) = tokio::time::timeout(moment, prober.unhealthy(&connect)).await {
            break found;
        }
    };
    assert!(unhealthy.to_string().contains("3 times in a row"));
    let asked = container.seconds(LIVENESS);
    assert!(
        asked.is_sorted_by(|one, next| one + 10 == *next),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pool_without_probes_asks_nothing_and_its_containers_are_never_unhealthy() {
    let container = Container::new(|_| false);
    let connect = |port| container.connect(port);
    let mut prober = Prober::of_slot(&pool("alpha"));
    prober.started(&connect).await.unwrap();
    let year = Duration::from_secs(365 * 24 * 3600);
    let found = tokio::time::timeout(year, prober.unhealthy(&connect)).await;
    assert!(found.is_err());
    assert_eq!(container.asked.lock().unwrap().len(), 0);
}

fn after_ready() -> PoolRecord {
    let mut pool = PoolRecord {
        fork_point: ForkPoint::AfterReady,
        ..both()
    };
    pool.probes.startup = Some(Probe {
        initial_delay_seconds: 20,
        ..tcp(STARTUP)
    });
    pool
}

#[tokio::test(start_paused = true)]
async fn fork_from_after_ready_is_asked_at_once_and_only_once() {
    let container = Container::new(|_| true);
    let connect = |port| container.connect(port);
    Prober::of_slot(&after_ready())
        .started(&connect)
        .await
        .unwrap();
    assert_eq!(container.seconds(STARTUP), [0]);
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_at_once_has_its_delay_and_all_its_tries() {
    let container = Container::new(|_| false);
    let connect = |port| container.connect(port);
    let mut prober = Prober::of_slot(&after_ready());
    prober.started(&connect).await.unwrap_err();
    assert_eq!(container.seconds(STARTUP), [0, 20, 30, 40]);
}

#[test]
fn liveness_probes_of_many_slots_do_not_begin_together() {
    let jitters: Vec<_> = (0..1000).map(|_| jitter()).collect();
    assert!(jitters.iter().all(|jitter| (0.0..=1.0).contains(jitter)));
    for tenth in 0..10_u8 {
        let from = f64::from(tenth) / 10.0;
        let there = jitters
            .iter()
            .filter(|jitter| (from..from + 0.1).contains(*jitter));
        let count = there.count();
        assert!((40..200).contains(&count), "{count} begin in tenth {tenth}");
    }
}
