//! The workers that an earlier appliance has left, as far as their folders tell.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::notes::{self, Noted};
use super::shell::RunFolder;

/// Folders that nobody has taken over. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Leftovers {
    inner: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    /// Of workers, by their ids.
    folders: HashMap<Uuid, PathBuf>,
    /// Whatever else lies there.
    others: HashSet<PathBuf>,
}

/// A worker that says what it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover {
    pub worker: Uuid,
    pub noted: Noted,
    pub note: Vec<u8>,
}

impl Leftovers {
    /// Everything that is in `workers` now. What is made there later is somebody else's.
    pub fn look(workers: &Path) -> io::Result<Self> {
        let mut found = Found::default();
        for entry in std::fs::read_dir(workers)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            match name.to_str().and_then(|name| name.parse().ok()) {
                Some(id) => drop(found.folders.insert(id, path)),
                None => drop(found.others.insert(path)),
            }
        }
        Ok(Self {
            inner: Arc::new(Mutex::new(found)),
        })
    }

    /// Those that say what they are.
    pub fn noted(&self) -> Vec<Leftover> {
        let found = self.found();
        let noted = found.folders.iter().filter_map(|(worker, folder)| {
            let (noted, note) = notes::read(folder)
                .inspect_err(|error| tracing::warn!(%worker, %error, "the note of a worker of an earlier run cannot be read"))
                .ok()??;
            Some(Leftover {
                worker: *worker,
                noted,
                note,
            })
        });
        noted.collect()
    }

    /// Where this worker's folder is.
    pub fn folder(&self, worker: Uuid) -> Option<PathBuf> {
        self.found().folders.get(&worker).cloned()
    }

    /// From now on this worker's folder is the caller's.
    pub fn take(&self, worker: Uuid) -> Option<RunFolder> {
        let path = self.found().folders.remove(&worker)?;
        Some(RunFolder::of_a_guest(path))
    }

    /// Removes what nobody has taken.
    pub fn clear(&self) {
        let Found { folders, others } = std::mem::take(&mut *self.found());
        for path in folders.into_values().chain(others) {
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!("Cannot remove {}: {error}", path.display());
            }
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_removed_and_what_came_later_stays() {
        let workers = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = workers.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = make(&one.simple().to_string());
        notes::ready(&first, b"demo").unwrap();
        let second = make(&two.simple().to_string());
        std::fs::write(workers.path().join("stray"), "x").unwrap();
        let left = Leftovers::look(workers.path()).unwrap();
        let later = make("later");
        let noted = Leftover {
            worker: one,
            noted: Noted::Ready,
            note: b"demo".to_vec(),
        };
        assert_eq!(left.noted(), [noted]);
        // Taken, and let go of without an end: the worker lives on.
        drop(left.take(one).unwrap());
        assert!(left.take(one).is_none());
        left.clear();
        assert!(first.exists() && later.exists() && !second.exists());
        assert_eq!(std::fs::read_dir(workers.path()).unwrap().count(), 2);
    }
}
