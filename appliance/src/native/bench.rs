//! The benchmark `claim_first_byte`: claims of sessions that are ready, each with an identifier that is new.
//!
//! The appliance says in its log how long each request waited for its session: from the claim that its front door sends
//! to the pool until the answer, the store written. What a client sees is measured by a client.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::*;

const POOL: &str = "claims";
const PER_SECOND: u32 = 100;
/// Ten seconds of claims.
const CLAIMS: usize = 1000;
/// The sessions beside which claims are looked at, and how many are.
const LEVELS: [usize; 3] = [10, 100, 1000];
const PROBES: usize = 200;
/// Ready slots of a pool that starts one for each that is claimed: two seconds of claims.
const READY: usize = 200;
const CONNECTIONS: usize = 16;
/// Where the figures are written, as JSON.
const OUTPUT_VARIABLE: &str = "CABANA_BENCH_OUTPUT";

/// What a series of claims took.
struct Series {
    server: Vec<Duration>,
    first_byte: Vec<Duration>,
}

struct Bench {
    native: Native,
    client: Arc<Client>,
    next: usize,
}

impl Bench {
    /// Returns when the pool has so many ready slots beside its sessions, and room for `refills` more.
    async fn prepare(&self, sessions: usize, ready: usize, refills: usize) {
        self.native
            .pool(POOL, sessions + ready + refills, ready)
            .await;
        self.native.until_ready(POOL, ready).await;
    }

    /// Claims at the pace, each of a slot that is ready. Gives the identifiers, too.
    async fn claim(&mut self, count: usize) -> (Series, Vec<String>) {
        self.native.claims(0).await;
        let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut claims = JoinSet::new();
        for number in self.next..self.next + count {
            ticks.tick().await;
            let client = Arc::clone(&self.client);
            claims.spawn(async move {
                let identifier = format!("user-{number}");
                let answer = client.get(POOL, "/", &identifier).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                (answer.first_byte, identifier)
            });
        }
        self.next += count;
        let (first_byte, identifiers) = claims.join_all().await.into_iter().unzip();
        let server = self.native.claims(count).await;
        (Series { server, first_byte }, identifiers)
    }

    async fn stop(&self, identifiers: Vec<String>) {
        let mut stops = JoinSet::new();
        for identifier in identifiers {
            let client = Arc::clone(&self.client);
            stops.spawn(async move {
                let query = format!("api-version=2025-10-02-preview&identifier={identifier}");
                let tail = format!("/.management/stopSession?{query}");
                let answer = client.send("POST", POOL, &tail).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
            });
            if stops.len() >= CONNECTIONS {
                stops.join_next().await.unwrap().unwrap();
            }
        }
        stops.join_all().await;
    }
}

impl Series {
    fn json(&self) -> Value {
        json!({ "server": figures(&self.server), "firstByte": figures(&self.first_byte) })
    }
}

/// Percentiles by the nearest rank, in milliseconds.
fn figures(times: &[Duration]) -> Value {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1].as_secs_f64() * 1000.0
    };
    json!({ "count": sorted.len(), "p50": rank(50), "p99": rank(99), "max": rank(100) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo dev bench --only claim_first_byte"]
async fn claim_first_byte() {
    let native = Native::start("claim_first_byte")
        .await
        .expect("all programs are there");
    let client = Arc::new(native.client().await);
    client.prepare(CONNECTIONS).await;
    let mut bench = Bench {
        native,
        client,
        next: 0,
    };
    bench.prepare(0, PROBES, 0).await;
    let without_sessions = bench.native.memory();
    let mut here = 0;
    let mut levels = Vec::new();
    for level in LEVELS {
        // As many ready slots as before, so that the sessions are all that is new.
        while here < level {
            let step = PROBES.min(level - here);
            bench.prepare(here, PROBES, step).await;
            bench.claim(step).await;
            here += step;
        }
        bench.prepare(level, PROBES, 0).await;
        let memory = bench.native.memory().saturating_sub(without_sessions);
        let (probes, identifiers) = bench.claim(PROBES).await;
        bench.stop(identifiers).await;
        let mut figures = probes.json();
        figures["sessions"] = level.into();
        figures["bytesPerSession"] = (memory / level as u64).into();
        levels.push(figures);
    }
    // For each slot that is claimed, another one starts: two processes, and more work than the claim.
    bench.prepare(here, READY, CLAIMS).await;
    let (refilled, identifiers) = bench.claim(CLAIMS).await;
    bench.stop(identifiers).await;
    bench.prepare(here, CLAIMS, 0).await;
    let (claims, _) = bench.claim(CLAIMS).await;
    let mut result = claims.json();
    result["perSecond"] = PER_SECOND.into();
    result["refilled"] = refilled.json();
    result["levels"] = levels.into();
    match std::env::var_os(OUTPUT_VARIABLE) {
        Some(path) => std::fs::write(path, result.to_string()).unwrap(),
        None => println!("{result:#}"),
    }
    // In no order: two thousand agents that end at the same moment are nobody's measure.
    drop(bench.native.kill());
}
