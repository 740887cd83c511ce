//! What becomes of a container that wants more memory than its guest has.
//!
//! The guest's kernel then ends whoever uses most. Left alone it takes one process, and what stays is a container of which a
//! part is missing: a server without its database, or one that answers no request and never ends. So the container
//! is one whole to it (`memory.oom.group`, `Documentation/admin-guide/cgroup-v2.rst`): all of it ends at once, and the host is told why. The
//! agent is not in the group, and the kernel never takes PID 1.
//!
//! A container that would rather lose single processes can say so: the file is its own, too.

use std::fs;
use std::io;
use std::path::Path;

use wire::Exit;

use crate::attempt::{Attempt, SetupError};

const WHOLE: &str = "memory.oom.group";
const EVENTS: &str = "memory.events";
/// Processes of the group that were ended for want of memory.
const KILLED: &str = "oom_kill ";
/// What the kernel ends them with.
const SIGKILL: i32 = 9;

/// Lets the processes of the group end together if they must. Without the memory controller there is nothing to say.
pub fn end_as_one(cgroup: &Path) -> Result<(), SetupError> {
    let path = cgroup.join(WHOLE);
    match fs::write(&path, "1") {
        // A file of cgroup v2 that is not there cannot be made either.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        done => done.attempt(|| format!("write 1 to {}", path.display())),
    }
}

/// Whether a container of this group that ended like this did so for want of memory.
pub fn has_run_out(cgroup: &Path, exit: Exit) -> bool {
    exit == Exit::Signal(SIGKILL)
        && fs::read_to_string(cgroup.join(EVENTS)).is_ok_and(|events| killed(&events) > 0)
}

fn killed(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix(KILLED));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_for_want_of_memory_count() {
        assert_eq!(killed("low 0\nhigh 3\nmax 9\noom 2\noom_kill 1\n"), 1);
        assert_eq!(killed("oom 2\noom_kill 0\noom_group_kill 4\n"), 0);
        assert_eq!(killed(""), 0);
    }

    #[test]
    fn group_without_a_memory_controller_has_never_run_out() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_run_out(folder.path(), Exit::Signal(SIGKILL)));
        fs::write(folder.path().join(EVENTS), "oom_kill 1\n").unwrap();
        assert!(has_run_out(folder.path(), Exit::Signal(SIGKILL)));
        assert!(!has_run_out(folder.path(), Exit::Code(0)));
    }
}
