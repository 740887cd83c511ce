//! Pools as resources: every call with its status, headers and body.

use serde_json::{Value, json};

use super::*;
use crate::access::{Grant, Role};
use crate::pool::budget::{Budget, Size};
use crate::pool::launcher::PrepareFailure;

const SUBSCRIPTION: &str = "/subscriptions/s";
const GROUP: &str = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools";
const VERSION: &str = "api-version=2026-07-01";

fn beta() -> String {
    format!("{GROUP}/beta?{VERSION}")
}

fn body() -> Value {
    json!({ "location": "local", "properties": {
        "scaleConfiguration": { "maxConcurrentSessions": 2 },
        "customContainerTemplate": {
            "containers": [{ "name": "main", "image": "demo" }],
            "ingress": { "targetPort": 8080 },
        },
    } })
}

fn contributor() -> Grant {
    Grant::of(Role::PoolContributor)
}

/// A door, and somebody who calls it.
struct Client {
    door: Door,
    grant: Grant,
}

impl Client {
    async fn new() -> Self {
        Self {
            door: Door::with(|_, _| say("")).await,
            grant: contributor(),
        }
    }

    async fn send(&self, method: &str, target: &str, body: &Value, more: &[(&str, &str)]) -> Got {
        let signed = self
            .door
            .authority
            .sign(&self.grant, Duration::from_secs(600));
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "gate.example:7443")
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", signed.unwrap().token),
            );
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let body = match body {
            Value::Null => empty(),
            body => text(body.to_string()),
        };
        self.door.send(request.body(body).unwrap()).await
    }

    async fn call(&self, method: &str, target: &str, body: &Value) -> Got {
        self.send(method, target, body, &[]).await
    }

    async fn get(&self, target: &str) -> Got {
        self.call("GET", target, &Value::Null).await
    }

    /// Asks until the operation has ended.
    async fn ended(&self, got: &Got) -> Value {
        let target = path_of(&got.headers["azure-asyncoperation"]);
        in_time(async {
            loop {
                let operation = self.get(&target).await;
                assert_eq!(operation.status, 200);
                let body = operation.json();
                if body["status"] != "InProgress" {
                    return body;
                }
                assert_eq!(operation.headers["retry-after"], "1");
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn make(&self) {
        let made = self.call("PUT", &beta(), &body()).await;
        assert_eq!(self.ended(&made).await["status"], "Succeeded");
    }
}

/// What the client asks next at the host that it has asked first.
fn path_of(url: &http::HeaderValue) -> String {
    let url = url.to_str().unwrap();
    let path = url.strip_prefix("https://gate.example:7443").unwrap();
    assert!(path.ends_with(VERSION), "{path}");
    path.to_owned()
}

fn state(got: &Got) -> (u16, String) {
    let state = got.json()["properties"]["provisioningState"].clone();
    (
        got.status.as_u16(),
        state.as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn pool_is_made_while_its_caller_asks_how_far_it_is() {
    let client = Client::new().await;
    let preparing = client.door.launcher.hold_next_preparation();
    let made = client.call("PUT", &beta(), &body()).await;
    assert_eq!(state(&made), (201, "InProgress".into()));
    assert_eq!(made.headers["retry-after"], "1");
    assert!(made.headers.get("location").is_none());
    let operation = path_of(&made.headers["azure-asyncoperation"]);
    let prefix = "/subscriptions/s/providers/Microsoft.App/locations/local/operationStatuses/";
    assert!(operation.starts_with(prefix), "{operation}");
    in_time(preparing).await.unwrap();

    assert_eq!(
        state(&client.get(&beta()).await),
        (200, "InProgress".into())
    );
    let listed = client.get(&format!("{GROUP}?{VERSION}")).await.json();
    assert_eq!(
        listed["value"][0]["properties"]["provisioningState"],
        "InProgress"
    );
    let asked = client.get(&operation).await.json();
    assert_eq!(asked["status"], "InProgress");
    let result = operation.replace("operationStatuses", "operationResults");
    let waiting = client.get(&result).await;
    assert_eq!((waiting.status.as_u16(), waiting.body.len()), (202, 0));
    assert_eq!(path_of(&waiting.headers["location"]), result);
    // It has no sessions yet.
    let session = "/subscriptions/s/resourceGroups/rg/sessionPools/beta/?identifier=user-1";
    let user = Client {
        grant: Grant::of(Role::SessionExecutor),
        ..client
    };
    assert_eq!(user.get(session).await.code(), "404 SessionPoolNotFound");
    let client = Client {
        grant: contributor(),
        ..user
    };

    client.door.launcher.prepared(Ok(()));
    let ended = client.ended(&made).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    assert!(ended["startTime"].is_string() && ended["endTime"].is_string());
    let shown = client.get(&beta()).await;
    assert_eq!(state(&shown), (200, "Succeeded".into()));
    assert_eq!(
        shown.json()["properties"]["poolManagementEndpoint"],
        "https://beta.cabana.example:7443"
    );
    assert_eq!(client.get(&result).await.json(), shown.json());
}

#[tokio::test]
async fn pool_is_patched_and_deleted_by_operations() {
    let client = Client::new().await;
    client.make().await;
    let patch = json!({ "properties": { "scaleConfiguration": { "maxConcurrentSessions": 5 } } });
    let patched = client.call("PATCH", &beta(), &patch).await;
    assert_eq!((patched.status.as_u16(), patched.body.len()), (202, 0));
    assert_eq!(patched.headers["retry-after"], "1");
    assert_eq!(client.ended(&patched).await["status"], "Succeeded");
    let result = client.get(&path_of(&patched.headers["location"])).await;
    assert_eq!(state(&result), (200, "Succeeded".into()));
    assert_eq!(
        result.json()["properties"]["scaleConfiguration"]["maxConcurrentSessions"],
        5
    );
    // A PUT of what is there is a change, too.
    let again = client.call("PUT", &beta(), &body()).await;
    assert_eq!(state(&again), (200, "InProgress".into()));
    assert_eq!(client.ended(&again).await["status"], "Succeeded");

    let deleted = client.call("DELETE", &beta(), &Value::Null).await;
    assert_eq!((deleted.status.as_u16(), deleted.body.len()), (202, 0));
    assert_eq!(client.ended(&deleted).await["status"], "Succeeded");
    let result = client.get(&path_of(&deleted.headers["location"])).await;
    assert_eq!(result.status, 204);
    assert_eq!(client.get(&beta()).await.code(), "404 ResourceNotFound");
    let patched = client.call("PATCH", &beta(), &patch).await;
    assert_eq!(patched.code(), "404 ResourceNotFound");
    let deleted = client.call("DELETE", &beta(), &Value::Null).await;
    assert_eq!(deleted.status, 204);
}

#[tokio::test]
async fn failed_change_leaves_what_was_and_says_why() {
    let client = Client::new().await;
    let unauthorized = |image: &str| {
        let mut body = body();
        body["properties"]["customContainerTemplate"]["containers"][0]["image"] = image.into();
        body
    };
    let made = client
        .call("PUT", &beta(), &unauthorized("private.example/app"))
        .await;
    assert_eq!(made.status, 201);
    let ended = client.ended(&made).await;
    assert_eq!(
        (&ended["status"], &ended["error"]["code"]),
        (&json!("Failed"), &json!("ImagePullUnauthorized"))
    );
    assert!(
        ended["error"]["target"]
            .as_str()
            .unwrap()
            .ends_with("containers[0].image")
    );
    assert_eq!(client.get(&beta()).await.code(), "404 ResourceNotFound");

    client.make().await;
    let before = client.get(&beta()).await;
    let patch = json!({ "properties": { "customContainerTemplate": {
        "containers": [{ "image": "nowhere" }] } } });
    let patched = client.call("PATCH", &beta(), &patch).await;
    assert_eq!(
        client.ended(&patched).await["error"]["code"],
        "ImageNotFound"
    );
    let result = client.get(&path_of(&patched.headers["location"])).await;
    assert_eq!(result.code(), "400 ImageNotFound");
    let after = client.get(&beta()).await;
    assert_eq!(after.json(), before.json());
    assert_eq!(after.headers["etag"], before.headers["etag"]);

    // What is the host's fault is not asked for again and again.
    let preparing = client.door.launcher.hold_next_preparation();
    let patch =
        json!({ "properties": { "customContainerTemplate": { "ingress": { "targetPort": 81 } } } });
    let patched = client.call("PATCH", &beta(), &patch).await;
    in_time(preparing).await.unwrap();
    let failure = PrepareFailure::Host {
        message: "no room".into(),
    };
    client.door.launcher.prepared(Err(failure));
    assert_eq!(
        client.ended(&patched).await["error"]["code"],
        "SessionPoolGoldenFailed"
    );
    let result = client.get(&path_of(&patched.headers["location"])).await;
    assert_eq!(result.code(), "409 SessionPoolGoldenFailed");
}

#[tokio::test]
async fn pool_that_is_being_made_can_be_deleted_and_made_again() {
    let client = Client::new().await;
    let preparing = client.door.launcher.hold_next_preparation();
    let first = client.call("PUT", &beta(), &body()).await;
    in_time(preparing).await.unwrap();
    let deleted = client.call("DELETE", &beta(), &Value::Null).await;
    assert_eq!(deleted.status, 202);
    let second = client.call("PUT", &beta(), &body()).await;
    assert_eq!(second.status, 201, "it comes after the deletion");
    let ended = client.ended(&first).await;
    assert_eq!(ended["error"]["code"], "SessionPoolClosing", "{ended}");
    assert_eq!(client.ended(&deleted).await["status"], "Succeeded");
    assert_eq!(client.ended(&second).await["status"], "Succeeded");
    assert_eq!(state(&client.get(&beta()).await), (200, "Succeeded".into()));
}

#[tokio::test]
async fn changes_of_one_pool_come_one_after_the_other() {
    let client = Client::new().await;
    let preparing = client.door.launcher.hold_next_preparation();
    let first = client.call("PUT", &beta(), &body()).await;
    in_time(preparing).await.unwrap();
    let tag = |name: &str| json!({ "tags": { name: "1" } });
    let second = client.call("PATCH", &beta(), &tag("x")).await;
    let third = client.call("PATCH", &beta(), &tag("y")).await;
    assert_eq!((second.status.as_u16(), third.status.as_u16()), (202, 202));
    client.door.launcher.prepared(Ok(()));
    for operation in [&first, &second, &third] {
        assert_eq!(client.ended(operation).await["status"], "Succeeded");
    }
    let tags = client.get(&beta()).await.json()["tags"].clone();
    assert_eq!(tags, json!({ "x": "1", "y": "1" }));
}

#[tokio::test]
async fn change_is_made_only_of_what_the_caller_has_seen() {
    let client = Client::new().await;
    let none = [("if-none-match", "*")];
    let made = client.send("PUT", &beta(), &body(), &none).await;
    assert_eq!(client.ended(&made).await["status"], "Succeeded");
    let again = client.send("PUT", &beta(), &body(), &none).await;
    assert_eq!(again.code(), "412 PreconditionFailed");
    let seen = client.get(&beta()).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    let patch = json!({ "tags": { "a": "b" } });
    let patched = client
        .send("PATCH", &beta(), &patch, &[("if-match", &seen)])
        .await;
    assert_eq!(client.ended(&patched).await["status"], "Succeeded");
    for method in ["PUT", "PATCH", "DELETE"] {
        let stale = client
            .send(method, &beta(), &body(), &[("if-match", &seen)])
            .await;
        assert_eq!(stale.code(), "412 PreconditionFailed", "{method}");
    }
    // What was right when it was asked, and is not any more when its turn comes.
    let seen = client.get(&beta()).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    let preparing = client.door.launcher.hold_next_preparation();
    let port =
        json!({ "properties": { "customContainerTemplate": { "ingress": { "targetPort": 81 } } } });
    let first = client.call("PATCH", &beta(), &port).await;
    in_time(preparing).await.unwrap();
    let second = client
        .send("PATCH", &beta(), &patch, &[("if-match", &seen)])
        .await;
    assert_eq!(second.status, 202);
    client.door.launcher.prepared(Ok(()));
    assert_eq!(client.ended(&first).await["status"], "Succeeded");
    assert_eq!(
        client.ended(&second).await["error"]["code"],
        "PreconditionFailed"
    );
}

#[tokio::test]
async fn pool_that_is_too_large_for_the_host_is_refused_before_there_is_an_operation() {
    let launcher = FakeLauncher::new(http_server(|_, _| say("")));
    launcher.budget(Budget::new(Size {
        mem_mib: 8 * 1024,
        cpu_millis: 8000,
    }));
    let client = Client {
        door: Door::open(launcher).await,
        grant: contributor(),
    };
    client.make().await;
    let mut large = body();
    large["properties"]["scaleConfiguration"]["maxConcurrentSessions"] = 1000.into();
    for (method, target) in [
        ("PUT", beta()),
        ("PATCH", beta()),
        ("PUT", beta().replace("beta", "gamma")),
    ] {
        let got = client.call(method, &target, &large).await;
        assert_eq!(got.code(), "400 SessionPoolInvalidProperty", "{method}");
        assert!(!got.headers.contains_key("azure-asyncoperation"));
        let property = "properties.scaleConfiguration.maxConcurrentSessions";
        assert_eq!(got.json()["error"]["target"], property);
        assert!(got.message().contains("this host has"), "{}", got.message());
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_at_once() {
    let client = Client::new().await;
    let with = |pointer: &str, value: Value| {
        let mut body = body();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let many = with(
        "/properties/scaleConfiguration/maxConcurrentSessions",
        json!(0),
    );
    let somewhere = |path: &str| format!("{path}?{VERSION}");
    let no_version = GROUP.to_owned() + "/beta";
    let bad_version = no_version.clone() + "?api-version=latest";
    for (method, target, body, expected) in [
        ("PUT", beta(), many, "400 SessionPoolInvalidProperty"),
        ("PUT", beta(), json!([]), "400 InvalidRequestContent"),
        (
            "PUT",
            no_version.clone(),
            body(),
            "400 MissingApiVersionParameter",
        ),
        (
            "GET",
            no_version,
            Value::Null,
            "400 MissingApiVersionParameter",
        ),
        (
            "GET",
            bad_version,
            Value::Null,
            "400 InvalidApiVersionParameter",
        ),
        ("POST", beta(), body(), "405 MethodNotAllowed"),
        ("GET", beta(), Value::Null, "404 ResourceNotFound"),
        ("PATCH", beta(), json!({}), "404 ResourceNotFound"),
        (
            "PUT",
            somewhere(&format!("{GROUP}/Be_ta")),
            body(),
            "400 SessionPoolInvalidProperty",
        ),
        (
            "PUT",
            beta().replace("rg", "r%20g"),
            body(),
            "400 SessionPoolInvalidProperty",
        ),
        // `alpha` is in another group.
        (
            "PUT",
            beta().replace("beta", "alpha"),
            body(),
            "409 SessionPoolNameInUse",
        ),
        (
            "GET",
            somewhere(&format!("{GROUP}/alpha/sessions")),
            Value::Null,
            "404 ResourceNotFound",
        ),
        (
            "GET",
            somewhere(&format!("{SUBSCRIPTION}/providers/Microsoft.Web/sites")),
            Value::Null,
            "404 ResourceNotFound",
        ),
        (
            "GET",
            somewhere(&format!(
                "{SUBSCRIPTION}/providers/Microsoft.App/locations/local/operationStatuses/{}",
                uuid::Uuid::nil()
            )),
            Value::Null,
            "404 ResourceNotFound",
        ),
    ] {
        let got = client.call(method, &target, &body).await;
        assert_eq!(
            got.json()["error"]["code"],
            expected[4..],
            "{method} {target}"
        );
        assert_eq!(
            got.status.as_u16().to_string(),
            expected[..3],
            "{method} {target}"
        );
    }
    let range = client
        .call(
            "PUT",
            &beta(),
            &with(
                "/properties/customContainerTemplate/ingress/targetPort",
                json!(0),
            ),
        )
        .await;
    let error = range.json()["error"].clone();
    assert_eq!(
        error["target"],
        "properties.customContainerTemplate.ingress.targetPort"
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("from 1 to 65535"),
        "{error}"
    );
}

#[tokio::test]
async fn each_role_does_its_own_and_lists_show_what_the_token_sees() {
    let client = Client::new().await;
    client.make().await;
    let list = format!("{SUBSCRIPTION}/providers/Microsoft.App/sessionPools?{VERSION}");
    let names = |got: &Got| -> Vec<String> {
        let pools = got.json()["value"].as_array().unwrap().clone();
        pools
            .iter()
            .map(|pool| pool["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&client.get(&list).await), ["beta"]);

    let client = Client {
        grant: Grant::of(Role::Reader),
        ..client
    };
    assert_eq!(client.get(&beta()).await.status, 200);
    assert_eq!(names(&client.get(&list).await), ["beta"]);
    for method in ["PUT", "PATCH", "DELETE"] {
        let got = client.call(method, &beta(), &body()).await;
        assert_eq!(got.code(), "403 Forbidden", "{method}");
    }
    let elsewhere = Grant {
        pools: vec!["gamma".parse().unwrap()],
        ..contributor()
    };
    let client = Client {
        grant: elsewhere,
        ..client
    };
    assert!(names(&client.get(&list).await).is_empty());
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        assert_eq!(
            client.call(method, &beta(), &body()).await.code(),
            "403 Forbidden"
        );
    }
    let client = Client {
        grant: Grant::of(Role::SessionExecutor),
        ..client
    };
    assert_eq!(client.get(&beta()).await.code(), "403 Forbidden");
    assert_eq!(client.get(&list).await.code(), "403 Forbidden");
    let nobody = Request::get(beta())
        .header(header::HOST, "localhost")
        .body(empty());
    assert_eq!(
        client.door.send(nobody.unwrap()).await.code(),
        "401 Unauthorized"
    );
}

#[tokio::test]
async fn operation_is_for_those_who_see_its_pool() {
    let client = Client::new().await;
    let made = client.call("PUT", &beta(), &body()).await;
    client.ended(&made).await;
    let operation = path_of(&made.headers["azure-asyncoperation"]);
    let client = Client {
        grant: Grant::of(Role::Reader),
        ..client
    };
    assert_eq!(client.get(&operation).await.status, 200);
    let other = operation.replacen("/s/", "/t/", 1);
    assert_eq!(client.get(&other).await.code(), "404 ResourceNotFound");
    let elsewhere = Grant {
        pools: vec!["gamma".parse().unwrap()],
        ..contributor()
    };
    let client = Client {
        grant: elsewhere,
        ..client
    };
    assert_eq!(client.get(&operation).await.code(), "404 ResourceNotFound");
}

#[tokio::test]
async fn environments_are_whatever_pools_are_put_into() {
    let client = Client::new().await;
    let environments = GROUP.replace("sessionPools", "managedEnvironments");
    let id = format!("{environments}/env1");
    let shown = client.get(&format!("{id}?{VERSION}")).await;
    assert_eq!(state(&shown), (200, "Succeeded".into()));
    let shown = shown.json();
    assert_eq!(
        (&shown["id"], &shown["name"], &shown["location"]),
        (&json!(id), &json!("env1"), &json!("local"))
    );
    assert_eq!(shown["properties"]["defaultDomain"], "cabana.example");
    let list = format!("{SUBSCRIPTION}/providers/Microsoft.App/managedEnvironments?{VERSION}");
    assert_eq!(client.get(&list).await.json()["value"], json!([]));
    let mut pool = body();
    pool["properties"]["environmentId"] = id.into();
    let made = client.call("PUT", &beta(), &pool).await;
    client.ended(&made).await;
    for list in [list, format!("{environments}?{VERSION}")] {
        assert_eq!(client.get(&list).await.json()["value"], json!([shown]));
    }
    let elsewhere = format!("{}?{VERSION}", environments.replace("rg", "other"));
    assert_eq!(client.get(&elsewhere).await.json()["value"], json!([]));
}

#[tokio::test]
async fn secrets_are_in_no_answer() {
    let client = Client::new().await;
    let mut pool = body();
    pool["properties"]["secrets"] = json!([{ "name": "key", "value": "hunter2" }]);
    pool["properties"]["customContainerTemplate"]["containers"][0]["env"] =
        json!([{ "name": "KEY", "secretRef": "key" }]);
    let made = client.call("PUT", &beta(), &pool).await;
    client.ended(&made).await;
    let list = client.get(&format!("{GROUP}?{VERSION}")).await;
    for got in [made, client.get(&beta()).await, list] {
        let body = String::from_utf8(got.body.to_vec()).unwrap();
        assert!(
            body.contains("\"secretRef\":\"key\"") && !body.contains("hunter2"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn host_of_a_pool_forwards_what_looks_like_a_resource() {
    let door = Door::with(|_, request| say(request.uri().path().to_owned())).await;
    let path = format!("{GROUP}/beta");
    let request = Request::get(format!("{path}?identifier=user-1"))
        .header(header::HOST, "alpha.cabana.example")
        .header(header::AUTHORIZATION, format!("Bearer {}", door.token()));
    let got = door.send(request.body(empty()).unwrap()).await;
    assert_eq!((got.status.as_u16(), &*got.body), (200, path.as_bytes()));
}
