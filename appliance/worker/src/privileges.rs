//! Giving up what a process does not need, as the first thing it does.

use std::io;

use rustix::process::{Gid, Uid};

/// Why privileges could not be given up. The process must end: it would run with too much.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    #[error("Cannot {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
    /// Threads keep the ids that they have, so this must happen before the second one.
    #[error("Privileges must be dropped before the process has {threads} threads")]
    Threads { threads: usize },
}

/// Becomes `uid` with the group of the same number, for good: no other groups, no capability, and
/// nothing that is executed later can bring any back. Without `uid` only the last part is done.
pub fn drop_to(uid: Option<u32>) -> Result<(), DropError> {
    let fail = |what| {
        move |source: rustix::io::Errno| DropError::System {
            what,
            source: source.into(),
        }
    };
    rustix::thread::set_no_new_privs(true).map_err(fail("set no_new_privs"))?;
    let Some(id) = uid else { return Ok(()) };
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(DropError::Threads { threads });
    }
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    // Groups first: after the user id is gone nobody may change them.
    rustix::thread::set_thread_groups(&[]).map_err(fail("give up supplementary groups"))?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(fail("change the group id"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(fail("change the user id"))
}

/// Does `work` as `uid` with the group of the same number, as far as files are concerned, and comes
/// back. Threads that are started meanwhile stay who they are. Nothing changes when this is not root.
pub fn acting_as<T>(uid: u32, work: impl FnOnce() -> T) -> Result<T, DropError> {
    let fail = |what| {
        move |source: rustix::io::Errno| DropError::System {
            what,
            source: source.into(),
        }
    };
    if !rustix::process::geteuid().is_root() || uid == 0 {
        return Ok(work());
    }
    let become_ids = |user: Uid, group: Gid| -> Result<(), rustix::io::Errno> {
        // The group can only be changed while the user is root.
        if user.is_root() {
            rustix::thread::set_thread_res_uid(None, user, None)?;
            rustix::thread::set_thread_res_gid(None, group, None)
        } else {
            rustix::thread::set_thread_res_gid(None, group, None)?;
            rustix::thread::set_thread_res_uid(None, user, None)
        }
    };
    rustix::thread::set_thread_groups(&[]).map_err(fail("give up supplementary groups"))?;
    become_ids(Uid::from_raw(uid), Gid::from_raw(uid)).map_err(fail("become the appliance"))?;
    let done = work();
    become_ids(Uid::ROOT, Gid::ROOT).map_err(fail("become root again"))?;
    Ok(done)
}
