//! Images from registries: the call of its own, and pools that are made of them.

use super::*;

fn pull_body(password: &str) -> String {
    let login = json!({ "server": "private.example", "username": "user", "password": password });
    json!({ "image": "private.example/app", "registry": login }).to_string()
}

fn pool_body(password: &str) -> String {
    json!({ "properties": {
        "secrets": [{ "name": "pw", "value": password }],
        "customContainerTemplate": {
            "registryCredentials": { "server": "private.example", "username": "user", "passwordSecretRef": "pw" },
            "containers": [{ "image": "private.example/app" }],
            "ingress": { "targetPort": 80 },
        },
    } })
    .to_string()
}

#[tokio::test]
async fn pull_answers_with_its_steps_and_the_image_at_last() {
    let office = Office::open().await;
    let (status, lines) = office.lines("/images/pull", &pull_body(PASSWORD)).await;
    assert_eq!(status, 200);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], json!({ "event": "building" }));
    assert_eq!(
        (&lines[1]["event"], &lines[1]["cached"]),
        (&json!("done"), &json!(false))
    );
    assert_eq!(lines[1]["name"], "private.example/app:latest");
}

#[tokio::test]
async fn pull_that_fails_says_why_in_its_last_line() {
    let office = Office::open().await;
    let (status, lines) = office.lines("/images/pull", &pull_body("wrong")).await;
    assert_eq!(status, 200);
    assert_eq!(
        lines,
        [json!({ "event": "failed", "error": {
        "code": "ImagePullUnauthorized", "message": "not with these" } })]
    );
}

#[tokio::test]
async fn pull_that_is_not_understood_is_refused_without_its_password() {
    let office = Office::open().await;
    for body in [
        r#"{"image":"a","registry":{"server":"x.example","username":"u","password":["hunter2"]}}"#,
        r#"{"image":"a","registry":{"server":"no host","username":"u","password":"hunter2"}}"#,
        r#"{"registry":null}"#,
    ] {
        let (status, answer) = office.call("POST", "/images/pull", body).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!("InvalidRequestContent"))
        );
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
    }
    assert_eq!(office.call("GET", "/images/pull", "").await.0, 405);
}

#[tokio::test]
async fn pool_is_made_when_its_image_is_here_or_answered_with_the_reason() {
    let office = Office::open().await;
    let path = format!("{GROUP}/alpha");
    let (status, answer) = office.call("PUT", &path, pool_body("wrong")).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (400, &json!("ImagePullUnauthorized"))
    );
    assert_eq!(
        answer["error"]["target"],
        "properties.customContainerTemplate.containers[0].image"
    );
    let (status, pool) = office.call("PUT", &path, pool_body(PASSWORD)).await;
    assert_eq!(status, 201, "{pool}");
    assert!(!pool.to_string().contains(PASSWORD));
    let container = &pool["properties"]["customContainerTemplate"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imageDigest"]),
        (&json!("private.example/app"), &json!("sha256:d"))
    );
    // The password is not said again, and still there.
    let patch = json!({ "properties": { "customContainerTemplate": { "containers": [{ "image": "private.example/app" }] } } });
    let (status, pool) = office.call("PATCH", &path, patch.to_string()).await;
    assert_eq!(status, 200, "{pool}");
}
