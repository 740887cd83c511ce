//! Calls made from the OpenAPI document by Schemathesis, as it is published: none is answered with 5xx, none with a status, a
//! type or a body that the document does not name. The calls are made at random from one seed.

use std::collections::BTreeMap;

use super::*;

/// A Python interpreter that has it, as `cargo dev check` makes it. Without it this is skipped.
const PYTHON_VARIABLE: &str = "CABANA_SCHEMATHESIS";
/// Leads the calls to what is there.
const HOOKS: &str = "document_hooks";
const HOOKS_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/native");
/// What the hooks are told.
const GIVEN_VARIABLE: &str = "CABANA_DOCUMENT_TEST";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Calls of each operation that are made at random, besides those that the document suggests.
const EXAMPLES: &str = "25";
const SEED: &str = "1";
/// Of the calls of each operation so many percent must succeed, so that this is about more than what is refused. The others
/// are those that the document forbids, and names that were made up.
const SUCCEEDED_PERCENT: usize = 40;

const KEPT: &str = "kept";
const CHANGED: &str = "changed";
const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";
const GROUP: &str = "default";
const SESSIONS: usize = 4;
/// Sessions that are there, and more that are ended and begun again, and more whose names are made up: then the pool is full.
const MOST_SESSIONS: usize = 3 * SESSIONS;

/// Changes of every kind: a pool that is made, changed, and changed to an image that is not there; and one that is deleted.
/// One may ask for each of them, whether it goes on or has ended.
async fn operations(native: &Native) -> Vec<String> {
    let good = native.body(1, 0);
    let mut bad = good.clone();
    bad["properties"]["customContainerTemplate"]["containers"][0]["image"] = "absent".into();
    let (admin, path) = (native.admin(), client::pool("told"));
    let tags = json!({ "tags": { "a": "b" } });
    let mut ids = vec![admin.begin("PUT", &path, good.to_string()).await];
    ids.push(admin.begin("PATCH", &path, tags.to_string()).await);
    ids.push(admin.begin("PUT", &path, bad.to_string()).await);
    native.pool("gone", 1, 0).await;
    ids.push(admin.begin("DELETE", &client::pool("gone"), "").await);
    ids
}

/// How often each operation was answered, and how often with success.
fn tally(calls: &str) -> BTreeMap<&str, (usize, usize)> {
    let mut counts = BTreeMap::new();
    for line in calls.lines() {
        let (operation, status) = line.split_once(' ').unwrap();
        let (all, well) = counts.entry(operation).or_default();
        *all += 1;
        *well += usize::from(status.starts_with('2'));
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_that_is_made_from_the_document_is_answered_with_what_is_not_in_it() {
    let Some(python) = std::env::var_os(PYTHON_VARIABLE) else {
        eprintln!("SKIPPED: calls_from_the_document: {PYTHON_VARIABLE} is not set");
        return;
    };
    let Some(native) = Native::start("calls_from_the_document").await else {
        return;
    };
    native.pool(KEPT, MOST_SESSIONS, 0).await;
    native.pool(CHANGED, 1, 0).await;
    let client = native.client().await;
    let names = |kind: &str| -> Vec<_> { (0..SESSIONS).map(|n| format!("{kind}-{n}")).collect() };
    for identifier in names("user") {
        let answer = client.get(KEPT, "/", &identifier).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    let body = json!({ "roles": ["pool-contributor", "session-executor"], "ttlSeconds": 3600 });
    let (status, answer) = native
        .admin()
        .send("POST", "/tokens", body.to_string())
        .await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["token"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("openapi.json"), crate::openapi::document()).unwrap();
    let base = format!("https://localhost:{}", native.address.port());
    let ca = native.paths.tls.join("ca.pem");
    let given = json!({
        "subscription": SUBSCRIPTION,
        "group": GROUP,
        "kept": KEPT,
        "changed": CHANGED,
        "passing": names("passing"),
        "identifiers": names("user"),
        "ended": names("ended"),
        "operations": operations(&native).await,
        // The demo server answers `echo` by any method.
        "paths": ["echo"],
        "endpoint": format!("{base}{}", client::endpoint(KEPT)),
        "token": token,
        "ca": ca,
        "image": IMAGE,
        "program": native.programs.demo,
        "calls": file("calls"),
    });
    let mut command = tokio::process::Command::new(python);
    command
        .current_dir(folder.path())
        .args(["-m", "schemathesis.cli", "run"])
        .arg(file("openapi.json"))
        .args(["--url", &base, "--tls-verify"])
        .arg(ca)
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--checks", CHECKS, "--max-examples", EXAMPLES])
        .args(["--phases", "examples,coverage,fuzzing", "--seed", SEED])
        .args(["--continue-on-failure", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("PYTHONPATH", HOOKS_FOLDER)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(GIVEN_VARIABLE, given.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let begun = Instant::now();
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.expect("it takes too long").unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", said.concat());
    let calls = std::fs::read_to_string(file("calls")).unwrap();
    let tally = tally(&calls);
    println!(
        "{} calls of {} operations in {:?}",
        calls.lines().count(),
        tally.len(),
        begun.elapsed()
    );
    for (operation, (all, well)) in &tally {
        println!("{operation}: {well} of {all} succeeded");
    }
    let described = crate::openapi::value()["paths"].as_object().unwrap();
    let described = described
        .values()
        .map(|item| item.as_object().unwrap().len());
    assert_eq!(tally.len(), described.sum::<usize>());
    for (operation, (all, well)) in tally {
        assert!(
            well * 100 >= all * SUCCEEDED_PERCENT,
            "{operation}: {well} of {all} succeeded"
        );
    }
}
