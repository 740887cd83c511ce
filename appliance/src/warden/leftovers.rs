//! The end of what an appliance has left running, when no other one is to take it over.

use std::io;

use super::cgroup::{self, Leaf};
use super::folders::{FolderError, Folders};
use super::records::{Records, Subject};
use super::takeover::take_over;
use crate::config::Paths;

/// Why it is not known whether everything has ended.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error(transparent)]
    Folders(#[from] FolderError),
    #[error("Cannot read what an earlier appliance has left")]
    Records(#[source] io::Error),
    #[error("Cannot wait for the end of a worker")]
    Wait(#[source] io::Error),
}

impl LeftoverError {
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Folders(FolderError::Locked { .. }))
    }

    pub fn is_permission(&self) -> bool {
        match self {
            Self::Folders(error) => error.is_permission(),
            Self::Records(error) | Self::Wait(error) => {
                error.kind() == io::ErrorKind::PermissionDenied
            }
        }
    }
}

/// Ends all workers that are left and removes what is theirs; how many there were. Refused while an appliance runs.
pub fn end_leftovers(paths: &Paths) -> Result<usize, LeftoverError> {
    if !paths.records.exists() {
        // Nothing was ever started here, and nothing shall be made.
        return Ok(0);
    }
    let mut folders = Folders::lock(paths)?;
    let records = Records::open(&paths.records).map_err(LeftoverError::Records)?;
    let left = take_over(&records).map_err(LeftoverError::Records)?;
    left.workers.iter().for_each(|worker| worker.process.kill());
    let count = left.workers.len();
    for mut worker in left.workers {
        let leaf = match worker.entry.subject() {
            Subject::Worker { id, .. } => Leaf::of(*id, worker.process.id()),
            Subject::Appliance => None,
        };
        worker.process.wait().map_err(LeftoverError::Wait)?;
        if let Some(leaf) = leaf
            && let Err(error) = leaf.remove()
        {
            tracing::warn!("A cgroup of a worker stays: {error}");
        }
        worker.entry.remove();
    }
    cgroup::remove_leftovers();
    folders.keep(false);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::spec::WorkerSpec;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    use uuid::Uuid;

    #[test]
    fn worker_that_is_left_is_ended_with_its_record_and_the_run_folder() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        std::fs::create_dir_all(paths.workers.join("left")).unwrap();
        std::fs::create_dir_all(&paths.state).unwrap();
        let records = Records::open(&paths.records).unwrap();
        let mut worker = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let subject = Subject::spare(Uuid::new_v4());
        let mut entry = records.write(subject, worker.id(), None).unwrap();
        let spec = WorkerSpec {
            vcpus: 1,
            cpu_millis: 250,
            mem_mib: 128,
            limits: crate::worker::spec::RateLimits::NONE,
        };
        entry.shaped(&spec).unwrap();
        assert_eq!(end_leftovers(&paths).unwrap(), 1);
        let status = worker.wait().unwrap();
        assert!(!status.success(), "{status}");
        assert!(!paths.run.exists());
        assert_eq!(std::fs::read_dir(&paths.records).unwrap().count(), 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let again = loop {
            match end_leftovers(&paths) {
                // A child that another test starts just now has a copy of the lock.
                Err(error) if error.is_locked() && Instant::now() < deadline => {}
                again => break again.unwrap(),
            }
        };
        assert_eq!(again, 0);
    }

    #[test]
    fn nothing_is_made_where_no_appliance_ever_ran() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        assert_eq!(end_leftovers(&paths).unwrap(), 0);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        assert_eq!(
            end_leftovers(&Paths::under(Path::new("/nonexistent")).unwrap()).unwrap(),
            0
        );
    }

    #[test]
    fn running_appliance_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        let _folders = Folders::prepare(&paths, None).unwrap();
        Records::open(&paths.records).unwrap();
        let error = end_leftovers(&paths).unwrap_err();
        assert!(error.is_locked(), "{error}");
    }
}
