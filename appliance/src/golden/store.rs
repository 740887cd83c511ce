//! Goldens on disk, by key.
//!
//! ```text
//! <golden>/<32 hex digits>/manifest.json   what it was made of, and how long the other files are
//!                         /state           CPUs and devices
//!                         /memory          the guest's RAM, with holes for zero pages
//!                         /disk            the writable layer, with holes
//!                         /working-set     which pages a fork touches first; may be absent
//! <golden>/.new-<uuid>/                    being made
//! <golden>/.old-<uuid>/                    being removed
//! ```
//!
//! # Crash safety
//! A golden is filled under `.new-`, synced, and renamed into place, so it is there whole or not at
//! all, whenever the process is killed. What begins with `.new-` or `.old-` is removed at the next
//! start. A golden whose manifest does not hash to the name of its folder, whose files are not as long
//! as the manifest says, or that was made on another host or by another build, is removed as well.
//!
//! # Trust
//! Folders are for their owner only, and so are the files: they hold a guest's memory. Workers get
//! read-only descriptors of a published golden. The one that writes a draft is gone before the
//! draft is looked at.
//!
//! # Threads
//! All calls block on the disk; long ones are made on blocking threads by their callers. The index is
//! behind a mutex that is held for a rename and never while data is written. One appliance owns the
//! folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::{
    OLD, StoreError, bury, discard, failed, make_folder, open_checked, remove_folder, sync_folder,
};
use super::manifest::{Host, Key, Manifest};
use crate::worker::{SaveFiles, Snapshot, WorkingSet};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISK: &str = "disk";
const WORKING_SET: &str = "working-set";
const NEW: &str = ".new-";
/// `manifest.json` is written by us and has a few hundred bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// Cheap to clone; all clones are one store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    goldens: Mutex<BTreeMap<Key, Arc<Golden>>>,
}

/// A golden that forks can be made of.
#[derive(Debug)]
pub struct Golden {
    pub key: Key,
    pub about: About,
    /// What it takes on the disk.
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    folder: PathBuf,
    /// When a pool had it for the last time; now, while one has it.
    used: Mutex<SystemTime>,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct About {
    pub manifest: Manifest,
    pub lengths: Lengths,
    /// Milliseconds since the Unix epoch.
    pub made_at_ms: u64,
}

/// How long the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lengths {
    pub state: u64,
    pub memory: u64,
    pub disk: u64,
    pub working_set: Option<u64>,
}

impl Golden {
    /// Read-only descriptors of its files, whose lengths are checked once more.
    pub fn open(&self) -> Result<Snapshot, StoreError> {
        let lengths = &self.about.lengths;
        let open = |name, length| open_checked(&self.folder.join(name), length);
        Ok(Snapshot {
            state: open(STATE, lengths.state)?,
            memory: open(MEMORY, lengths.memory)?,
            disk: open(DISK, lengths.disk)?,
            working_set: match lengths.working_set {
                Some(length) => WorkingSet::Known(open(WORKING_SET, length)?),
                None => WorkingSet::Unknown,
            },
            disk_bytes: lengths.disk,
        })
    }

    pub fn last_used(&self) -> SystemTime {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a pool has it. The order of unused goldens shall survive a restart, so the time is
    /// that of the manifest's file; should the file system refuse, nothing is lost but that order.
    pub fn touch(&self) {
        let now = SystemTime::now();
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
        let path = self.folder.join(MANIFEST);
        if let Ok(file) = File::options().write(true).open(path) {
            let _ = file.set_modified(now);
        }
    }
}

impl Store {
    /// Opens the store and removes what a crash, an upgrade or another host left behind.
    pub fn open(folder: &Path, host: &Host) -> Result<Self, StoreError> {
        make_folder(folder)?;
        let mut goldens = BTreeMap::new();
        let entries = fs::read_dir(folder).map_err(failed("read", folder))?;
        for entry in entries {
            let entry = entry.map_err(failed("read", folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let path = entry.path();
            if name.starts_with(NEW) || name.starts_with(OLD) {
                remove_folder(&path)?;
                continue;
            }
            // Not ours, like `lost+found`.
            let Some(key) = Key::of_folder(name) else {
                continue;
            };
            match load(&path, &key) {
                Ok(golden) => {
                    let wanted = Manifest::new(host, golden.about.manifest.template.clone());
                    let differing = golden.about.manifest.differences(&wanted);
                    if differing.is_empty() {
                        goldens.insert(key, Arc::new(golden));
                    } else {
                        let differing = differing.join(", ");
                        tracing::info!(%key, differing, "golden of another build or host is removed");
                        discard(&path)?;
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%key, error, "damaged golden is removed");
                    discard(&path)?;
                }
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                goldens: Mutex::new(goldens),
            }),
        })
    }

    /// The golden that was made of exactly this.
    pub fn get(&self, manifest: &Manifest) -> Option<Arc<Golden>> {
        let golden = self.goldens().get(&manifest.key()).cloned()?;
        let differing = manifest.differences(&golden.about.manifest);
        if differing.is_empty() {
            return Some(golden);
        }
        let (key, differing) = (&golden.key, differing.join(", "));
        tracing::error!(%key, differing, "golden does not match its key");
        None
    }

    pub fn has(&self, key: &Key) -> bool {
        self.goldens().contains_key(key)
    }

    /// By key.
    pub fn list(&self) -> Vec<Arc<Golden>> {
        self.goldens().values().cloned().collect()
    }

    /// A folder for a new golden.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        let name = format!("{NEW}{}", Uuid::new_v4().simple());
        let folder = self.inner.folder.join(name);
        make_folder(&folder)?;
        Ok(Draft { folder })
    }

    /// Brings a draft to the disk and under its key, in the place of a golden that may be there.
    pub fn publish(&self, draft: Draft, manifest: Manifest) -> Result<Arc<Golden>, StoreError> {
        let key = manifest.key();
        let lengths = draft.settle(&manifest)?;
        let about = About {
            manifest,
            lengths,
            made_at_ms: crate::pool::unix_millis(),
        };
        draft.write_manifest(&about)?;
        let folder = self.inner.folder.join(key.as_str());
        let golden = {
            let mut goldens = self.goldens();
            let replaced = fs::symlink_metadata(&folder)
                .is_ok()
                .then(|| bury(&folder))
                .transpose()?;
            fs::rename(&draft.folder, &folder).map_err(failed("name", &draft.folder))?;
            sync_folder(&self.inner.folder)?;
            let golden = Arc::new(load(&folder, &key)?);
            goldens.insert(key, Arc::clone(&golden));
            drop(goldens);
            if let Some(grave) = replaced {
                remove_folder(&grave)?;
            }
            golden
        };
        Ok(golden)
    }

    /// Forgets a golden, unless another one has taken its place. `true`: it was there. Forks that run
    /// keep their descriptors and go on.
    pub fn remove(&self, golden: &Arc<Golden>) -> Result<bool, StoreError> {
        let grave = {
            let mut goldens = self.goldens();
            let known = goldens.get(&golden.key);
            if !known.is_some_and(|known| Arc::ptr_eq(known, golden)) {
                return Ok(false);
            }
            goldens.remove(&golden.key);
            bury(&golden.folder)?
        };
        remove_folder(&grave)?;
        Ok(true)
    }

    fn goldens(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Golden>>> {
        self.inner
            .goldens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A golden in the making; removed when it is dropped.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
}

impl Draft {
    /// Empty files for a worker to save into.
    pub fn create(&self) -> Result<SaveFiles, StoreError> {
        Ok(SaveFiles {
            state: self.create_file(STATE)?,
            memory: self.create_file(MEMORY)?,
            disk: self.create_file(DISK)?,
        })
    }

    /// An empty file for the pages that a fork touches first.
    pub fn create_working_set(&self) -> Result<File, StoreError> {
        self.create_file(WORKING_SET)
    }

    /// Recording did not work; forks do without.
    pub fn drop_working_set(&self) -> Result<(), StoreError> {
        let path = self.folder.join(WORKING_SET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// What was saved, read-only, for a first fork. Fails when the worker saved something else than a
    /// guest of this shape.
    pub fn open(&self, manifest: &Manifest) -> Result<Snapshot, StoreError> {
        let lengths = self.lengths(manifest)?;
        let open = |name, length| open_checked(&self.folder.join(name), length);
        Ok(Snapshot {
            state: open(STATE, lengths.state)?,
            memory: open(MEMORY, lengths.memory)?,
            disk: open(DISK, lengths.disk)?,
            working_set: WorkingSet::Wanted,
            disk_bytes: lengths.disk,
        })
    }

    fn create_file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.folder.join(name);
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))
    }

    fn lengths(&self, manifest: &Manifest) -> Result<Lengths, StoreError> {
        let length = |name: &str| {
            let path = self.folder.join(name);
            fs::symlink_metadata(&path)
                .map(|metadata| metadata.len())
                .map_err(failed("look at", &path))
        };
        let expect = |name: &str, expected: u64| match length(name)? {
            found if found == expected => Ok(found),
            found => Err(StoreError::Length {
                path: self.folder.join(name),
                found,
                expected,
            }),
        };
        let state = length(STATE)?;
        if state == 0 {
            let path = self.folder.join(STATE);
            return Err(StoreError::Empty { path });
        }
        let template = &manifest.template;
        Ok(Lengths {
            state,
            memory: expect(MEMORY, u64::from(template.mem_mib) << 20)?,
            disk: expect(DISK, template.disk_bytes)?,
            working_set: match length(WORKING_SET) {
                Err(StoreError::System { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    None
                }
                length => Some(length?),
            },
        })
    }

    /// Everything but the manifest onto the disk.
    fn settle(&self, manifest: &Manifest) -> Result<Lengths, StoreError> {
        if self
            .lengths(manifest)?
            .working_set
            .is_some_and(|bytes| bytes == 0)
        {
            self.drop_working_set()?;
        }
        let lengths = self.lengths(manifest)?;
        let recorded = lengths.working_set.map(|_| WORKING_SET);
        for name in [STATE, MEMORY, DISK].into_iter().chain(recorded) {
            let path = self.folder.join(name);
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(failed("write", &path))?;
        }
        Ok(lengths)
    }

    fn write_manifest(&self, about: &About) -> Result<(), StoreError> {
        let path = self.folder.join(MANIFEST);
        let mut file = self.create_file(MANIFEST)?;
        let text = serde_json::to_vec_pretty(about).map_err(|source| StoreError::Malformed {
            path: path.clone(),
            source,
        })?;
        file.write_all(&text)
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        sync_folder(&self.folder)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing of this name any more.
        if let Err(error) = remove_folder(&self.folder) {
            tracing::warn!("{}", crate::exit::chain(&error));
        }
    }
}

fn load(folder: &Path, key: &Key) -> Result<Golden, StoreError> {
    let path = folder.join(MANIFEST);
    let length = fs::symlink_metadata(&path)
        .map_err(failed("look at", &path))?
        .len();
    if length > MAX_MANIFEST_BYTES {
        return Err(StoreError::Length {
            path,
            found: length,
            expected: MAX_MANIFEST_BYTES,
        });
    }
    let text = fs::read(&path).map_err(failed("read", &path))?;
    let about: About = serde_json::from_slice(&text).map_err(|source| StoreError::Malformed {
        path: path.clone(),
        source,
    })?;
    if about.manifest.key() != *key {
        let folder = key.to_string();
        return Err(StoreError::Misplaced { path, folder });
    }
    let used = fs::symlink_metadata(&path)
        .and_then(|metadata| metadata.modified())
        .map_err(failed("look at", &path))?;
    let allocated = |file: &File| file.metadata().map_or(0, |it| it.blocks() * 512);
    let mut golden = Golden {
        key: key.clone(),
        about,
        memory_bytes: 0,
        disk_bytes: 0,
        folder: folder.to_owned(),
        used: Mutex::new(used),
    };
    let files = golden.open()?;
    golden.memory_bytes = allocated(&files.memory);
    golden.disk_bytes = allocated(&files.disk);
    Ok(golden)
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub mod tests;
