//! The binary as people start it: exit codes, and one line on stderr for each mistake.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn cabana(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cabana"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary was just built")
}

/// Checks the code and that stderr is one line of ours, which it gives back.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = cabana(arguments);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
    assert!(
        line.starts_with("cabana: ") && line.lines().count() == 1,
        "{arguments:?}: {line}"
    );
    assert!(output.stdout.is_empty(), "{arguments:?} printed something");
    line
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["sessionpool", "create", "--help"],
    ] {
        let output = cabana(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn bad_usage_is_64() {
    refused(&[], 64);
    refused(&["fly"], 64);
    refused(&["serve", "--nope"], 64);
    refused(
        &[
            "sessionpool",
            "create",
            "--name",
            "p",
            "--image",
            "i",
            "--target-port",
            "0",
        ],
        64,
    );
    refused(&["token", "create", "--ttl", "never"], 64);
}

#[test]
fn bad_configuration_is_64_names_its_key_and_touches_nothing() {
    let root = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, named) in [
        ("lissten = 1\n", "lissten"),
        ("uid_base = 0\n", "uid_base"),
        ("listen = \"x\"\n", "listen"),
        ("listen = [\n", ":"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let (root, file) = (root.path().to_str().unwrap(), file.path().to_str().unwrap());
        let line = refused(&["serve", "--root", root, "--config", file], 64);
        assert!(line.contains(named), "{text:?}: {line}");
        assert!(is_empty(Path::new(root)), "{text:?} left something");
    }
    let root = root.path().to_str().unwrap();
    refused(
        &[
            "serve",
            "--root",
            root,
            "--config",
            "/nonexistent/cabana.toml",
        ],
        64,
    );
    refused(&["serve", "--root", root, "--listen", "nowhere"], 64);
    refused(&["serve", "--root", &format!("/{}", "x".repeat(200))], 64);
}

#[test]
fn client_without_an_appliance_is_69_and_a_missing_archive_is_1() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let line = refused(&["sessionpool", "list", "--root", root], 69);
    assert!(line.contains("cabana serve"), "{line}");
    refused(&["token", "create", "--root", root], 69);
    let line = refused(
        &[
            "image",
            "import",
            "oci-archive:/nonexistent.tar",
            "--root",
            root,
        ],
        1,
    );
    assert!(line.contains("/nonexistent.tar"), "{line}");
}

#[test]
fn processes_that_the_warden_starts_refuse_to_be_started_by_hand() {
    for role in ["appliance", "image-worker"] {
        let line = refused(&[role], 64);
        assert!(line.contains("cabana serve"), "{line}");
    }
}

#[test]
fn doctor_says_the_same_in_its_report_and_in_its_exit_code() {
    let output = cabana(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = if report["canRunGuests"].as_bool().unwrap() {
        0
    } else {
        1
    };
    assert_eq!(output.status.code(), Some(expected), "{report}");
    let kvm = &report["findings"][0];
    assert_eq!(kvm["name"], "kvm");
    assert_eq!(kvm["verdict"] == "ok", expected == 0, "{report}");
}

#[test]
fn serve_on_a_host_without_usable_kvm_is_69_says_what_doctor_says_and_touches_nothing() {
    let report = cabana(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let kvm = &report["findings"][0];
    if kvm["verdict"] == "ok" {
        eprintln!("skipped: this host can run guests; the end-to-end suite serves on such hosts");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let line = refused(&["serve", "--root", root.path().to_str().unwrap()], 69);
    let wanted = kvm["detail"].as_str().unwrap();
    // An address in the guest is part of some details and may differ from run to run.
    let stable = wanted.split(" at guest address").next().unwrap();
    assert!(line.contains(stable), "{line} does not say {stable}");
    assert!(is_empty(root.path()));
}
