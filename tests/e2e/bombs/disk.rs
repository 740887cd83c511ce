//! Disks: a session has as much as its pool says, and a host whose disk is full loses nothing but what did not fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::appliance::CONFIG;
use e2e::harness::skipped;
use e2e::{TestAppliance, artifacts};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Leaf, Neighbour, QUARTER, fill_holes, run, start};

e2e::tests! {
    Shared: [disk_of_a_session_ends_where_its_pool_says];
    Own: [host_with_a_full_disk_fails_the_writes_of_sessions_and_nothing_else];
}

/// What a pool gives its sessions by default.
const DISK_BYTES: u64 = 8 << 30;
const ENOSPC: &str = "28";

fn disk_of_a_session_ends_where_its_pool_says(host: &TestAppliance) {
    // Of the size that pools have by default, so that it shares the golden of the others.
    let pool = host.pool("filled").create();
    let session = pool.session("bomb");
    // Reserved and not written: it is the same to the guest's file system, and the lab's disk is memory.
    let answer = run(&session, &["reserve", "/"]);
    let said = answer["stdout"].as_str().unwrap_or_default().trim();
    let (bytes, errno) = said.split_once(' ').unwrap_or_else(|| panic!("{answer}"));
    let bytes: u64 = bytes.parse().unwrap();
    assert_eq!(errno, ENOSPC, "{answer}");
    // The file system's own tables are the rest.
    assert!(
        (DISK_BYTES * 8 / 10..DISK_BYTES).contains(&bytes),
        "{bytes} bytes"
    );
    // And the session goes on.
    assert_eq!(session.get("/").status, 200);
}

/// What the state of the appliance is on: room for image and store, and for a golden without holes.
const HOST_DISK_MIB: u64 = 720;
/// What is left of it when somebody else has filled it, for the sessions to fill.
const LEFT_BYTES: u64 = 4 << 20;
/// Writes of a guest come to the host some seconds later, in batches.
const FULL: Duration = Duration::from_secs(60);

/// A file system of its own for the appliance's state, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(root: &Path) -> Self {
        let state = root.join("var/lib/cabana");
        fs::create_dir_all(&state).unwrap();
        let size = std::ffi::CString::new(format!("size={HOST_DISK_MIB}m,mode=755")).unwrap();
        mount(
            "small",
            &state,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        Self(state)
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Takes all but `left` bytes of it. The file that does.
    fn fill(&self, name: &str, left: u64) -> PathBuf {
        let path = self.0.join(name);
        let file = fs::File::create(&path).unwrap();
        let bytes = self.free().saturating_sub(left);
        if bytes > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn host_with_a_full_disk_fails_the_writes_of_sessions_and_nothing_else() {
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests gets file systems");
        return;
    }
    let begun = Instant::now();
    // Dropped after the appliance that uses it.
    let mut disk = None;
    let mut host = TestAppliance::start_by(CONFIG, |_, root| disk = Some(Small::mount(root)));
    {
        let disk = disk.as_ref().expect("it was mounted");
        let pool = host.pool("filler").with(QUARTER).create();
        let calm = host
            .pool("calm")
            .with(&["--cooldown-period", "600"])
            .create();
        let mut neighbour = Neighbour::new(&host, calm.session("calm"));
        let session = pool.session("bomb");
        session.boot_id();
        let leaf = Leaf::of(&pool, "bomb");
        fill_holes(&host);
        let ballast = disk.fill("ballast", LEFT_BYTES);
        start(&session, &["bomb", "disk", "/big"]);
        let due = Instant::now() + FULL;
        while disk.free() > 0 {
            assert!(Instant::now() < due, "{} bytes are free", disk.free());
            neighbour.ask();
        }
        // It goes on trying.
        neighbour.assert_as_fast_beside(&leaf, "writes to a full disk");
        // What the bomb has given back meanwhile is taken by somebody else, too, and none is left while it is held.
        leaf.hold(true);
        let rest = disk.fill("rest", 0);
        // What was written failed, as its guest's kernel was told; and who has nothing to do with it goes on.
        host.wait_for_line(0, FULL, "that a disk is full", |line| {
            line.contains("disk request failed on the host")
                && line.contains("No space left on device")
        });
        neighbour.ask();
        // A session more is refused, for the warden could not write down whose its process is; and whoever asks is told why.
        let refused = calm.session("other").get("/");
        let error = refused.assert_refused(503, "SessionStartFailed");
        let why = error["message"].as_str().unwrap_or_default();
        assert!(why.contains("No space left on device"), "{why}");
        leaf.hold(false);
        pool.delete();
        // The disk of the session that is gone is free again.
        assert!(disk.free() > 0);
        for file in [ballast, rest] {
            fs::remove_file(file).unwrap();
        }
        host.pool("later").create().session("first").boot_id();
    }
    // The store is what it was.
    host.end_in_order();
    host.restart();
    for pool in ["calm", "later"] {
        host.existing_pool(pool).session("again").boot_id();
    }
    host.end_in_order();
    drop(disk.take());
    println!("full disk: {:?} in all", begun.elapsed());
}
