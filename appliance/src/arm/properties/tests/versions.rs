//! One pool in the words of each api-version.

use super::*;
use crate::arm::version::Version;

pub const VERSIONS: [&str; 12] = [
    "2023-08-01-preview",
    "2024-02-02-preview",
    "2024-08-02-preview",
    "2024-10-02-preview",
    "2025-01-01",
    "2025-02-02-preview",
    "2025-07-01",
    "2025-10-02-preview",
    "2026-01-01",
    "2026-03-02-preview",
    "2026-07-01",
    "2031-01-01-preview",
];
pub const ENVIRONMENT_ID: &str =
    "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/managedEnvironments/env";

pub fn shape(name: &str) -> Shape {
    Version::parse(name).unwrap().shape
}

pub fn address() -> Address {
    Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    }
}

/// With something in every property.
pub fn full() -> Value {
    let mut body = body();
    body["tags"] = json!({ "team": "π" });
    body["identity"] = json!({ "type": "None" });
    body["properties"]["environmentId"] = ENVIRONMENT_ID.into();
    body["properties"]["containerType"] = "CustomContainer".into();
    body["properties"]["poolManagementType"] = "Dynamic".into();
    body["properties"]["forkPoint"] = "afterReady".into();
    body["properties"]["rateLimits"] = json!({ "diskIops": 500, "diskBytesPerSecond": 2_000_000, "streamBytesPerSecond": 3_000_000 });
    body["properties"]["scaleConfiguration"] =
        json!({ "maxConcurrentSessions": 7, "readySessionInstances": 2 });
    body["properties"]["dynamicPoolConfiguration"] = json!({ "lifecycleConfiguration": { "lifecycleType": "Timed", "cooldownPeriodInSeconds": 700 } });
    body["properties"]["sessionNetworkConfiguration"] = json!({ "status": "EgressDisabled" });
    body["properties"]["secrets"] =
        json!([{ "name": "pw", "value": "hunter2" }, { "name": "key", "value": "k" }]);
    body["properties"]["customContainerTemplate"] = json!({
        "registryCredentials":
            { "server": "private.example", "username": "user", "passwordSecretRef": "pw" },
        "containers": [{
            "name": "main", "image": "demo", "command": ["/a"], "args": ["b"],
            "env": [{ "name": "A", "value": "1" }, { "name": "B", "secretRef": "key" }],
            "resources": { "cpu": 0.5, "memory": "1Gi", "ephemeralStorage": "2Gi" },
            "probes": [{ "type": "Startup", "httpGet": { "port": 80 } }],
        }],
        "ingress": { "targetPort": 8080 },
    });
    body
}

/// What is the same of two: neither when they were made, nor as what.
pub fn settings(pool: &PoolRecord) -> PoolRecord {
    PoolRecord {
        revision: Uuid::nil(),
        created_at_ms: 0,
        modified_at_ms: 0,
        ..pool.clone()
    }
}

pub fn read(body: &Value, version: &str, current: Option<&PoolRecord>) -> PoolRecord {
    let drafted = draft(body, &shape(version), &address(), current, &RULES, &vault());
    let Draft { pool, order } = drafted.unwrap_or_else(|refusal| panic!("{}", refusal.message));
    let image = Demo.find(order.digest.as_deref().unwrap_or(&order.image));
    finished(pool, &image.unwrap(), &vault()).unwrap()
}

#[test]
fn what_a_version_shows_can_be_sent_back_in_it_and_changes_nothing() {
    let pool = read(&full(), "2026-07-01", None);
    for version in VERSIONS {
        let shown = render(&pool, &shape(version));
        let again = read(&shown, version, Some(&pool));
        assert_eq!(settings(&again), settings(&pool), "{version}");
        assert!(again.same_template(&pool), "{version}");
    }
}

#[test]
fn all_versions_take_the_same_body() {
    let pool = read(&full(), "2026-07-01", None);
    let same = |other: &PoolRecord| PoolRecord {
        // Sealed anew each time.
        secrets: pool.secrets.clone(),
        ..settings(other)
    };
    for version in VERSIONS {
        let other = read(&full(), version, None);
        assert_eq!(same(&other), settings(&pool), "{version}");
    }
}

#[test]
fn each_version_shows_what_it_knows() {
    let pool = read(&full(), "2026-07-01", None);
    for version in VERSIONS {
        let knows = shape(version);
        let shown = render(&pool, &knows);
        let there = |path: &str| shown.pointer(path).is_some();
        let dynamic = "/properties/dynamicPoolConfiguration";
        assert_eq!(
            there(&format!(
                "{dynamic}/lifecycleConfiguration/cooldownPeriodInSeconds"
            )),
            knows.nested_lifecycle,
            "{version}"
        );
        let flat = ["executionType", "cooldownPeriodInSeconds"];
        for name in flat {
            let is_there = there(&format!("{dynamic}/{name}"));
            assert_eq!(is_there, !knows.nested_lifecycle, "{version}");
        }
        assert_eq!(there(&container("probes")), knows.probes, "{version}");
        let settings = "/properties/managedIdentitySettings";
        assert_eq!(there(settings), knows.managed_identity, "{version}");
        let mcp = "/properties/mcpServerSettings";
        assert_eq!(there(mcp), knows.mcp_server, "{version}");
        let login = "/properties/customContainerTemplate/registryCredentials";
        let server = there(&format!("{login}/server"));
        let old = there(&format!("{login}/registryServer"));
        assert_eq!(
            (server, old),
            (!knows.registry_server, knows.registry_server),
            "{version}"
        );
        // No version shows a value.
        assert_eq!(
            shown.pointer("/properties/secrets"),
            Some(&json!([{ "name": "pw" }, { "name": "key" }]))
        );
        assert_eq!(
            shown.pointer(&container("env/1")),
            Some(&json!({ "name": "B", "secretRef": "key" }))
        );
        assert_eq!(
            shown.pointer("/properties/environmentId"),
            Some(&ENVIRONMENT_ID.into())
        );
    }
}

#[test]
fn flat_lifecycle_that_ends_with_the_container_comes_back_as_it_is() {
    let mut body = full();
    body["properties"]["dynamicPoolConfiguration"] =
        json!({ "executionType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 });
    let version = "2024-10-02-preview";
    let pool = read(&body, version, None);
    let shown = render(&pool, &shape(version));
    assert_eq!(
        shown["properties"]["dynamicPoolConfiguration"],
        body["properties"]["dynamicPoolConfiguration"]
    );
}

#[test]
fn version_without_probes_removes_none_and_one_with_them_does() {
    let pool = read(&full(), "2026-07-01", None);
    let mut without = full();
    without["properties"]["customContainerTemplate"]["containers"][0]["probes"] = Value::Null;
    for (version, kept) in [("2025-07-01", true), ("2026-07-01", false)] {
        let changed = read(&without, version, Some(&pool));
        assert_eq!(changed.probes == pool.probes, kept, "{version}");
    }
}

#[test]
fn put_cannot_change_where_a_pool_is() {
    let pool = read(&full(), "2026-07-01", None);
    for (path, value) in [
        ("/location", "elsewhere"),
        (
            "/properties/environmentId",
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/managedEnvironments/other",
        ),
    ] {
        let mut other = full();
        *other.pointer_mut(path).unwrap() = value.into();
        let refusal = draft(
            &other,
            &Shape::default(),
            &address(),
            Some(&pool),
            &RULES,
            &vault(),
        );
        let refusal = refusal.unwrap_err();
        assert!(
            refusal.message.ends_with("cannot be changed"),
            "{}",
            refusal.message
        );
        assert_eq!(refusal.target.unwrap(), dotted(path));
    }
    // What is not said stays.
    let mut silent = full();
    silent["location"] = Value::Null;
    silent["properties"]["environmentId"] = Value::Null;
    let same = read(&silent, "2026-07-01", Some(&pool));
    assert_eq!(settings(&same), settings(&pool));
    // The same in other letters is the same.
    silent["location"] = "LOCAL".into();
    assert_eq!(read(&silent, "2026-07-01", Some(&pool)).location, "local");
}

#[test]
fn environment_is_an_id_of_one() {
    for bad in [
        "env",
        "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools/x",
    ] {
        let body = with("/properties/environmentId", bad.into());
        let target = "properties.environmentId";
        refused(
            &body,
            Code::SessionPoolInvalidProperty,
            target,
            "managedEnvironments/<name>",
        );
    }
}
