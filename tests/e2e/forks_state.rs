//! What sessions of one golden share, what they do not, and how large a session is.

use std::time::Duration;

use e2e::TestAppliance;
use hyper::Method;
use serde_json::Value;

e2e::tests! {
    Shared: [
        container_of_an_after_ready_pool_is_started_once_and_copied,
        writable_layer_has_the_size_that_the_pool_was_given,
        pool_shows_its_fork_point_and_the_size_of_its_disk,
    ];
    Own: [
        after_ready_pool_whose_container_never_listens_is_refused_with_its_last_lines,
    ];
}

fn container_of_an_after_ready_pool_is_started_once_and_copied(host: &TestAppliance) {
    let pool = host
        .pool("copied")
        .with(&["--fork-point", "afterReady"])
        .create();
    let [first, second] = ["user-1", "user-2"].map(|identifier| pool.session(identifier));
    let [one, two] = [&first, &second].map(|session| session.get("/stamp").json());
    for name in ["start", "startedUnixNs", "pid"] {
        assert!(!one[name].is_null(), "{one}");
        assert_eq!(one[name], two[name], "the container was started twice");
    }

    // What one of them does from now on, in memory and on disk, is its own.
    let noted = first.call(Method::PUT, "/stamp", "of user-1").json();
    assert_eq!(noted["note"], "of user-1");
    assert_eq!(second.get("/stamp").json()["note"], "");
    assert_eq!(first.call(Method::PUT, "/files/a", "of user-1").status, 201);
    assert_eq!(
        second.call(Method::PUT, "/files/b", "of user-2").status,
        201
    );
    assert_eq!(first.text("/files/a"), "of user-1");
    assert_eq!(second.get("/files/a").status, 404, "sessions share a disk");
    assert_eq!(first.get("/files/b").status, 404, "sessions share a disk");

    // And nothing of it has reached the golden: who comes later finds it as it was.
    let third = pool.session("user-3");
    let three = third.get("/stamp").json();
    assert_eq!(
        (&three["start"], &three["note"]),
        (&one["start"], &"".into())
    );
    for name in ["a", "b"] {
        assert_eq!(third.get(&format!("/files/{name}")).status, 404);
    }

    // Sessions of the other kind are started each for itself.
    let pool = host.pool("started").create();
    let [one, two] =
        ["user-1", "user-2"].map(|identifier| pool.session(identifier).get("/stamp").json());
    assert_ne!(one["start"], two["start"]);
}

fn writable_layer_has_the_size_that_the_pool_was_given(host: &TestAppliance) {
    for (name, size, gib) in [("disk-small", "2Gi", 2.0), ("disk-large", "20Gi", 20.0)] {
        let pool = host
            .pool(name)
            .with(&["--ephemeral-storage", size])
            .create();
        let root = pool.session("user-1").get("/statvfs").json();
        let bytes = root["totalBytes"].as_f64().unwrap();
        let seen = bytes / f64::from(1 << 30);
        // The file system keeps a few percent for itself.
        assert!(
            (0.9 * gib..=gib).contains(&seen),
            "{size} are {seen:.2} GiB in the container"
        );
        let free = root["freeBytes"].as_f64().unwrap();
        assert!(free > 0.95 * bytes, "{root}");
        pool.delete();
    }
}

fn pool_shows_its_fork_point_and_the_size_of_its_disk(host: &TestAppliance) {
    let show = |name: &str| {
        let shown = host.cli().json(&["sessionpool", "show", "--name", name]);
        let resources =
            &shown["properties"]["customContainerTemplate"]["containers"][0]["resources"];
        (
            shown["properties"]["forkPoint"].clone(),
            resources["ephemeralStorage"].clone(),
        )
    };
    host.pool("usual").create();
    assert_eq!(show("usual"), (json("beforeStart"), json("8Gi")));
    host.pool("unusual")
        .with(&["--fork-point", "afterReady", "--ephemeral-storage", "2Gi"])
        .create();
    assert_eq!(show("unusual"), (json("afterReady"), json("2Gi")));
    let list = host.cli().json(&["golden", "ls"]);
    assert!(
        list.as_array().is_some_and(|goldens| goldens.len() >= 2),
        "{list}"
    );
}

fn json(text: &str) -> Value {
    text.into()
}

fn after_ready_pool_whose_container_never_listens_is_refused_with_its_last_lines() {
    // Long enough for a boot on an emulated processor, short enough to be waited for.
    const LIMIT: Duration = Duration::from_secs(25);
    let config = format!(
        "min_cooldown_seconds = 1\nspare_workers = 0\nmemory_overcommit = 100\ncpu_overcommit = 100\nstart_timeout_seconds = {}\n",
        LIMIT.as_secs()
    );
    let host = TestAppliance::start_with(&config);
    host.demo_image();
    let before = host.traces();
    let fork = ["--fork-point", "afterReady"];
    let ends = ["--env-vars", "EXIT_AT_START=9"];
    let elsewhere = ["--target-port", "9999"];
    let table = [
        (&ends, ["demo: giving up with status 9", "8080"]),
        (&elsewhere, ["demo: listening on 127.0.0.1:8080", "9999"]),
    ];
    for (flags, words) in table {
        let ran = host.pool("broken").with(&fork).with(flags).run();
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:#?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{word:?} is not in {ran:#?}");
        }
    }

    let list = host.cli().json(&["sessionpool", "list"]);
    assert_eq!(list, serde_json::json!([]), "a refused pool is listed");
    assert!(host.goldens().is_empty(), "{:?}", host.goldens());
    let left = host.traces().since(&before);
    assert!(left.is_empty(), "a refused pool has left {left:#?}");
    host.stop();
}
