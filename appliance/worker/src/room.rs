//! The empty room that workers are started in: no file, no network, nobody to talk to, and no name of the host.
//!
//! It is made once, by the warden. What is in it is the same for everybody, which is nothing, and nothing can be put there; so it is no
//! way from one worker to another, and entering it costs a few microseconds, where a network namespace of its own makes each start wait for
//! the others' (see `decisions/jail.md` of the appliance). It lasts as long as somebody is in it, or has it open.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move,
    mount_remount, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};
use rustix::thread::UnshareFlags;

/// What the host is called there.
const HOST_NAME: &[u8] = b"cabana";
/// Of the root: one inode, its own, and no page. Nobody may write to it either.
const NOTHING: &std::ffi::CStr = c"mode=0555,nr_inodes=1,size=4k";
/// A folder that every host has, to be covered. It is out of reach afterwards.
const PLACE: &str = "/proc";

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct RoomError {
    what: &'static str,
    source: io::Error,
}

/// The namespaces, open.
#[derive(Debug)]
pub struct Room {
    spaces: [OwnedFd; SPACES.len()],
}

/// In the order in which they are entered: the files last, since that is what the others could need.
const SPACES: [(&str, libc::c_int); 4] = [
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("mnt", libc::CLONE_NEWNS),
];

impl Room {
    /// Needs `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT`. This process stays where it is.
    pub fn make() -> Result<Self, RoomError> {
        // A thread has namespaces, a root and a working folder of its own once it has left those of its process.
        let thread = std::thread::Builder::new().name("room".to_owned());
        let thread = thread.spawn(make_around_this_thread);
        let thread = thread.map_err(|source| RoomError {
            what: "start a thread",
            source,
        })?;
        thread.join().unwrap_or_else(|_| {
            Err(RoomError {
                what: "make it",
                source: io::ErrorKind::Other.into(),
            })
        })
    }

    /// Each with its kind, for `setns`, in the order in which they are to be entered.
    pub(crate) fn spaces(&self) -> [(libc::c_int, libc::c_int); SPACES.len()] {
        std::array::from_fn(|at| (self.spaces[at].as_raw_fd(), SPACES[at].1))
    }
}

fn make_around_this_thread() -> Result<Room, RoomError> {
    let failed = |what| {
        move |error: Errno| RoomError {
            what,
            source: error.into(),
        }
    };
    leave().map_err(failed("make namespaces"))?;
    // Before the host's files are out of reach.
    let open = |(name, _)| File::open(format!("/proc/thread-self/ns/{name}"));
    let opened = SPACES.map(open).into_iter().collect::<io::Result<Vec<_>>>();
    let opened = opened.map_err(|source| RoomError {
        what: "open its namespaces",
        source,
    })?;
    // Nothing that is done here shall be seen by the host, and nothing that the host does later here.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("part its mounts from the host's"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", PLACE, "tmpfs", flags, NOTHING).map_err(failed("mount its root"))?;
    chdir(PLACE).map_err(failed("enter its root"))?;
    move_root().map_err(failed("leave the host's files"))?;
    chdir("/").map_err(failed("enter its root"))?;
    mount_remount("/", flags | MountFlags::RDONLY, c"")
        .map_err(failed("make its root read-only"))?;
    check_empty().map_err(|source| RoomError {
        what: "find its root empty",
        source,
    })?;
    rustix::system::sethostname(HOST_NAME).map_err(failed("name it"))?;
    let mut spaces = opened.into_iter().map(OwnedFd::from);
    Ok(Room {
        spaces: std::array::from_fn(|_| spaces.next().expect("one was opened for each")),
    })
}

#[expect(
    unsafe_code,
    reason = "a thread that leaves the descriptors of its process must have none; this one keeps them"
)]
fn leave() -> rustix::io::Result<()> {
    let all =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: `CLONE_FILES` is not among the flags, so descriptors stay what they are for every thread.
    unsafe { rustix::thread::unshare_unsafe(all) }
}

/// Makes the current folder, on which something is mounted, the root, and lets go of what was.
fn move_root() -> rustix::io::Result<()> {
    match pivot_root(".", ".") {
        // The old one lies over the new one now (pivot_root(2)).
        Ok(()) => unmount(".", UnmountFlags::DETACH),
        // A host that never left its initial RAM disk: that root cannot be moved. It stays under ours, where only who may unmount
        // that finds it.
        Err(Errno::INVAL) => {
            mount_move(".", "/")?;
            chroot(".")
        }
        Err(error) => Err(error),
    }
}

fn check_empty() -> io::Result<()> {
    match Path::new("/").read_dir()?.next() {
        None => Ok(()),
        Some(_) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// `None` where this user may not make one.
    fn room() -> Option<Room> {
        match Room::make() {
            Ok(room) => Some(room),
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIPPED: this user may not make namespaces");
                None
            }
            Err(error) => panic!("{error}: {}", error.source),
        }
    }

    fn links() -> Vec<String> {
        let space = |(name, _)| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        SPACES
            .map(|at| space(at).display().to_string())
            .into_iter()
            .collect()
    }

    #[test]
    fn whoever_makes_the_room_stays_outside() {
        let (before, mounts) = (links(), fs::read_to_string("/proc/self/mounts").unwrap());
        let Some(room) = room() else { return };
        assert_eq!(links(), before);
        assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), mounts);
        for (space, outside) in room.spaces.iter().zip(&before) {
            let path = format!("/proc/self/fd/{}", space.as_raw_fd());
            let inside = fs::read_link(path).unwrap().display().to_string();
            assert_ne!(&inside, outside);
            let kind = |link: &str| link.split(':').next().unwrap().to_owned();
            assert_eq!(kind(&inside), kind(outside));
        }
    }
}
