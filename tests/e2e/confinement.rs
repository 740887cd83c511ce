//! What a worker and an image worker could do if somebody had taken them over, as the host sees it: nothing but what their descriptors allow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use e2e::appliance::{CONFIG, free_address, new_root, serve_command};
use e2e::cli::Ran;
use e2e::harness::skipped;
use e2e::process::{self, Process};
use e2e::{Cli, TestAppliance, artifacts};

e2e::tests! {
    Own: [
        worker_is_alone_in_an_empty_room_with_an_id_and_limits_of_its_own,
        image_worker_is_in_an_empty_room_with_an_id_and_limits_of_its_own,
        worker_that_outlives_its_appliance_keeps_its_id_and_nobody_else_gets_it,
        host_that_forbids_namespaces_is_refused_unless_nobody_wants_confinement,
        ordinary_user_is_told_what_is_missing_and_has_the_rest,
        link_in_the_place_of_what_root_works_on_is_refused_or_removed,
    ];
}

/// For what a process does at its start, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);
const NAMESPACES: [&str; 5] = ["mnt", "net", "ipc", "uts", "pid"];
/// Of the room: nobody's but a worker's own is the one of processes.
const SHARED: [&str; 4] = ["mnt", "net", "ipc", "uts"];
const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

fn worker_is_alone_in_an_empty_room_with_an_id_and_limits_of_its_own() {
    let host = TestAppliance::start();
    let pool = host.pool("jailed").create();
    let sessions = ["first", "second"].map(|name| pool.session(name));
    sessions.iter().for_each(|session| drop(session.boot_id()));
    let workers = host.workers();
    assert_eq!(workers.len(), 2, "{workers:#?}");
    let appliance = status(host.appliance().pid);
    let mut ids = BTreeSet::from([appliance["Uid"].clone()]);
    for worker in &workers {
        assert_confined(worker);
        assert_descriptors(&host, worker);
        let limits = limits(worker.pid);
        assert_eq!(limits["Max open files"], "2048");
        assert_eq!(limits["Max processes"], "64");
        assert_ne!(limits["Max file size"], "unlimited");
        assert_eq!(
            group(worker.pid, "cpu.max").as_deref(),
            Some("100000 100000")
        );
        assert!(ids.insert(status(worker.pid)["Uid"].clone()), "{ids:?}");
    }
    let spaces = |names: &[&str]| workers.iter().map(|it| spaces(it.pid, names)).collect();
    let rooms: BTreeSet<Vec<PathBuf>> = spaces(&SHARED);
    let numbers: BTreeSet<Vec<PathBuf>> = spaces(&["pid"]);
    assert_eq!((rooms.len(), numbers.len()), (1, 2));
    // The processes that need the host are where it is.
    for process in [host.pid(), host.appliance().pid] {
        let own = self::spaces(std::process::id(), &NAMESPACES);
        assert_eq!(self::spaces(process, &NAMESPACES), own);
    }
    host.stop();
}

/// A process that is killed when this is dropped.
struct Ended<'a>(&'a Process);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.kill();
    }
}

fn image_worker_is_in_an_empty_room_with_an_id_and_limits_of_its_own() {
    let host = TestAppliance::start();
    // A large one: its worker is still at it when it is looked at.
    let source = format!("oci-archive:{}", artifacts::python_image().display());
    thread::scope(|scope| {
        let import = scope.spawn(|| host.cli().run(&["image", "import", &source]));
        let begun = Instant::now();
        // One looks what there is in the archive and may be gone at once, and another one unpacks.
        let worker = loop {
            let worker = process::appears(LIMIT, "an image worker", |it| it.role == "image-worker");
            if suspended_when_confined(&worker) {
                break worker;
            }
            assert!(begun.elapsed() < LIMIT, "no image worker is ever confined");
        };
        // However this ends, or the import would wait for it.
        let ended = Ended(&worker);
        assert_confined(&worker);
        assert_ne!(
            status(worker.pid)["Uid"],
            status(host.appliance().pid)["Uid"]
        );
        assert_eq!(limits(worker.pid)["Max open files"], "256");
        let targets = descriptors(worker.pid);
        let known = |target: &str| {
            let prefixes = ["socket:", "/dev/null", "/memfd:image report"];
            prefixes.iter().any(|prefix| target.starts_with(prefix))
                || is_file_below(host.root(), target)
                || target == stderr(host.pid())
        };
        assert!(targets.iter().all(|it| known(it)), "{targets:#?}");
        drop(ended);
        let ran = import.join().unwrap();
        assert_ne!(ran.code, Some(0), "{ran:#?}");
    });
    host.stop();
}

/// An image worker confines itself, and then reads the first byte of the image. `false`: it has ended before it was seen to be confined.
fn suspended_when_confined(worker: &Process) -> bool {
    while let Some(status) = status_of(worker.pid) {
        if status["NoNewPrivs"] == "1" && status["CapBnd"] == NONE {
            worker.suspend();
            return worker.runs();
        }
        thread::sleep(PAUSE);
    }
    false
}

fn worker_that_outlives_its_appliance_keeps_its_id_and_nobody_else_gets_it() {
    let mut host = TestAppliance::start();
    let pool = host.pool("kept").create();
    let boot = pool.session("first").boot_id();
    let worker = host.workers().remove(0);
    let id = status(worker.pid)["Uid"].clone();
    host.detach();
    host.restart();
    let pool = host.existing_pool("kept");
    assert_eq!(pool.session("first").boot_id(), boot);
    assert_eq!(status(worker.pid)["Uid"], id);
    assert_confined(&worker);
    pool.session("second").boot_id();
    let processes = host.processes().into_iter();
    let guests: Vec<Process> = processes.filter(Process::has_guest).collect();
    let ids: BTreeSet<String> = guests
        .iter()
        .map(|guest| status(guest.pid)["Uid"].clone())
        .collect();
    assert_eq!((guests.len(), ids.len()), (2, 2), "{ids:?}");
    host.stop();
}

/// How many network namespaces this host may have, and the number that it had when this is dropped.
struct Spaces(String);

impl Spaces {
    const FILE: &str = "/proc/sys/user/max_net_namespaces";

    fn none() -> Self {
        let before = fs::read_to_string(Self::FILE).unwrap();
        fs::write(Self::FILE, "0").unwrap();
        Self(before)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        fs::write(Self::FILE, &self.0).expect("the host gets its limit back");
    }
}

fn host_that_forbids_namespaces_is_refused_unless_nobody_wants_confinement() {
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests may lose its namespaces for a moment");
        return;
    }
    let without = Spaces::none();
    let root = new_root();
    let ran = Ran::of(&mut serve_command(root.path(), free_address()));
    ran.assert_refused(69, &["make namespaces", "--unconfined"]);
    assert_eq!(
        fs::read_dir(root.path()).unwrap().count(),
        0,
        "a refused start has touched its root"
    );
    let doctor = Cli::without_root().run(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{doctor:#?}");
    assert!(doctor.stdout.contains("--unconfined"), "{doctor:#?}");

    let host = TestAppliance::start_by(CONFIG, |serve, _| {
        serve.arg("--unconfined");
    });
    drop(without);
    let warned = |line: &str| line.contains("WARN") && line.contains("--unconfined");
    host.wait_for_line(0, LIMIT, "that it confines nobody", warned);
    host.pool("free").create().session("first").boot_id();
    let worker = &host.workers()[0];
    assert_eq!(
        spaces(worker.pid, &NAMESPACES),
        spaces(std::process::id(), &NAMESPACES)
    );
    // What needs nothing of the host is there all the same.
    let (worker, appliance) = (status(worker.pid), status(host.appliance().pid));
    assert_ne!(worker["Uid"], appliance["Uid"]);
    assert_eq!(
        (worker["CapBnd"].as_str(), worker["NoNewPrivs"].as_str()),
        (NONE, "1")
    );
    host.stop();
}

/// `/dev/kvm` for everybody, until it is dropped.
struct Device(Permissions);

impl Device {
    const FILE: &str = "/dev/kvm";

    fn for_all() -> Self {
        let before = fs::metadata(Self::FILE).unwrap().permissions();
        fs::set_permissions(Self::FILE, Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        fs::set_permissions(Self::FILE, self.0.clone()).expect("the device gets its mode back");
    }
}

/// `nobody`: not root and in no group.
const NOBODY: u32 = 65534;

#[expect(
    clippy::disallowed_methods,
    reason = "the rule is about how the appliance starts processes; this one is somebody else's"
)]
fn ordinary_user_is_told_what_is_missing_and_has_the_rest() {
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests may let everybody use /dev/kvm");
        return;
    }
    let _for_all = Device::for_all();
    let host = TestAppliance::start_by(CONFIG, |serve, root| {
        for folder in ["", "etc", "etc/cabana"] {
            chown(root.join(folder), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        serve.uid(NOBODY).gid(NOBODY);
    });
    let warned = |line: &str| line.contains("WARN") && line.contains("not started as root");
    host.wait_for_line(0, LIMIT, "what is missing", warned);
    host.pool("own").create().session("first").boot_id();
    let worker = &host.workers()[0];
    let status = status(worker.pid);
    assert_eq!(status["NoNewPrivs"], "1");
    let limits = limits(worker.pid);
    assert_eq!(limits["Max open files"], "2048");
    assert_eq!(limits["Max core file size"], "0");
    let memory = fs::metadata(format!("/proc/{}/mem", worker.pid)).unwrap();
    assert_eq!(memory.uid(), 0, "others of its user may trace it");
    host.stop();
}

/// As of CVE-2026-1386: somebody who may write where a privileged process works puts a link there, to have it change what is behind.
fn link_in_the_place_of_what_root_works_on_is_refused_or_removed() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    fs::write(&precious, "x").unwrap();
    for path in [&precious, outside.path()] {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }
    let look = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.mode(), found.len())
    };
    let all = || {
        let files = fs::read_dir(outside.path()).unwrap().count();
        (look(outside.path()), look(&precious), files)
    };
    let before = all();
    let mut host = TestAppliance::start();
    let links = [
        // A file that it locks, folders that it gives away, and one that it writes records to.
        ("var/lib/cabana/lock", precious.as_path()),
        ("var/lib/cabana/images", outside.path()),
        ("var/lib/cabana/warden", outside.path()),
    ];
    for (place, target) in links {
        host.end_in_order();
        let (place, kept) = (host.root().join(place), host.root().join("kept"));
        fs::rename(&place, &kept).unwrap();
        symlink(target, &place).unwrap();
        let ran = Ran::of(&mut serve_command(host.root(), free_address()));
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert_eq!(all(), before, "{} was followed", place.display());
        fs::remove_file(&place).unwrap();
        fs::rename(&kept, &place).unwrap();
        host.restart();
    }
    // The folder of what runs is made anew, and what the appliance's user has left in it is removed without being looked into.
    host.end_in_order();
    symlink(outside.path(), host.root().join("run/cabana")).unwrap();
    host.restart();
    assert_eq!(all(), before, "the link to the run folder was followed");
    for name in ["workers.old", "more"] {
        symlink(outside.path(), host.root().join("run/cabana").join(name)).unwrap();
    }
    host.end_in_order();
    assert_eq!(all(), before, "a link in the run folder was followed");
    host.restart();
    // A record that is a link is nobody's.
    host.detach();
    let record = host.root().join("var/lib/cabana/warden/appliance.json");
    let _ = fs::remove_file(&record);
    symlink(&precious, &record).unwrap();
    host.restart();
    assert_eq!(all(), before, "a record was written through a link");
    host.stop();
}

const NONE: &str = "0000000000000000";

/// What holds for everybody who is in the room.
#[track_caller]
fn assert_confined(process: &Process) {
    let pid = process.pid;
    let status = status(pid);
    for kind in ["Uid", "Gid"] {
        let ids: BTreeSet<&str> = status[kind].split_whitespace().collect();
        assert_eq!(ids.len(), 1, "{status:#?}");
        let id: u32 = ids.first().unwrap().parse().unwrap();
        assert!((2_000_000_000..2_000_065_536).contains(&id), "{status:#?}");
    }
    assert_eq!(status["Groups"], "", "{status:#?}");
    for set in CAPABILITIES {
        assert_eq!(status[set], NONE, "{set}: {status:#?}");
    }
    assert_eq!(status["NoNewPrivs"], "1", "{status:#?}");
    // The last of its numbers is its own idea of it.
    assert!(status["NSpid"].ends_with("\t1"), "{status:#?}");

    let outside = spaces(std::process::id(), &NAMESPACES);
    for (inside, outside) in spaces(pid, &NAMESPACES).iter().zip(&outside) {
        assert_ne!(inside, outside);
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let files = fs::read_dir(&root).unwrap().count();
    assert_eq!(files, 0, "there are files in its root");
    let error = fs::write(root.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let mounts: Vec<&str> = mounts.lines().collect();
    assert!(
        matches!(&mounts[..], [one] if one.starts_with("none / tmpfs ro,nosuid,nodev,noexec")),
        "{mounts:#?}"
    );
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let devices: Vec<&str> = devices.lines().skip(2).collect();
    assert!(
        devices.len() == 1 && devices[0].trim_start().starts_with("lo:"),
        "{devices:#?}"
    );
    // Nobody but root may look into it.
    let memory = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
    assert_eq!(memory.uid(), 0, "others of its user may trace it");

    let limits = limits(pid);
    let none = [
        "Max core file size",
        "Max locked memory",
        "Max file locks",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
    ];
    for limit in none {
        assert_eq!(limits[limit], "0", "{limit}: {limits:#?}");
    }
    for file in ["memory.max", "pids.max"] {
        let most = group(pid, file).unwrap();
        assert!(most.parse::<u64>().unwrap() > 0, "{file}: {most}");
    }
}

/// A worker has what its guest is made of, its sockets and KVM: no folder, no other worker's files, and nothing of the host.
#[track_caller]
fn assert_descriptors(host: &TestAppliance, worker: &Process) {
    let targets = descriptors(worker.pid);
    let workers = host.root().join("run/cabana/workers");
    let own: BTreeSet<PathBuf> = targets
        .iter()
        .filter_map(|target| Path::new(target).strip_prefix(&workers).ok())
        .filter_map(|rest| rest.components().next())
        .map(|id| id.as_os_str().into())
        .collect();
    assert!(own.len() <= 1, "files of others: {targets:#?}");
    let kvm = ["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"];
    for device in kvm {
        assert!(
            targets.iter().any(|target| target == device),
            "{targets:#?}"
        );
    }
    let prefixes = [
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu:",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[timerfd]",
        "socket:[",
        "/dev/kvm",
        "/dev/null",
        "/memfd:",
    ];
    for target in &targets {
        let known = prefixes.iter().any(|prefix| target.starts_with(prefix))
            || is_file_below(host.root(), target)
            || *target == stderr(host.pid());
        assert!(known, "{target} in {targets:#?}");
    }
}

/// Also one that has no name any more.
fn is_file_below(root: &Path, target: &str) -> bool {
    Path::new(target).starts_with(root) && !Path::new(target).is_dir()
}

/// Where the warden's errors go, and so its children's.
fn stderr(warden: u32) -> String {
    let target = fs::read_link(format!("/proc/{warden}/fd/2")).unwrap();
    target.display().to_string()
}

fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.map(|target| target.display().to_string()).collect()
}

fn status(pid: u32) -> BTreeMap<String, String> {
    status_of(pid).expect("the process is there")
}

/// `None`: there is no such process any more.
fn status_of(pid: u32) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(fields.collect())
}

fn spaces(pid: u32, names: &[&str]) -> Vec<PathBuf> {
    let link = |name: &&str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    names.iter().map(link).collect()
}

/// The hard limits.
fn limits(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    // A name of up to 25 letters, then the soft and the hard limit.
    let lines = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_at_checked(26));
    lines
        .filter_map(|(name, values)| {
            let hard = values.split_whitespace().nth(1)?;
            Some((name.trim().to_owned(), hard.to_owned()))
        })
        .collect()
}

/// A file of the process's control group.
fn group(pid: u32, file: &str) -> Option<String> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let text = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join(file)).ok()?;
    Some(text.trim().to_owned())
}
