use serde_json::json;

use super::container::CONTAINER;
use super::*;
use crate::admin::images::ImageSummary;
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
    Vault::new(&[7; crate::admin::vault::KEY_BYTES]).unwrap()
}

/// As the service does it: the image is looked up, then all is checked.
fn look_up_and_check(
    body: &Value,
    address: Address,
    current: Option<&PoolRecord>,
) -> Result<PoolRecord, Refusal> {
    let order = image_order(body, &address, current, &vault())?;
    let found = Demo.find(order.digest.as_deref().unwrap_or(&order.image));
    let image = found.map_err(|refusal| refusal.target(image_target()))?;
    checked(body, address, current, &RULES, &image, &vault())
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
    let mut body = body();
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
        (
            &container("env/0"),
            json!({ "name": "A", "secretRef": "a" }),
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

/// `path` is below the container's first probe, which is otherwise right.
fn with_probe(path: &str, value: Value) -> Value {
    let mut body = with(
        &container("probes/0"),
        json!({ "type": "Startup", "httpGet": { "port": 80 } }),
    );
    let mut at = &mut body["properties"]["customContainerTemplate"]["containers"][0]["probes"][0];
    for part in path.split('/').skip(1) {
        at = &mut at[part];
    }
    *at = value;
    body
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

const DYNAMIC: &str = "/properties/dynamicPoolConfiguration";

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

#[test]
fn probe_with_nothing_but_a_port_gets_the_documented_defaults() {
    let probes = check(&with_probe("/type", json!("liveness")))
        .unwrap()
        .probes;
    assert_eq!(probes.startup, None);
    let probe = probes.liveness.unwrap();
    let check = Check::HttpGet {
        scheme: Scheme::Http,
        host: None,
        path: "/".into(),
        port: 80,
        headers: vec![],
    };
    assert_eq!(probe.check, check);
    let times = (
        probe.initial_delay_seconds,
        probe.period_seconds,
        probe.timeout_seconds,
    );
    assert_eq!(times, (0, 10, 1));
    assert_eq!((probe.failure_threshold, probe.success_threshold), (3, 1));
    assert_eq!(probe.termination_grace_seconds, None);
}

#[test]
fn probes_accept_both_ends_of_every_range() {
    for (name, least, most) in [
        ("initialDelaySeconds", 0, 60),
        ("periodSeconds", 1, 240),
        ("timeoutSeconds", 1, 240),
        ("failureThreshold", 1, 1000),
        ("successThreshold", 1, 1),
        ("terminationGracePeriodSeconds", 0, 3600),
        ("httpGet/port", 1, 65535),
    ] {
        for value in [least, most] {
            let body = with_probe(&format!("/{name}"), value.into());
            let pool = check(&body).unwrap_or_else(|refusal| panic!("{}", refusal.message));
            let shown = render(&pool);
            let shown = shown.pointer(&container(&format!("probes/0/{name}")));
            assert_eq!(shown, Some(&value.into()), "{name}");
        }
        for value in [
            json!(i64::from(least) - 1),
            json!(most + 1),
            json!("1"),
            json!(1.5),
        ] {
            let target = format!(
                "properties.customContainerTemplate.containers[0].probes[0].{}",
                name.replace('/', ".")
            );
            let says = if least == most {
                "must be 1, not".to_owned()
            } else {
                format!("from {least} to {most}")
            };
            let body = with_probe(&format!("/{name}"), value);
            refused(&body, Code::SessionPoolInvalidProperty, &target, &says);
        }
    }
}

#[test]
fn probes_that_do_not_add_up_are_refused_and_say_where() {
    let get = |more: Value| {
        let mut get = json!({ "port": 80 });
        get.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({ "type": "Startup", "httpGet": get })
    };
    let header =
        |name: &str, value: &str| get(json!({ "httpHeaders": [{ "name": name, "value": value }] }));
    for (probe, at, says) in [
        (json!(7), "", "an object"),
        (Value::Null, "", "an object"),
        (json!({ "httpGet": { "port": 80 } }), ".type", "is missing"),
        (
            json!({ "type": "Readiness", "httpGet": { "port": 80 } }),
            ".type",
            "\"Liveness\" or \"Startup\"",
        ),
        (json!({ "type": 1 }), ".type", "a string"),
        (
            json!({ "type": "Startup" }),
            "",
            "is missing: httpGet or tcpSocket",
        ),
        (
            json!({ "type": "Startup", "exec": {} }),
            "",
            "is missing: httpGet or tcpSocket",
        ),
        (
            json!({ "type": "Startup", "httpGet": { "port": 80 }, "tcpSocket": { "port": 80 } }),
            "",
            "httpGet or tcpSocket, not both",
        ),
        (
            json!({ "type": "Startup", "httpGet": [] }),
            ".httpGet",
            "an object",
        ),
        (
            json!({ "type": "Startup", "httpGet": {} }),
            ".httpGet.port",
            "a port from 1 to 65535",
        ),
        (
            json!({ "type": "Startup", "tcpSocket": {} }),
            ".tcpSocket.port",
            "a port from 1 to 65535",
        ),
        (
            json!({ "type": "Startup", "tcpSocket": { "port": 0 } }),
            ".tcpSocket.port",
            "from 1 to 65535",
        ),
        (
            get(json!({ "scheme": "FTP" })),
            ".httpGet.scheme",
            "\"HTTP\" or \"HTTPS\"",
        ),
        (
            get(json!({ "path": "health" })),
            ".httpGet.path",
            "begins with",
        ),
        (
            get(json!({ "path": "/a b" })),
            ".httpGet.path",
            "begins with",
        ),
        (
            get(json!({ "path": "/a#b" })),
            ".httpGet.path",
            "begins with",
        ),
        (
            get(json!({ "path": "/a HTTP/1.1\r\nX: y" })),
            ".httpGet.path",
            "begins with",
        ),
        (
            get(json!({ "host": "a\r\nX: y" })),
            ".httpGet.host",
            "a host name",
        ),
        (
            get(json!({ "host": "user@a" })),
            ".httpGet.host",
            "a host name",
        ),
        (
            get(json!({ "httpHeaders": {} })),
            ".httpGet.httpHeaders",
            "a list",
        ),
        (
            get(json!({ "httpHeaders": [{ "value": "x" }] })),
            ".httpGet.httpHeaders[0].name",
            "is missing",
        ),
        (
            get(json!({ "httpHeaders": [{ "name": "x" }] })),
            ".httpGet.httpHeaders[0].value",
            "is missing",
        ),
        (
            header("a b", "x"),
            ".httpGet.httpHeaders[0].name",
            "the name of a header",
        ),
        (
            header("Content-Length", "9"),
            ".httpGet.httpHeaders[0].name",
            "not about the connection",
        ),
        (
            header("x", "a\r\nb: c"),
            ".httpGet.httpHeaders[0].value",
            "printable ASCII",
        ),
    ] {
        let target = format!("properties.customContainerTemplate.containers[0].probes[0]{at}");
        let body = with(&container("probes"), json!([probe]));
        refused(&body, Code::SessionPoolInvalidProperty, &target, says);
    }
    let twice = json!([get(json!({})), get(json!({}))]);
    let target = "properties.customContainerTemplate.containers[0].probes[1].type";
    let body = with(&container("probes"), twice);
    refused(
        &body,
        Code::SessionPoolInvalidProperty,
        target,
        "one probe of each type",
    );
    let host = json!([{ "type": "Startup", "tcpSocket": { "port": 1, "host": "db" } }]);
    let target = "properties.customContainerTemplate.containers[0].probes[0].tcpSocket.host";
    let body = with(&container("probes"), host);
    refused(
        &body,
        Code::SessionPoolNotSupported,
        target,
        "the container of its session",
    );
}

/// As in the documentation of the cloud service, whose threshold is above its own range.
fn all_probes() -> Value {
    json!([
        { "type": "Startup", "tcpSocket": { "port": 8080 }, "initialDelaySeconds": 1, "periodSeconds": 2,
            "timeoutSeconds": 5, "failureThreshold": 30, "successThreshold": 1 },
        { "type": "Liveness", "httpGet": { "scheme": "HTTPS", "host": "app.example:8443", "path": "/health?deep=1", "port": 8443,
            "httpHeaders": [{ "name": "X-Probe", "value": "a b" }, { "name": "x-probe", "value": "" }] },
            "initialDelaySeconds": 0, "periodSeconds": 240, "timeoutSeconds": 240, "failureThreshold": 1,
            "successThreshold": 1, "terminationGracePeriodSeconds": 0 },
    ])
}

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
        let again = check(&render(&first)).unwrap();
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

#[test]
fn probes_are_rendered_as_they_were_sent() {
    let pool = check(&with(&container("probes"), all_probes())).unwrap();
    let shown = render(&pool);
    assert_eq!(shown.pointer(&container("probes")), Some(&all_probes()));
    let without = check(&body()).unwrap();
    assert_eq!(without.probes, Probes::default());
    assert_eq!(render(&without).pointer(&container("probes")), None);
}

fn patched_pool(pool: &PoolRecord, patch: Value) -> Result<PoolRecord, Refusal> {
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

#[test]
fn image_stays_what_it_was_unless_it_is_named_again() {
    // The pool was made when `moved` meant `sha256:d`.
    let pool = PoolRecord {
        image: "moved".into(),
        ..check(&body()).unwrap()
    };
    let digest = |patch: Value| patched_pool(&pool, patch).unwrap().image_digest;
    let scale = json!({ "properties": { "scaleConfiguration": { "maxConcurrentSessions": 3 } } });
    assert_eq!(digest(scale), "sha256:d");
    let containers = |container: Value| json!({ "properties": { "customContainerTemplate": { "containers": [container] } } });
    let echoed = json!({ "image": "moved", "imageDigest": "sha256:d" });
    assert_eq!(digest(containers(echoed)), "sha256:d");
    assert_eq!(
        digest(containers(json!({ "image": "moved" }))),
        "sha256:new"
    );
    let stale = json!({ "image": "moved", "imageDigest": "sha256:older" });
    assert_eq!(digest(containers(stale)), "sha256:new");
    let other = json!({ "image": "demo", "imageDigest": "sha256:new" });
    assert_eq!(digest(containers(other)), "sha256:d");
}

#[test]
fn image_must_exist_and_have_something_to_run() {
    let refusal = check(&with(&container("image"), json!("other"))).unwrap_err();
    assert_eq!(refusal.code, Code::Image(ImageErrorCode::ImageNotFound));
    assert_eq!(
        refusal.target.unwrap(),
        "properties.customContainerTemplate.containers[0].image"
    );
    let refusal = check(&with(&container("image"), json!("empty"))).unwrap_err();
    assert!(
        refusal.message.contains("neither Entrypoint nor Cmd"),
        "{}",
        refusal.message
    );
}

#[test]
fn settings_that_would_not_fit_the_frame_to_the_agent_are_refused() {
    let long = "x".repeat(wire::MAX_FRAME_BYTES / 2);
    let env = json!([{ "name": "A", "value": long }, { "name": "B", "value": long }]);
    let refusal = check(&with(&container("env"), env)).unwrap_err();
    assert!(
        refusal.message.contains("exceed 1048576 bytes"),
        "{}",
        refusal.message
    );
}

#[test]
fn more_than_one_container_is_refused() {
    let refusal = check(&with(
        "/properties/customContainerTemplate/containers/1",
        json!({ "image": "demo" }),
    ));
    assert_eq!(refusal.unwrap_err().code, Code::SessionPoolNotSupported);
}

const SECRETS: &str = "/properties/secrets";
const LOGIN: &str = "/properties/customContainerTemplate/registryCredentials";

/// A body with a secret and a login that uses it.
fn private() -> Value {
    let mut body = with(
        SECRETS,
        json!([{ "name": "pw", "value": "hunter2" }, { "name": "other", "value": "x" }]),
    );
    let login = json!({ "server": "https://Private.Example/", "username": "user", "passwordSecretRef": "pw" });
    body["properties"]["customContainerTemplate"]["registryCredentials"] = login;
    body
}

#[test]
fn password_of_a_registry_is_sealed_and_told_to_nobody() {
    let pool = check(&private()).unwrap();
    let kept = String::from_utf8(crate::store::encode(&pool)).unwrap();
    let shown = render(&pool);
    for text in [kept, shown.to_string(), format!("{pool:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert_eq!(
        shown.pointer(SECRETS),
        Some(&json!([{ "name": "pw" }, { "name": "other" }]))
    );
    let login =
        json!({ "server": "private.example", "username": "user", "passwordSecretRef": "pw" });
    assert_eq!(shown.pointer(LOGIN), Some(&login));
    let address = Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    let order = image_order(&private(), &address, None, &vault()).unwrap();
    let held = order.credentials.unwrap();
    assert_eq!(
        (held.server.as_str(), held.username.as_str()),
        ("private.example", "user")
    );
    assert_eq!(held.password.expose(), "hunter2");
    // What is shown can be sent back: a name without a value keeps the value.
    let again = image_order(&shown, &address, Some(&pool), &vault()).unwrap();
    assert_eq!(again.credentials.unwrap().password.expose(), "hunter2");
}

#[test]
fn patch_keeps_changes_and_removes_secrets() {
    let pool = check(&private()).unwrap();
    let address = || Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    let same = patched_pool(&pool, json!({ "tags": { "a": "b" } })).unwrap();
    assert_eq!(
        (&same.secrets, &same.registry),
        (&pool.secrets, &pool.registry)
    );
    let patch = json!({ "properties": { "secrets": [{ "name": "pw", "value": "new" }] } });
    let changed = patched_pool(&pool, patch).unwrap();
    assert_eq!(changed.secrets.len(), 1);
    let order = image_order(&render(&changed), &address(), Some(&changed), &vault()).unwrap();
    assert_eq!(order.credentials.unwrap().password.expose(), "new");
    assert!(
        changed.same_template(&pool),
        "a password is no part of what a session is made of"
    );
    let patch = json!({ "properties": { "secrets": null, "customContainerTemplate": { "registryCredentials": null } } });
    let public = patched_pool(&pool, patch).unwrap();
    assert_eq!((public.secrets.len(), public.registry), (0, None));
    let patch = json!({ "properties": { "secrets": null } });
    let refusal = patched_pool(&pool, patch).unwrap_err();
    assert_eq!(
        refusal.target.unwrap(),
        "properties.customContainerTemplate.registryCredentials.passwordSecretRef"
    );
}

#[test]
fn secrets_and_logins_that_are_wrong_are_refused_without_their_values() {
    for (path, value, target) in [
        (
            "/properties/secrets/0/value",
            json!(12345),
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/value",
            json!("12345\u{0}"),
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/value",
            Value::Null,
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/name",
            json!("A b"),
            "properties.secrets[0].name",
        ),
        (
            "/properties/secrets/1/name",
            json!("pw"),
            "properties.secrets[1].name",
        ),
    ] {
        let mut body = private();
        *body.pointer_mut(path).unwrap() = value;
        let refusal = check(&body).unwrap_err();
        assert_eq!(refusal.code, Code::SessionPoolInvalidProperty, "{path}");
        assert_eq!(refusal.target.as_deref(), Some(target));
        assert!(!refusal.message.contains("12345"), "{}", refusal.message);
    }
    for (member, value) in [
        ("server", json!("not a host")),
        ("server", Value::Null),
        ("username", Value::Null),
        ("passwordSecretRef", json!("unknown")),
    ] {
        let mut body = private();
        body["properties"]["customContainerTemplate"]["registryCredentials"][member] = value;
        let refusal = check(&body).unwrap_err();
        let target = format!("properties.customContainerTemplate.registryCredentials.{member}");
        assert_eq!(refusal.target, Some(target), "{}", refusal.message);
    }
}
