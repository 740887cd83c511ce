//! Giving up what a process does not need, as the first thing it does.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{
    CapabilitiesSecureBits as SecureBits, CapabilitySet, CapabilitySets, capabilities,
    set_capabilities,
};

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

/// Becomes `uid` with the group of the same number, for good: no other groups, no capability, nothing that is executed later can bring any
/// back, and no process of the same user can look in. Without `uid` only the last two parts are done.
pub fn drop_to(uid: Option<u32>) -> Result<(), DropError> {
    let fail = |what| {
        move |source: rustix::io::Errno| DropError::System {
            what,
            source: source.into(),
        }
    };
    rustix::thread::set_no_new_privs(true).map_err(fail("set no_new_privs"))?;
    if let Some(id) = uid {
        // A worker has no `/proc`, and one thread.
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads != 1 {
            return Err(DropError::Threads { threads });
        }
        // Before the right to do so is gone with the rest.
        bound_capabilities().map_err(fail("give up capabilities for good"))?;
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
        // Groups first: after the user id is gone nobody may change them.
        rustix::thread::set_thread_groups(&[]).map_err(fail("give up supplementary groups"))?;
        rustix::thread::set_thread_res_gid(group, group, group)
            .map_err(fail("change the group id"))?;
        rustix::thread::set_thread_res_uid(user, user, user).map_err(fail("change the user id"))?;
        set_capabilities(None, NO_CAPABILITIES).map_err(fail("give up capabilities"))?;
    }
    // Last: changing ids sets it to what the host wants (`fs.suid_dumpable`).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(fail("keep others from looking in"))
}

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// Nothing that is executed from here on gets a capability, not even as root, and nobody can change that.
fn bound_capabilities() -> rustix::io::Result<()> {
    keep_in_bounds(CapabilitySet::empty())?;
    rustix::thread::clear_ambient_capability_set()?;
    // Changing to another user id must go on taking them away, so that part is locked as it is.
    rustix::thread::set_capabilities_secure_bits(
        SecureBits::NO_ROOT
            | SecureBits::NO_ROOT_LOCKED
            | SecureBits::NO_SETUID_FIXUP_LOCKED
            | SecureBits::KEEP_CAPS_LOCKED
            | SecureBits::NO_CAP_AMBIENT_RAISE
            | SecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
}

/// What whoever is started from here on may have at most.
pub fn keep_in_bounds(kept: CapabilitySet) -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(one) {
            // Behind the last one that this kernel has.
            Err(rustix::io::Errno::INVAL) => break,
            Ok(true) if !kept.contains(one) => {
                rustix::thread::remove_capability_from_bounding_set(one)?;
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// Does `work` without what `CAP_SYS_ADMIN` would let it see or do. No more than that changes.
pub fn without_admin<T>(work: impl FnOnce() -> T) -> rustix::io::Result<T> {
    let all = capabilities(None)?;
    let few = CapabilitySets {
        effective: all.effective - CapabilitySet::SYS_ADMIN,
        ..all
    };
    set_capabilities(None, few)?;
    let done = work();
    set_capabilities(None, all)?;
    Ok(done)
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
