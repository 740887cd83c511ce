//! The end of a guest.

use std::io;

use rustix::mount::{UnmountFlags, unmount};
use rustix::system::{RebootCommand, reboot};

use super::disk;

/// Writes the disk back and switches the machine off. Returns only if the kernel refuses.
pub fn power_off() -> io::Result<()> {
    // An unmounted file system is a clean one. It is not if something went wrong before, and then
    // `sync` still writes back what is there.
    for target in [disk::CONTAINER_ROOT, disk::SCRATCH] {
        let _ = unmount(target, UnmountFlags::empty());
    }
    rustix::fs::sync();
    Ok(reboot(RebootCommand::PowerOff)?)
}
