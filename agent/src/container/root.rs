//! The file system that an isolated container sees: its own root, `/proc`, `/sys`, `/dev`.
//!
//! Everything is mounted after `pivot_root`, so a link in a hostile image (`/dev -> ..`) leads nowhere
//! but into that image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use super::exec;
use crate::attempt::{Attempt, SetupError};

/// Character devices: name, major, minor. From the kernel's `Documentation/admin-guide/devices.txt`.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const FUSE: (&str, u32, u32) = ("fuse", 10, 229);
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Puts the calling process, which is PID 1 of its namespace, into its own mounts with `root` as
/// the root directory. The control group that it is in becomes the root of what it sees of them.
pub fn enter(root: &Path) -> Result<(), SetupError> {
    let has_fuse = Path::new("/dev/fuse").exists();
    exec::unshare_all_but_pid_and_network().attempt(|| "make namespaces".into())?;
    pivot(root)?;
    mount_kernel_file_systems()?;
    make_devices(has_fuse)
}

fn pivot(root: &Path) -> Result<(), SetupError> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", all).attempt(|| "make all mounts private".into())?;
    // `pivot_root` wants a mount point; binding a directory to itself makes it one.
    mount_bind(root, root).attempt(|| format!("bind {}", root.display()))?;
    std::env::set_current_dir(root).attempt(|| format!("enter {}", root.display()))?;
    // pivot_root(2): with both arguments "." the old root ends up on top of the new one, from
    // where it is taken away, and no directory for it is needed.
    rustix::process::pivot_root(".", ".")
        .attempt(|| format!("make {} the root", root.display()))?;
    unmount(".", UnmountFlags::DETACH).attempt(|| "leave the old root".into())?;
    std::env::set_current_dir("/").attempt(|| "enter the new root".into())
}

fn mount_kernel_file_systems() -> Result<(), SetupError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_on("/proc", "proc", plain, c"")?;
    // Read-only, because what is there to be set belongs to the machine. The control groups below
    // are the container's own.
    mount_on("/sys", "sysfs", plain | MountFlags::RDONLY, c"")?;
    if Path::new("/sys/fs/cgroup").is_dir() {
        mount_on("/sys/fs/cgroup", "cgroup2", plain, c"")?;
    }
    mount_on(
        "/dev",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=755,size=1m",
    )?;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_on(
        "/dev/pts",
        "devpts",
        terminals,
        c"newinstance,ptmxmode=666,mode=620,gid=5",
    )?;
    mount_on(
        "/dev/shm",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=1777",
    )?;
    mount_on("/dev/mqueue", "mqueue", plain, c"")
}

fn mount_on(
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), SetupError> {
    fs::create_dir_all(target).attempt(|| format!("make the directory {target}"))?;
    mount(kind, target, kind, flags, options).attempt(|| format!("mount {kind} on {target}"))
}

fn make_devices(has_fuse: bool) -> Result<(), SetupError> {
    let devices = DEVICES.into_iter().chain(has_fuse.then_some(FUSE));
    for (name, major, minor) in devices {
        let path = format!("/dev/{name}");
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )
        .attempt(|| format!("make {path}"))?;
        // The umask took bits away.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .attempt(|| format!("set the mode of {path}"))?;
    }
    for (target, link) in LINKS {
        symlink(target, link).attempt(|| format!("link {link}"))?;
    }
    Ok(())
}

/// Writes `/etc/resolv.conf` when the image has none. The files with the guest's names are not
/// written here but from outside, see [`super::identity`].
pub fn ensure_resolver_file() -> Result<(), SetupError> {
    if fs::metadata("/etc/resolv.conf").is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    fs::create_dir_all("/etc").attempt(|| "make the directory /etc".into())?;
    replace(
        "/etc/resolv.conf",
        "# There is no name server: this session has no network.\n",
    )
}

/// A link is replaced and not followed: `/etc/resolv.conf` often points to a file that does not
/// exist in a container.
fn replace(path: &str, text: &str) -> Result<(), SetupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::write(path, text),
    }
    .attempt(|| format!("write {path}"))
}
