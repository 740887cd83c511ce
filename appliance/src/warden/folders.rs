//! The folders on disk, with the right owners, and the lock that keeps a second appliance out.
//!
//! The folders below the state folder belong to the appliance, which is not trusted. The state
//! folder itself stays with the warden, so that none of them can be swapped for a link before the
//! next start, and nothing here follows one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid};

use crate::config::Paths;

/// Why the folders could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("Cannot {what} {}", path.display())]
    System {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("Another appliance runs on {}", path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} belongs to uid {found}, but the appliance runs as uid {wanted}: set `uid_base` or change the owner",
        path.display()
    )]
    Owner {
        path: PathBuf,
        found: u32,
        wanted: u32,
    },
    #[error(
        "uid {uid} cannot enter {}: run `chmod o+x` on it or use another --root",
        path.display()
    )]
    Closed { path: PathBuf, uid: u32 },
}

impl FolderError {
    /// Whether the operating system said no, as opposed to something being wrong.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Holds the lock, and removes the run folder when dropped unless somebody still needs it.
#[derive(Debug)]
pub struct Folders {
    run: PathBuf,
    kept: bool,
    _lock: File,
}

impl Folders {
    /// `uid`: who the folders shall belong to; absent when that is us.
    pub fn prepare(paths: &Paths, uid: Option<u32>) -> Result<Self, FolderError> {
        let folders = Self::lock(paths)?;
        for folder in paths.kept() {
            make(folder)?;
            give(folder, uid)?;
        }
        if let Some(parent) = paths.run.parent() {
            make_all(parent)?;
        }
        if let Some(uid) = uid {
            reachable(&paths.state, uid)?;
            reachable(paths.run.parent().unwrap_or(&paths.run), uid)?;
        }
        Ok(folders)
    }

    /// The lock alone. What is in the run folder stays until it is known whether somebody lives there.
    pub fn lock(paths: &Paths) -> Result<Self, FolderError> {
        make_all(&paths.state)?;
        Ok(Self {
            run: paths.run.clone(),
            kept: true,
            _lock: lock(&paths.state)?,
        })
    }

    /// Makes the run folder, empty unless workers of an earlier appliance are `left` in it.
    pub fn open_run(&mut self, uid: Option<u32>, left: bool) -> Result<(), FolderError> {
        if !left {
            clear(&self.run)?;
        }
        self.kept = left;
        make(&self.run)?;
        give(&self.run, uid)
    }

    /// Whether the run folder shall stay.
    pub fn keep(&mut self, kept: bool) {
        self.kept = kept;
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = clear(&self.run) {
            tracing::warn!("{}", crate::exit::chain(&error));
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::System { what, path, source }
}

/// Makes a folder that everybody may enter, with its parents.
fn make_all(path: &Path) -> Result<(), FolderError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(failed("make", path))
}

fn make(path: &Path) -> Result<(), FolderError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(failed("make", path)),
    }
}

fn lock(state: &Path) -> Result<File, FolderError> {
    let path = state.join("lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed("open", &path)(error.into()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(File::from(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::Locked {
            path: state.to_owned(),
        }),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// Hands a folder to `uid`, unless somebody else's data is in it.
fn give(path: &Path, uid: Option<u32>) -> Result<(), FolderError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let open =
        || -> Result<OwnedFd, rustix::io::Errno> { rustix::fs::open(path, flags, Mode::empty()) };
    let folder = open().map_err(|error| failed("open", path)(error.into()))?;
    let found = rustix::fs::fstat(&folder)
        .map_err(|e| failed("look at", path)(e.into()))?
        .st_uid;
    let wanted = uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    if found != wanted {
        let is_empty = is_empty(&folder).map_err(|e| failed("read", path)(e.into()))?;
        if uid.is_none() || !is_empty {
            return Err(FolderError::Owner {
                path: path.to_owned(),
                found,
                wanted,
            });
        }
        let (user, group) = (Uid::from_raw(wanted), Gid::from_raw(wanted));
        rustix::fs::fchown(folder.as_fd(), Some(user), Some(group))
            .map_err(|error| failed("change the owner of", path)(error.into()))?;
    }
    rustix::fs::fchmod(&folder, Mode::RWXU)
        .map_err(|error| failed("change the mode of", path)(error.into()))
}

/// Asked of the folder that is open, whatever its name means by now.
fn is_empty(folder: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every folder on the way must let others pass.
fn reachable(path: &Path, uid: u32) -> Result<(), FolderError> {
    for folder in path.ancestors() {
        let metadata = std::fs::metadata(folder).map_err(failed("look at", folder))?;
        let open = metadata.uid() == uid || metadata.mode() & 0o001 != 0;
        if !open {
            return Err(FolderError::Closed {
                path: folder.to_owned(),
                uid,
            });
        }
    }
    Ok(())
}

/// Removes the run folder and everything in it; links in it are removed, not followed.
fn clear(run: &Path) -> Result<(), FolderError> {
    match std::fs::remove_dir_all(run) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed("clear", run)),
    }
}

#[cfg(test)]
#[path = "folders_hostile_tests.rs"]
mod hostile_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn paths() -> (tempfile::TempDir, Paths) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        (root, paths)
    }

    #[test]
    fn second_appliance_on_the_same_root_is_refused_while_the_first_one_runs() {
        let (_root, paths) = paths();
        let mut first = Folders::prepare(&paths, None).unwrap();
        first.open_run(None, false).unwrap();
        let error = Folders::prepare(&paths, None).unwrap_err();
        assert!(matches!(error, FolderError::Locked { .. }), "{error}");
        assert!(
            paths.run.is_dir(),
            "the refused one must not have cleaned up"
        );
        drop(first);
        Folders::prepare(&paths, None).unwrap();
    }

    #[test]
    fn run_folder_is_emptied_at_start_and_removed_at_the_end() {
        let (root, paths) = paths();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        std::fs::create_dir_all(paths.workers.join("old")).unwrap();
        symlink(&outside, paths.run.join("link")).unwrap();
        let mut folders = Folders::prepare(&paths, None).unwrap();
        folders.open_run(None, false).unwrap();
        assert_eq!(std::fs::read_dir(&paths.run).unwrap().count(), 0);
        drop(folders);
        assert!(!paths.run.exists());
        assert!(outside.join("precious").exists(), "a link was followed");
    }

    #[test]
    fn run_folder_in_which_workers_live_is_kept_with_what_is_in_it() {
        let (_root, paths) = paths();
        let worker = paths.workers.join("left");
        std::fs::create_dir_all(&worker).unwrap();
        // One that fails before anybody knows who is left must not have removed it.
        drop(Folders::prepare(&paths, None).unwrap());
        assert!(worker.exists());
        let mut folders = Folders::prepare(&paths, None).unwrap();
        folders.open_run(None, true).unwrap();
        drop(folders);
        assert!(worker.exists());
        let mut folders = Folders::prepare(&paths, None).unwrap();
        folders.open_run(None, true).unwrap();
        folders.keep(false);
        drop(folders);
        assert!(!paths.run.exists());
    }

    #[test]
    fn folders_are_private() {
        let (_root, paths) = paths();
        let mut folders = Folders::prepare(&paths, None).unwrap();
        folders.open_run(None, false).unwrap();
        for folder in paths.kept().into_iter().chain([paths.run.as_path()]) {
            let mode = std::fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{}", folder.display());
        }
    }

    #[test]
    fn cve_2026_1386_link_in_the_place_of_a_folder_is_refused() {
        let (root, paths) = paths();
        std::fs::create_dir_all(&paths.state).unwrap();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, &paths.images).unwrap();
        Folders::prepare(&paths, None).unwrap_err();
        let mode = std::fs::metadata(&outside).unwrap().permissions().mode();
        assert_ne!(mode & 0o7777, 0o700, "the link was followed");
    }

    #[test]
    fn root_that_the_appliance_cannot_enter_is_named() {
        let (root, _) = paths();
        let closed = root.path().join("closed");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&closed)
            .unwrap();
        let error = reachable(&closed, 1_999_999_999).unwrap_err();
        assert!(
            matches!(&error, FolderError::Closed { path, .. } if *path == closed),
            "{error}"
        );
    }
}
