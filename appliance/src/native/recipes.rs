//! What README tells people to type with `curl`, typed: each marked block is a script, in the order of the page.
//!
//! A block is marked by the comment [`MARK`] before it, which nobody sees who reads the page. Only what differs from host to host
//! is replaced: the port, the token, where the certificate and the administration socket are, and the container.

use std::fmt::Write as _;

use super::*;

const README: &str = include_str!("../../../README.md");
const MARK: &str = "<!-- tested: native::recipes -->\n```sh\n";
const END: &str = "```\n";
const POOL: &str = "demo";

/// The marked blocks of the page that contain a word.
fn blocks(word: &str) -> String {
    let blocks = README.split(MARK).skip(1);
    let blocks = blocks.map(|rest| rest.split_once(END).unwrap().0);
    let found: Vec<_> = blocks.filter(|block| block.contains(word)).collect();
    found.concat()
}

/// Replaces what must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "README has no {from}");
    text.replace(from, to)
}

/// Types it, and gives what was printed.
async fn typed(script: String) -> String {
    let mut bash = tokio::process::Command::new("bash");
    bash.args(["-e", "-u", "-c", &format!("exec 2>&1\n{script}")])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, bash.output()).await;
    let output = output.expect("it takes too long").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{said}");
    said
}

/// `curl` without its progress, so that what is printed is what was answered; each answer on a line of its own, with its status.
fn preamble(native: &Native) -> String {
    let mut text = String::new();
    let cabana = native.programs.cabana.display();
    let root = native.root.path().display();
    write!(
        text,
        "curl() {{ command curl --silent --show-error --write-out '\\n[%{{http_code}}]\\n' \"$@\"; }}\n\
         cabana() {{ {cabana} \"$@\" --root {root}; }}\n"
    )
    .unwrap();
    text
}

/// The statuses of the answers, in their order.
fn statuses(said: &str) -> Vec<&str> {
    let lines = said.lines();
    let marked = lines.filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    marked.filter(|status| status.len() == 3).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tour_of_the_readme_is_answered_as_it_says() {
    let Some(native) = Native::start("tour").await else {
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let mut body = native.body(4, 1);
    let container = &mut body["properties"]["customContainerTemplate"]["containers"][0];
    container["env"] = json!([{ "name": "DATA_DIR", "value": data.path() }]);
    let (status, answer) = native
        .admin()
        .send("PUT", &client::pool(POOL), body.to_string())
        .await;
    assert_eq!(status, 201, "{answer}");
    let script = blocks("POOL");
    let token = native.token("session-executor").await;
    let script = replaced(&script, "TOKEN=...", &format!("TOKEN={token}"));
    let ca = native.paths.tls.join("ca.pem");
    let script = replaced(&script, "target/up/ca.pem", &ca.display().to_string());
    let port = native.address.port();
    let script = replaced(&script, "localhost:8443", &format!("localhost:{port}"));
    let said = typed(preamble(&native) + &script).await;
    // Containers share this machine's disk, so that the note is there for both; in guests it is not.
    let expected = [
        "200", "200", "200", "201", "200", "200", "200", "200", "401", "200", "200",
    ];
    assert_eq!(statuses(&said), expected, "{said}");
    for part in [
        "Hello from Cabana",
        "hello",
        "data: event 2",
        "alice",
        "stopped.",
        "Unauthorized",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains(&token), "the container was told the token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_is_made_changed_and_deleted_as_the_readme_says() {
    let Some(native) = Native::start("pool_by_curl").await else {
        return;
    };
    let archive = OciArchive::of(&[Layer::new().dir("other").finish()]);
    let path = "/images?transport=oci-archive&name=python:3.12";
    let (status, answer) = native.admin().send("POST", path, archive).await;
    assert_eq!(status, 200, "{answer}");
    let script = blocks("API");
    let ca = native.paths.tls.join("ca.pem").display().to_string();
    let script = replaced(&script, "/var/lib/cabana/tls/ca.pem", &ca);
    let port = native.address.port();
    let script = replaced(&script, "localhost:8443", &format!("localhost:{port}"));
    let demo = json!([native.programs.demo]).to_string();
    let command = r#"["python3", "-m", "http.server", "8080"]"#;
    let script = replaced(&script, command, &demo);
    let said = typed(preamble(&native) + &script).await;
    assert_eq!(
        statuses(&said),
        ["201", "200", "202", "200", "202"],
        "{said}"
    );
    let told = said.to_lowercase();
    assert!(told.contains("azure-asyncoperation: https://"), "{said}");
    assert!(said.contains("poolManagementEndpoint"), "{said}");
}
