//! Sessions that may do so much in a second: what takes as long as the limit says, and what of a pool changes when its limits do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::appliance::CONFIG;
use e2e::harness::skipped;
use e2e::{Session, TestAppliance, artifacts};
use hyper::Method;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::bombs::Leaf;

e2e::tests! {
    Shared: [
        session_with_a_disk_limit_takes_as_long_as_it_says_and_another_one_does_not,
        session_with_a_stream_limit_takes_as_long_as_it_says_and_another_one_does_not,
        limit_that_is_lifted_is_lifted_for_new_sessions_and_makes_no_other_golden,
    ];
    Own: [disk_limit_is_the_kernels_too_where_sessions_disks_are_on_one];
}

const MIB: usize = 1 << 20;
/// Beside what the rate brings, a quiet session has a second's worth.
const BURST: Duration = Duration::from_secs(1);

fn time(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

/// The least time that so many bytes take.
fn least(bytes: usize, per_second: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / per_second as f64) - BURST
}

fn session_with_a_disk_limit_takes_as_long_as_it_says_and_another_one_does_not(
    host: &TestAppliance,
) {
    const COPIES: usize = 20;
    const BYTES: usize = COPIES * MIB;
    let write = |session: &Session<'_>| {
        session.get("/");
        time(|| {
            // On the disk, and not only in the guest's memory.
            let path = format!("/files/large?copies={COPIES}");
            let answer = session.call(Method::PUT, &path, vec![7; MIB]);
            assert_eq!(answer.status, 201);
        })
    };
    let free = host.pool("disk-free").create();
    let limited = host
        .pool("disk-limited")
        .with(&["--disk-throughput", "1Mi"])
        .create();
    let free = write(&free.session("user-1"));
    let limited = write(&limited.session("user-1"));
    let least = least(BYTES, MIB);
    println!(
        "{BYTES} bytes to a disk: {free:?} without a limit, {limited:?} with one, of which {least:?} are the limit's"
    );
    assert!(limited >= least, "{limited:?}");
    assert!(free < least, "{free:?}");
}

fn session_with_a_stream_limit_takes_as_long_as_it_says_and_another_one_does_not(
    host: &TestAppliance,
) {
    const RATE: usize = 128 << 10;
    const BYTES: usize = 2 * MIB;
    // What goes to a guest is paid for when it was read: the last such read is not waited for.
    const ONE_READ: usize = 128 << 10;
    let free = host.pool("stream-free").create();
    let limited = host
        .pool("stream-limited")
        .with(&["--stream-throughput", "128Ki"])
        .create();
    let (free, limited) = (free.session("user-1"), limited.session("user-1"));
    let least = least(BYTES - ONE_READ, RATE);
    for session in [&free, &limited] {
        session.get("/");
    }
    for (way, transfer) in [
        ("from", download as fn(&Session<'_>, usize)),
        ("to", upload),
    ] {
        let fast = time(|| transfer(&free, BYTES));
        let slow = time(|| transfer(&limited, BYTES));
        println!(
            "{BYTES} bytes {way} a session: {fast:?} without a limit, {slow:?} with one, of which {least:?} are the limit's"
        );
        assert!(slow >= least, "{way}: {slow:?}");
        assert!(fast < least, "{way}: {fast:?}");
    }
}

fn download(session: &Session<'_>, bytes: usize) {
    let answer = session.get(&format!("/download?bytes={bytes}"));
    assert_eq!((answer.status, answer.body.len()), (200, bytes));
}

fn upload(session: &Session<'_>, bytes: usize) {
    let answer = session.call(Method::POST, "/upload", vec![7; bytes]).json();
    assert_eq!(answer["bytes"], bytes);
}

fn limit_that_is_lifted_is_lifted_for_new_sessions_and_makes_no_other_golden(host: &TestAppliance) {
    const BYTES: usize = MIB;
    let least = least(BYTES, 128 << 10);
    let pool = host
        .pool("lifted")
        .with(&["--stream-throughput", "128Ki"])
        .create();
    let goldens = || -> Vec<_> {
        let all = host.goldens();
        all.into_iter().map(|golden| golden.folder).collect()
    };
    let before = goldens();
    let old = pool.session("user-old");
    old.get("/");
    assert!(time(|| download(&old, BYTES)) >= least);
    let show = || {
        host.cli()
            .json(&["sessionpool", "show", "--name", "lifted"])["properties"]
            .take()
    };
    assert_eq!(show()["rateLimits"]["streamBytesPerSecond"], 128 << 10);
    host.cli().ok(&[
        "sessionpool",
        "update",
        "--name",
        "lifted",
        "--stream-throughput",
        "none",
    ]);
    assert!(show()["rateLimits"].is_null());
    // Until the first slot of the new revision is ready, the old one serves.
    pool.wait_until("of its new revision", |shown| {
        shown["templateUpdateStatus"]["desiredTemplate"].is_null()
    });
    let new = pool.session("user-new");
    new.get("/");
    assert!(time(|| download(&new, BYTES)) < least);
    // Who is there lives on as he was.
    assert!(time(|| download(&old, BYTES)) >= least);
    assert_eq!(goldens(), before);
}

/// A file system on a disk, for the appliance's state: memory that the kernel treats as a disk. Until it is dropped.
struct RamDisk(PathBuf);

impl RamDisk {
    const DEVICE: &str = "/dev/ram0";
    /// Its numbers (Documentation/admin-guide/devices.txt).
    const NUMBERS: &str = "1:0";
    /// Room for an image and a golden, which is mostly holes. In KiB.
    const SIZE: &str = "rd_size=524288";

    fn mount(root: &Path) -> Self {
        let state = root.join("var/lib/cabana");
        fs::create_dir_all(&state).unwrap();
        command("insmod", &["/lab/brd.ko", "rd_nr=1", Self::SIZE]);
        command("mke2fs", &[Self::DEVICE]);
        mount(Self::DEVICE, &state, "ext4", MountFlags::empty(), None).unwrap();
        Self(state)
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::empty());
        let _ = Command::new("rmmod").arg("brd").status();
    }
}

fn command(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
}

fn disk_limit_is_the_kernels_too_where_sessions_disks_are_on_one() {
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests gets file systems");
        return;
    }
    let mut disk = None;
    let mut host = TestAppliance::start_by(CONFIG, |_, root| disk = Some(RamDisk::mount(root)));
    let limited = host
        .pool("limited")
        .with(&["--disk-throughput", "1Mi"])
        .create();
    limited.session("user-1").get("/");
    let expected = format!(
        "{} rbps=1048576 wbps=1048576 riops=max wiops=max\n",
        RamDisk::NUMBERS
    );
    let leaf = Leaf::of(&limited, "user-1");
    assert_eq!(leaf.read("io.max"), expected);
    let free = host.pool("free").create();
    free.session("user-1").get("/");
    assert_eq!(Leaf::of(&free, "user-1").read("io.max"), "");
    // Whoever takes the worker over says it again.
    fs::write(
        leaf.file("io.max"),
        format!("{} wbps=max rbps=max", RamDisk::NUMBERS),
    )
    .unwrap();
    host.detach();
    host.restart();
    assert_eq!(leaf.read("io.max"), expected);
    host.end_in_order();
    // Before the folder goes that it is mounted on.
    drop(disk);
}
