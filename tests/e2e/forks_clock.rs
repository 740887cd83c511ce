//! The time in a session is the host's from its first moment, and its kernel has not noticed that it was asleep.

use std::time::{SystemTime, UNIX_EPOCH};

use e2e::TestAppliance;
use e2e::client::{Answer, empty};
use hyper::Method;

e2e::tests! {
    Shared: [
        clock_of_a_fork_is_the_hosts_within_50_ms_and_its_kernel_is_silent,
    ];
}

const ALLOWED_NS: u64 = 50_000_000;
/// The answer that came back fastest tells the time best.
const QUESTIONS: usize = 8;
/// What a kernel says that was stopped for longer than it can explain, or has lost its timers.
const COMPLAINTS: [&str; 5] = ["soft lockup", "hard lockup", "rcu", "stall", "clocksource:"];

/// A time of the host, a guest's answer, and a time of the host.
struct Exchange {
    before: u64,
    told: u64,
    after: u64,
}

impl Exchange {
    /// How far the guest's clock is off at least.
    fn error_ns(&self) -> u64 {
        let earliest = self.before.saturating_sub(self.told);
        earliest.max(self.told.saturating_sub(self.after))
    }

    /// How far it is off if both ways took the same time.
    fn estimate_ns(&self) -> u64 {
        self.told.abs_diff(u64::midpoint(self.before, self.after))
    }

    fn round_trip_ns(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

fn clock_of_a_fork_is_the_hosts_within_50_ms_and_its_kernel_is_silent(host: &TestAppliance) {
    for point in ["beforeStart", "afterReady"] {
        let name = format!("clock-{}", point.to_lowercase());
        let pool = host.pool(&name).with(&["--fork-point", point]).create();
        let session = pool.session("user-1");
        let exchanges: Vec<Exchange> = host.block_on(async {
            let mut connection = session.client().http1().await;
            let mut exchanges = Vec::new();
            for _ in 0..QUESTIONS {
                let request = session
                    .request(Method::GET, "/clock")
                    .body(empty())
                    .unwrap();
                let before = now_ns();
                let answer = Answer::collect(connection.send(request).await).await;
                let after = now_ns();
                let told = answer.json()["unixNs"].as_u64().unwrap();
                exchanges.push(Exchange {
                    before,
                    told,
                    after,
                });
            }
            exchanges
        });
        // The first answer was given in the first moments of the fork. A certificate that was valid when the request was made is
        // valid there; a clock that still shows the golden's time is some seconds behind.
        let first = &exchanges[0];
        assert!(
            first.error_ns() <= ALLOWED_NS,
            "{point}: the first answer is off by {} ms at least",
            first.error_ns() / 1_000_000
        );
        let best = exchanges
            .iter()
            .min_by_key(|one| one.round_trip_ns())
            .unwrap();
        let allowed = ALLOWED_NS + best.round_trip_ns() / 2;
        assert!(
            best.estimate_ns() <= allowed,
            "{point}: off by {} ms, and the answer took {} ms",
            best.estimate_ns() / 1_000_000,
            best.round_trip_ns() / 1_000_000
        );
        let consoles = host.consoles();
        assert!(!consoles.is_empty(), "no worker has a console");
        for line in consoles.iter().flat_map(|console| console.lines()) {
            let complaint = COMPLAINTS.iter().find(|word| line.contains(**word));
            assert!(complaint.is_none(), "{point}: the kernel says: {line}");
        }
        pool.delete();
    }
}
