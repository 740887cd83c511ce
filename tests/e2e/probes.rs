//! A container is served when it is well, and ended when it is not any more.

use std::time::{Duration, Instant};

use e2e::pool::Pool;
use e2e::{Session, TestAppliance};
use hyper::Method;
use serde_json::{Value, json};

e2e::tests! {
    Shared: [
        session_answers_when_its_startup_probe_has_succeeded_and_not_before,
        container_that_never_becomes_healthy_is_refused_with_what_its_probe_saw,
        session_that_turns_unhealthy_is_ended_and_the_next_request_gets_a_new_one,
        container_that_hangs_is_found_and_ended,
        guest_that_does_not_run_at_all_is_found_and_ended,
        golden_after_ready_is_made_when_its_startup_probe_has_succeeded,
        pool_whose_container_never_passes_its_startup_probe_is_refused,
    ];
}

/// What an unhealthy container may take to be found and ended, on an emulated processor: the first try comes within
/// two periods, three fail.
const FOUND_LIMIT: Duration = Duration::from_secs(60);

/// A pool whose container runs with this environment and is probed so.
fn put<'a>(
    host: &'a TestAppliance,
    name: &str,
    fork_point: &str,
    env: &[(&str, &str)],
    probes: Value,
) -> Result<Pool<'a>, String> {
    let variable = |(name, value): &(&str, &str)| json!({ "name": name, "value": value });
    let env: Vec<_> = env.iter().map(variable).collect();
    host.pool(name).put(json!({
        "forkPoint": fork_point,
        "customContainerTemplate": { "containers": [{ "env": env, "probes": probes }] },
    }))
}

fn healthz(kind: &str, port: u16) -> Value {
    json!({
        "type": kind,
        "httpGet": { "path": "/healthz", "port": port },
        "periodSeconds": 1,
        // Generous: an emulated processor does several things at once.
        "timeoutSeconds": 5,
    })
}

fn post(session: &Session, path: &str) {
    let answer = session.call(Method::POST, path, "");
    assert_eq!(answer.status, 204, "{path}: {answer:#?}");
}

/// The second port is open on loopback only, and nobody else is told of it.
fn session_answers_when_its_startup_probe_has_succeeded_and_not_before(host: &TestAppliance) {
    let mut probe = healthz("Startup", 9100);
    probe["failureThreshold"] = json!(10);
    let env = [
        ("DEMO_HEALTHY_AFTER_MS", "4000"),
        ("DEMO_HEALTH_PORT", "9100"),
    ];
    let pool = put(host, "slow-start", "beforeStart", &env, json!([probe])).unwrap();
    let session = pool.session("user-1");
    let begun = Instant::now();
    let answer = session.get("/healthz");
    assert_eq!(answer.status, 200, "served too early: {answer:#?}");
    assert!(begun.elapsed() >= Duration::from_secs(4));
}

fn container_that_never_becomes_healthy_is_refused_with_what_its_probe_saw(host: &TestAppliance) {
    let env = [("DEMO_HEALTHY_AFTER_MS", "1000000000")];
    let probes = json!([healthz("Startup", 8080)]);
    let pool = put(host, "never-well", "beforeStart", &env, probes).unwrap();
    let start = host.log().position();
    let error = pool
        .session("user-1")
        .get("/")
        .assert_refused(503, "SessionStartFailed");
    let message = error["message"].as_str().unwrap();
    for words in [
        "its startup probe failed 3 times in a row",
        "GET /healthz on port 8080 was answered with status 503",
        "demo: listening on 127.0.0.1:8080",
    ] {
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
    host.wait_for_line(start, FOUND_LIMIT, "that its worker has ended", |line| {
        line.contains("Worker ended")
    });
}

/// Makes a session unhealthy, and asserts that it is replaced.
fn assert_is_replaced(host: &TestAppliance, pool: &Pool, spoil: impl FnOnce(&Session)) {
    let session = pool.session("user-1");
    let start = host.log().position();
    let boot = session.boot_id();
    spoil(&session);
    let begun = Instant::now();
    host.wait_until_gone(pool, start);
    assert!(begun.elapsed() < FOUND_LIMIT, "{:?}", begun.elapsed());
    assert_ne!(session.boot_id(), boot, "the unhealthy guest has answered");
}

fn session_that_turns_unhealthy_is_ended_and_the_next_request_gets_a_new_one(host: &TestAppliance) {
    let probes = json!([healthz("Startup", 8080), healthz("Liveness", 8080)]);
    let pool = put(host, "turns", "beforeStart", &[], probes).unwrap();
    assert_is_replaced(host, &pool, |session| {
        post(session, "/healthz?status=500");
    });
}

/// The port accepts as before, because the kernel does that; only an answer tells.
fn container_that_hangs_is_found_and_ended(host: &TestAppliance) {
    let mut probe = healthz("Liveness", 8080);
    probe["timeoutSeconds"] = json!(2);
    // It does not hear its stop signal either.
    probe["terminationGracePeriodSeconds"] = json!(1);
    let pool = put(host, "hangs", "beforeStart", &[], json!([probe])).unwrap();
    assert_is_replaced(host, &pool, |session| post(session, "/hang"));
}

/// Nothing in it can say so, and nothing in it can be asked to end.
fn guest_that_does_not_run_at_all_is_found_and_ended(host: &TestAppliance) {
    let mut probe = healthz("Liveness", 8080);
    probe["timeoutSeconds"] = json!(2);
    probe["terminationGracePeriodSeconds"] = json!(1);
    let pool = put(host, "stands", "beforeStart", &[], json!([probe])).unwrap();
    assert_is_replaced(host, &pool, |_| {
        let workers = host.workers();
        assert_eq!(workers.len(), 1, "one session, one worker: {workers:?}");
        workers[0].suspend();
    });
}

fn golden_after_ready_is_made_when_its_startup_probe_has_succeeded(host: &TestAppliance) {
    let mut http = healthz("Startup", 8080);
    http["failureThreshold"] = json!(10);
    // Forks are asked at once, so this delay is the golden's alone.
    http["initialDelaySeconds"] = json!(3);
    let env = [("DEMO_HEALTHY_AFTER_MS", "4000")];
    let begun = Instant::now();
    let pool = put(host, "well-golden", "afterReady", &env, json!([http])).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(4));
    let stamps = ["user-1", "user-2"].map(|identifier| {
        let session = pool.session(identifier);
        assert_eq!(session.get("/healthz").status, 200);
        session.get("/stamp").json()["start"].clone()
    });
    assert!(!stamps[0].is_null());
    assert_eq!(stamps[0], stamps[1], "a session is no fork of the golden");
}

fn pool_whose_container_never_passes_its_startup_probe_is_refused(host: &TestAppliance) {
    let tcp = json!({
        "type": "Startup",
        "tcpSocket": { "port": 9100 },
        "periodSeconds": 1,
        "failureThreshold": 2,
    });
    let refusal = put(host, "no-golden", "afterReady", &[], json!([tcp]))
        .err()
        .expect("the pool was made");
    for words in [
        "SessionPoolContainerFailed",
        "its startup probe failed 2 times in a row",
        "a connection to port 9100 was refused",
    ] {
        assert!(refusal.contains(words), "{words:?} is not in {refusal}");
    }
}
