//! Images from a registry, by the processes that do it on a server: the appliance downloads, an image worker builds.

use serde_json::json;

use super::*;
use crate::images::registry::tests::server::{
    Access, Fault, OCI_MANIFEST, PASSWORD, TestImage, TestRegistry, USER, layer,
};

/// The most that an image may have: each one is a descriptor on its way to the image worker.
const LAYERS: usize = 128;

fn pool_of(image: &str, server: &str, command: &Path) -> Value {
    json!({ "properties": {
        "scaleConfiguration": { "maxConcurrentSessions": 2, "readySessionInstances": 0 },
        "secrets": [{ "name": "password", "value": PASSWORD }],
        "customContainerTemplate": {
            "registryCredentials": { "server": server, "username": USER, "passwordSecretRef": "password" },
            "containers": [{ "name": "main", "image": image, "command": [command] }],
            "ingress": { "targetPort": 8080 },
        },
    } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_of_an_image_with_128_layers_is_pulled_built_and_answers() {
    let Some(native) = Native::start("pool_of_an_image_with_128_layers").await else {
        return;
    };
    let registry = TestRegistry::start(Access::Bearer).await;
    let plain = |at: usize| layer(&format!("text {at}"), at);
    let layers: Vec<_> = (0..LAYERS).map(|at| (plain(at), plain(at))).collect();
    let image = TestImage::of(OCI_MANIFEST, &layers);
    registry.put("team/app", "1", &image);
    let name = format!("{}/team/app:1", registry.host());
    let body = pool_of(&name, &registry.host(), &native.programs.demo).to_string();
    let path = client::pool("pulled");
    let (status, pool) = native.admin().send("PUT", &path, body.clone()).await;
    assert_eq!(status, 201, "{pool}");
    assert!(!pool.to_string().contains(PASSWORD));
    let container = &pool["properties"]["customContainerTemplate"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imageDigest"]),
        (&json!(name), &json!(image.digest))
    );
    let answer = native.client().await.get("pulled", "/id", "user-1").await;
    assert_eq!(answer.unwrap().status, 200);

    // Nothing of the password is in the store, and nothing of the download is left.
    let blobs = native.paths.images.join(".blobs/sha256");
    assert_eq!(entries(&blobs), 0);
    let mut files: Vec<_> = std::fs::read_dir(&native.paths.store).unwrap().collect();
    files.retain(|file| file.as_ref().unwrap().metadata().unwrap().is_file());
    assert!(!files.is_empty());
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let found = bytes
            .windows(PASSWORD.len())
            .any(|part| part == PASSWORD.as_bytes());
        assert!(!found, "the password is in the store");
    }

    // A registry that is gone is no matter for a pool that keeps its image, and one for a new one.
    registry.fail(|_| Some(Fault::Status(http::StatusCode::BAD_GATEWAY)));
    let patch = json!({ "tags": { "a": "b" } }).to_string();
    let (status, patched) = native.admin().send("PATCH", &path, patch).await;
    assert_eq!(status, 200, "{patched}");
    let (status, answer) = native
        .admin()
        .send("PUT", &client::pool("other"), body)
        .await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (502, &json!("ImageRegistryUnreachable"))
    );
    let (status, _) = native.stop();
    assert!(status.success());
}
