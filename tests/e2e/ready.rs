//! Sessions that wait for their caller, and what becomes of them when the pool changes.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use e2e::TestAppliance;
use e2e::process::worker_in;
use hyper::Method;

e2e::tests! {
    Shared: [
        pool_keeps_sessions_ready_and_a_request_takes_one_of_them,
        change_of_the_container_is_for_new_sessions_and_those_that_are_there_live_on,
        two_hundred_requests_for_twenty_identifiers_at_once_make_twenty_sessions,
        sessions_are_listed_shown_and_stopped_on_the_address_of_the_pool,
    ];
}

/// What filling a pool may take on an emulated processor.
const LIMIT: Duration = Duration::from_secs(90);

fn pool_keeps_sessions_ready_and_a_request_takes_one_of_them(host: &TestAppliance) {
    let flags = ["--ready-sessions", "2", "--max-sessions", "3"];
    let pool = host.pool("warm").with(&flags).create();
    pool.wait_for_counts(2, 0);
    assert_eq!(host.workers().len(), 2);

    let start = host.log().position();
    let session = pool.session("user-1");
    let boot = session.boot_id();
    // The guest that it was given had come up before it was asked for.
    let came_up = |line: &String| line.contains("Container accepts connections");
    let earlier = host.log().since(0);
    let started = host.wait_for_line(start, LIMIT, "that the session has started", |line| {
        line.contains("session started") && line.contains("pool=warm ")
    });
    let given = worker_in(&started).unwrap();
    let up = earlier.iter().take(start).filter(|line| came_up(line));
    assert!(
        up.filter_map(|line| worker_in(line)).any(|up| up == given),
        "{given} was not ready: {earlier:#?}"
    );

    pool.wait_for_counts(2, 1);
    assert_eq!(host.workers().len(), 3);
    assert_eq!(session.boot_id(), boot);
    // The maximum holds for those that wait, too: a second session is given one, and no third is made ready.
    assert_ne!(pool.session("user-2").boot_id(), boot);
    pool.wait_for_counts(1, 2);
    assert_ne!(pool.session("user-3").boot_id(), boot);
    pool.wait_for_counts(0, 3);
    let refused = pool.session("user-4").get("/");
    refused.assert_refused(429, "MaxConcurrentSessionsReached");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    pool.delete();
    assert!(host.workers().is_empty());
}

fn change_of_the_container_is_for_new_sessions_and_those_that_are_there_live_on(
    host: &TestAppliance,
) {
    let flags = ["--ready-sessions", "1", "--max-sessions", "4"];
    let pool = host.pool("moving").with(&flags).create();
    pool.wait_for_counts(1, 0);
    let old = pool.session("user-1");
    let boot = old.boot_id();
    let update = ["sessionpool", "update", "--name", "moving"];
    host.cli().ok(&[
        &update[..],
        &["--env-vars", "DEMO_HEALTHY_AFTER_MS=1000000000"],
    ]
    .concat());
    pool.wait_until("moved over", |shown| {
        shown["templateUpdateStatus"]["desiredTemplate"].is_null()
    });
    pool.wait_for_counts(1, 1);
    let new = pool.session("user-2");
    assert_eq!(new.get("/healthz").status, 503, "not of the new revision");
    assert_eq!(old.get("/healthz").status, 200, "not of the old revision");
    assert_eq!(old.boot_id(), boot);

    // A container that cannot be started never comes up: the one before it goes on serving, and the pool says so.
    host.cli()
        .ok(&[&update[..], &["--command", "/no-such-program"]].concat());
    pool.wait_until("failing", |shown| {
        shown["sessionCounts"]["failed"].as_u64() > Some(0)
    });
    assert_eq!(pool.session("user-3").get("/healthz").status, 503);
    assert_eq!(old.boot_id(), boot);
}

fn two_hundred_requests_for_twenty_identifiers_at_once_make_twenty_sessions(host: &TestAppliance) {
    const IDENTIFIERS: usize = 20;
    const REQUESTS: usize = 200;
    let flags = ["--ready-sessions", "3", "--max-sessions", "20"];
    let pool = host.pool("crowd").with(&flags).create();
    let mut boots: BTreeMap<String, Vec<String>> = BTreeMap::new();
    thread::scope(|scope| {
        let asking: Vec<_> = (0..REQUESTS)
            .map(|number| {
                let session = pool.session(&format!("user-{}", number % IDENTIFIERS));
                scope.spawn(move || (session.identifier.clone(), session.boot_id()))
            })
            .collect();
        for asked in asking {
            let (identifier, boot) = asked.join().expect("every request is answered");
            boots.entry(identifier).or_default().push(boot);
        }
    });
    assert_eq!(boots.len(), IDENTIFIERS);
    let mut seen: Vec<&String> = boots.values().flatten().collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), IDENTIFIERS, "{boots:#?}");
    for (identifier, answers) in &boots {
        assert_eq!(answers.len(), REQUESTS / IDENTIFIERS);
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{identifier} had two guests: {answers:?}"
        );
    }
    // The pool counts them as the callers do, and the host has no process more.
    pool.wait_for_counts(0, 20);
    assert_eq!(host.workers().len(), IDENTIFIERS);
    pool.delete();
    assert!(host.workers().is_empty());
}

fn sessions_are_listed_shown_and_stopped_on_the_address_of_the_pool(host: &TestAppliance) {
    let pool = host.pool("managed").create();
    let session = pool.session("user-1");
    let manage = |call: &str| {
        let path = format!("/.management/{call}?api-version=2025-02-02-preview");
        session.call(Method::POST, &path, "")
    };
    manage("getSession").assert_refused(400, "SessionWithIdentifierNotFound");
    let boot = session.boot_id();
    let shown = manage("getSession").json();
    assert_eq!(shown["identifier"], "user-1");
    assert!(shown["expiresAt"].is_string(), "{shown}");

    let listed = host.cli().json(&["session", "list", "--name", "managed"]);
    assert_eq!(listed[0]["identifier"], "user-1", "{listed}");
    let stopped = manage("stopSession");
    assert_eq!(stopped.status, 200, "{stopped:?}");
    assert!(host.workers().is_empty(), "stopped and still there");
    manage("stopSession").assert_refused(400, "SessionWithIdentifierNotFound");
    assert_ne!(session.boot_id(), boot);
}
