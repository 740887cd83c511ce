//! Changes of a part of a pool, and what is shown of how far they are.

use super::*;
use crate::arm::resource::{self, Facts, State};
use crate::arm::version::Shape;

#[tokio::test]
async fn patch_changes_a_pool_and_answers_with_all_of_it() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha?api-version=2026-07-01");
    let (_, made) = office.put(&path, &resource()).await;
    let revision = || office.pools.list()[0].revision;
    let first = revision();
    let patch = json!({ "tags": { "c": "d" }, "properties": {
        "scaleConfiguration": { "readySessionInstances": 0, "maxConcurrentSessions": 9 },
        "dynamicPoolConfiguration": { "lifecycleConfiguration": { "lifecycleType": "OnContainerExit" } },
    } });
    let (status, changed) = office.call("PATCH", &path, patch.to_string()).await;
    assert_eq!(status, 200, "{changed}");
    let mut expected = made.clone();
    expected["tags"] = json!({ "a": "b", "c": "d" });
    let properties = &mut expected["properties"];
    properties["scaleConfiguration"]["maxConcurrentSessions"] = json!(9);
    properties["dynamicPoolConfiguration"]["lifecycleConfiguration"] =
        json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 3600 });
    for part in ["tags", "location", "id"] {
        assert_eq!(changed[part], expected[part], "{part}");
    }
    for part in [
        "scaleConfiguration",
        "dynamicPoolConfiguration",
        "customContainerTemplate",
        "forkPoint",
    ] {
        let (found, wanted) = (&changed["properties"][part], &expected["properties"][part]);
        assert_eq!(found, wanted, "{part}");
    }
    assert_eq!(revision(), first, "limits make no new revision");
    assert_eq!(
        changed["systemData"]["createdAt"],
        made["systemData"]["createdAt"]
    );

    let patch =
        json!({ "properties": { "customContainerTemplate": { "ingress": { "targetPort": 81 } } } });
    let (status, changed) = office.call("PATCH", &path, patch.to_string()).await;
    assert_eq!(
        (status, office.pools.list()[0].target_port),
        (200, 81),
        "{changed}"
    );
    assert_ne!(revision(), first);
}

#[tokio::test]
async fn patch_that_is_refused_changes_nothing() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    office.put(&path, &resource()).await;
    let before = office.pools.list();
    for (patch, status, code, target) in [
        (json!([]), 400, "InvalidRequestContent", Value::Null),
        (
            json!({ "location": "x" }),
            400,
            "SessionPoolInvalidProperty",
            json!("location"),
        ),
        (
            json!({ "properties": { "scaleConfiguration": { "readySessionInstances": 3 } } }),
            400,
            "SessionPoolInvalidProperty",
            json!("properties.scaleConfiguration.readySessionInstances"),
        ),
        (
            json!({ "properties": { "secrets": [{ "name": "a" }] } }),
            400,
            "SessionPoolInvalidProperty",
            json!("properties.secrets[0].value"),
        ),
    ] {
        let (found, answer) = office.call("PATCH", &path, patch.to_string()).await;
        let error = &answer["error"];
        assert_eq!((found, &error["code"]), (status, &json!(code)), "{patch}");
        assert_eq!(error["target"], target, "{patch}");
    }
    let elsewhere = path.replace("rg", "other");
    assert_eq!(office.call("PATCH", &elsewhere, "{}").await.0, 404);
    assert_eq!(office.pools.list(), before);
}

#[tokio::test]
async fn patches_at_the_same_time_all_hold() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    office.put(&path, &resource()).await;
    let preparing = office.launcher.hold_next_preparation();
    let tag = |name: &str| json!({ "tags": { name: "1" } }).to_string();
    let (first, second, third, ()) = tokio::join!(
        office.call("PATCH", &path, tag("x")),
        office.call("PATCH", &path, tag("y")),
        office.call("PATCH", &path, tag("z")),
        async {
            let preparing = tokio::time::timeout(DEADLINE, preparing).await;
            preparing.expect("nothing is prepared").unwrap();
            office.launcher.prepared(Ok(()));
        }
    );
    assert_eq!((first.0, second.0, third.0), (200, 200, 200));
    let tags = office.pools.list()[0].tags.clone();
    assert_eq!(tags.into_keys().collect::<Vec<_>>(), ["a", "x", "y", "z"]);
}

#[tokio::test]
async fn resource_shows_what_the_pool_holds_now() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let (_, made) = office.put(&path, &resource()).await;
    let none = json!({ "ready": 0, "pending": 0, "allocated": 0, "draining": 0, "failed": 0 });
    assert_eq!(made["properties"]["sessionCounts"], none);
    let driver = office.pools.get(&"alpha".parse().unwrap()).unwrap().1;
    let lease = driver.claim("user-1".parse().unwrap()).await;
    assert!(lease.is_ok());
    let (_, shown) = office.call("GET", &path, "").await;
    assert_eq!(shown["properties"]["sessionCounts"]["allocated"], 1);
    let update = &shown["properties"]["templateUpdateStatus"];
    let active = &update["activeTemplate"];
    assert_eq!(active["status"]["allocatedCount"], 1);
    assert_eq!(active["status"]["imagePullFailCount"], 0);
    assert_eq!(active["details"], "");
    assert_eq!(active["ingress"], json!({ "targetPort": 8080 }));
    assert_eq!(active["containers"][0]["image"], "demo");
    assert_eq!(active["createdTime"], made["systemData"]["lastModifiedAt"]);
    assert!(update.get("desiredTemplate").is_none(), "{update}");
}

#[test]
fn revision_that_warms_beside_the_active_one_is_shown_with_its_failure() {
    use crate::pool::view::{Counts, PoolStatus, RevisionStatus};
    let of = |port: u16, counts, last_failure: Option<&str>| RevisionStatus {
        revision: uuid::Uuid::from_u128(port.into()),
        record: Arc::new(crate::store::PoolRecord {
            target_port: port,
            ..crate::store::tests::pool("alpha")
        }),
        counts,
        last_failure: last_failure.map(str::to_owned),
    };
    let old = Counts {
        expected: 2,
        ready: 2,
        allocated: 3,
        draining: 1,
        ..Counts::default()
    };
    let new = Counts {
        expected: 2,
        pending: 1,
        failed: 4,
        ..Counts::default()
    };
    let status = PoolStatus {
        active: of(80, old, None),
        desired: Some(of(81, new, Some("Port 81 did not accept"))),
        earlier: Counts {
            allocated: 5,
            ..Counts::default()
        },
    };
    let record = Arc::clone(&status.desired.as_ref().unwrap().record);
    let facts = Facts {
        status: Some(&status),
        state: State::Succeeded,
        endpoint: "https://localhost:1".into(),
    };
    let shown = resource::pool(&record, &facts, &Shape::default());
    let properties = &shown["properties"];
    assert_eq!(
        properties["sessionCounts"],
        json!({ "ready": 2, "pending": 1, "allocated": 8, "draining": 1, "failed": 4 })
    );
    let update = &properties["templateUpdateStatus"];
    assert_eq!(update["activeTemplate"]["ingress"]["targetPort"], 80);
    let desired = &update["desiredTemplate"];
    assert_eq!(desired["ingress"]["targetPort"], 81);
    assert_eq!(desired["details"], "Port 81 did not accept");
    assert_eq!(
        desired["status"],
        json!({ "expectedCount": 2, "readyCount": 0, "pendingCount": 1, "imagePullFailCount": 0,
            "crashCount": 4, "allocatedCount": 0, "drainingCount": 0 })
    );
}
