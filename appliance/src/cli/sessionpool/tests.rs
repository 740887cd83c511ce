use super::*;
use crate::cli::args::{Cli, Command, SessionPoolCommand};
use clap::Parser as _;

fn parsed(more: &[&str]) -> Box<CreatePool> {
    let base = [
        "cabana",
        "sessionpool",
        "create",
        "--name",
        "p1",
        "--image",
        "i",
    ];
    let cli = Cli::try_parse_from(
        base.iter()
            .chain(["--target-port", "80"].iter())
            .chain(more),
    );
    match cli.unwrap().command {
        Command::SessionPool(SessionPoolCommand::Create(create)) => create,
        other => panic!("{other:?}"),
    }
}

fn created(flags: &[&str]) -> Value {
    resource(&parsed(flags), "img", None)
}

/// The patch for a pool that was made with `flags`.
fn patched(flags: &[&str], more: &[&str]) -> Value {
    let base = ["cabana", "sessionpool", "update", "--name", "p1"];
    let cli = Cli::try_parse_from(base.iter().chain(more)).unwrap();
    let Command::SessionPool(SessionPoolCommand::Update(update)) = cli.command else {
        panic!("another command");
    };
    let mut pool = created(flags);
    pool["properties"]["customContainerTemplate"]["containers"][0]["imageDigest"] =
        json!("sha256:d");
    let image = update.image.clone();
    patch(&update, &pool, image, None)
}

#[test]
fn defaults_are_those_of_the_cloud_service() {
    let body = created(&[]);
    let properties = &body["properties"];
    assert_eq!(
        properties["scaleConfiguration"],
        json!({ "maxConcurrentSessions": 10, "readySessionInstances": 5 })
    );
    // The appliance knows them.
    let lifecycle = &properties["dynamicPoolConfiguration"]["lifecycleConfiguration"];
    assert_eq!(lifecycle, &json!({}));
    let container = &properties["customContainerTemplate"]["containers"][0];
    assert_eq!(
        container["resources"],
        json!({ "cpu": 0.25, "memory": "0.5Gi", "ephemeralStorage": "8Gi" })
    );
    assert_eq!(container["name"], "p1");
    assert_eq!(properties["forkPoint"], "beforeStart");
    for absent in ["command", "args", "probes"] {
        assert!(container.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn ready_sessions_are_five_unless_fewer_are_allowed_or_another_number_is_said() {
    for (flags, ready) in [
        (&["--max-sessions", "3"][..], 3),
        (&["--max-sessions", "5"], 5),
        (&["--max-sessions", "100"], 5),
        (&["--ready-sessions", "0"], 0),
        (&["--max-sessions", "3", "--ready-sessions", "2"], 2),
    ] {
        let scale = &created(flags)["properties"]["scaleConfiguration"];
        assert_eq!(scale["readySessionInstances"], ready, "{flags:?}");
    }
}

#[test]
fn lifecycle_is_sent_as_it_was_said() {
    for (flags, expected) in [
        (
            &["--cooldown-period", "400"][..],
            json!({ "cooldownPeriodInSeconds": 400 }),
        ),
        (
            &["--lifecycle-type", "timed"],
            json!({ "lifecycleType": "Timed" }),
        ),
        (
            &[
                "--lifecycle-type",
                "OnContainerExit",
                "--max-alive-period",
                "60",
            ],
            json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 }),
        ),
    ] {
        let base = ["/properties/dynamicPoolConfiguration/lifecycleConfiguration"].concat();
        assert_eq!(created(flags).pointer(&base), Some(&expected), "{flags:?}");
        assert_eq!(
            patched(&[], flags).pointer(&base),
            Some(&expected),
            "{flags:?}"
        );
    }
}

#[test]
fn update_sends_what_was_said_and_nothing_else() {
    for (flags, expected) in [
        (&[][..], json!({})),
        (
            &["--ready-sessions", "0"],
            json!({ "scaleConfiguration": { "readySessionInstances": 0 } }),
        ),
        (
            &["--max-sessions", "7"],
            json!({ "scaleConfiguration": { "maxConcurrentSessions": 7 } }),
        ),
        (
            &["--fork-point", "afterReady"],
            json!({ "forkPoint": "afterReady" }),
        ),
        (
            &["--disk-iops", "none", "--disk-throughput", "5Mi"],
            json!({ "rateLimits": { "diskIops": null, "diskBytesPerSecond": 5_242_880 } }),
        ),
        (
            &["--target-port", "81"],
            json!({ "customContainerTemplate": { "ingress": { "targetPort": 81 } } }),
        ),
        // As it is already.
        (&["--cpu", "0.25"], json!({})),
    ] {
        assert_eq!(
            patched(&[], flags),
            json!({ "properties": expected }),
            "{flags:?}"
        );
    }
}

#[test]
fn update_of_the_container_keeps_the_rest_of_it_and_its_image() {
    let flags = ["--env-vars", "A=1", "B=2", "--args=-v", "--command=/x"];
    let made = created(&flags);
    let before = &made["properties"]["customContainerTemplate"]["containers"][0];
    let container = |more: &[&str]| {
        let patch = patched(&flags, more);
        assert_eq!(patch["properties"].as_object().unwrap().len(), 1, "{patch}");
        patch["properties"]["customContainerTemplate"]["containers"][0].clone()
    };
    let with = |change: fn(&mut Value)| {
        let mut expected = before.clone();
        expected["imageDigest"] = json!("sha256:d");
        change(&mut expected);
        expected
    };
    assert_eq!(
        container(&["--cpu", "2"]),
        with(|c| c["resources"]["cpu"] = json!(2.0))
    );
    assert_eq!(
        container(&["--memory", "1Gi"]),
        with(|c| c["resources"]["memory"] = json!("1Gi"))
    );
    assert_eq!(
        container(&["--env-vars", "C=3"]),
        with(|c| c["env"] = json!([{ "name": "C", "value": "3" }]))
    );
    assert_eq!(
        container(&["--container-name", "main"]),
        with(|c| c["name"] = json!("main"))
    );
    let without = |name: &'static str, value: Value| {
        assert!(value.get(name).is_none(), "{value}");
    };
    without("command", container(&["--command="]));
    without("args", container(&["--args="]));
    assert_eq!(
        container(&["--args=-q"]),
        with(|c| c["args"] = json!(["-q"]))
    );
    // The same name again: what it means now.
    let rolled = container(&["--image", "img"]);
    assert_eq!(rolled["image"], "img");
    without("imageDigest", rolled);
}

/// A pool as the appliance answers with it.
fn answered() -> Value {
    let flags = [
        "--cpu",
        "2",
        "--fork-point",
        "afterReady",
        "--ephemeral-storage",
        "2Gi",
        "--disk-iops",
        "500",
        "--stream-throughput",
        "10Mi",
        "--ready-sessions",
        "3",
    ];
    let mut pool = created(&flags);
    pool["name"] = json!("p1");
    let properties = &mut pool["properties"];
    properties["provisioningState"] = json!("Succeeded");
    properties["poolManagementEndpoint"] = json!("https://h/p1");
    properties["dynamicPoolConfiguration"]["lifecycleConfiguration"] =
        json!({ "lifecycleType": "Timed", "cooldownPeriodInSeconds": 300 });
    properties["customContainerTemplate"]["containers"][0]["probes"] =
        json!([{ "type": "Startup" }, { "type": "Liveness" }]);
    properties["customContainerTemplate"]["containers"][0]["imageDigest"] = json!("sha256:d");
    properties["customContainerTemplate"]["registryCredentials"] =
        json!({ "server": "r.example", "username": "ci", "passwordSecretRef": "x" });
    properties["sessionCounts"] =
        json!({ "ready": 2, "pending": 1, "allocated": 4, "draining": 0, "failed": 0 });
    properties["templateUpdateStatus"] = json!({ "activeTemplate": {
        "details": "", "status": { "expectedCount": 3, "readyCount": 2, "pendingCount": 1, "crashCount": 0 },
    } });
    pool
}

#[test]
fn details_say_what_the_pool_is_and_what_it_holds() {
    let expected = "\
name          p1
image         img
digest        sha256:d
cpu           2.0
memory        0.5Gi
storage       2Gi
registry      r.example as ci
target port   80
fork point    afterReady
rate limits   500 disk requests, 10485760 stream bytes a second
max sessions  10
ready wanted  3
lifecycle     Timed 300s
probes        Startup, Liveness
state         Succeeded
sessions now  2 ready, 1 pending, 4 allocated, 0 draining, 0 failed
update        up to date
endpoint      https://h/p1
";
    assert_eq!(show::details(&answered()), expected);
}

#[test]
fn row_of_the_list_is_made_from_the_resource() {
    let mut pool = answered();
    assert_eq!(
        show::row(&pool),
        [
            "p1",
            "img",
            "2.0",
            "0.5Gi",
            "80",
            "10",
            "2/3",
            "4",
            "Timed 300s",
            "Succeeded"
        ]
    );
    pool["properties"]["dynamicPoolConfiguration"]["lifecycleConfiguration"] =
        json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 });
    assert_eq!(show::row(&pool)[8], "OnContainerExit 60s");
    assert_eq!(show::row(&pool).len(), show::COLUMNS.len());
}

#[test]
fn progress_of_an_update_says_what_is_missing_and_why() {
    let mut pool = answered();
    assert_eq!(show::progress(&pool), "up to date");
    let update = &mut pool["properties"]["templateUpdateStatus"];
    update["activeTemplate"]["status"]["crashCount"] = json!(2);
    update["activeTemplate"]["details"] = json!("No guest could be started: no room");
    assert_eq!(
        show::progress(&pool),
        "up to date; the last 2 starts failed: No guest could be started: no room"
    );
    pool["properties"]["templateUpdateStatus"]["desiredTemplate"] = json!({
        "details": "Port 81 did not accept. Its last lines:\nno database",
        "status": { "expectedCount": 3, "readyCount": 0, "pendingCount": 1, "crashCount": 4 },
    });
    assert_eq!(
        show::progress(&pool),
        "another revision warms up: 0 of 3 ready, 1 pending; the last 4 starts failed: Port 81 did not accept. Its last lines:"
    );
}

#[test]
fn password_of_a_registry_becomes_a_secret_beside_the_others() {
    let create = parsed(&[
        "--registry-username",
        "ci",
        "--registry-password",
        "hunter2",
    ]);
    let login = Login::of(&create.registry, Some("r.example/app:1"))
        .unwrap()
        .unwrap();
    let mut body = created(&[]);
    keep_secrets(&mut body, Some(&login), &[], Vec::new());
    let properties = &body["properties"];
    assert_eq!(
        properties["secrets"],
        json!([{ "name": "rexample-ci", "value": "hunter2" }])
    );
    let credentials =
        json!({ "server": "r.example", "username": "ci", "passwordSecretRef": "rexample-ci" });
    let template = &properties["customContainerTemplate"];
    assert_eq!(template["registryCredentials"], credentials);
    assert_eq!(
        template["ingress"]["targetPort"], 80,
        "the rest is as it was"
    );

    let mut patch = json!({ "properties": {} });
    let kept = vec![json!({ "name": "other" }), json!({ "name": "rexample-ci" })];
    keep_secrets(&mut patch, Some(&login), &[], kept);
    assert_eq!(
        patch["properties"]["secrets"],
        json!([{ "name": "other" }, { "name": "rexample-ci", "value": "hunter2" }])
    );
}
