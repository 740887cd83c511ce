//! How many sessions there may be, and when they end.

use super::*;

#[test]
fn ready_sessions_are_from_none_to_all() {
    let scale = |max: Value, ready: Value| {
        with(
            "/properties/scaleConfiguration",
            json!({ "maxConcurrentSessions": max, "readySessionInstances": ready }),
        )
    };
    for (max, ready, expected) in [
        (json!(5), Value::Null, (5, 0)),
        (json!(5), json!(0), (5, 0)),
        (json!(5), json!(5), (5, 5)),
        (Value::Null, json!(10), (10, 10)),
        (json!(100_000), json!(100_000), (100_000, 100_000)),
    ] {
        let pool = check(&scale(max, ready)).unwrap();
        assert_eq!((pool.max_sessions, pool.ready_sessions), expected);
    }
    for (max, ready, says) in [
        (
            json!(5),
            json!(6),
            "from 0 to 5, which is properties.scaleConfiguration.maxConcurrentSessions, not 6",
        ),
        (Value::Null, json!(11), "from 0 to 10"),
        (json!(5), json!(-1), "from 0 to 5"),
        (json!(5), json!("1"), "from 0 to 5"),
        (json!(5), json!(0.5), "from 0 to 5"),
    ] {
        let target = "properties.scaleConfiguration.readySessionInstances";
        refused(
            &scale(max, ready),
            Code::SessionPoolInvalidProperty,
            target,
            says,
        );
    }
}

#[test]
fn lifecycle_is_read_nested_and_flat() {
    let timed = |seconds| (Lifecycle::Timed, seconds);
    let exit = |max_alive_seconds| (Lifecycle::OnContainerExit { max_alive_seconds }, 300);
    let table = [
        (json!({}), timed(300)),
        (
            json!({ "lifecycleType": "Timed", "maxAlivePeriodInSeconds": null }),
            timed(300),
        ),
        (
            json!({ "lifecycleType": "timed", "cooldownPeriodInSeconds": 3600 }),
            timed(3600),
        ),
        (json!({ "lifecycleType": "OnContainerExit" }), exit(3600)),
        (
            json!({ "lifecycleType": "onContainerExit", "maxAlivePeriodInSeconds": 1 }),
            exit(1),
        ),
        (
            json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 2_592_000,
                "cooldownPeriodInSeconds": null }),
            exit(2_592_000),
        ),
    ];
    for (lifecycle, expected) in table {
        let nested = check(&with(
            &format!("{DYNAMIC}/lifecycleConfiguration"),
            lifecycle.clone(),
        ));
        let pool = nested.unwrap();
        assert_eq!(
            (pool.lifecycle, pool.cooldown_seconds),
            expected,
            "{lifecycle}"
        );
        let text = lifecycle
            .to_string()
            .replace("lifecycleType", "executionType");
        let flat = check(&with(DYNAMIC, serde_json::from_str(&text).unwrap())).unwrap();
        assert_eq!((flat.lifecycle, flat.cooldown_seconds), expected, "{text}");
    }
    let both = json!({ "executionType": "Timed", "cooldownPeriodInSeconds": 400,
        "lifecycleConfiguration": { "lifecycleType": "Timed", "cooldownPeriodInSeconds": 400 } });
    assert_eq!(check(&with(DYNAMIC, both)).unwrap().cooldown_seconds, 400);
}

#[test]
fn lifecycle_that_does_not_add_up_is_refused_with_what_it_may_be() {
    let nested = "properties.dynamicPoolConfiguration.lifecycleConfiguration";
    let flat = "properties.dynamicPoolConfiguration";
    for (lifecycle, property, says) in [
        (
            json!({ "lifecycleType": "OnContainerExit", "cooldownPeriodInSeconds": 300 }),
            "cooldownPeriodInSeconds",
            "is for lifecycleType \"Timed\" only; a pool with \"OnContainerExit\" has maxAlivePeriodInSeconds",
        ),
        (
            json!({ "maxAlivePeriodInSeconds": 60 }),
            "maxAlivePeriodInSeconds",
            "is for lifecycleType \"OnContainerExit\" only; a pool with \"Timed\" has cooldownPeriodInSeconds",
        ),
        (
            json!({ "lifecycleType": "Eternal" }),
            "lifecycleType",
            "\"Timed\" or \"OnContainerExit\"",
        ),
        (
            json!({ "lifecycleType": "" }),
            "lifecycleType",
            "\"Timed\" or \"OnContainerExit\"",
        ),
        (json!({ "lifecycleType": 1 }), "lifecycleType", "a string"),
        (
            json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 0 }),
            "maxAlivePeriodInSeconds",
            "from 1 to 2592000",
        ),
        (
            json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 2_592_001 }),
            "maxAlivePeriodInSeconds",
            "from 1 to 2592000",
        ),
        (
            json!({ "cooldownPeriodInSeconds": 3601 }),
            "cooldownPeriodInSeconds",
            "from 300 to 3600",
        ),
    ] {
        let code = Code::SessionPoolInvalidProperty;
        let body = with(
            &format!("{DYNAMIC}/lifecycleConfiguration"),
            lifecycle.clone(),
        );
        refused(&body, code, &format!("{nested}.{property}"), says);
        let text = lifecycle
            .to_string()
            .replace("lifecycleType", "executionType");
        let property = property.replace("lifecycleType", "executionType");
        let body = with(DYNAMIC, serde_json::from_str(&text).unwrap());
        refused(&body, code, &format!("{flat}.{property}"), says);
    }
    let both = json!({ "cooldownPeriodInSeconds": 400,
        "lifecycleConfiguration": { "cooldownPeriodInSeconds": 500 } });
    let target = "properties.dynamicPoolConfiguration.cooldownPeriodInSeconds";
    refused(
        &with(DYNAMIC, both),
        Code::SessionPoolInvalidProperty,
        target,
        "contradict",
    );
}
