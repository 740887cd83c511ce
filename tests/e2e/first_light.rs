//! A request with a new identifier gets a guest of its own, and the pool's limits hold.

use std::thread;
use std::time::{Duration, Instant};

use e2e::TestAppliance;
use serde_json::json;

e2e::tests! {
    Shared: [
        first_request_of_an_identifier_is_answered_by_a_container_in_a_guest,
        same_identifier_reaches_the_same_guest_and_another_one_another_guest,
        two_first_requests_with_one_identifier_make_one_session,
        session_beyond_the_maximum_is_refused_and_the_others_go_on,
        session_idle_past_its_cooldown_is_gone_with_everything_of_it,
        request_in_progress_keeps_its_session_past_the_cooldown,
        container_that_exits_at_start_is_reported_with_its_last_lines,
        program_that_is_not_in_the_image_is_reported_by_name,
        settings_of_the_pool_reach_the_container,
        pool_is_shown_and_listed_until_it_is_deleted_with_its_sessions,
    ];
}

fn first_request_of_an_identifier_is_answered_by_a_container_in_a_guest(host: &TestAppliance) {
    let pool = host.pool("hello").create();
    let session = pool.session("user-1");
    let answer = session.get("/");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "Hello from Cabana\n"),
        "{answer:#?}"
    );
    // Not the appliance's own host: that one has booted with another id.
    let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(session.boot_id(), own.trim_end());
    assert_eq!(host.workers().len(), 1, "one session, one worker");
}

fn same_identifier_reaches_the_same_guest_and_another_one_another_guest(host: &TestAppliance) {
    let pool = host.pool("identity").create();
    let [first, second] = ["user-1", "user-2"].map(|identifier| pool.session(identifier));
    let (boot, other) = (first.boot_id(), second.boot_id());
    assert_ne!(boot, other);
    assert_eq!(first.boot_id(), boot);
    assert_eq!(
        second
            .call(hyper::Method::PUT, "/files/secret", "of user-2")
            .status,
        201
    );
    assert_eq!(second.get("/files/secret").text(), "of user-2");
    assert_eq!(
        first.get("/files/secret").status,
        404,
        "one session sees the files of another"
    );
    let random = |name: &str| pool.session(name).get("/random").text();
    assert_ne!(random("user-1"), random("user-2"));
}

fn two_first_requests_with_one_identifier_make_one_session(host: &TestAppliance) {
    let pool = host.pool("twice").create();
    let boots = thread::scope(|scope| {
        let asking = [(); 2].map(|()| scope.spawn(|| pool.session("same-user").boot_id()));
        asking.map(|thread| thread.join().expect("both requests are answered"))
    });
    assert_eq!(boots[0], boots[1]);
    assert_eq!(host.workers().len(), 1, "one session, one worker");
}

fn session_beyond_the_maximum_is_refused_and_the_others_go_on(host: &TestAppliance) {
    let pool = host
        .pool("small")
        .with(&["--max-sessions", "1", "--cooldown-period", "600"])
        .create();
    let first = pool.session("user-1");
    let boot = first.boot_id();
    let refused = pool.session("user-2").get("/");
    refused.assert_refused(429, "MaxConcurrentSessionsReached");
    let wait: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=600).contains(&wait), "Retry-After is {wait} seconds");
    assert_eq!(first.boot_id(), boot);
}

fn session_idle_past_its_cooldown_is_gone_with_everything_of_it(host: &TestAppliance) {
    let pool = host
        .pool("cooldown")
        .with(&["--cooldown-period", "4"])
        .create();
    let before = host.traces();
    let start = host.log().position();
    let boot = pool.session("user-1").boot_id();
    // What is looked for below can be seen as long as the session is there.
    let there = host.traces().since(&before);
    for kind in ["process ", "file ", "disk ", "cgroup "] {
        assert!(
            there.iter().any(|line| line.starts_with(kind)),
            "no {kind} in {there:#?}"
        );
    }
    host.wait_until_gone(&pool, start);
    let left = host.traces().since(&before);
    assert!(left.is_empty(), "an ended session has left {left:#?}");
    assert_ne!(
        pool.session("user-1").boot_id(),
        boot,
        "an ended session must not come back"
    );
}

fn request_in_progress_keeps_its_session_past_the_cooldown(host: &TestAppliance) {
    let pool = host.pool("busy").with(&["--cooldown-period", "1"]).create();
    let slow = pool.session("user-1").get("/slow?ms=3000");
    assert_eq!(
        (slow.status, slow.text().as_str()),
        (200, "slow, but here\n")
    );
}

fn container_that_exits_at_start_is_reported_with_its_last_lines(host: &TestAppliance) {
    let pool = host
        .pool("broken")
        .with(&["--env-vars", "EXIT_AT_START=9"])
        .create();
    let asked = Instant::now();
    let error = pool
        .session("user-1")
        .get("/")
        .assert_refused(503, "SessionStartFailed");
    let message = error["message"].as_str().unwrap();
    for word in [
        "9",
        "8080",
        "demo: the settings are no good",
        "demo: giving up with status 9",
    ] {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    // Far below the 60 seconds that a silent port gets.
    assert!(
        asked.elapsed() < Duration::from_secs(40),
        "it took {:?}",
        asked.elapsed()
    );
}

fn program_that_is_not_in_the_image_is_reported_by_name(host: &TestAppliance) {
    let pool = host
        .pool("missing")
        .with(&["--command", "/no/such/program"])
        .create();
    let error = pool
        .session("user-1")
        .get("/")
        .assert_refused(503, "SessionStartFailed");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("/no/such/program"), "{message}");
}

fn settings_of_the_pool_reach_the_container(host: &TestAppliance) {
    let flags = [
        "--target-port",
        "9090",
        "--memory",
        "0.5Gi",
        "--env-vars",
        "PORT=9090",
        "MODE=a=b",
        "WORDS=two words",
    ];
    let pool = host.pool("settings").with(&flags).create();
    let session = pool.session("user-1");
    let env = session.get("/env").json();
    assert_eq!(
        (&env["PORT"], &env["MODE"], &env["WORDS"]),
        (&json!("9090"), &json!("a=b"), &json!("two words"))
    );
    let id = session.get("/id").json();
    let memory = id["memoryBytes"].as_u64().unwrap();
    // The kernel keeps some of it for itself.
    assert!(
        (400..=512).contains(&(memory >> 20)),
        "the guest sees {} MiB of 512",
        memory >> 20
    );
    assert_eq!(id["cpus"], 1);
}

fn pool_is_shown_and_listed_until_it_is_deleted_with_its_sessions(host: &TestAppliance) {
    let pool = host
        .pool("shown")
        .with(&["--max-sessions", "3", "--cooldown-period", "77"])
        .create();
    let shown = host.cli().json(&["sessionpool", "show", "--name", "shown"]);
    let properties = &shown["properties"];
    assert_eq!(shown["name"], "shown");
    assert_eq!(properties["scaleConfiguration"]["maxConcurrentSessions"], 3);
    assert_eq!(
        properties["dynamicPoolConfiguration"]["lifecycleConfiguration"]["cooldownPeriodInSeconds"],
        77
    );
    assert_eq!(
        properties["customContainerTemplate"]["ingress"]["targetPort"],
        8080
    );
    let listed = || {
        let list = host.cli().json(&["sessionpool", "list"]);
        list.as_array()
            .unwrap()
            .iter()
            .any(|pool| pool["name"] == "shown")
    };
    assert!(listed());
    // The endpoint is printed to be used as it is.
    let endpoint = properties["poolManagementEndpoint"].as_str().unwrap();
    assert!(
        endpoint.ends_with(&e2e::pool::endpoint("shown")),
        "{endpoint}"
    );

    let before = host.traces();
    let session = pool.session("user-1");
    session.boot_id();
    pool.delete();
    let left = host.traces().since(&before);
    assert!(left.is_empty(), "a deleted pool has left {left:#?}");
    assert!(!listed());
    session.get("/").assert_refused(404, "SessionPoolNotFound");
    host.cli()
        .run(&["sessionpool", "show", "--name", "shown"])
        .assert_refused(1, &["shown"]);
    host.cli()
        .run(&["sessionpool", "delete", "--name", "shown"])
        .assert_refused(1, &["shown"]);
}
