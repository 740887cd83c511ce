//! What an appliance can leave behind on its host: processes, sockets, folders, disks, cgroups, mounts, microVMs.
//!
//! [`Traces::take`] is about one appliance, which may be running, and is what tests compare. [`Traces::of_tests`] is about all that the
//! tests have started, sockets and the kernel's own things among it, and is for the time when nothing of theirs runs (see `audit`).

mod host;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::process::{self, Process};

pub use host::Memory;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Below a root.
const DISKS: &str = "var/lib/cabana/disks";
/// What the warden writes down of each process while it runs.
const RECORDS: &str = "var/lib/cabana/warden";
/// Where images and goldens are while they are made or removed.
const UNFINISHED: [(&str, &[&str]); 2] = [
    ("var/lib/cabana/images/.tmp", &[""]),
    ("var/lib/cabana/golden", &[".new-", ".old-"]),
];

/// What was handed out to tests, so that it is known for theirs on a host that others use as well.
static MADE: Mutex<Made> = Mutex::new(Made {
    roots: Vec::new(),
    ports: Vec::new(),
});

#[derive(Clone, Debug)]
struct Made {
    roots: Vec<PathBuf>,
    ports: Vec<u16>,
}

/// A picture of the host, one line per thing.
#[derive(Clone, Debug, Default)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// `root` is the appliance's root. Processes are those of the binary under test, whoever started them.
    pub fn take(root: &Path) -> Self {
        let mut traces = Self::default();
        traces.add_processes();
        traces.add_cgroups();
        traces.add_files(root);
        traces
    }

    /// All that tests can leave on this host. `whole`: it is there for them alone, so that whatever is new on it is
    /// theirs; elsewhere only what is known to be theirs counts.
    pub fn of_tests(whole: bool) -> Self {
        let Made { roots, ports } = made().clone();
        let mut traces = Self::default();
        traces.add_processes();
        traces.add_cgroups();
        for root in roots.iter().filter(|root| root.exists()) {
            traces.add("file", root.display());
            traces.add_files(root);
        }
        let lines = &mut traces.0;
        host::zombies(lines);
        host::held(lines, whole, &roots);
        host::unix_sockets(lines, whole, &roots);
        host::tcp_sockets(lines, whole, &ports);
        host::mounts(lines, whole, &roots);
        host::shared_memory(lines, whole);
        if whole {
            host::kvm_users(lines);
            for folder in ["/run", "/tmp", "/var"] {
                below(Path::new(folder), &mut |path| {
                    traces.add("file", path.display());
                });
            }
        }
        traces
    }

    fn add_processes(&mut self) {
        for process in process::all() {
            self.0.insert(line_of(&process));
            // A session's disk has no name, so it lives as long as somebody has it open.
            for target in host::open_files(process.pid) {
                let disk = target
                    .parent()
                    .is_some_and(|folder| folder.ends_with(DISKS));
                if disk {
                    let line = format!("{} of {}", target.display(), process.role);
                    self.add("disk", line);
                }
            }
        }
    }

    fn add_cgroups(&mut self) {
        below(Path::new(CGROUPS), &mut |path| {
            if path.is_dir() && path.components().any(|part| part.as_os_str() == "cabana") {
                self.add("cgroup", path.display());
            }
        });
    }

    fn add_files(&mut self, root: &Path) {
        for folder in ["run/cabana", DISKS, RECORDS] {
            below(&root.join(folder), &mut |path| {
                self.add("file", path.display());
            });
        }
        for (folder, prefixes) in UNFINISHED {
            let entries = fs::read_dir(root.join(folder));
            for entry in entries.into_iter().flatten().flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                    self.add("unfinished", entry.path().display());
                }
            }
        }
    }

    fn add(&mut self, kind: &str, what: impl Display) {
        self.0.insert(format!("{kind} {what}"));
    }

    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// What is half made or half removed.
    pub fn unfinished(&self) -> Vec<String> {
        let lines = self.0.iter();
        lines
            .filter(|line| line.starts_with("unfinished "))
            .cloned()
            .collect()
    }

    pub fn has(&self, process: &Process) -> bool {
        self.0.contains(&line_of(process))
    }

    /// Adds what `after` has over `before`: it is meant to stay.
    pub fn accept(&mut self, before: &Self, after: &Self) {
        self.0.extend(after.since(before));
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// One line per thing.
    pub fn to_text(&self) -> String {
        let lines: Vec<&str> = self.0.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    pub fn from_text(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }
}

/// From now on this root is one of the tests'.
pub(crate) fn root_was_made(root: &Path) {
    made().roots.push(root.to_owned());
}

/// From now on who listens on this port is one of the tests.
pub(crate) fn port_was_chosen(port: u16) {
    made().ports.push(port);
}

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line_of(process: &Process) -> String {
    // A spare that gets a guest is another thing from then on.
    let role = match process.role.as_str() {
        "worker" if !process.has_guest() => "spare",
        role => role,
    };
    format!("process {} cabana {role}", process.pid)
}

/// Visits everything below a folder, links not followed. What vanishes meanwhile is not there.
fn below(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        visit(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&path, visit);
        }
    }
}
