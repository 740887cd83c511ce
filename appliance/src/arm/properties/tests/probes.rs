//! Probes: what is accepted, refused and shown.

use super::*;

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
            let answered = shown(&pool);
            let found = answered.pointer(&container(&format!("probes/0/{name}")));
            assert_eq!(found, Some(&value.into()), "{name}");
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
pub fn all_probes() -> Value {
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
fn probes_are_rendered_as_they_were_sent() {
    let pool = check(&with(&container("probes"), all_probes())).unwrap();
    let answered = shown(&pool);
    assert_eq!(answered.pointer(&container("probes")), Some(&all_probes()));
    let without = check(&body()).unwrap();
    assert_eq!(without.probes, Probes::default());
    assert_eq!(shown(&without).pointer(&container("probes")), None);
}
