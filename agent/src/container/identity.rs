//! What an isolated container sees of its guest's identity: host name, machine id, boot id.
//!
//! A container that was forked while it ran cannot set these itself, so they are set from outside, and for a
//! container that has not started yet in the same way. The stage opens what that takes while the
//! image is the only thing that can be hostile, and hands it to the agent; nothing is looked up by path in
//! the agent's own tree or through `/proc/PID`.
//!
//! The files lie in memory, mounted over the places where a container looks, and are there before a guest is
//! forked: renewing it writes one page of each. Made anew on the container's disk, three files would cost every fork
//! some hundred pages, for inodes, bitmaps and directories, and again when the disk is written back.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_bind, mount_remount, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wire::Identity;

use super::passing;
use crate::attempt::{Attempt, SetupError};

const HOST_NAME_NAMESPACE: &str = "/proc/self/ns/uts";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where our files have a name for a moment: in the stage's own `/dev`, into which no image can have put anything.
const BIRTHPLACE: &str = "/dev";
/// What the container sees until it is renewed, which is before anything runs in it.
const NOBODY: &str = "localhost";

/// The files of `/etc` that are ours: name and mode.
const ETC_FILES: [(&str, u32); 3] = [("hostname", 0o644), ("hosts", 0o644), ("machine-id", 0o444)];

/// Descriptors of a view: the root, the namespace, the files of `/etc`, the boot id.
const DESCRIPTORS: usize = 2 + ETC_FILES.len() + 1;
const _: () = assert!(DESCRIPTORS <= passing::MOST, "they travel with one byte");

/// The places where a container sees its identity. All of them are open, so that no path is followed later
/// but those inside the container's root.
pub struct View {
    root: OwnedFd,
    /// The namespace with the host name.
    names: OwnedFd,
    /// In the order of [`ETC_FILES`].
    etc_files: [File; ETC_FILES.len()],
    /// The file that covers [`BOOT_ID`].
    boot_id: File,
}

impl View {
    /// Makes the view of the calling process, which has its own mounts already.
    ///
    /// The kernel makes the machine's boot id when it is first read, and it is then the same in every fork. So
    /// nobody reads it: a file of ours is mounted over it.
    pub fn open() -> Result<Self, SetupError> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, "/", directory, Mode::empty()).attempt(|| "open the root".into())?;
        let names = File::open(HOST_NAME_NAMESPACE)
            .attempt(|| format!("open {HOST_NAME_NAMESPACE}"))?
            .into();
        let boot_id = make_file(".boot_id", 0o444)?;
        let path = format!("{BIRTHPLACE}/.boot_id");
        mount_bind(&path, BOOT_ID).attempt(|| format!("mount a file on {BOOT_ID}"))?;
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        mount_remount(BOOT_ID, flags, c"").attempt(|| format!("make {BOOT_ID} read-only"))?;
        fs::remove_file(&path).attempt(|| format!("remove {path}"))?;
        let etc = open_etc(&root)?;
        let [name, hosts, machine_id] = ETC_FILES.map(|(name, mode)| cover(&etc, name, mode));
        Ok(Self {
            root,
            names,
            etc_files: [name?, hosts?, machine_id?],
            boot_id,
        })
    }

    /// Moves the calling thread into the container's host name namespace, for good: the system call that sets a host name
    /// knows no other than the caller's, and the agent has no use for one of its own. To go there and back in each
    /// fork would be two more namespace changes.
    pub fn share_host_name(&self) -> Result<(), SetupError> {
        let kind = Some(LinkNameSpaceType::HostNameAndNISDomainName);
        move_into_link_name_space(self.names.as_fd(), kind)
            .attempt(|| "enter the container's host name namespace".into())
    }

    /// Gives the container its names, before or while it runs, after [`View::share_host_name`].
    pub fn set(&self, identity: &Identity) -> Result<(), SetupError> {
        let hostname = &identity.hostname;
        rustix::system::sethostname(hostname.as_bytes())
            .attempt(|| format!("set the host name to {hostname}"))?;
        for ((name, _), (file, text)) in ETC_FILES
            .iter()
            .zip(self.etc_files.iter().zip(texts(identity)))
        {
            rewrite(file, &text).attempt(|| format!("write the container's /etc/{name}"))?;
        }
        self.set_boot_id(&identity.boot_id)
    }

    /// The same for a container that has run, and may have put something else in the place of our files.
    pub fn set_again(&self, identity: &Identity) -> Result<(), SetupError> {
        self.set(identity)?;
        let etc = open_etc(&self.root)?;
        for ((name, mode), (file, text)) in ETC_FILES
            .iter()
            .zip(self.etc_files.iter().zip(texts(identity)))
        {
            let is_there = || -> io::Result<bool> {
                let ours = file.metadata()?;
                match statat(&etc, *name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.dev(), ours.ino())),
                    Err(Errno::NOENT) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            };
            if !is_there().attempt(|| format!("look at the container's /etc/{name}"))? {
                replace(&etc, name, &text, *mode)?;
            }
        }
        Ok(())
    }

    fn set_boot_id(&self, boot_id: &str) -> Result<(), SetupError> {
        rewrite(&self.boot_id, &format!("{boot_id}\n"))
            .attempt(|| "set the container's boot id".into())
    }

    /// Hands the view over, with `byte`.
    pub fn send(&self, channel: &UnixStream, byte: u8) -> io::Result<()> {
        let [name, hosts, machine_id] = &self.etc_files;
        let descriptors = [
            self.root.as_fd(),
            self.names.as_fd(),
            name.as_fd(),
            hosts.as_fd(),
            machine_id.as_fd(),
            self.boot_id.as_fd(),
        ];
        passing::send(channel, byte, &descriptors)
    }

    /// Takes one byte and, if it comes with one, a view. `None` is the end of the stream.
    pub fn receive(channel: &UnixStream) -> io::Result<Option<(u8, Option<Self>)>> {
        let mut byte = [0];
        let (count, descriptors) = passing::receive(channel, &mut byte)?;
        if count == 0 {
            return Ok(None);
        }
        let view = match <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) {
            Ok([root, names, name, hosts, machine_id, boot_id]) => Some(Self {
                root,
                names,
                etc_files: [name.into(), hosts.into(), machine_id.into()],
                boot_id: boot_id.into(),
            }),
            Err(_) => None,
        };
        Ok(Some((byte[0], view)))
    }
}

/// What the files of `/etc` say, in their order.
fn texts(identity: &Identity) -> [String; ETC_FILES.len()] {
    let Identity {
        hostname,
        machine_id,
        ..
    } = identity;
    [
        format!("{hostname}\n"),
        hosts(hostname),
        format!("{machine_id}\n"),
    ]
}

/// The container's `/etc`, wherever its links lead inside of its own root.
fn open_etc(root: &OwnedFd) -> Result<OwnedFd, SetupError> {
    let open = || {
        openat2(
            root,
            "etc",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let opened = match open() {
        Err(Errno::NOENT) => mkdirat(root, "etc", Mode::from_raw_mode(0o755)).and_then(|()| open()),
        opened => opened,
    };
    opened.attempt(|| "open the container's /etc".into())
}

/// A file in memory. It has a page from the beginning, so that a fork only writes to it.
fn make_file(name: &str, mode: u32) -> Result<File, SetupError> {
    let make = || -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let path = format!("{BIRTHPLACE}/{name}");
        let mut file = File::from(openat(CWD, path, flags, Mode::from_raw_mode(mode))?);
        // The umask took bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        writeln!(file, "{NOBODY}")?;
        Ok(file)
    };
    make().attempt(|| format!("make {BIRTHPLACE}/{name}"))
}

/// Mounts a file of ours on a file of the container's `/etc`. The one below is a plain one: a link would lead elsewhere.
fn cover(etc: &OwnedFd, name: &str, mode: u32) -> Result<File, SetupError> {
    let hidden = format!(".{name}");
    let file = make_file(&hidden, mode)?;
    replace(etc, name, "", mode)?;
    let path = format!("{BIRTHPLACE}/{hidden}");
    let mount = || {
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &path, clone)?;
        let from_it = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", etc, name, from_it)
    };
    mount().attempt(|| format!("mount a file on the container's /etc/{name}"))?;
    fs::remove_file(&path).attempt(|| format!("remove {path}"))?;
    Ok(file)
}

/// In place, because a mount holds on to its file and not to a name.
fn rewrite(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    let length = text.len() as u64;
    if file.metadata()?.len() != length {
        file.set_len(length)?;
    }
    Ok(())
}

/// Puts a new file in the place of whatever has the name. A link is replaced and not followed.
fn replace(directory: &OwnedFd, name: &str, text: &str, mode: u32) -> Result<(), SetupError> {
    let write = || -> io::Result<()> {
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(directory, name, flags, Mode::from_raw_mode(mode))?);
        // The umask took bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())
    };
    write().attempt(|| format!("write the container's /etc/{name}"))
}

fn hosts(hostname: &str) -> String {
    let names = format!("localhost {hostname}");
    format!("127.0.0.1\t{names}\n::1\t{names} ip6-localhost ip6-loopback\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn host_finds_its_own_name_on_loopback() {
        let expected = "127.0.0.1\tlocalhost s1\n::1\tlocalhost s1 ip6-localhost ip6-loopback\n";
        assert_eq!(hosts("s1"), expected);
    }

    /// A view of `root`, without namespaces.
    fn view(root: &std::path::Path) -> View {
        View {
            root: File::open(root).unwrap().into(),
            names: File::open(HOST_NAME_NAMESPACE).unwrap().into(),
            etc_files: [(); 3].map(|()| tempfile::tempfile().unwrap()),
            boot_id: tempfile::tempfile().unwrap(),
        }
    }

    #[test]
    fn view_survives_the_channel_and_a_byte_without_one_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        view(directory.path()).send(&theirs, 0).unwrap();
        (&theirs).write_all(&[125]).unwrap();
        drop(theirs);
        let (byte, received) = View::receive(&ours).unwrap().unwrap();
        assert_eq!(byte, 0);
        received.unwrap().set_boot_id("x").unwrap();
        let (byte, received) = View::receive(&ours).unwrap().unwrap();
        assert!(byte == 125 && received.is_none());
        assert!(View::receive(&ours).unwrap().is_none());
    }

    #[test]
    fn shorter_boot_id_leaves_nothing_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let view = view(directory.path());
        for text in ["first-and-longer", "second"] {
            view.set_boot_id(text).unwrap();
            let mut read = [0; 64];
            let length = view.boot_id.read_at(&mut read, 0).unwrap();
            assert_eq!(read[..length], *format!("{text}\n").as_bytes());
        }
    }

    #[test]
    fn etc_that_is_a_link_is_found_inside_the_root_and_never_outside() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("etc");
        let root = directory.path().join("root");
        fs::create_dir(&outside).unwrap();
        fs::create_dir_all(root.join("usr/etc")).unwrap();
        for target in ["/usr/etc", "usr/etc", "../../../../usr/etc"] {
            symlink(target, root.join("etc")).unwrap();
            let etc = open_etc(&view(&root).root).unwrap();
            replace(&etc, "hostname", target, 0o644).unwrap();
            let written = fs::read_to_string(root.join("usr/etc/hostname")).unwrap();
            assert_eq!(written, target);
            fs::remove_file(root.join("etc")).unwrap();
        }
        // Links that lead nowhere in the root, and one that the kernel would resolve to an open file.
        let magic = format!("/proc/self/fd/{}", 0);
        for target in ["../etc", outside.to_str().unwrap(), &magic] {
            symlink(target, root.join("etc")).unwrap();
            assert!(open_etc(&view(&root).root).is_err(), "{target}");
            fs::remove_file(root.join("etc")).unwrap();
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn planted_file_of_any_kind_is_replaced_and_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        let file = root.join("etc/machine-id");
        let plant: [&dyn Fn(); 4] = [
            &|| symlink(&victim, &file).unwrap(),
            &|| symlink("../../victim", &file).unwrap(),
            &|| fs::hard_link(&victim, &file).unwrap(),
            // Whoever opens this for writing waits for a reader.
            &|| rustix::fs::mkfifoat(CWD, &file, Mode::from_raw_mode(0o666)).unwrap(),
        ];
        let etc = open_etc(&view(&root).root).unwrap();
        for plant in plant {
            plant();
            replace(&etc, "machine-id", "new", 0o444).unwrap();
            let metadata = fs::symlink_metadata(&file).unwrap();
            assert!(metadata.is_file());
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
            assert_eq!(fs::read_to_string(&file).unwrap(), "new");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
            fs::remove_file(&file).unwrap();
        }
        fs::create_dir(&file).unwrap();
        assert!(replace(&etc, "machine-id", "new", 0o444).is_err());
    }
}
