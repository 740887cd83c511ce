//! A host that is emptied.

use std::thread;
use std::time::{Duration, Instant};

use e2e::{Pool, TestAppliance};

e2e::tests! {
    Own: [
        drained_host_lets_requests_finish_ends_everything_and_begins_nothing_until_it_is_cancelled,
    ];
}

/// What filling a pool may take on an emulated processor.
const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);

fn wait_for(host: &TestAppliance, what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LIMIT, "not {what}\n{}", host.report(0));
        thread::sleep(PAUSE);
    }
}

fn has_ready(host: &TestAppliance, pool: &Pool) -> bool {
    let shown = host
        .cli()
        .json(&["sessionpool", "show", "--name", &pool.name]);
    shown["properties"]["sessionCounts"]["ready"] == 1
}

fn drained_host_lets_requests_finish_ends_everything_and_begins_nothing_until_it_is_cancelled() {
    let host = TestAppliance::start();
    let flags = ["--ready-sessions", "1", "--max-sessions", "4"];
    let pool = host.pool("drained").with(&flags).create();
    let (idle, busy) = (pool.session("user-1"), pool.session("user-2"));
    idle.boot_id();
    busy.boot_id();
    wait_for(&host, "filled", || has_ready(&host, &pool));
    thread::scope(|scope| {
        let asking = scope.spawn(|| busy.get("/slow?ms=4000"));
        wait_for(&host, "in use", || {
            let show = [
                "session",
                "show",
                "--name",
                "drained",
                "--identifier",
                "user-2",
            ];
            host.cli().json(&show)["openRequests"] == 1
        });
        let said = host.cli().ok(&["drain", "--timeout", "1m"]);
        assert!(said.contains("No session is left"), "{said}");
        let answer = asking.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:#?}");
    });
    assert!(host.workers().is_empty());
    for identifier in ["user-1", "user-3"] {
        let refused = pool.session(identifier).get("/");
        refused.assert_refused(503, "HostDraining");
        assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    }
    // Nothing is left to wait for.
    let answer = host.cli().json(&["drain"]);
    assert_eq!(
        (&answer["draining"], &answer["slotsInUse"]),
        (&true.into(), &0.into())
    );
    host.cli().ok(&["drain", "--cancel"]);
    pool.session("user-1").boot_id();
    wait_for(&host, "filled again", || has_ready(&host, &pool));
    pool.delete();
    host.stop();
}
