//! Files and folders of goldens, and what may go wrong with them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;

/// What a folder's name begins with that is being removed.
pub const OLD: &str = ".old-";

/// Why a golden could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("Cannot {what} {}{}", path.display(), remedy(source))]
    System {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} has {found} bytes and should have {expected}", path.display())]
    Length {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
    #[error("{} is malformed", path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is not the manifest of {folder}", path.display())]
    Misplaced { path: PathBuf, folder: String },
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (free disk space and try again)"
        }
        _ => "",
    }
}

/// For `map_err`; `what` completes "Cannot".
pub fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::System { what, path, source }
}

/// Opens a file of this length, read-only. Links are not followed.
pub fn open_checked(path: &Path, expected: u64) -> Result<File, StoreError> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nofollow)
        .open(path)
        .map_err(failed("open", path))?;
    let found = file.metadata().map_err(failed("look at", path))?.len();
    if found == expected {
        return Ok(file);
    }
    let path = path.to_owned();
    Err(StoreError::Length {
        path,
        found,
        expected,
    })
}

/// Makes a folder for its owner only, unless it is there.
pub fn make_folder(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Takes a golden's name away from it; from then on a crash leaves something that is removed.
pub fn bury(folder: &Path) -> Result<PathBuf, StoreError> {
    let grave = folder.with_file_name(format!("{OLD}{}", Uuid::new_v4().simple()));
    fs::rename(folder, &grave).map_err(failed("remove", folder))?;
    Ok(grave)
}

/// Removes a golden, so that a crash half way leaves nothing that looks like one.
pub fn discard(folder: &Path) -> Result<(), StoreError> {
    remove_folder(&bury(folder)?)
}

/// Removes a folder with everything in it, if it is there.
pub fn remove_folder(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Brings the names in a folder to the disk.
pub fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_told_with_a_remedy() {
        let full = io::Error::from_raw_os_error(28);
        let error = failed("write", Path::new("/g/.new-1/memory"))(full);
        assert!(error.to_string().contains("free disk space"), "{error}");
    }
}
