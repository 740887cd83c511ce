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

/// As before `| head`.
#[test]
fn output_that_nobody_reads_ends_the_command_quietly() {
    for arguments in [
        &["openapi"][..],
        &["completion", "bash"],
        &["doctor", "--json"],
        &["sessionpool", "create", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = Command::new(env!("CARGO_BIN_EXE_cabana"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .output()
            .expect("the binary was just built");
        let read = cabana(arguments);
        assert_eq!(unread.status.code(), read.status.code(), "{arguments:?}");
        let said = String::from_utf8_lossy(&unread.stderr);
        assert_eq!(said, "", "{arguments:?}");
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

/// Starts `cabana store` on the store below `root`.
fn store(root: &Path, arguments: &[&str]) -> Output {
    let root = ["--root", root.to_str().expect("the path is text")];
    cabana(&[&["store"], arguments, &root].concat())
}

const EXPORT: &str = concat!(
    r#"{"format":"cabana-store","version":1,"records":1,"keys":true}"#,
    "\n",
    r#"{"table":"keys","key":"token-signing","version":1,"record":[1,2,3]}"#,
    "\n"
);

#[test]
fn store_is_exported_and_imported_while_no_appliance_runs() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let root = tempfile::tempdir().unwrap();
    let text = root.path().to_str().unwrap();
    let line = refused(&["store", "export", "--root", text], 1);
    assert!(line.contains("There is no store at"), "{line}");
    assert!(is_empty(root.path()));

    let file = root.path().join("in.jsonl");
    std::fs::write(&file, EXPORT).unwrap();
    let file = file.to_str().unwrap();
    let output = store(root.path(), &["import", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"Imported 1 keys\n");
    let folder = root.path().join("var/lib/cabana/store");
    let owner = std::fs::metadata(&folder).unwrap().uid();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().uid(), owner, "{entry:?}");
    }
    let line = refused(&["store", "import", file, "--root", text], 1);
    assert!(line.contains("--replace"), "{line}");

    let out = root.path().join("out.jsonl");
    let out = out.to_str().unwrap();
    let output = store(root.path(), &["export", "--with-keys", "--output", out]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty());
    let mode = std::fs::metadata(out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let exported = std::fs::read_to_string(out).unwrap();
    assert!(
        exported.contains(r#""key":"token-signing","record":[1,2,3]"#),
        "{exported}"
    );
    // A file that is there is not overwritten.
    let line = refused(&["store", "export", "--output", out, "--root", text], 1);
    assert!(line.contains(out), "{line}");
    let output = store(root.path(), &["export"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("token-signing"));
}

#[test]
fn damaged_store_is_one_line_with_the_ways_out_and_leaves_no_file() {
    let root = tempfile::tempdir().unwrap();
    let text = root.path().to_str().unwrap();
    let file = root.path().join("in.jsonl");
    std::fs::write(&file, EXPORT).unwrap();
    let output = store(root.path(), &["import", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let conf = root.path().join("var/lib/cabana/store/conf");
    let mut bytes = std::fs::read(&conf).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&conf, bytes).unwrap();
    let out = root.path().join("out.jsonl");
    let out = out.to_str().unwrap();
    let line = refused(&["store", "export", "--output", out, "--root", text], 1);
    assert!(
        line.contains("is damaged") && line.contains("--salvage"),
        "{line}"
    );
    assert!(!Path::new(out).exists());
    // There is no pool in it, and that is said, too.
    let output = store(root.path(), &["export", "--salvage", "--output", out]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "cabana: exported nothing: there are no records\n");
}

#[test]
fn commands_about_sessions_without_an_appliance_are_69_and_a_bad_probe_file_is_64() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let target = ["--name", "demo", "--root", root];
    refused(&[&["session", "list"], &target[..]].concat(), 69);
    let one = [&target[..], &["--identifier", "-user-1"]].concat();
    for command in ["show", "stop"] {
        refused(&[&["session", command], &one[..]].concat(), 69);
    }
    refused(&[&["sessionpool", "update"], &target[..]].concat(), 69);
    let probes = ["sessionpool", "update", "--probe-yaml", "/nonexistent.yaml"];
    let line = refused(&[&probes, &target[..]].concat(), 64);
    assert!(line.contains("/nonexistent.yaml"), "{line}");
}
