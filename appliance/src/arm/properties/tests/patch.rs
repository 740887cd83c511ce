//! Changes of a part of a pool.

use super::*;

pub fn patched_pool(pool: &PoolRecord, patch: Value) -> Result<PoolRecord, Refusal> {
    let id = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/alpha";
    let body = patched(pool, patch, id)?;
    let address = Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    look_up_and_check(&body, address, Some(pool))
}

#[test]
fn patch_changes_what_it_says_and_nothing_else() {
    let mut full = with(&container("probes"), all_probes());
    full["tags"] = json!({ "a": "1", "b": "2" });
    full["properties"]["scaleConfiguration"] =
        json!({ "maxConcurrentSessions": 7, "readySessionInstances": 3 });
    full["properties"]["rateLimits"] = json!({ "diskIops": 500, "diskBytesPerSecond": 2_000_000 });
    let pool = check(&full).unwrap();
    let probes = json!([{ "type": "Startup", "httpGet": { "port": 1 } }]);
    type Change = fn(&mut PoolRecord);
    let table: Vec<(Value, Change)> = vec![
        (json!({}), |_| {}),
        (json!({ "properties": {} }), |_| {}),
        (json!({ "tags": { "a": null, "c": "3" } }), |pool| {
            pool.tags = [("b", "2"), ("c", "3")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        }),
        (json!({ "tags": null }), |pool| pool.tags.clear()),
        (
            json!({ "properties": { "scaleConfiguration": { "readySessionInstances": 7 } } }),
            |pool| {
                pool.ready_sessions = 7;
            },
        ),
        (
            json!({ "properties": { "scaleConfiguration": null } }),
            |pool| {
                (pool.max_sessions, pool.ready_sessions) = (10, 0);
            },
        ),
        (
            json!({ "properties": { "rateLimits": { "diskIops": null, "streamBytesPerSecond": 70_000 } } }),
            |pool| {
                pool.rate_limits.disk_iops = None;
                pool.rate_limits.stream_bytes_per_second = std::num::NonZeroU64::new(70_000);
            },
        ),
        (json!({ "properties": { "rateLimits": null } }), |pool| {
            pool.rate_limits = Default::default();
        }),
        (
            json!({ "properties": { "forkPoint": "afterReady" } }),
            |pool| {
                pool.fork_point = ForkPoint::AfterReady;
            },
        ),
        (
            json!({ "properties": { "dynamicPoolConfiguration": { "lifecycleConfiguration": { "cooldownPeriodInSeconds": 900 } } } }),
            |pool| pool.cooldown_seconds = 900,
        ),
        // Flat, as old clients send it.
        (
            json!({ "properties": { "dynamicPoolConfiguration": { "cooldownPeriodInSeconds": 900 } } }),
            |pool| {
                pool.cooldown_seconds = 900;
            },
        ),
        (
            json!({ "properties": { "dynamicPoolConfiguration": { "executionType": "OnContainerExit" } } }),
            |pool| {
                pool.lifecycle = Lifecycle::OnContainerExit {
                    max_alive_seconds: 3600,
                }
            },
        ),
        (
            json!({ "properties": { "dynamicPoolConfiguration": { "lifecycleConfiguration":
                { "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 } } } }),
            |pool| {
                pool.lifecycle = Lifecycle::OnContainerExit {
                    max_alive_seconds: 60,
                }
            },
        ),
        (
            json!({ "properties": { "customContainerTemplate": { "ingress": { "targetPort": 81 } } } }),
            |pool| {
                pool.target_port = 81;
            },
        ),
        // A list is replaced whole: what the container had is gone.
        (
            json!({ "properties": { "customContainerTemplate": { "containers": [{ "image": "demo", "probes": probes }] } } }),
            |pool| {
                let body = with(
                    "/properties/customContainerTemplate/containers/0",
                    json!({ "image": "demo", "probes": [{ "type": "Startup", "httpGet": { "port": 1 } }] }),
                );
                pool.probes = check(&body).unwrap().probes;
            },
        ),
        // What is said to be as it is, and what the appliance says itself.
        (
            json!({ "name": "Alpha", "location": "local", "type": "microsoft.app/sessionpools", "systemData": {},
            "properties": { "containerType": "CustomContainer", "nodeCount": 9, "provisioningState": "Failed" } }),
            |_| {},
        ),
    ];
    for (patch, change) in table {
        let found = patched_pool(&pool, patch.clone())
            .unwrap_or_else(|refusal| panic!("{patch}: {}", refusal.message));
        let mut expected = PoolRecord {
            revision: found.revision,
            created_at_ms: found.created_at_ms,
            modified_at_ms: found.modified_at_ms,
            ..pool.clone()
        };
        change(&mut expected);
        assert_eq!(found, expected, "{patch}");
    }
}

#[test]
fn patch_back_to_timed_forgets_the_other_period() {
    let exit = json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 });
    let pool = check(&with(&format!("{DYNAMIC}/lifecycleConfiguration"), exit)).unwrap();
    for lifecycle in [
        json!({ "lifecycleConfiguration": { "lifecycleType": "Timed", "cooldownPeriodInSeconds": 400 } }),
        json!({ "lifecycleConfiguration": { "lifecycleType": null, "cooldownPeriodInSeconds": 400 } }),
        json!({ "lifecycleConfiguration": null, "cooldownPeriodInSeconds": 400 }),
        json!({ "executionType": "Timed", "cooldownPeriodInSeconds": 400 }),
    ] {
        let patch = json!({ "properties": { "dynamicPoolConfiguration": lifecycle } });
        let found = patched_pool(&pool, patch)
            .unwrap_or_else(|refusal| panic!("{lifecycle}: {}", refusal.message));
        assert_eq!(
            (found.lifecycle, found.cooldown_seconds),
            (Lifecycle::Timed, 400),
            "{lifecycle}"
        );
    }
    // The period of the other lifecycle alone does not change the lifecycle.
    let patch =
        json!({ "properties": { "dynamicPoolConfiguration": { "cooldownPeriodInSeconds": 400 } } });
    let refusal = patched_pool(&pool, patch).unwrap_err();
    assert!(
        refusal.message.contains("has maxAlivePeriodInSeconds"),
        "{}",
        refusal.message
    );
}

#[test]
fn patch_of_what_a_pool_keeps_for_good_is_refused_by_name() {
    let pool = check(&body()).unwrap();
    for (patch, target, says) in [
        (
            json!({ "location": "elsewhere" }),
            "location",
            "cannot be changed",
        ),
        (json!({ "location": null }), "location", "cannot be changed"),
        (json!({ "name": "beta" }), "name", "cannot be changed"),
        (json!({ "id": "/x" }), "id", "cannot be changed"),
        (json!({ "type": "x" }), "type", "cannot be changed"),
        (
            json!({ "properties": { "environmentId": "/x" } }),
            "properties.environmentId",
            "cannot be changed",
        ),
        (
            json!({ "properties": { "containerType": "PythonLTS" } }),
            "properties.containerType",
            "cannot be changed",
        ),
        (
            json!({ "properties": { "poolManagementType": null } }),
            "properties.poolManagementType",
            "cannot be changed",
        ),
        (json!({ "properties": null }), "properties", "an object"),
        (json!({ "tags": "a" }), "tags", "an object"),
        (
            json!({ "properties": { "scaleConfiguration": { "maxConcurrentSessions": 0 } } }),
            "properties.scaleConfiguration.maxConcurrentSessions",
            "from 1 to 100000",
        ),
        (
            json!({ "properties": { "customContainerTemplate": { "containers": [] } } }),
            "properties.customContainerTemplate.containers[0].image",
            "is missing",
        ),
    ] {
        let refusal = patched_pool(&pool, patch.clone()).unwrap_err();
        assert_eq!(refusal.code, Code::SessionPoolInvalidProperty, "{patch}");
        assert_eq!(refusal.target.as_deref(), Some(target), "{patch}");
        assert!(
            refusal.message.contains(says),
            "{patch}: {}",
            refusal.message
        );
    }
    for patch in [json!([]), json!(null), json!("x")] {
        let refusal = patched_pool(&pool, patch).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidRequestContent);
    }
}
