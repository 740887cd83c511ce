//! Root images on disk, by manifest digest.
//!
//! ```text
//! <images>/<64 hex digits>/root.squashfs   the root image
//!                         /image.json      what is known about it
//! <images>/names.json                      name → digest
//! <images>/.tmp/...                        everything unfinished; emptied at start
//! ```
//!
//! # Crash safety
//! An image directory is filled under `.tmp`, synced, and renamed into place: it is there whole or
//! not at all, whenever the process is killed. `names.json` is replaced the same way. A name that
//! points to no image is dropped when the cache is opened.
//!
//! # Threads
//! All calls block on the disk for short; `images::import` makes the long ones elsewhere. The
//! index is in memory behind a mutex that is never held while a root image is read or written.
//! One appliance owns the directory.
//!
//! # Not here
//! Which images are to go: `service::housekeeping`. Taking them out: `removal`. Who needs them: `usage`.

mod removal;
mod usage;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};

pub use self::usage::Hold;
use self::usage::LastUse;
use super::digest::Digest;
use super::error::ImageError;
use super::layout::ImageConfig;
use super::worker::JobReport;

const ROOT_IMAGE: &str = "root.squashfs";
const RECORD: &str = "image.json";
const NAMES: &str = "names.json";
const TEMPORARY: &str = ".tmp";
/// Builds at the same time. Each one uses every processor already.
const BUILDS: usize = 1;

/// Cheap to clone; all clones are one cache.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    index: Mutex<Index>,
    builds: Semaphore,
    grown: Notify,
}

#[derive(Default)]
struct Index {
    images: BTreeMap<Digest, Entry>,
    names: BTreeMap<String, Digest>,
    /// How many holds there are; of images that are there, and of some that are not.
    holds: BTreeMap<Digest, usize>,
    /// What is about to be removed.
    removing: Option<Digest>,
}

struct Entry {
    record: StoredRecord,
    used: LastUse,
}

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRecord {
    digest: Digest,
    config: ImageConfig,
    root_image_bytes: u64,
    /// What could not be kept of the image.
    #[serde(default)]
    warnings: Vec<String>,
    /// How many layers it was made of. Absent in records of the first version, and so is the next one.
    #[serde(default)]
    layers: Option<usize>,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    made_at_ms: Option<u64>,
}

/// An image that is ready to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    pub digest: Digest,
    /// The name it was asked for by, or its first one; the digest when it has none.
    pub name: String,
    pub names: Vec<String>,
    pub config: ImageConfig,
    pub root_image_path: PathBuf,
    pub root_image_bytes: u64,
    pub warnings: Vec<String>,
    /// `None`: nobody wrote it down.
    pub layers: Option<usize>,
    pub made_at_ms: Option<u64>,
    pub last_used: SystemTime,
}

impl ImageRecord {
    /// Read-only.
    pub fn open_root(&self) -> Result<File, ImageError> {
        File::open(&self.root_image_path).map_err(|error| {
            ImageError::storage(
                format_args!("open the root image {}", self.root_image_path.display()),
                &error,
            )
        })
    }
}

/// A directory under `.tmp` that goes away unless it is published.
pub struct Staging {
    directory: TempDir,
}

impl Staging {
    /// The file that is to become the root image.
    pub fn create_root_image(&self) -> Result<File, ImageError> {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.directory.path().join(ROOT_IMAGE))
            .map_err(|error| ImageError::storage("create the root image", &error))
    }
}

impl Cache {
    /// Opens the cache, creates its directory if needed, and removes what a crash left behind.
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let failed = |error| {
            ImageError::storage(
                format_args!("open the image cache {}", directory.display()),
                &error,
            )
        };
        let temporary = directory.join(TEMPORARY);
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir_all(&temporary).map_err(failed)?;
        let mut index = Index::default();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(digest) = entry
                .file_name()
                .to_str()
                .and_then(|name| Digest::from_hex(name).ok())
            else {
                continue;
            };
            match load(&entry.path(), &digest) {
                Ok(entry) => {
                    index.images.insert(digest, entry);
                }
                Err(error) => {
                    tracing::warn!(%digest, %error, "Damaged image removed from the cache");
                    let grave = temporary.join(digest.hex());
                    fs::rename(entry.path(), &grave).map_err(failed)?;
                    fs::remove_dir_all(&grave).map_err(failed)?;
                }
            }
        }
        index.names = load_names(&directory.join(NAMES)).map_err(failed)?;
        let images = &index.images;
        let named = index.names.len();
        index.names.retain(|_, digest| images.contains_key(digest));
        let is_stale = index.names.len() < named;
        let cache = Self {
            inner: Arc::new(Inner {
                directory: directory.to_owned(),
                index: Mutex::new(index),
                builds: Semaphore::new(BUILDS),
                grown: Notify::new(),
            }),
        };
        // Or a name that was taken back would be there again with its image.
        if is_stale && let Err(error) = cache.save_names(&cache.index().names) {
            tracing::warn!(%error, "names of images that are gone stay in the file");
        }
        Ok(cache)
    }

    /// Resolves when an image has come into the cache since this was last asked.
    pub async fn grown(&self) {
        self.inner.grown.notified().await;
    }

    /// The size of the file system that it is on.
    pub fn room(&self) -> io::Result<u64> {
        let room = rustix::fs::statvfs(&self.inner.directory)?;
        Ok(room.f_blocks.saturating_mul(room.f_frsize))
    }

    /// By exact name, or by digest (`sha256:...`).
    pub fn get(&self, name_or_digest: &str) -> Option<ImageRecord> {
        let index = self.index();
        let digest = match index.names.get(name_or_digest) {
            Some(digest) => digest.clone(),
            None => name_or_digest.parse().ok()?,
        };
        let mut record = self.record(&index, &digest)?;
        if index.names.contains_key(name_or_digest) {
            record.name = name_or_digest.to_owned();
        }
        Some(record)
    }

    /// Like `get`, with an error that says what to do.
    pub fn require(&self, name_or_digest: &str) -> Result<ImageRecord, ImageError> {
        self.get(name_or_digest).ok_or_else(|| {
            ImageError::not_found(format!(
                "No image '{name_or_digest}' is here; get it with `cabana image pull NAME` or `cabana image import oci-archive:FILE --name NAME`"
            ))
        })
    }

    /// Sorted by name.
    pub fn list(&self) -> Vec<ImageRecord> {
        let index = self.index();
        let mut records: Vec<_> = index
            .images
            .keys()
            .filter_map(|digest| self.record(&index, digest))
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Gives an image that is in the cache another name; the name may have meant another before.
    pub fn set_name(&self, name: &str, digest: &Digest) -> Result<(), ImageError> {
        let mut index = self.index();
        if !index.images.contains_key(digest) {
            return Err(ImageError::not_found(format!("No image {digest}")));
        }
        if index.names.get(name) == Some(digest) {
            return Ok(());
        }
        let mut names = index.names.clone();
        names.insert(name.to_owned(), digest.clone());
        self.save_names(&names)
            .map_err(|error| ImageError::storage("save the image names", &error))?;
        // Memory follows the disk, not the other way round: a name that was promised survives.
        index.names = names;
        Ok(())
    }

    /// A place for a new image.
    pub fn stage(&self) -> Result<Staging, ImageError> {
        let directory = tempfile::Builder::new()
            .prefix("image-")
            .tempdir_in(self.temporary())
            .map_err(|error| ImageError::storage("create a temporary directory", &error))?;
        Ok(Staging { directory })
    }

    /// A file without a name: nothing is left of it when its last descriptor is closed.
    pub fn temporary_file(&self) -> Result<File, ImageError> {
        tempfile::tempfile_in(self.temporary())
            .map_err(|error| ImageError::storage("create a temporary file", &error))
    }

    /// Makes a staged image part of the cache. When another import of the same image was first,
    /// this one is thrown away: both are equal.
    pub fn publish(&self, staging: Staging, report: &JobReport) -> Result<ImageRecord, ImageError> {
        let stored = StoredRecord {
            digest: report.digest.clone(),
            config: report.config.clone(),
            root_image_bytes: report.bytes,
            warnings: report.warnings.clone(),
            layers: Some(report.layers),
            made_at_ms: Some(crate::pool::unix_millis()),
        };
        let target = self.inner.directory.join(report.digest.hex());
        let failed = |error| ImageError::storage("store the image in the cache", &error);
        settle(staging.directory.path(), &stored).map_err(failed)?;
        let mut index = self.index();
        if !index.images.contains_key(&report.digest) {
            fs::rename(staging.directory.path(), &target).map_err(failed)?;
            sync_directory(&self.inner.directory).map_err(failed)?;
            // Renamed away: there is nothing left to remove.
            let _ = staging.directory.keep();
            let entry = Entry {
                record: stored,
                used: LastUse::noted(SystemTime::now()),
            };
            index.images.insert(report.digest.clone(), entry);
            self.inner.grown.notify_one();
        }
        self.record(&index, &report.digest)
            .ok_or_else(|| ImageError::not_found(format!("No image {}", report.digest)))
    }

    /// Waits until a build may start. Hold the permit until the image is published.
    pub(super) async fn build_permit(
        &self,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, ImageError> {
        self.inner
            .builds
            .acquire()
            .await
            .map_err(|_| ImageError::worker_failed("The image cache is closed"))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // The index changes in single inserts, so it is whole even after a panic elsewhere.
        self.inner
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self) -> PathBuf {
        self.inner.directory.join(TEMPORARY)
    }

    fn record(&self, index: &Index, digest: &Digest) -> Option<ImageRecord> {
        let Entry {
            record: stored,
            used,
        } = index.images.get(digest)?;
        let names: Vec<String> = index
            .names
            .iter()
            .filter(|(_, named)| *named == digest)
            .map(|(name, _)| name.clone())
            .collect();
        Some(ImageRecord {
            digest: digest.clone(),
            name: names.first().cloned().unwrap_or_else(|| digest.to_string()),
            names,
            config: stored.config.clone(),
            root_image_path: self.inner.directory.join(digest.hex()).join(ROOT_IMAGE),
            root_image_bytes: stored.root_image_bytes,
            warnings: stored.warnings.clone(),
            layers: stored.layers,
            made_at_ms: stored.made_at_ms,
            last_used: used.at,
        })
    }

    fn save_names(&self, names: &BTreeMap<String, Digest>) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.temporary())?;
        serde_json::to_writer_pretty(&mut file, names)?;
        file.as_file_mut().sync_all()?;
        file.persist(self.inner.directory.join(NAMES))?;
        sync_directory(&self.inner.directory)
    }
}

/// Brings everything of a staged image to the disk.
fn settle(directory: &Path, record: &StoredRecord) -> io::Result<()> {
    let mut file = File::create_new(directory.join(RECORD))?;
    serde_json::to_writer_pretty(&mut file, record)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    File::open(directory.join(ROOT_IMAGE))?.sync_all()?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn load(directory: &Path, digest: &Digest) -> io::Result<Entry> {
    let path = directory.join(RECORD);
    let record: StoredRecord = serde_json::from_slice(&fs::read(&path)?)?;
    let used = LastUse::noted(fs::metadata(&path)?.modified()?);
    let length = fs::metadata(directory.join(ROOT_IMAGE))?.len();
    if record.digest != *digest || record.root_image_bytes != length {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "image.json does not describe the root image beside it",
        ));
    }
    Ok(Entry { record, used })
}

fn load_names(path: &Path) -> io::Result<BTreeMap<String, Digest>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}
