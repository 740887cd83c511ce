//! The administration API over its socket.

mod inside;
mod keeper;
mod patch;
mod pull;
mod sessions;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::*;
use crate::access::{MAX_TOKEN_TTL, Role, Scope};
use crate::arm::call::MAX_JSON_BYTES;
use crate::front::refusal::Code;
use crate::images::ImageErrorCode;
use crate::images::registry::{Progress, Reporter, Secret};
use crate::pool::container::ImageDefaults;
use crate::pool::launcher::{BoxFuture, PrepareFailure, StartFailure, StartFailureCause};
use crate::pool::testing::FakeLauncher;

const GROUP: &str = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools";
const DEADLINE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "correct horse";

pub use keeper::OneImage;

/// Knows `demo`, and imports anything as an image of as many bytes as were sent.
pub struct Demo;

fn image(name: &str, root_image_bytes: u64) -> ImageSummary {
    let defaults = ImageDefaults {
        cmd: vec!["/demo".into()],
        ..Default::default()
    };
    let digest = "sha256:d".to_owned();
    ImageSummary {
        name: name.into(),
        digest,
        root_image_bytes,
        warnings: vec![],
        defaults,
    }
}

impl ImageService for Demo {
    fn pull(
        &self,
        order: PullOrder,
        reporter: Reporter,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>> {
        Box::pin(async move {
            let held = order.credentials.as_ref().map(|held| {
                (
                    held.server.as_str().to_owned(),
                    held.username.clone(),
                    held.password.clone(),
                )
            });
            match order.digest.as_deref().unwrap_or(&order.image) {
                "demo" | "sha256:d" => Ok((image("demo", 1), true)),
                "private.example/app" => {
                    let right = (
                        "private.example".into(),
                        "user".into(),
                        Secret::new(PASSWORD),
                    );
                    if held != Some(right) {
                        let code = Code::Image(ImageErrorCode::ImagePullUnauthorized);
                        return Err(Refusal::new(code, "not with these"));
                    }
                    reporter.report(Progress::Building);
                    Ok((image("private.example/app:latest", 1), false))
                }
                reference => Err(Refusal::new(
                    Code::Image(ImageErrorCode::ImageNotFound),
                    format!("No image {reference:?}"),
                )),
            }
        })
    }

    fn import(
        &self,
        order: ImportOrder,
        archive: Incoming,
    ) -> BoxFuture<'_, Result<(ImageSummary, bool), Refusal>> {
        Box::pin(async move {
            assert_eq!(
                (&*order.transport, order.reference.as_deref()),
                ("oci-archive", Some("a:b c"))
            );
            let length = archive.collect().await.unwrap().to_bytes().len();
            Ok((image(&order.name.unwrap(), length as u64), false))
        })
    }
}

/// One golden, of the pool `alpha`.
struct OneGolden;

impl GoldenService for OneGolden {
    fn list(&self) -> Vec<GoldenSummary> {
        vec![GoldenSummary {
            key: "k".into(),
            fork_point: "afterReady".into(),
            image: "demo".into(),
            image_digest: "sha256:d".into(),
            vcpus: 1,
            mem_mib: 512,
            disk_mib: 8192,
            memory_bytes: 7,
            disk_bytes: 9,
            made_at_ms: 1000,
            pools: vec!["alpha".into()],
        }]
    }
}

struct Office {
    socket: std::path::PathBuf,
    launcher: Arc<FakeLauncher>,
    pools: Pools,
    authority: Arc<Authority>,
    asked_to_stop: Arc<Notify>,
    _stop: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

impl Office {
    async fn open() -> Self {
        let launcher = FakeLauncher::mute();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let pools = Pools::open(launcher.tools()).await.unwrap();
        let authority = Arc::new(crate::access::testing::authority().await);
        let asked_to_stop = Arc::<Notify>::default();
        let admin = Admin {
            pools: pools.clone(),
            authority: Arc::clone(&authority),
            images: Arc::new(Demo),
            keeper: Arc::new(keeper::OneImage),
            goldens: Arc::new(OneGolden),
            arm: crate::arm::testing::arm(&launcher, &pools, None).await,
            certificate: crate::front::tls::ServedCertificate::prepare(
                dir.path(),
                vec!["localhost".to_owned()],
            )
            .unwrap(),
            stop: Arc::clone(&asked_to_stop),
        };
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(serve(bind(&socket).unwrap(), Arc::new(admin), stopped));
        Self {
            socket,
            launcher,
            pools,
            authority,
            asked_to_stop,
            _stop: stop,
            _dir: dir,
        }
    }

    /// Posts, and gives back each line of the answer.
    async fn lines(&self, path: &str, body: &str) -> (u16, Vec<Value>) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::post(path).header(header::HOST, "localhost");
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let lines = str::from_utf8(&body).unwrap().lines();
        (
            status,
            lines
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        )
    }

    async fn call(&self, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        let answer = sender.send_request(request.body(Full::new(body.into())).unwrap());
        let answer = tokio::time::timeout(DEADLINE, answer)
            .await
            .expect("no answer")
            .unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }

    async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("PUT", path, body.to_string()).await
    }
}

fn resource() -> Value {
    json!({ "location": "local", "tags": { "a": "b" }, "properties": {
        "forkPoint": "afterReady",
        "scaleConfiguration": { "maxConcurrentSessions": 2 },
        "customContainerTemplate": {
            "containers": [{ "name": "main", "image": "demo", "args": ["-v"],
                "env": [{ "name": "A", "value": "1" }], "resources": { "cpu": 0.5, "memory": "1Gi", "ephemeralStorage": "2Gi" } }],
            "ingress": { "targetPort": 8080 },
        },
    } })
}

#[tokio::test]
async fn socket_is_for_its_owner_and_replaces_one_that_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    drop(bind(&path).unwrap());
    let _listener = bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn host_is_drained_until_it_is_told_to_serve_again() {
    let office = Office::open().await;
    let state = |draining: bool| json!({ "draining": draining, "slotsInUse": 0 });
    assert_eq!(office.call("GET", "/drain", "").await, (200, state(false)));
    for bad in [
        "{}",
        r#"{"timeoutSeconds":-1}"#,
        r#"{"timeoutSeconds":86401}"#,
    ] {
        let (status, answer) = office.call("POST", "/drain", bad).await;
        let code = &answer["error"]["code"];
        assert_eq!(
            (status, code),
            (400, &json!("InvalidRequestContent")),
            "{bad}"
        );
    }
    assert!(!office.pools.draining().await.is_on);
    let body = r#"{"timeoutSeconds":60}"#;
    assert_eq!(
        office.call("POST", "/drain", body).await,
        (202, state(true))
    );
    assert_eq!(office.call("GET", "/drain", "").await, (200, state(true)));
    assert_eq!(
        office.call("DELETE", "/drain", "").await,
        (200, state(false))
    );
}

#[tokio::test]
async fn pool_is_made_shown_listed_changed_and_deleted() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let (status, made) = office.put(&path, &resource()).await;
    assert_eq!(status, 201, "{made}");
    let properties = &made["properties"];
    assert_eq!(made["type"], "Microsoft.App/sessionPools");
    assert_eq!(made["id"], format!("{GROUP}/alpha"));
    assert_eq!(properties["provisioningState"], "Succeeded");
    let endpoint = "https://localhost:8443/subscriptions/s/resourceGroups/rg/sessionPools/alpha";
    assert_eq!(properties["poolManagementEndpoint"], endpoint);
    let mut sent = resource()["properties"].clone();
    sent["customContainerTemplate"]["containers"][0]["imageDigest"] = json!("sha256:d");
    for part in [
        "forkPoint",
        "customContainerTemplate/ingress",
        "customContainerTemplate/containers/0",
    ] {
        assert_eq!(
            properties.pointer(&format!("/{part}")),
            sent.pointer(&format!("/{part}")),
            "{part}"
        );
    }
    assert_eq!(office.call("GET", &path, "").await, (200, made.clone()));
    // As resource manager does: case of the path is forgiven.
    let shouted = format!("{}/ALPHA", GROUP.to_uppercase());
    assert_eq!(office.call("GET", &shouted, "").await, (200, made.clone()));
    let by_subscription = "/subscriptions/s/providers/Microsoft.App/sessionPools";
    for list in [GROUP, by_subscription] {
        assert_eq!(office.call("GET", list, "").await.1["value"], json!([made]));
    }
    assert_eq!(
        office
            .call("GET", &GROUP.replace("rg", "other"), "")
            .await
            .1["value"],
        json!([])
    );

    // What was answered can be sent back, and an update keeps the time of making.
    let mut changed = made.clone();
    changed["properties"]["scaleConfiguration"]["maxConcurrentSessions"] = json!(5);
    let (status, changed) = office.put(&path, &changed).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(
        changed["properties"]["scaleConfiguration"]["maxConcurrentSessions"],
        5
    );
    assert_eq!(
        changed["systemData"]["createdAt"],
        made["systemData"]["createdAt"]
    );

    let handle = office.pools.get(&"alpha".parse().unwrap()).unwrap().1;
    assert!(handle.claim("user-1".parse().unwrap()).await.is_ok());
    assert_eq!(office.call("DELETE", &path, "").await, (204, Value::Null));
    assert_eq!(
        office.launcher.alive(),
        0,
        "answered before its sessions were gone"
    );
    for method in ["GET", "DELETE"] {
        let (status, error) = office.call(method, &path, "").await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (404, &json!("ResourceNotFound"))
        );
    }
}

#[tokio::test]
async fn changed_fork_point_storage_or_rate_limit_makes_a_new_revision() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let revision = || office.pools.list()[0].revision;
    office.put(&path, &resource()).await;
    let first = revision();
    office.put(&path, &resource()).await;
    assert_eq!(revision(), first);
    let mut changed = resource();
    changed["properties"]["forkPoint"] = json!("beforeStart");
    office.put(&path, &changed).await;
    let second = revision();
    assert_ne!(second, first);
    changed["properties"]["customContainerTemplate"]["containers"][0]["resources"]["ephemeralStorage"] =
        json!("3Gi");
    office.put(&path, &changed).await;
    let third = revision();
    assert_ne!(third, second);
    changed["properties"]["rateLimits"] = json!({ "diskIops": 500, "diskBytesPerSecond": null });
    let (_, limited) = office.put(&path, &changed).await;
    assert_eq!(
        limited["properties"]["rateLimits"],
        json!({ "diskIops": 500 })
    );
    assert_ne!(revision(), third);
}

#[tokio::test]
async fn pool_whose_container_does_not_come_up_is_refused_with_its_last_lines() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let exited = StartFailure {
        cause: StartFailureCause::Exited {
            how: "exit status 3".into(),
            port: 8080,
        },
        console: vec!["no database".into()],
    };
    let container = "properties.customContainerTemplate.containers[0]";
    for (failure, status, code, target, says) in [
        (
            PrepareFailure::Container(exited),
            400,
            "SessionPoolContainerFailed",
            json!(container),
            "Its last lines:\nno database",
        ),
        (
            PrepareFailure::Host {
                message: "no room".into(),
            },
            500,
            "SessionPoolGoldenFailed",
            Value::Null,
            "no room",
        ),
        (
            PrepareFailure::Closing,
            503,
            "SessionPoolClosing",
            Value::Null,
            "stopping",
        ),
    ] {
        let preparing = office.launcher.hold_next_preparation();
        let resource = resource();
        let (answer, ()) = tokio::join!(office.put(&path, &resource), async {
            preparing.await.unwrap();
            office.launcher.prepared(Err(failure));
        });
        let error = &answer.1["error"];
        assert_eq!((answer.0, &error["code"]), (status, &json!(code)));
        assert_eq!(error["target"], target);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        assert!(office.pools.list().is_empty());
    }
}

#[tokio::test]
async fn pool_that_is_still_being_made_is_shown_so_and_can_be_deleted() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let preparing = office.launcher.hold_next_preparation();
    let resource = resource();
    let (made, ()) = tokio::join!(office.put(&path, &resource), async {
        preparing.await.unwrap();
        let (status, shown) = office.call("GET", &path, "").await;
        let properties = &shown["properties"];
        assert_eq!(
            (status, &properties["provisioningState"]),
            (200, &json!("InProgress"))
        );
        assert!(properties.get("sessionCounts").is_none(), "{shown}");
        assert_eq!(
            office.call("GET", GROUP, "").await.1["value"],
            json!([shown])
        );
        let elsewhere = path.replace("rg", "other");
        assert_eq!(office.call("DELETE", &elsewhere, "").await.0, 404);
        assert_eq!(office.call("DELETE", &path, "").await.0, 204);
    });
    assert_eq!(
        (made.0, &made.1["error"]["code"]),
        (503, &json!("SessionPoolClosing"))
    );
    assert_eq!(office.call("DELETE", &path, "").await.0, 404);
}

#[tokio::test]
async fn change_goes_on_when_its_caller_hangs_up() {
    let office = Arc::new(Office::open().await);
    let path = format!("{GROUP}/alpha");
    let preparing = office.launcher.hold_next_preparation();
    let caller = {
        let (office, path) = (Arc::clone(&office), path.clone());
        tokio::spawn(async move { office.put(&path, &resource()).await })
    };
    preparing.await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    office.launcher.prepared(Ok(()));
    // Waits for its turn, which comes when the first change has ended.
    let (status, changed) = office.call("PATCH", &path, "{}").await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(changed["properties"]["provisioningState"], "Succeeded");
}

#[tokio::test]
async fn socket_shows_a_pool_in_the_words_of_the_version_that_is_named() {
    let office = Office::open().await;
    office.put(&format!("{GROUP}/alpha"), &resource()).await;
    let shown = |version: &'static str| {
        let office = &office;
        async move {
            office
                .call("GET", &format!("{GROUP}/alpha{version}"), "")
                .await
                .1
        }
    };
    let flat = shown("?api-version=2024-08-02-preview").await;
    let dynamic = &flat["properties"]["dynamicPoolConfiguration"];
    let expected = json!({ "executionType": "Timed", "cooldownPeriodInSeconds": 300 });
    assert_eq!(dynamic, &expected);
    assert!(flat["properties"].get("templateUpdateStatus").is_none());
    assert!(shown("").await["properties"]["templateUpdateStatus"].is_object());
}

#[tokio::test]
async fn goldens_are_listed_with_their_pools() {
    let office = Office::open().await;
    let (status, answer) = office.call("GET", "/goldens", "").await;
    assert_eq!(status, 200);
    let expected = json!({ "value": [{
        "key": "k", "forkPoint": "afterReady", "image": "demo", "imageDigest": "sha256:d", "vcpus": 1,
        "memory": "0.5Gi", "ephemeralStorage": "8Gi", "memoryBytes": 7, "diskBytes": 9,
        "madeAt": "1970-01-01T00:00:01Z", "pools": ["alpha"],
    }] });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn name_of_a_pool_in_another_group_is_in_use() {
    let office = Office::open().await;
    office.put(&format!("{GROUP}/alpha"), &resource()).await;
    let (status, error) = office
        .put(
            &format!("{}/alpha", GROUP.replace("rg", "two")),
            &resource(),
        )
        .await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (409, &json!("SessionPoolNameInUse"))
    );
}

#[tokio::test]
async fn bad_requests_make_nothing() {
    let office = Office::open().await;
    let pool = format!("{GROUP}/alpha");
    let long = " ".repeat(MAX_JSON_BYTES + 1);
    let mut bad_image = resource();
    bad_image["properties"]["customContainerTemplate"]["containers"][0]["image"] = json!("other");
    for (method, path, body, expected) in [
        (
            "PUT",
            pool.clone(),
            "{".to_owned(),
            (400, "InvalidRequestContent"),
        ),
        (
            "PUT",
            pool.clone(),
            "[]".into(),
            (400, "InvalidRequestContent"),
        ),
        ("PUT", pool.clone(), long, (413, "PayloadTooLarge")),
        (
            "PUT",
            pool.clone(),
            "{}".into(),
            (400, "SessionPoolInvalidProperty"),
        ),
        (
            "PUT",
            pool.clone(),
            bad_image.to_string(),
            (400, "ImageNotFound"),
        ),
        (
            "PUT",
            format!("{GROUP}/Al_pha"),
            resource().to_string(),
            (400, "SessionPoolInvalidProperty"),
        ),
        (
            "PUT",
            format!("{pool}?api-version=new"),
            resource().to_string(),
            (400, "InvalidApiVersionParameter"),
        ),
        (
            "PATCH",
            pool.clone(),
            "{}".into(),
            (404, "ResourceNotFound"),
        ),
        ("POST", pool.clone(), "{}".into(), (405, "MethodNotAllowed")),
        (
            "POST",
            GROUP.to_owned(),
            "{}".into(),
            (405, "MethodNotAllowed"),
        ),
        ("GET", "/".into(), String::new(), (404, "ResourceNotFound")),
        (
            "POST",
            "/images".into(),
            String::new(),
            (400, "InvalidRequestContent"),
        ),
        (
            "DELETE",
            "/images".into(),
            String::new(),
            (405, "MethodNotAllowed"),
        ),
    ] {
        let (status, answer) = office.call(method, &path, body).await;
        let code = answer["error"]["code"].as_str().unwrap_or_default();
        assert_eq!((status, code), expected, "{method} {path}: {answer}");
        assert!(answer["error"]["traceId"].is_string());
    }
    assert!(office.pools.list().is_empty());
}

#[tokio::test]
async fn token_is_made_for_pools_that_exist() {
    let office = Office::open().await;
    office.put(&format!("{GROUP}/alpha"), &resource()).await;
    let ask = json!({ "role": "session-executor", "pools": ["alpha"], "ttlSeconds": 60 });
    let (status, answer) = office.call("POST", "/tokens", ask.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let expires: jiff::Timestamp = answer["expiresAt"].as_str().unwrap().parse().unwrap();
    let left = expires.as_second() - jiff::Timestamp::now().as_second();
    assert!((58..=60).contains(&left), "{left}");
    let value = format!("Bearer {}", answer["token"].as_str().unwrap())
        .parse()
        .unwrap();
    let headers = [(header::AUTHORIZATION, value)].into_iter().collect();
    let claims = office.authority.check(&headers).await.unwrap();
    let executor = [Role::SessionExecutor];
    assert!(claims.sees(&executor, Scope::nowhere("alpha")));
    assert!(!claims.sees(&executor, Scope::nowhere("beta")));

    for (ask, target, status) in [
        (json!({ "role": "owner" }), "role", 400),
        (json!({ "ttlSeconds": 0 }), "ttlSeconds", 400),
        (json!({ "ttlSeconds": "1h" }), "ttlSeconds", 400),
        (
            json!({ "ttlSeconds": MAX_TOKEN_TTL.as_secs() + 1 }),
            "ttlSeconds",
            400,
        ),
        (json!({ "pools": "alpha" }), "pools", 400),
        (json!({ "pools": ["beta"] }), "pools", 404),
        (json!({ "pools": [7] }), "pools", 404),
        (
            json!({ "role": "reader", "roles": ["reader"] }),
            "roles",
            400,
        ),
        (json!({ "roles": ["reader", "king"] }), "roles", 400),
        (json!({ "resourceGroups": [""] }), "resourceGroups", 400),
        (json!({ "subscriptions": "s" }), "subscriptions", 400),
        (json!({ "label": "a\nb" }), "label", 400),
        (json!({ "identifers": ["user-1"] }), "identifers", 400),
        (
            json!({ "identifiers": ["user-1", "x y"] }),
            "identifiers",
            400,
        ),
        (
            json!({ "role": "reader", "identifiers": ["user-1"] }),
            "identifiers",
            400,
        ),
    ] {
        let (found, answer) = office.call("POST", "/tokens", ask.to_string()).await;
        assert_eq!(
            (found, &answer["error"]["target"]),
            (status, &json!(target)),
            "{ask}: {answer}"
        );
        assert!(!answer.to_string().contains("user-1"), "{answer}");
    }
}

#[tokio::test]
async fn token_is_listed_without_itself_and_revoked_by_its_id() {
    let office = Office::open().await;
    let ask = json!({
        "roles": ["reader", "session-executor"], "resourceGroups": ["rg"], "subscriptions": ["s"],
        "identifiers": ["user-1", "team-*"], "label": "night build",
    });
    let (status, made) = office.call("POST", "/tokens", ask.to_string()).await;
    assert_eq!(status, 200, "{made}");
    // Who may make pools may be given names to come.
    let ask = json!({ "role": "Container Apps SessionPools Contributor", "pools": ["later"] });
    assert_eq!(office.call("POST", "/tokens", ask.to_string()).await.0, 200);
    let token = made["token"].as_str().unwrap();
    let (_, listed) = office.call("GET", "/tokens", "").await;
    assert_eq!(listed["value"].as_array().unwrap().len(), 2);
    assert!(
        !listed
            .to_string()
            .contains(token.rsplit('.').next().unwrap())
    );
    let path = format!("/tokens/{}", made["id"].as_str().unwrap());
    let (_, mut shown) = office.call("GET", &path, "").await;
    assert_eq!(shown["expiresAt"], made["expiresAt"]);
    for varies in ["createdAt", "expiresAt", "keyId"] {
        assert!(shown[varies].take().is_string(), "{varies}");
    }
    let expected = json!({
        "id": made["id"], "label": "night build", "roles": ["session-executor", "reader"],
        "subscriptions": ["s"], "resourceGroups": ["rg"], "pools": [],
        "identifiers": ["user-1", "team-*"], "keyId": null, "createdAt": null, "expiresAt": null,
        "revokedAt": null,
    });
    assert_eq!(shown, expected);

    let (status, revoked) = office.call("DELETE", &path, "").await;
    assert_eq!((status, revoked["revokedAt"].is_string()), (200, true));
    let headers = [(
        header::AUTHORIZATION,
        format!("Bearer {token}").parse().unwrap(),
    )];
    let headers = headers.into_iter().collect();
    let refused = office.authority.check(&headers).await.unwrap_err();
    assert_eq!(refused.message, "The token was revoked");
    let absent = "/tokens/00000000-0000-0000-0000-000000000000";
    for (method, path, code) in [
        ("GET", absent, "TokenNotFound"),
        ("DELETE", absent, "TokenNotFound"),
        ("GET", "/tokens/x", "ResourceNotFound"),
        ("GET", "/tokens/rotate", "MethodNotAllowed"),
        ("DELETE", "/tokens", "MethodNotAllowed"),
    ] {
        let (_, answer) = office.call(method, path, "").await;
        assert_eq!(answer["error"]["code"], code, "{method} {path}");
    }
}

#[tokio::test]
async fn key_is_rotated_and_with_the_old_ones_their_tokens_can_go() {
    let office = Office::open().await;
    office.call("POST", "/tokens", "{}").await;
    let (status, rotated) = office.call("POST", "/tokens/rotate", "{}").await;
    assert_eq!(status, 200, "{rotated}");
    assert_eq!(
        (&rotated["olderKeys"], &rotated["revokedTokens"]),
        (&json!(1), &json!(0))
    );
    let (_, again) = office
        .call("POST", "/tokens/rotate", r#"{"revokeOld":true}"#)
        .await;
    assert_eq!(
        (&again["olderKeys"], &again["revokedTokens"]),
        (&json!(0), &json!(1))
    );
    assert_ne!(rotated["keyId"], again["keyId"]);
    let (_, listed) = office.call("GET", "/tokens", "").await;
    assert!(listed["value"][0]["revokedAt"].is_string());
    for bad in [r#"{"revokeOld":"yes"}"#, r#"{"revoke":true}"#, "[]"] {
        assert_eq!(
            office.call("POST", "/tokens/rotate", bad).await.0,
            400,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn archive_is_streamed_to_the_image_service() {
    let office = Office::open().await;
    let path = "/images?transport=oci-archive&name=x%2Fy%3A1&ref=a:b%20c";
    let (status, answer) = office.call("POST", path, vec![0; 3 << 20]).await;
    assert_eq!(status, 200);
    let expected = json!({
        "name": "x/y:1", "digest": "sha256:d", "rootImageBytes": 3 << 20, "warnings": [], "cached": false
    });
    assert_eq!(answer, expected);
    let (_, images) = office.call("GET", "/images", "").await;
    assert_eq!(images["value"][0]["name"], "demo");
}

#[tokio::test]
async fn stop_is_answered_at_once_and_passed_on() {
    let office = Office::open().await;
    assert_eq!(office.call("GET", "/stop", "").await.0, 405);
    let asked = office.asked_to_stop.notified();
    let mut asked = std::pin::pin!(asked);
    assert!(!asked.as_mut().enable());
    assert_eq!(office.call("POST", "/stop", "").await, (202, Value::Null));
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
}

#[tokio::test]
async fn health_names_the_endpoint() {
    let office = Office::open().await;
    let health = office.call("GET", "/healthz", "").await;
    assert_eq!(
        health,
        (
            200,
            json!({ "status": "ok", "endpoint": "https://localhost:8443" })
        )
    );
}
