//! Processes of the binary under test, as the host sees them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::artifacts;

/// What a worker executes: it is inside the binary, and never has a name on disk.
const WORKER: &str = "/memfd:cabana-worker (deleted)";

/// Between two looks. Each takes a few milliseconds on an emulated processor, and guests shall come up meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

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
        let Stat { title, parent, .. } = Stat::of(pid)?;
        Some(Self {
            pid,
            role: String::from_utf8_lossy(role).into_owned(),
            title,
            parent,
            pidfd,
        })
    }

    fn belongs_to(&self, root: &Path) -> bool {
        match self.role.as_str() {
            "serve" => {
                let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
                let mut arguments = command.split(|byte| *byte == 0);
                arguments.any(|argument| argument == root.as_os_str().as_encoded_bytes())
            }
            "worker" => {
                let consoles = root.join("run/cabana/workers");
                let open = fs::read_dir(format!("/proc/{}/fd", self.pid));
                let targets = open
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter_map(|fd| fs::read_link(fd.path()).ok());
                targets
                    .into_iter()
                    .any(|target| target.starts_with(&consoles))
            }
            // These end with their warden, and so are found below it.
            _ => false,
        }
    }

    /// Whether it has a guest. A worker that has none waits for one.
    pub fn has_guest(&self) -> bool {
        self.role == "worker" && self.title == "cabana:worker"
    }

    pub fn kill(&self) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Whether it has not ended yet.
    pub fn runs(&self) -> bool {
        !ends_within(&self.pidfd, Duration::ZERO)
    }

    /// Stops it where it is, with everything in it.
    pub fn suspend(&self) {
        pidfd_send_signal(&self.pidfd, Signal::STOP).expect("it is there and may be stopped");
    }

    /// Whether it has ended when this returns.
    pub fn ends_within(&self, limit: Duration) -> bool {
        ends_within(&self.pidfd, limit)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn assert_ends_within(&self, limit: Duration) {
        assert!(
            self.ends_within(limit),
            "`cabana {}` (pid {}) still runs after {limit:?}",
            self.role,
            self.pid
        );
    }
}

/// What is used of `/proc/<pid>/stat`.
struct Stat {
    title: String,
    state: char,
    parent: u32,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc(5): state and parent follow the name, which may contain anything, in parentheses.
        let (name, rest) = stat.rsplit_once(')')?;
        let mut rest = rest.split_whitespace();
        Some(Self {
            title: name.split_once('(')?.1.to_owned(),
            state: rest.next()?.parse().ok()?,
            parent: rest.next()?.parse().ok()?,
        })
    }
}

/// All processes of this host.
pub fn ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// All processes of the binary under test, our own children among them.
pub fn all() -> Vec<Process> {
    ids().filter_map(Process::look).collect()
}

/// The children of one process's first thread: a look at few instead of at all.
pub fn children(of: u32) -> Vec<Process> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
    let children = children.unwrap_or_default();
    let ids = children.split_whitespace().filter_map(|id| id.parse().ok());
    ids.filter_map(Process::look).collect()
}

/// The process of a worker, which has a cgroup of its own with this id.
pub fn of_worker(id: &str) -> Option<Process> {
    let leaf = format!("/sys/fs/cgroup/cabana/{}", id.replace('-', ""));
    let ids = fs::read_to_string(Path::new(&leaf).join("cgroup.procs")).ok()?;
    ids.lines().find_map(|pid| Process::look(pid.parse().ok()?))
}

/// The worker that a line of the log is about.
pub fn worker_in(line: &str) -> Option<&str> {
    const UUID: usize = 36;
    line.split_once("worker=")?.1.get(..UUID)
}

/// Waits until there is a process that fits. The kernel tells nobody when one starts or changes its name, so this looks
/// again and again.
#[track_caller]
pub fn appears(limit: Duration, what: &str, fits: impl Fn(&Process) -> bool) -> Process {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = all().into_iter().find(&fits) {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what} does not appear within {limit:?}"
        );
        thread::sleep(PAUSE);
    }
}

/// Processes that have ended and that their parents have not waited for, with their names.
pub fn zombies() -> Vec<(u32, String)> {
    let dead = |pid| {
        let stat = Stat::of(pid).filter(|stat| stat.state == 'Z')?;
        Some((pid, stat.title))
    };
    ids().filter_map(dead).collect()
}

/// The processes of the appliance at `root`, also those whose parent is gone: a worker with a guest outlives its warden.
pub fn of(root: &Path) -> Vec<Process> {
    let mut rest = all();
    // By what only one that belongs there has: the root as an argument, or a worker's console.
    let mut found: Vec<Process> = rest
        .extract_if(.., |process| process.belongs_to(root))
        .collect();
    loop {
        let parents: Vec<u32> = found.iter().map(|process| process.pid).collect();
        let children: Vec<_> = rest
            .extract_if(.., |process| parents.contains(&process.parent))
            .collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
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
        tv_nsec: limit.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("cannot wait for a process: {}", io::Error::from(e)),
            Ok(ready) => return ready > 0,
        }
    }
}
