//! The ways an image comes in and the ways a pool is addressed, beyond the usual ones.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::client::empty;
use e2e::{TestAppliance, artifacts};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

e2e::tests! {
    Shared: [
        folder_with_an_oci_layout_is_the_same_image_as_its_archive,
        docker_archive_boots_and_answers,
    ];
    Own: [
        pool_answers_at_a_host_name_of_its_own,
    ];
}

/// The demo image as a folder with an OCI layout.
fn layout() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(artifacts::demo_image());
    assert!(tar.arg("-C").arg(folder.path()).status().unwrap().success());
    folder
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `blobs/sha256/...` of a descriptor.
fn blob(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap();
    format!("blobs/{}", digest.replace(':', "/"))
}

fn folder_with_an_oci_layout_is_the_same_image_as_its_archive(host: &TestAppliance) {
    host.demo_image();
    let images = host.cli().json(&["image", "ls"]);
    let layout = layout();
    let source = format!("oci:{}", layout.path().display());
    let imported = host
        .cli()
        .json(&["image", "import", &source, "--name", "from-folder"]);
    assert_eq!(imported["cached"], true, "{imported}");
    assert!(
        images
            .to_string()
            .contains(imported["digest"].as_str().unwrap()),
        "{imported} is not among {images}"
    );
}

fn docker_archive_boots_and_answers(host: &TestAppliance) {
    let layout = layout();
    let index = read_json(&layout.path().join("index.json"));
    let manifest = read_json(&layout.path().join(blob(&index["manifests"][0])));
    let layers: Vec<String> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(blob)
        .collect();
    let listing = json!([{
        "Config": blob(&manifest["config"]),
        "RepoTags": ["docker-demo:1"],
        "Layers": layers,
    }]);
    fs::write(layout.path().join("manifest.json"), listing.to_string()).unwrap();
    let archive = layout.path().join("saved.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&archive).arg("-C").arg(layout.path());
    assert!(
        tar.args(["manifest.json", "blobs"])
            .status()
            .unwrap()
            .success()
    );

    let source = format!("docker-archive:{}", archive.display());
    host.cli().ok(&["image", "import", &source]);
    let pool = host
        .pool("docker")
        .with(&["--image", "docker-demo:1"])
        .create();
    let answer = pool.session("user-1").get("/");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "Hello from Cabana\n")
    );
    pool.delete();
}

fn pool_answers_at_a_host_name_of_its_own() {
    let host = TestAppliance::start_with(
        "domain = \"sessions.test\"\nmemory_overcommit = 100\ncpu_overcommit = 100\n",
    );
    let pool = host.pool("shop").create();
    let shown = host.cli().json(&["sessionpool", "show", "--name", "shop"]);
    let endpoint = shown["properties"]["poolManagementEndpoint"]
        .as_str()
        .unwrap();
    assert!(
        endpoint.starts_with("https://shop.sessions.test"),
        "{endpoint}"
    );

    let by_name = |name: &str| {
        let request = Request::builder()
            .method(Method::GET)
            .uri("/echo?identifier=user-1")
            .header(HOST, name)
            .header(AUTHORIZATION, format!("Bearer {}", host.token()))
            .body(empty())
            .unwrap();
        host.block_on(host.client().send(request))
    };
    let echo = by_name("shop.sessions.test").json();
    assert_eq!(echo["path"], "/echo", "{echo}");
    by_name("nobody.sessions.test").assert_refused(404, "SessionPoolNotFound");
    // The path form goes on to work, and both lead to one session.
    let by_path = pool.session("user-1").get("/id").json();
    assert!(by_path["bootId"].is_string(), "{by_path}");
    assert_eq!(host.workers().len(), 1);
    host.stop();
}
