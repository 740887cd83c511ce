//! `kill -9` of a worker at every step of its life: what was asked for is refused or goes on, the counts come right, and nothing
//! is left. What it does to the other sessions is the matter of `guest_end`.

use std::thread;
use std::time::Duration;

use e2e::pool::{Counts, Pool, PoolBuilder};
use e2e::process::{self, Process};
use e2e::traces::Traces;
use e2e::{Session, TestAppliance};
use hyper::Method;

e2e::tests! {
    Shared: [
        pool_whose_golden_loses_its_worker_at_any_step_is_refused_and_made_when_asked_again,
        slot_whose_worker_is_killed_while_it_warms_or_is_ready_is_replaced,
        request_whose_worker_is_killed_is_answered_with_an_error_and_the_next_one_has_a_new_session,
        stop_and_delete_end_in_order_though_workers_are_killed_meanwhile,
        change_of_a_pool_is_done_though_workers_of_both_revisions_are_killed,
    ];
}

/// What a step may take to come, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a guest that was not there before.
#[track_caller]
fn new_guest(before: &Traces) -> Process {
    process::appears(LIMIT, "a new guest", |process| {
        process.has_guest() && !before.has(process)
    })
}

/// Waits until a worker has said this, from `position` of the log on.
#[track_caller]
fn worker_that_said(host: &TestAppliance, position: usize, what: &str) -> Process {
    let line = host.wait_for_line(position, LIMIT, what, |line| line.contains(what));
    let id = process::worker_in(&line).expect("the line names its worker");
    process::of_worker(id).unwrap_or_else(|| panic!("the worker is gone already: {line}"))
}

/// A session whose container does not hear its stop signal, so that its end takes as long as the guest is given.
#[track_caller]
fn deaf<'a>(pool: &Pool<'a>, identifier: &str) -> Session<'a> {
    let session = pool.session(identifier);
    let answer = session.call(Method::POST, "/hang", "");
    assert_eq!(answer.status, 204, "{answer:#?}");
    session
}

/// An error of the platform, which is no fault of the caller.
#[track_caller]
fn assert_says_so(answer: &e2e::client::Answer) {
    assert!((502..=504).contains(&answer.status), "{answer:#?}");
    let code = answer.headers.get("x-ms-error-code");
    assert!(code.is_some(), "{answer:#?}");
}

fn pool_whose_golden_loses_its_worker_at_any_step_is_refused_and_made_when_asked_again(
    host: &TestAppliance,
) {
    host.demo_image();
    // A size that no other test has, so that the golden is a new one.
    let pool = |name| -> PoolBuilder { host.pool(name).with(&["--ephemeral-storage", "1100Mi"]) };
    let goldens = host.goldens().len();
    let before = host.traces();
    type Step = fn(&TestAppliance, usize, &Traces) -> Process;
    let steps: [(&str, Step); 3] = [
        ("boots", |_, _, before| new_guest(before)),
        ("is written down", |host, position, _| {
            worker_that_said(host, position, "Golden is held")
        }),
        ("is tried", |host, position, before| {
            let first = worker_that_said(host, position, "Golden is held");
            first.assert_ends_within(LIMIT);
            new_guest(before)
        }),
    ];
    for (step, victim) in steps {
        let position = host.log().position();
        let ran = thread::scope(|scope| {
            let making = scope.spawn(|| pool("unmade").run());
            victim(host, position, &before).kill();
            making.join().expect("the command ends")
        });
        println!("killed while it {step}: {}", ran.stderr.trim());
        ran.assert_refused(1, &["golden"]);
        assert_eq!(host.traces().since(&before), [""; 0], "while it {step}");
        assert_eq!(host.existing_pool("unmade").properties(), None, "{step}");
        assert_eq!(host.goldens().len(), goldens, "while it {step}");
    }
    let pool = pool("unmade").create();
    assert_eq!(pool.session("user-1").get("/").status, 200);
    pool.wait_for_counts(0, 1);
}

fn slot_whose_worker_is_killed_while_it_warms_or_is_ready_is_replaced(host: &TestAppliance) {
    // Its golden is there; it listens late, so that there is time to kill it before.
    host.pool("first").create().delete();
    let before = host.traces();
    let flags = ["--ready-sessions", "1", "--env-vars", "DEMO_DELAY_MS=2000"];
    let position = host.log().position();
    let pool = host.pool("warming").with(&flags).create();
    // At first sight. Mostly that is while it is forked: then the slot boots instead, and the golden may be in doubt.
    new_guest(&before).kill();
    let outcomes = [
        "session could not be forked and boots",
        "golden is set aside",
        "slot failed before anybody had it",
    ];
    let found = host.wait_for_line(position, LIMIT, "what became of the fork", |line| {
        outcomes.iter().any(|outcome| line.contains(outcome))
    });
    println!("killed at first sight: {found}");
    let in_doubt = found.contains("golden is set aside");
    let position = host.log().position();
    let booted = worker_that_said(host, position, "Guest is renewed");
    booted.kill();
    pool.wait_until("short of a slot", |shown| {
        shown["sessionCounts"]["failed"].as_u64() > Some(0)
    });
    pool.wait_for_counts(1, 0);
    if in_doubt {
        host.wait_for_golden(position);
    }
    let workers = host.workers();
    assert_eq!(workers.len(), 1, "one slot, one worker: {workers:?}");
    let position = host.log().position();
    workers[0].kill();
    host.wait_for_line(position, LIMIT, "that the slot failed", |line| {
        line.contains("slot failed before anybody had it") && line.contains("pool=warming ")
    });
    pool.wait_for_counts(1, 0);
    let replaced = host.workers();
    assert_eq!(replaced.len(), 1, "{replaced:?}");
    assert_ne!(replaced[0].pid, workers[0].pid);
    assert_eq!(pool.session("user-1").get("/").status, 200);
    pool.wait_for_counts(1, 1);
}

fn request_whose_worker_is_killed_is_answered_with_an_error_and_the_next_one_has_a_new_session(
    host: &TestAppliance,
) {
    let flags = ["--env-vars", "DEMO_DELAY_MS=2000"];
    let pool = host.pool("asked").with(&flags).create();
    let session = pool.session("user-1");

    // It waits for its session.
    let position = host.log().position();
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| session.get("/"));
        worker_that_said(host, position, "Guest is renewed").kill();
        asking.join().expect("the request is answered")
    });
    answer.assert_refused(503, "SessionStartFailed");
    pool.wait_for(Counts {
        failed: 1,
        ..Counts::settled(0, 0)
    });

    // It is in the container.
    let boot = session.boot_id();
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| session.get("/slow?ms=3600000"));
        pool.wait_until("asked", |_| {
            let look = pool.look("user-1").unwrap_or_default();
            look["openRequests"].as_u64() == Some(1)
        });
        pool.worker_of("user-1").kill();
        asking.join().expect("the request is answered")
    });
    assert_says_so(&answer);
    pool.wait_for_counts(0, 0);
    assert!(pool.look("user-1").is_none());
    assert_ne!(
        session.boot_id(),
        boot,
        "the guest that was killed has answered"
    );
    pool.wait_for_counts(0, 1);
}

fn stop_and_delete_end_in_order_though_workers_are_killed_meanwhile(host: &TestAppliance) {
    let pool = host
        .pool("ending")
        .with(&["--ready-sessions", "1"])
        .create();
    let session = deaf(&pool, "user-1");
    let worker = pool.worker_of("user-1");
    let position = host.log().position();
    let ends = |line: &str| line.contains("session ends") && line.contains("pool=ending ");
    let stopped = thread::scope(|scope| {
        let stopping = scope.spawn(|| {
            let call = "/.management/stopSession?api-version=2025-02-02-preview";
            session.call(Method::POST, call, "")
        });
        host.wait_for_line(position, LIMIT, "that the session ends", ends);
        worker.kill();
        stopping.join().expect("the stop is answered")
    });
    assert_eq!(stopped.status, 200, "{stopped:#?}");
    assert!(pool.look("user-1").is_none());
    pool.wait_for_counts(1, 0);

    deaf(&pool, "user-2");
    pool.wait_for_counts(1, 1);
    let workers = host.workers();
    assert_eq!(workers.len(), 2, "a session and a slot: {workers:?}");
    let position = host.log().position();
    thread::scope(|scope| {
        let deleting = scope.spawn(|| pool.delete());
        host.wait_for_line(position, LIMIT, "that the session ends", ends);
        workers.iter().for_each(Process::kill);
        deleting.join().expect("the pool is deleted");
    });
    assert!(host.workers().is_empty());
    assert_eq!(host.existing_pool("ending").properties(), None);
}

fn change_of_a_pool_is_done_though_workers_of_both_revisions_are_killed(host: &TestAppliance) {
    let flags = ["--ready-sessions", "1", "--max-sessions", "4"];
    let pool = host.pool("changing").with(&flags).create();
    pool.wait_for_counts(1, 0);
    let [old_ready] = &host.workers()[..] else {
        panic!("one slot, one worker: {:?}", host.workers());
    };
    let position = host.log().position();
    let update = ["sessionpool", "update", "--name", "changing"];
    let later = ["--env-vars", "DEMO_DELAY_MS=2000"];
    host.cli().ok(&[&update[..], &later].concat());
    worker_that_said(host, position, "Guest is renewed").kill();
    pool.wait_until("failing with what it is to be", |shown| {
        let desired = &shown["templateUpdateStatus"]["desiredTemplate"];
        desired["status"]["crashCount"].as_u64() > Some(0)
    });
    // The old revision goes on to serve, and to be kept ready.
    let old = pool.session("user-1");
    let boot = old.boot_id();
    assert_eq!(pool.worker_of("user-1").pid, old_ready.pid);
    assert!(!old.get("/env").json().to_string().contains("DEMO_DELAY_MS"));

    pool.wait_until("moved over", |shown| {
        shown["templateUpdateStatus"]["desiredTemplate"].is_null()
    });
    pool.wait_for_counts(1, 1);
    assert_eq!(old.boot_id(), boot);
    // The last of the old revision: what comes in its place is of the new one.
    pool.worker_of("user-1").kill();
    pool.wait_for_counts(1, 0);
    assert_ne!(old.boot_id(), boot);
    assert!(old.get("/env").json().to_string().contains("DEMO_DELAY_MS"));
    pool.wait_for_counts(1, 1);
}
