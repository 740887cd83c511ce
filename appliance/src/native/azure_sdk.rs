//! The client library of the cloud service against our resource API, as it is published: over TLS with the appliance's own
//! authority, in each version that people have in their programs.

use std::io::Write as _;

use serde_json::json;

use super::*;
use crate::images::registry::tests::server::{Access, TestRegistry};

/// A folder with one Python environment for each version, as `cargo dev check` makes it. Without it this is skipped.
const FOLDER_VARIABLE: &str = "CABANA_AZURE_SDK";
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/native/azure_sdk.py");
const VERSIONS: [&str; 3] = ["3.2.0", "4.0.0", "5.1.0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_clients_make_list_change_and_delete_pools() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from) else {
        eprintln!("SKIPPED: published_clients: {FOLDER_VARIABLE} is not set");
        return;
    };
    let Some(native) = Native::start("published_clients").await else {
        return;
    };
    let registry = TestRegistry::start(Access::Bearer).await;
    let given = json!({
        "endpoint": format!("https://localhost:{}", native.address.port()),
        "ca": native.paths.tls.join("ca.pem"),
        "subscription": "00000000-0000-0000-0000-000000000001",
        "image": IMAGE,
        "program": native.programs.demo,
        "private": format!("{}/team/app:1", registry.host()),
        "contributor": native.token("pool-contributor").await,
        "reader": native.token("reader").await,
        "executor": native.token("session-executor").await,
    })
    .to_string();
    for version in VERSIONS {
        let python = folder.join(version).join("bin/python");
        let given = given.clone();
        let run = tokio::task::spawn_blocking(move || {
            let mut child = Command::new(python)
                .arg(PROGRAM)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the environment of this version is there");
            let mut input = child.stdin.take().unwrap();
            input.write_all(given.as_bytes()).unwrap();
            drop(input);
            child.wait_with_output().unwrap()
        });
        let output = tokio::time::timeout(DEADLINE, run)
            .await
            .expect("it takes too long");
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{version}: {said}");
    }
}
