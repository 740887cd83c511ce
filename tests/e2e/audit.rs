//! The leak audit can fail: each kind of thing that tests could leave behind is planted, and must be named.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::appliance::{free_address, new_root};
use e2e::audit::Audit;
use e2e::harness::skipped;
use e2e::process::{self, Process};
use e2e::{TestAppliance, artifacts};
use rustix::fs::MemfdFlags;

e2e::tests! {
    Anywhere: [
        process_that_lost_its_parents_is_named_by_the_leak_audit,
        process_that_nobody_waited_for_is_named_by_the_leak_audit,
        sockets_files_and_memory_that_a_process_holds_are_named_by_the_leak_audit,
        folder_and_shared_memory_are_named_by_the_leak_audit,
        mount_cgroup_and_kvm_user_are_named_by_the_leak_audit,
        memory_of_one_small_guest_is_named_by_the_leak_audit,
        leak_audit_that_finds_something_fails,
    ];
    Own: [
        appliance_that_still_runs_is_named_with_everything_it_holds_by_the_leak_audit,
    ];
}

const LIMIT: Duration = Duration::from_secs(20);

/// A process of no interest that holds a descriptor until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(held: impl Into<OwnedFd>) -> Self {
        let mut command = Command::new("tail");
        command.args(["-f", "/dev/null"]);
        let child = command.stdin(Stdio::from(held.into())).spawn();
        Self(child.expect("every host has tail"))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Only fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asserts that there is one new thing, with all these words.
#[track_caller]
fn assert_names(audit: &Audit, words: &[&str]) {
    let leaks = audit.leaks();
    let named = leaks
        .iter()
        .any(|leak| words.iter().all(|word| leak.contains(word)));
    assert!(named, "{words:?} is not among {leaks:#?}");
}

#[track_caller]
fn assert_clean(audit: &Audit) {
    assert_eq!(audit.leaks(), [""; 0]);
}

/// Something of the host that a container may not change.
fn may_skip(why: &str) {
    assert!(!artifacts::host_is_ours(), "on a host of our own: {why}");
    skipped(why);
}

/// `cabana` as it waits for somebody to write to a FIFO, in the background of a shell that has ended.
fn orphan(folder: &Path) -> Process {
    let fifo = folder.join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            r#""$0" golden inspect "$1" >/dev/null 2>&1 & echo $!"#,
        ])
        .args([artifacts::cabana(), &fifo]);
    let printed = shell.stdin(Stdio::null()).output().unwrap().stdout;
    let pid: u32 = String::from_utf8(printed).unwrap().trim().parse().unwrap();
    process::appears(LIMIT, "the orphan", |process| process.pid == pid)
}

fn process_that_lost_its_parents_is_named_by_the_leak_audit() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::begin();
    let orphan = orphan(folder.path());
    assert_names(
        &audit,
        &["process", &orphan.pid.to_string(), "cabana golden"],
    );
    orphan.kill();
    orphan.assert_ends_within(LIMIT);
    drop(folder);
}

fn process_that_nobody_waited_for_is_named_by_the_leak_audit() {
    let audit = Audit::begin();
    let mut command = Command::new(artifacts::cabana());
    let mut child = command
        .arg("--version")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    let pidfd = process::open(child.id()).expect("nobody has waited for it");
    assert!(process::ends_within(&pidfd, LIMIT));
    assert_names(&audit, &["zombie", &child.id().to_string(), "cabana"]);
    child.wait().unwrap();
    assert_clean(&audit);
}

fn sockets_files_and_memory_that_a_process_holds_are_named_by_the_leak_audit() {
    let root = new_root();
    let audit = Audit::begin();

    let path = root.path().join("planted.sock");
    let holder = Holder::of(UnixListener::bind(&path).unwrap());
    fs::remove_file(&path).unwrap();
    assert_names(&audit, &["socket unix", "planted.sock"]);
    drop(holder);

    let address = free_address();
    let holder = Holder::of(TcpListener::bind(address).unwrap());
    let port = format!("port {}", address.port());
    assert_names(&audit, &["socket tcp", "listening", &port]);
    drop(holder);

    let path = root.path().join("planted");
    let holder = Holder::of(File::create(&path).unwrap());
    fs::remove_file(&path).unwrap();
    assert_names(
        &audit,
        &["open", "planted (deleted)", &holder.0.id().to_string()],
    );
    drop(holder);

    let memory = rustix::fs::memfd_create("cabana-planted", MemfdFlags::CLOEXEC).unwrap();
    let holder = Holder::of(memory);
    assert_names(&audit, &["open", "/memfd:cabana-planted"]);
    drop(holder);
    assert_clean(&audit);
}

fn folder_and_shared_memory_are_named_by_the_leak_audit() {
    let audit = Audit::begin();
    let root = new_root();
    assert_names(&audit, &["file", &root.path().display().to_string()]);
    let inside = [
        "run/cabana/workers/planted",
        "var/lib/cabana/golden/.new-planted",
    ];
    for folder in inside {
        fs::create_dir_all(root.path().join(folder)).unwrap();
        assert_names(&audit, &[&root.path().join(folder).display().to_string()]);
    }
    drop(root);

    let shared = Path::new("/dev/shm/cabana-planted");
    fs::write(shared, "x").unwrap();
    assert_names(&audit, &["shared memory", "cabana-planted"]);
    fs::remove_file(shared).unwrap();
    assert_clean(&audit);
}

/// What only root may plant, and where there is a KVM.
fn mount_cgroup_and_kvm_user_are_named_by_the_leak_audit() {
    let root = new_root();
    let audit = Audit::begin();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "planted"]).arg(root.path());
    if mount.stderr(Stdio::null()).status().unwrap().success() {
        assert_names(
            &audit,
            &["mount", "tmpfs", &root.path().display().to_string()],
        );
        let unmounted = Command::new("umount").arg(root.path()).status();
        assert!(unmounted.unwrap().success());
    } else {
        may_skip("nothing can be mounted here");
    }

    let leaf = PathBuf::from("/sys/fs/cgroup/cabana/planted");
    if fs::create_dir_all(&leaf).is_ok() {
        assert_names(&audit, &["cgroup", "/cabana/planted"]);
        fs::remove_dir(&leaf).unwrap();
        // An appliance that runs here has more in it.
        let _ = fs::remove_dir(leaf.parent().unwrap());
    } else {
        may_skip("no cgroup can be made here");
    }

    if artifacts::host_is_ours() {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let holder = Holder::of(kvm.unwrap());
        assert_names(&audit, &["kvm", "users of"]);
        drop(holder);
    } else {
        may_skip("others may use KVM here");
    }
    assert_clean(&audit);
}

fn memory_of_one_small_guest_is_named_by_the_leak_audit() {
    const SMALLEST_GUEST: usize = 128 << 20;
    if !artifacts::host_is_ours() {
        return may_skip("others use memory here");
    }
    let audit = Audit::begin();
    // Written to, so that it is there.
    let guest = vec![1_u8; SMALLEST_GUEST];
    assert_names(&audit, &["memory", "MiB are not available any more"]);
    drop(guest);
    // The kernel keeps freed pages in lists of its own for some seconds.
    audit.finish();
}

fn leak_audit_that_finds_something_fails() {
    let audit = Audit::begin();
    let root = new_root();
    let failed = std::panic::catch_unwind(|| audit.finish_within(Duration::ZERO));
    let why = failed.expect_err("it did not fail");
    let why = why.downcast_ref::<String>().unwrap();
    assert!(why.contains(&root.path().display().to_string()), "{why}");
    drop(root);
    audit.finish_within(Duration::ZERO);
}

fn appliance_that_still_runs_is_named_with_everything_it_holds_by_the_leak_audit() {
    let audit = Audit::begin();
    let host = TestAppliance::start();
    host.pool("running").create().session("user-1").boot_id();
    let root = host.root().display().to_string();
    let worker = host.workers()[0].pid.to_string();
    let port = format!("port {}", host.address().port());
    for words in [
        &["process", &worker, "cabana worker"][..],
        &["process", "cabana appliance"],
        &["process", "cabana serve"],
        &["cgroup", "/cabana/"],
        &["disk", &root],
        &["file", &root, "admin.sock"],
        &["socket unix", &root, "vsock.sock"],
        &["socket tcp", "listening", &port],
        &["open", "anon_inode:kvm-vm", &worker],
        &["open", "/memfd:"],
    ] {
        assert_names(&audit, words);
    }
    if artifacts::host_is_ours() {
        assert_names(&audit, &["kvm", "users of"]);
    }
    host.stop();
    audit.finish();
}
