//! The image of a pool, and what its container is started with.

use super::*;

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
