//! What stands beside a worker in its folder, for an appliance that did not start it.
//!
//! There is one file at most: `ready.json`, which is renamed to `leased.json` when somebody gets the guest, and removed when
//! nobody gets it any more. It need not survive a power cut, because no worker does; so nothing is flushed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

const READY: &str = "ready.json";
const LEASED: &str = "leased.json";
/// Not whole yet.
const DRAFT: &str = "ready.json.new";
/// Only the appliance reads it: it has what a pool keeps secret.
const MODE: u32 = 0o600;

/// What was noted about a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// Nobody has ever had it.
    Ready,
    /// Somebody may have it.
    Leased,
}

/// The guest in this folder is ready. `note` says what it is.
pub fn ready(folder: &Path, note: &[u8]) -> io::Result<()> {
    let draft = folder.join(DRAFT);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&draft)?;
    file.write_all(note)?;
    fs::rename(draft, folder.join(READY))
}

/// Somebody gets it. One that was never noted as ready stays without a note.
pub fn leased(folder: &Path) -> io::Result<()> {
    none_is_fine(fs::rename(folder.join(READY), folder.join(LEASED)))
}

/// Nobody gets it any more.
pub fn forget(folder: &Path) -> io::Result<()> {
    for name in [READY, LEASED] {
        none_is_fine(fs::remove_file(folder.join(name)))?;
    }
    Ok(())
}

/// What is noted there; `None`: nothing.
pub fn read(folder: &Path) -> io::Result<Option<(Noted, Vec<u8>)>> {
    // Should there be both, it was had.
    for (name, noted) in [(LEASED, Noted::Leased), (READY, Noted::Ready)] {
        match fs::read(folder.join(name)) {
            Ok(note) => return Ok(Some((noted, note))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn none_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_goes_from_ready_to_leased_and_away() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(read(folder).unwrap(), None);
        ready(folder, b"demo").unwrap();
        assert_eq!(
            read(folder).unwrap(),
            Some((Noted::Ready, b"demo".to_vec()))
        );
        leased(folder).unwrap();
        assert_eq!(
            read(folder).unwrap(),
            Some((Noted::Leased, b"demo".to_vec()))
        );
        forget(folder).unwrap();
        assert_eq!(read(folder).unwrap(), None);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }

    #[test]
    fn guest_that_was_never_noted_is_leased_without_a_note() {
        let folder = tempfile::tempdir().unwrap();
        leased(folder.path()).unwrap();
        forget(folder.path()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
    }

    #[test]
    fn note_is_for_the_appliance_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        ready(folder.path(), b"demo").unwrap();
        let mode = fs::metadata(folder.path().join(READY))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
    }
}
