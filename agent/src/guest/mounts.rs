//! The agent's own mounts. The container has others, see [`crate::container::root`].

use std::fs;

use rustix::mount::{MountFlags, mount, mount_move};

use super::disk;
use crate::attempt::{Attempt, SetupError};

const BASE: &str = "/base";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The control group of the container.
pub const CONTAINER_CGROUP: &str = "/sys/fs/cgroup/container";

const QUIET: [(&str, &str); 1] = [
    // Otherwise a thread wakes up twice a second to see whether memory is fragmented. It is still compacted when
    // somebody needs a large page.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Moves from the initramfs to a tmpfs. `pivot_root`, with which a container leaves the agent's
/// files behind, does not work on an initramfs (Documentation/filesystems/ramfs-rootfs-initramfs.rst).
pub fn leave_initramfs() -> Result<(), SetupError> {
    fs::create_dir_all(BASE).attempt(|| format!("make the directory {BASE}"))?;
    mount(
        "base",
        BASE,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755,size=1m",
    )
    .attempt(|| format!("mount tmpfs on {BASE}"))?;
    std::env::set_current_dir(BASE).attempt(|| format!("enter {BASE}"))?;
    mount_move(".", "/").attempt(|| format!("move {BASE} to /"))?;
    rustix::process::chroot(".").attempt(|| "make it the root".into())?;
    std::env::set_current_dir("/").attempt(|| "enter the new root".into())?;
    for directory in [
        "/proc",
        "/sys",
        "/dev",
        disk::IMAGE,
        disk::SCRATCH,
        disk::CONTAINER_ROOT,
    ] {
        fs::create_dir(directory).attempt(|| format!("make the directory {directory}"))?;
    }
    Ok(())
}

/// What the agent itself needs: its own executable, sizes and names of disks, control groups.
pub fn mount_kernel_file_systems() -> Result<(), SetupError> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, flags) in [
        ("proc", "/proc", plain | MountFlags::NODEV),
        ("sysfs", "/sys", plain | MountFlags::NODEV),
        ("devtmpfs", "/dev", plain),
    ] {
        mount(kind, target, kind, flags, None).attempt(|| format!("mount {kind} on {target}"))?;
    }
    // `nsdelegate`: the container owns what is below its group, and not the group's own limits.
    mount(
        "cgroup2",
        CGROUP_ROOT,
        "cgroup2",
        plain | MountFlags::NODEV,
        c"nsdelegate",
    )
    .attempt(|| format!("mount cgroup2 on {CGROUP_ROOT}"))
}

/// Switches off what would wake an idle guest and has nothing to do in it.
pub fn keep_quiet() -> Result<(), SetupError> {
    for (setting, value) in QUIET {
        fs::write(setting, value).attempt(|| format!("write {value} to {setting}"))?;
    }
    Ok(())
}

/// The container's control group, with every controller that the kernel has handed down to it.
pub fn make_cgroup() -> Result<(), SetupError> {
    fs::create_dir(CONTAINER_CGROUP)
        .attempt(|| format!("make the control group {CONTAINER_CGROUP}"))?;
    let list = format!("{CGROUP_ROOT}/cgroup.controllers");
    let controllers = fs::read_to_string(&list).attempt(|| format!("read {list}"))?;
    let switch = format!("{CGROUP_ROOT}/cgroup.subtree_control");
    let all: Vec<String> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    fs::write(&switch, all.join(" ")).attempt(|| format!("write {} to {switch}", all.join(" ")))
}
