//! A pool out of what a caller sent, and back.

mod container;
mod fuzz;
mod patch;
mod probes;
mod scale;
mod secrets;
mod table;
mod versions;

use serde_json::json;

use self::patch::patched_pool;
use self::probes::all_probes;
use super::container::CONTAINER;
use super::*;
use crate::admin::ImageSummary;
use crate::images::ImageErrorCode;
use crate::pool::container::ImageDefaults;
use crate::pool::probe::{Check, Probes, Scheme};
use crate::store::Lifecycle;

const RULES: Rules = Rules {
    min_cooldown_seconds: 300,
    max_cpu_millis: 4000,
    max_mem_mib: 8192,
};

/// One image, `demo`, that runs `/demo`.
struct Demo;

impl Demo {
    fn find(&self, reference: &str) -> Result<ImageSummary, Refusal> {
        let defaults = ImageDefaults {
            entrypoint: vec!["/demo".into()],
            ..Default::default()
        };
        match reference {
            "demo" | "sha256:d" => Ok(ImageSummary {
                name: "demo".into(),
                digest: "sha256:d".into(),
                root_image_bytes: 1,
                warnings: vec![],
                defaults,
            }),
            "moved" => self.find("demo").map(|image| ImageSummary {
                digest: "sha256:new".into(),
                ..image
            }),
            "empty" => self.find("demo").map(|image| ImageSummary {
                defaults: ImageDefaults::default(),
                ..image
            }),
            _ => Err(Refusal::new(
                Code::Image(ImageErrorCode::ImageNotFound),
                "no such image",
            )),
        }
    }
}

fn vault() -> Vault {
    Vault::new(&[7; crate::vault::KEY_BYTES]).unwrap()
}

/// As the service does it: the image is looked up, then all is checked.
fn look_up_and_check(
    body: &Value,
    address: Address,
    current: Option<&PoolRecord>,
) -> Result<PoolRecord, Refusal> {
    let Draft { pool, order } = drafted(body, &address, current)?;
    let found = Demo.find(order.digest.as_deref().unwrap_or(&order.image));
    let image = found.map_err(|refusal| refusal.target(image_target()))?;
    finished(pool, &image, &vault())
}

/// In the words of a version that knows everything.
fn drafted(
    body: &Value,
    address: &Address,
    current: Option<&PoolRecord>,
) -> Result<Draft, Refusal> {
    draft(body, &Shape::default(), address, current, &RULES, &vault())
}

fn shown(pool: &PoolRecord) -> Value {
    render(pool, &Shape::default())
}

fn body() -> Value {
    json!({ "location": "local", "properties": {
        "customContainerTemplate": {
            "containers": [{ "image": "demo" }],
            "ingress": { "targetPort": 8080 },
        },
    } })
}

/// The body with one more property, `null` included; the path is a JSON pointer.
fn with(path: &str, value: Value) -> Value {
    placed(body(), path, value)
}

fn placed(mut body: Value, path: &str, value: Value) -> Value {
    let mut at = &mut body;
    for part in path.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(index) => {
                if at.is_null() {
                    *at = json!([]);
                }
                let items = at.as_array_mut().unwrap();
                while items.len() <= index {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            Err(_) => &mut at[part],
        };
    }
    *at = value;
    body
}

fn check(body: &Value) -> Result<PoolRecord, Refusal> {
    let address = Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    look_up_and_check(body, address, None)
}

fn container(property: &str) -> String {
    format!("{CONTAINER}/{property}")
}

#[test]
fn smallest_body_gets_the_documented_defaults() {
    let pool = check(&body()).unwrap();
    assert_eq!(
        (pool.cpu_millis, pool.mem_mib, pool.target_port),
        (250, 512, 8080)
    );
    assert_eq!((pool.max_sessions, pool.cooldown_seconds), (10, 300));
    assert_eq!(
        (pool.disk_mib, pool.fork_point),
        (8192, ForkPoint::BeforeStart)
    );
    assert_eq!(
        (pool.container_name.as_str(), pool.image_digest.as_str()),
        ("alpha", "sha256:d")
    );
}

#[test]
fn accepted_values_arrive() {
    let cooldown =
        "/properties/dynamicPoolConfiguration/lifecycleConfiguration/cooldownPeriodInSeconds";
    let flat = "/properties/dynamicPoolConfiguration/cooldownPeriodInSeconds";
    for (path, value) in [(cooldown, 300), (cooldown, 3600), (flat, 301)] {
        assert_eq!(
            check(&with(path, value.into())).unwrap().cooldown_seconds,
            value
        );
    }
    for (cpu, millis) in [
        (json!(0.25), 250),
        (json!(1), 1000),
        (json!(1.75), 1750),
        (json!(4.0), 4000),
    ] {
        assert_eq!(
            check(&with(&container("resources/cpu"), cpu))
                .unwrap()
                .cpu_millis,
            millis
        );
    }
    for (text, mib) in [
        ("0.5Gi", 512),
        ("1Gi", 1024),
        ("1.25Gi", 1280),
        ("768Mi", 768),
        ("8Gi", 8192),
    ] {
        let pool = check(&with(&container("resources/memory"), text.into())).unwrap();
        assert_eq!(pool.mem_mib, mib);
    }
    for (text, mib) in [("1Gi", 1024), ("1.5Gi", 1536), ("1024Gi", 1 << 20)] {
        let pool = check(&with(&container("resources/ephemeralStorage"), text.into()));
        assert_eq!(pool.unwrap().disk_mib, mib);
    }
    for point in [ForkPoint::BeforeStart, ForkPoint::AfterReady] {
        let pool = check(&with("/properties/forkPoint", point.to_string().into()));
        assert_eq!(pool.unwrap().fork_point, point);
    }
    let env = json!([{ "name": "A", "value": "1" }, { "name": "B" }]);
    let env = check(&with(&container("env"), env)).unwrap().env;
    assert_eq!(
        env.iter().map(|var| &*var.value).collect::<Vec<_>>(),
        ["1", ""]
    );
    let args = check(&with(&container("args"), json!(["-v", ""])))
        .unwrap()
        .args;
    assert_eq!(args, ["-v", ""]);
}

#[test]
fn rejected_values_name_the_property_and_what_it_may_be() {
    let scale = "/properties/scaleConfiguration/maxConcurrentSessions";
    let nested =
        "/properties/dynamicPoolConfiguration/lifecycleConfiguration/cooldownPeriodInSeconds";
    let port = "/properties/customContainerTemplate/ingress/targetPort";
    let own = |property: &str| container(property);
    for (path, value, says) in [
        (scale.to_owned(), json!(0), "from 1 to 100000"),
        (scale.into(), json!(-1), "from 1 to 100000"),
        (scale.into(), json!("10"), "from 1 to 100000"),
        (scale.into(), json!(1.5), "from 1 to 100000"),
        (nested.into(), json!(299), "from 300 to 3600"),
        (nested.into(), json!(3601), "from 300 to 3600"),
        (port.into(), json!(0), "from 1 to 65535"),
        (port.into(), json!(65536), "from 1 to 65535"),
        (port.into(), Value::Null, "from 1 to 65535"),
        (own("image"), Value::Null, "missing"),
        (own("image"), json!(""), "missing"),
        (own("image"), json!(7), "a string"),
        (own("resources/cpu"), json!(0), "from 0.25 to 4"),
        (own("resources/cpu"), json!(0.3), "multiple of 0.25"),
        (own("resources/cpu"), json!(4.25), "from 0.25 to 4"),
        (own("resources/cpu"), json!("1"), "multiple of 0.25"),
        (
            own("resources/memory"),
            json!("0.25Gi"),
            "from 0.5Gi to 8Gi",
        ),
        (own("resources/memory"), json!("8.5Gi"), "from 0.5Gi to 8Gi"),
        (own("resources/memory"), json!("1G"), "in Gi or Mi"),
        (own("resources/memory"), json!("-1Gi"), "in Gi or Mi"),
        (own("resources/memory"), json!("1e3Mi"), "in Gi or Mi"),
        (own("resources/memory"), json!(1), "a string"),
        (
            own("resources/ephemeralStorage"),
            json!("512Mi"),
            "from 1Gi to 1024Gi",
        ),
        (
            own("resources/ephemeralStorage"),
            json!("1025Gi"),
            "from 1Gi to 1024Gi",
        ),
        (
            own("resources/ephemeralStorage"),
            json!("8G"),
            "in Gi or Mi",
        ),
        (
            "/properties/forkPoint".into(),
            json!("AfterReady"),
            "\"beforeStart\" or \"afterReady\"",
        ),
        (
            "/properties/forkPoint".into(),
            json!(""),
            "\"beforeStart\" or \"afterReady\"",
        ),
        ("/properties/forkPoint".into(), json!(1), "a string"),
        (own("command"), json!("sh -c x"), "a list of strings"),
        (own("command/0"), json!(1), "a string"),
        (own("args/0"), json!("a\0b"), "without zero bytes"),
        (own("env"), json!({}), "a list"),
        (own("env/0"), json!({ "value": "1" }), "missing"),
        (own("env/0"), json!({ "name": "A=B" }), "without"),
        ("/tags/a".into(), json!(1), "an object of strings"),
        ("/location".into(), json!(1), "a string"),
    ] {
        let refusal = check(&with(&path, value.clone())).unwrap_err();
        assert_eq!(
            refusal.code,
            Code::SessionPoolInvalidProperty,
            "{path} {value}"
        );
        assert!(
            refusal.message.contains(says),
            "{path} {value}: {}",
            refusal.message
        );
        let target = refusal.target.unwrap();
        assert!(
            dotted(&path).starts_with(target.split("[0].").next().unwrap()),
            "{path}: {target}"
        );
    }
}

#[test]
fn what_this_version_cannot_do_is_refused_and_not_ignored() {
    for (path, value) in [
        ("/properties/containerType", json!("PythonLTS")),
        ("/properties/poolManagementType", json!("Manual")),
        (
            "/properties/sessionNetworkConfiguration/status",
            json!("EgressEnabled"),
        ),
        (
            "/properties/managedIdentitySettings/0",
            json!({ "identity": "system" }),
        ),
        (
            "/properties/customContainerTemplate/registryCredentials",
            json!({ "identity": "system" }),
        ),
        ("/identity/type", json!("SystemAssigned")),
    ] {
        let refusal = check(&with(path, value)).unwrap_err();
        assert_eq!(refusal.code, Code::SessionPoolNotSupported, "{path}");
        assert!(refusal.target.is_some());
    }
}

#[test]
fn null_empty_and_unknown_properties_change_nothing() {
    let lifecycle = "/properties/dynamicPoolConfiguration/lifecycleConfiguration";
    for (path, value) in [
        ("/properties/secrets", json!([])),
        ("/properties/managedIdentitySettings", Value::Null),
        (
            "/properties/scaleConfiguration/readySessionInstances",
            json!(0),
        ),
        (&format!("{lifecycle}/maxAlivePeriodInSeconds"), Value::Null),
        (&format!("{lifecycle}/lifecycleType"), json!("timed")),
        ("/properties/workloadProfileName", json!("x")),
        ("/identity/type", json!("None")),
        (&container("env"), Value::Null),
        (&container("probes"), Value::Null),
        (&container("probes"), json!([])),
        ("/properties/forkPoint", Value::Null),
        (&container("resources/ephemeralStorage"), Value::Null),
    ] {
        assert!(check(&with(path, value)).is_ok(), "{path}");
    }
}

fn refused(body: &Value, code: Code, target: &str, says: &str) {
    let refusal = check(body).unwrap_err();
    assert_eq!(refusal.code, code, "{}", refusal.message);
    assert_eq!(
        refusal.target.as_deref(),
        Some(target),
        "{}",
        refusal.message
    );
    assert!(refusal.message.contains(says), "{}", refusal.message);
}

const DYNAMIC: &str = "/properties/dynamicPoolConfiguration";

#[test]
fn pool_that_is_rendered_and_read_again_is_the_same() {
    let mut exit = with(&container("probes"), all_probes());
    exit["properties"]["dynamicPoolConfiguration"] = json!({ "lifecycleConfiguration": { "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 86400 } });
    exit["properties"]["scaleConfiguration"] =
        json!({ "maxConcurrentSessions": 7, "readySessionInstances": 3 });
    exit["properties"]["forkPoint"] = json!("afterReady");
    exit["tags"] = json!({ "a": "b" });
    let made = &mut exit["properties"]["customContainerTemplate"]["containers"][0];
    made["command"] = json!(["/x"]);
    made["args"] = json!(["-v"]);
    made["env"] = json!([{ "name": "A", "value": "1" }]);
    made["resources"] = json!({ "cpu": 1.25, "memory": "1.5Gi", "ephemeralStorage": "3Gi" });
    for body in [body(), exit, with("/location", json!("here"))] {
        let first = check(&body).unwrap();
        let again = check(&shown(&first)).unwrap();
        let expected = PoolRecord {
            revision: again.revision,
            created_at_ms: again.created_at_ms,
            modified_at_ms: again.modified_at_ms,
            ..first.clone()
        };
        assert_eq!(again, expected);
        assert!(again.same_template(&first));
    }
}

const SECRETS: &str = "/properties/secrets";
const LOGIN: &str = "/properties/customContainerTemplate/registryCredentials";
