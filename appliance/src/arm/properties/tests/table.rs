//! Every property of the document that a caller may set: values that are taken, come back and change nothing when they are
//! sent back, in each api-version; and one that is not taken, with what is said about it.

use std::collections::BTreeSet;

use super::versions::{ENVIRONMENT_ID, VERSIONS, address, full, read, settings, shape};
use super::*;

const LIST: &str = "[]";

/// A property, as the document has it.
struct Row {
    property: String,
    taken: Vec<Value>,
    refused: Value,
    /// Part of the message.
    says: &'static str,
}

fn row(property: &str, taken: Value, refused: Value, says: &'static str) -> Row {
    let Value::Array(taken) = taken else {
        panic!("{taken} is no list")
    };
    Row {
        property: property.to_owned(),
        taken,
        refused,
        says,
    }
}

fn rows() -> Vec<Row> {
    let mut rows = vec![
        row(
            "identity",
            json!([{ "type": "None" }]),
            json!({ "type": "SystemAssigned" }),
            "not supported",
        ),
        row("location", json!(["local", "here"]), json!(1), "a string"),
        row(
            "tags",
            json!([{}, { "a": "b" }]),
            json!({ "a": 1 }),
            "an object of strings",
        ),
    ];
    let mut below = |place: &str, more: Vec<Row>| {
        rows.extend(more.into_iter().map(|row| Row {
            property: format!("{place}.{}", row.property),
            ..row
        }));
    };
    below(
        "properties",
        vec![
            row(
                "containerType",
                json!(["CustomContainer"]),
                json!("PythonLTS"),
                "not supported",
            ),
            row(
                "poolManagementType",
                json!(["Dynamic"]),
                json!("Manual"),
                "not supported",
            ),
            row(
                "environmentId",
                json!([ENVIRONMENT_ID]),
                json!("env"),
                "managedEnvironments/<name>",
            ),
            row(
                "forkPoint",
                json!(["beforeStart", "afterReady"]),
                json!("later"),
                "\"beforeStart\" or \"afterReady\"",
            ),
            row(
                "rateLimits.diskIops",
                json!([100, 1_000_000]),
                json!(99),
                "from 100 to 1000000",
            ),
            row(
                "rateLimits.diskBytesPerSecond",
                json!([1_048_576, 17_179_869_184_u64]),
                json!(17_179_869_185_u64),
                "from 1048576 to 17179869184",
            ),
            row(
                "rateLimits.streamBytesPerSecond",
                json!([65_536, 17_179_869_184_u64]),
                json!("1Mi"),
                "from 65536 to 17179869184",
            ),
            row(
                "managedIdentitySettings",
                json!([[]]),
                json!([{ "identity": "system" }]),
                "not supported",
            ),
            row(
                "mcpServerSettings",
                json!([{ "isMcpServerEnabled": false }]),
                json!({ "isMcpServerEnabled": true }),
                "not supported",
            ),
            row(
                "secrets[].name",
                json!(["pw"]),
                json!("A b"),
                "lower-case letters, digits",
            ),
            row("secrets[].value", json!(["x"]), json!(5), "a string"),
            row(
                "sessionNetworkConfiguration.status",
                json!(["EgressDisabled"]),
                json!("EgressEnabled"),
                "not supported",
            ),
            row(
                "scaleConfiguration.maxConcurrentSessions",
                json!([2, 100_000]),
                json!(0),
                "from 1 to 100000",
            ),
            row(
                "scaleConfiguration.readySessionInstances",
                json!([0, 7]),
                json!(8),
                "from 0 to 7",
            ),
        ],
    );
    let lifecycle = |kind: &str| {
        vec![
            row(
                kind,
                json!(["Timed", "OnContainerExit"]),
                json!("Eternal"),
                "\"Timed\" or \"OnContainerExit\"",
            ),
            row(
                "cooldownPeriodInSeconds",
                json!([300, 3600]),
                json!(299),
                "from 300 to 3600",
            ),
            row(
                "maxAlivePeriodInSeconds",
                json!([1, 2_592_000]),
                json!(0),
                "from 1 to 2592000",
            ),
        ]
    };
    below(
        "properties.dynamicPoolConfiguration",
        lifecycle("executionType"),
    );
    below(
        "properties.dynamicPoolConfiguration.lifecycleConfiguration",
        lifecycle("lifecycleType"),
    );
    below(
        "properties.customContainerTemplate",
        vec![
            row(
                "ingress.targetPort",
                json!([1, 65535]),
                json!(0),
                "from 1 to 65535",
            ),
            row(
                "registryCredentials.identity",
                json!([null]),
                json!("system"),
                "not supported",
            ),
            row(
                "registryCredentials.passwordSecretRef",
                json!(["pw", "key"]),
                json!("unknown"),
                "properties.secrets",
            ),
            row(
                "registryCredentials.registryServer",
                json!(["private.example"]),
                json!("not a host"),
                "a host",
            ),
            row(
                "registryCredentials.server",
                json!(["private.example", "https://Private.Example/"]),
                json!("not a host"),
                "a host",
            ),
            row(
                "registryCredentials.username",
                json!(["user"]),
                json!(7),
                "a string",
            ),
        ],
    );
    below(
        "properties.customContainerTemplate.containers[]",
        vec![
            row(
                "args",
                json!([[], ["-v", ""]]),
                json!("-v"),
                "a list of strings",
            ),
            row("command", json!([["/a"]]), json!("/a"), "a list of strings"),
            row("env[].name", json!(["A"]), json!("A=B"), "without"),
            row("env[].value", json!(["", "1"]), json!(1), "a string"),
            row(
                "env[].secretRef",
                json!(["pw", "key"]),
                json!("unknown"),
                "properties.secrets",
            ),
            row("image", json!(["demo"]), json!(7), "a string"),
            row("imageDigest", json!(["sha256:d"]), json!(7), "a string"),
            row("name", json!(["main"]), json!(7), "a string"),
            row(
                "resources.cpu",
                json!([0.25, 4]),
                json!(0.3),
                "multiple of 0.25",
            ),
            row(
                "resources.memory",
                json!(["0.5Gi", "8Gi"]),
                json!("1G"),
                "in Gi or Mi",
            ),
            row(
                "resources.ephemeralStorage",
                json!(["1Gi", "1024Gi"]),
                json!("512Mi"),
                "from 1Gi to 1024Gi",
            ),
        ],
    );
    below(
        "properties.customContainerTemplate.containers[].probes[]",
        vec![
            row(
                "type",
                json!(["Startup", "Liveness"]),
                json!("Readiness"),
                "\"Liveness\" or \"Startup\"",
            ),
            row(
                "initialDelaySeconds",
                json!([0, 60]),
                json!(61),
                "from 0 to 60",
            ),
            row("periodSeconds", json!([1, 240]), json!(0), "from 1 to 240"),
            row(
                "timeoutSeconds",
                json!([1, 240]),
                json!(241),
                "from 1 to 240",
            ),
            row(
                "failureThreshold",
                json!([1, 1000]),
                json!(0),
                "from 1 to 1000",
            ),
            row("successThreshold", json!([1]), json!(2), "1"),
            row(
                "terminationGracePeriodSeconds",
                json!([0, 3600]),
                json!(3601),
                "from 0 to 3600",
            ),
            row(
                "tcpSocket.port",
                json!([1, 65535]),
                json!(65536),
                "from 1 to 65535",
            ),
            row(
                "httpGet.port",
                json!([1, 65535]),
                json!(0),
                "from 1 to 65535",
            ),
            row("httpGet.host", json!(["example"]), json!(7), "a string"),
            row("httpGet.path", json!(["/", "/a?b=c"]), json!("a"), "/"),
            row(
                "httpGet.scheme",
                json!(["HTTP", "HTTPS"]),
                json!("FTP"),
                "\"HTTP\" or \"HTTPS\"",
            ),
            row(
                "httpGet.httpHeaders[].name",
                json!(["x-a"]),
                json!("Connection"),
                "Connection",
            ),
            row(
                "httpGet.httpHeaders[].value",
                json!(["v"]),
                json!(7),
                "a string",
            ),
        ],
    );
    rows
}

/// A body that is well with any of these values in it.
fn body_for(property: &str) -> Value {
    let mut body = full();
    let properties = &mut body["properties"];
    if property.contains("dynamicPool") {
        properties["dynamicPoolConfiguration"] = match property {
            _ if !property.contains("maxAlive") => json!({}),
            _ if property.contains("lifecycleConfiguration") => {
                json!({ "lifecycleConfiguration": { "lifecycleType": "OnContainerExit" } })
            }
            _ => json!({ "executionType": "OnContainerExit" }),
        };
    }
    let template = &mut properties["customContainerTemplate"];
    if property.ends_with("registryServer") {
        template["registryCredentials"]["server"] = Value::Null;
    }
    if property.ends_with("secretRef") {
        template["containers"][0]["env"] = json!([{ "name": "B" }]);
    }
    let probe = &mut template["containers"][0]["probes"][0];
    if property.contains("tcpSocket") {
        *probe = json!({ "type": "Startup" });
    }
    if property.contains("httpHeaders") {
        probe["httpGet"]["httpHeaders"] = json!([{ "name": "x-b", "value": "w" }]);
    }
    body
}

fn pointer(property: &str) -> String {
    format!("/{}", property.replace(LIST, ".0").replace('.', "/"))
}

/// What a caller may set by `schema`, down to what has no parts that are described.
fn settable(document: &Value, schema: &Value, place: &str, found: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(&reference[1..]).unwrap();
        return settable(document, schema, place, found);
    }
    if schema["readOnly"] == true {
        return;
    }
    let parts = schema["properties"].as_object();
    if let Some(parts) = parts.filter(|parts| !parts.is_empty()) {
        for (name, part) in parts {
            let place = match place {
                "" => name.clone(),
                place => format!("{place}.{name}"),
            };
            settable(document, part, &place, found);
        }
        return;
    }
    let items = &schema["items"];
    if items["properties"].is_object() || items["$ref"].is_string() {
        return settable(document, items, &format!("{place}{LIST}"), found);
    }
    found.insert(place.to_owned());
}

#[test]
fn every_property_of_the_document_has_a_row() {
    let document = crate::openapi::value();
    let pool = &document["components"]["schemas"]["SessionPool"];
    let mut described = BTreeSet::new();
    settable(document, pool, "", &mut described);
    let rows: BTreeSet<_> = rows().into_iter().map(|row| row.property).collect();
    assert_eq!(rows, described);
}

#[test]
fn what_is_taken_comes_back_in_each_version_and_changes_nothing() {
    for Row {
        property, taken, ..
    } in rows()
    {
        for value in taken {
            for version in VERSIONS {
                let body = placed(body_for(&property), &pointer(&property), value.clone());
                let pool = read(&body, version, None);
                let again = read(&render(&pool, &shape(version)), version, Some(&pool));
                let place = format!("{property} {value} in {version}");
                assert_eq!(settings(&again), settings(&pool), "{place}");
                assert!(again.same_template(&pool), "{place}");
            }
        }
    }
}

#[test]
fn what_is_refused_is_named_with_what_it_may_be_in_each_version() {
    let mut wrong = BTreeSet::new();
    for row in rows() {
        let property = &row.property;
        let body = placed(body_for(property), &pointer(property), row.refused);
        for version in VERSIONS {
            match draft(&body, &shape(version), &address(), None, &RULES, &vault()) {
                Ok(_) => wrong.insert(format!("{property} is taken")),
                Err(refusal)
                    if !matches!(
                        refusal.code,
                        Code::SessionPoolInvalidProperty | Code::SessionPoolNotSupported
                    ) || refusal.target.is_none()
                        || !refusal.message.contains(row.says) =>
                {
                    wrong.insert(format!(
                        "{property}: {}, {:?}",
                        refusal.message, refusal.target
                    ))
                }
                Err(_) => false,
            };
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
