//! Processes of the binary under test, as the host sees them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::artifacts;

/// What a worker executes: it is inside the binary, and never has a name on disk.
const WORKER: &str = "/memfd:cabana-worker (deleted)";

/// A process that runs the binary under test, or the worker inside it.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// The first argument: `serve`, `appliance`, `worker` or `image-worker`.
    pub role: String,
    /// What it calls itself (`comm`, at most 15 bytes): a worker is `cabana:spare` until it has a guest, then
    /// `cabana:worker`.
    pub title: String,
    pub parent: u32,
    /// Names this process even when it is gone and its number is used again.
    pidfd: OwnedFd,
}

impl Process {
    /// `None`: it is gone, or runs something else.
    fn look(pid: u32) -> Option<Self> {
        let pidfd = open(pid)?;
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        if exe != artifacts::cabana() && exe != Path::new(WORKER) {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let role = command.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc(5): state and parent follow the name, which may contain anything, in parentheses.
        let (name, rest) = stat.rsplit_once(')')?;
        let title = name.split_once('(')?.1.to_owned();
        let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
        Some(Self {
            pid,
            role: String::from_utf8_lossy(role).into_owned(),
            title,
            parent,
            pidfd,
        })
    }

    /// Whether it has a guest. A worker that has none waits for one.
    pub fn has_guest(&self) -> bool {
        self.role == "worker" && self.title == "cabana:worker"
    }

    pub fn kill(&self) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Stops it where it is, with everything in it.
    pub fn suspend(&self) {
        pidfd_send_signal(&self.pidfd, Signal::STOP).expect("it is there and may be stopped");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn assert_ends_within(&self, limit: Duration) {
        assert!(
            ends_within(&self.pidfd, limit),
            "`cabana {}` (pid {}) still runs after {limit:?}",
            self.role,
            self.pid
        );
    }
}

/// All processes of the binary under test, our own children among them.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::look).collect()
}

/// A process and all that descend from it, the process first.
pub fn tree(root: u32) -> Vec<Process> {
    let mut rest = all();
    let mut tree: Vec<Process> = rest.extract_if(.., |process| process.pid == root).collect();
    loop {
        let parents: Vec<u32> = tree.iter().map(|process| process.pid).collect();
        let children: Vec<_> = rest
            .extract_if(.., |process| parents.contains(&process.parent))
            .collect();
        if children.is_empty() {
            return tree;
        }
        tree.extend(children);
    }
}

/// `None`: there is no such process any more.
pub fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether the process has ended when this returns.
pub fn ends_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("cannot wait for a process: {}", io::Error::from(e)),
            Ok(ready) => return ready > 0,
        }
    }
}
