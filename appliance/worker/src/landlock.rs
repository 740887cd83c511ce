//! Landlock (Documentation/userspace-api/landlock.rst): from here on this process opens, makes and connects to nothing by a name, whatever
//! its user may do. It keeps what it has open.
//!
//! A second wall: it holds where there is no room (`room`), and for what a room does not cover. A kernel without it is no obstacle.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

/// `struct landlock_ruleset_attr` of linux/landlock.h. Older kernels take a longer one whose rest they do not know, if that is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;
/// `LANDLOCK_ACCESS_FS_*` of the first version: execute, read, write, list, remove and make, 13 bits.
const FILES_1: u64 = (1 << 13) - 1;
/// Each of these versions has brought one right: `REFER`, `TRUNCATE`, `IOCTL_DEV`.
const FILES_LATER: [(u32, u64); 3] = [(2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `_CONNECT_TCP`, since version 4.
const NETWORK: (u32, u64) = (4, 0b11);
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`, since version 6.
const SCOPES: (u32, u64) = (6, 0b11);

/// The version that this kernel has; `None`: it has none, or it is switched off.
pub fn version() -> Option<u32> {
    let none = ptr::null::<Ruleset>();
    // SAFETY: asked for the version, the kernel wants no attributes, and touches no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, ASK_VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Forbids this thread, and those that it starts, all that can be forbidden. Answers by which version. Wants `no_new_privs`.
pub fn forbid_everything() -> io::Result<Option<u32>> {
    let Some(version) = version() else {
        return Ok(None);
    };
    let rules = Ruleset::of(version);
    // SAFETY: reads as many bytes of `rules` as it has.
    let ruleset = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const rules,
            size_of::<Ruleset>(),
            0u32,
        )
    };
    let ruleset = libc::c_int::try_from(ruleset).unwrap_or(-1);
    if ruleset < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    // SAFETY: takes a descriptor and flags, and touches no memory.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Some(version))
}

impl Ruleset {
    /// All that this version can forbid, and no rule that allows anything.
    fn of(version: u32) -> Self {
        let since = |(first, bits): (u32, u64)| if version >= first { bits } else { 0 };
        Self {
            files: FILES_LATER.into_iter().map(since).sum::<u64>() | FILES_1,
            network: since(NETWORK),
            scopes: since(SCOPES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    #[test]
    fn what_a_version_does_not_know_is_not_asked_of_it() {
        let all = |version| {
            let Ruleset {
                files,
                network,
                scopes,
            } = Ruleset::of(version);
            (files, network, scopes)
        };
        assert_eq!(all(1), (0x1fff, 0, 0));
        assert_eq!(all(2), (0x3fff, 0, 0));
        assert_eq!(all(3), (0x7fff, 0, 0));
        assert_eq!(all(4), (0x7fff, 3, 0));
        assert_eq!(all(5), (0xffff, 3, 0));
        assert_eq!(all(6), (0xffff, 3, 3));
        assert_eq!(all(99), all(6));
    }

    #[test]
    fn thread_opens_nothing_any_more_and_keeps_what_it_has_open() {
        let mut kept = tempfile::tempfile().unwrap();
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let Some(_) = forbid_everything().unwrap() else {
                return println!("SKIPPED: this kernel has no landlock");
            };
            kept.write_all(b"x").unwrap();
            kept.set_len(0).unwrap();
            for path in ["/etc/passwd", "/", "/dev/null", "/proc/self/status"] {
                let error = File::open(path).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
            }
        });
        thread.join().unwrap();
        File::open("/etc/passwd").unwrap();
    }
}
