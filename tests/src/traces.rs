//! What an appliance can leave behind on its host: processes, sockets, folders, disks, cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::process::{self, Process};

const CGROUPS: &str = "/sys/fs/cgroup";

/// A picture of the host, one line per thing.
#[derive(Clone, Debug, Default)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// `root` is the appliance's root. Processes are those of the binary under test, whoever started them.
    pub fn take(root: &Path) -> Self {
        let disks = root.join("var/lib/cabana/disks");
        let mut lines = BTreeSet::new();
        for process in process::all() {
            lines.insert(line_of(&process));
            // A session's disk has no name, so it lives as long as somebody has it open.
            let open = fs::read_dir(format!("/proc/{}/fd", process.pid));
            for entry in open.into_iter().flatten().flatten() {
                let Ok(target) = fs::read_link(entry.path()) else {
                    continue;
                };
                if target.starts_with(&disks) {
                    lines.insert(format!("disk {} of {}", target.display(), process.role));
                }
            }
        }
        for folder in [&root.join("run/cabana"), &disks] {
            below(folder, &mut |path| {
                lines.insert(format!("file {}", path.display()));
            });
        }
        below(Path::new(CGROUPS), &mut |path| {
            if path.is_dir() && path.components().any(|part| part.as_os_str() == "cabana") {
                lines.insert(format!("cgroup {}", path.display()));
            }
        });
        Self(lines)
    }

    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    pub fn has(&self, process: &Process) -> bool {
        self.0.contains(&line_of(process))
    }

    /// Adds what `after` has over `before`: it is meant to stay.
    pub fn accept(&mut self, before: &Self, after: &Self) {
        self.0.extend(after.since(before));
    }
}

fn line_of(process: &Process) -> String {
    format!("process {} cabana {}", process.pid, process.role)
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
