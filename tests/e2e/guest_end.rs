//! A guest that ends by itself takes its own session with it and nothing else.

use e2e::TestAppliance;
use hyper::Method;

e2e::tests! {
    Shared: [
        container_that_exits_ends_its_session_only,
        container_that_crashes_ends_its_session_only,
        container_that_powers_the_guest_off_ends_its_session_only,
        container_that_restarts_the_guest_ends_its_session_only,
        worker_that_is_killed_ends_its_session_only,
    ];
}

/// `end` must make the guest of a new session end. Whatever the caller is told then, the session is
/// gone, the next request gets a new guest, and a neighbour has noticed nothing.
fn assert_only_its_session_ends(host: &TestAppliance, name: &str, end: impl FnOnce(&e2e::Session)) {
    let neighbour = host.shared_session();
    let boot_of_neighbour = neighbour.boot_id();
    let pool = host.pool(name).with(&["--cooldown-period", "600"]).create();
    let session = pool.session("user-1");
    let start = host.log().position();
    let boot = session.boot_id();
    end(&session);
    host.wait_until_gone(&pool, start);
    assert_eq!(
        neighbour.boot_id(),
        boot_of_neighbour,
        "the neighbour's guest is another one"
    );
    assert_ne!(session.boot_id(), boot, "the guest that ended has answered");
}

/// The container ends instead of answering, and the caller gets an error of the platform.
fn post_and_lose_the_answer(session: &e2e::Session, path: &str) {
    let answer = session.call(Method::POST, path, "");
    assert!((502..=504).contains(&answer.status), "{answer:#?}");
    assert!(
        answer.headers.contains_key("x-ms-error-code"),
        "{answer:#?}"
    );
}

fn container_that_exits_ends_its_session_only(host: &TestAppliance) {
    assert_only_its_session_ends(host, "exits", |session| {
        post_and_lose_the_answer(session, "/exit?code=3")
    });
}

fn container_that_crashes_ends_its_session_only(host: &TestAppliance) {
    assert_only_its_session_ends(host, "crashes", |session| {
        post_and_lose_the_answer(session, "/crash?signal=11")
    });
}

fn container_that_powers_the_guest_off_ends_its_session_only(host: &TestAppliance) {
    assert_only_its_session_ends(host, "powers-off", |session| {
        post_and_lose_the_answer(session, "/power?how=off")
    });
}

fn container_that_restarts_the_guest_ends_its_session_only(host: &TestAppliance) {
    assert_only_its_session_ends(host, "restarts", |session| {
        post_and_lose_the_answer(session, "/power?how=restart")
    });
}

fn worker_that_is_killed_ends_its_session_only(host: &TestAppliance) {
    assert_only_its_session_ends(host, "killed", |_| {
        let workers = host.workers();
        assert_eq!(workers.len(), 1, "one session, one worker: {workers:?}");
        workers[0].kill();
    });
}
