//! The store on disk: one sled tree, the table as the first byte of each key.
//!
//! One tree, because a sled batch is atomic within a tree only. sled syncs in the background some
//! time after a write; here nothing is answered before `flush` has returned, so the background
//! thread is switched off.
//!
//! On Linux `flush` writes to the file and waits with `sync_file_range`, which neither makes the disk empty its cache
//! nor writes down how long the file has become (sync_file_range(2), "Warning"). So `fsync` follows where a power cut is to be survived.
//!
//! sled 0.34 passes over some kinds of damage; [`witness`] finds those. It answers some kinds of damage with a panic. A hook turns that into the one line
//! that says what the operator can do, and into an orderly end of the process.

use std::fs::File;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::witness::{self, Files, Witness};
use super::{Change, Outlives, Rows, Store, StoreError, Table};
use crate::exit::Exit;

/// Everything we keep is small: a few hundred bytes per session.
const CACHE_BYTES: u64 = 16 << 20;

const GAVE_UP: &str = "the database engine gave up reading it";
const ROLLED_BACK: &str = "what was written last is not in it any more";

/// A process that was killed a moment ago may hold the lock until the kernel has taken it apart, and
/// sled's own threads may for a moment after a close.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// The database directory, open.
#[derive(Debug)]
pub struct SledStore {
    db: ::sled::Db,
    path: PathBuf,
    /// sled's file, where its changes are to survive a power cut.
    log: Option<File>,
    /// The newest batch. Held while one is applied, so that their numbers are in the order of the log.
    newest: Mutex<u64>,
    /// The newest batch that is on disk.
    flushed: AtomicU64,
    /// The newest batch when it was opened.
    opened_at: u64,
}

impl Drop for SledStore {
    /// Speaks for the last batch, if there was one. Without this word it is only not found when it is damaged.
    fn drop(&mut self) {
        if self.flushed.load(Ordering::Acquire) > self.opened_at {
            let _ = self.apply(&[]);
        }
    }
}

impl SledStore {
    /// Opens the database under `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_for(path, Outlives::PowerCut)
    }

    /// As [`SledStore::open`]; what is answered survives so much.
    pub fn open_for(path: &Path, outlives: Outlives) -> Result<Self, StoreError> {
        let (db, newest) = with_patience(|| open_once(path))?;
        let failed = |error| translate("open", path, ::sled::Error::Io(error));
        let log = match outlives {
            Outlives::PowerCut => Some(settled(path).map_err(failed)?),
            Outlives::Process => None,
        };
        Ok(Self {
            db,
            path: path.to_owned(),
            log,
            newest: Mutex::new(newest),
            flushed: AtomicU64::new(newest),
            opened_at: newest,
        })
    }

    fn failed(&self, attempt: &'static str) -> impl Fn(::sled::Error) -> StoreError {
        move |error| translate(attempt, &self.path, error)
    }
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self
            .db
            .get(full_key(table, key))
            .map_err(self.failed("read"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError> {
        self.db
            .scan_prefix(full_key(table, prefix))
            .map(|row| row.map(|(key, value)| (key[1..].to_vec(), value.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(self.failed("read"))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut batch = ::sled::Batch::default();
        for change in changes {
            match change {
                Change::Put { table, key, value } => {
                    batch.insert(full_key(*table, key), value.as_slice());
                }
                Change::Remove { table, key } => batch.remove(full_key(*table, key)),
            }
        }
        let number = {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            let number = *newest + 1;
            let flushed = self.flushed.load(Ordering::Acquire);
            batch.insert(witness::KEY, Witness { number, flushed }.encode());
            self.db.apply_batch(batch).map_err(self.failed("write"))?;
            *newest = number;
            number
        };
        self.db.flush().map_err(self.failed("flush"))?;
        let failed = |error| self.failed("flush")(::sled::Error::Io(error));
        if let Some(log) = &self.log {
            log.sync_all().map_err(failed)?;
        }
        self.flushed.fetch_max(number, Ordering::AcqRel);
        Ok(())
    }
}

/// sled's file, once its name and the folders above it are on disk.
fn settled(path: &Path) -> io::Result<File> {
    let log = File::open(path.join("db"))?;
    log.sync_all()?;
    for folder in [Some(path), path.parent()].into_iter().flatten() {
        File::open(folder)?.sync_all()?;
    }
    Ok(log)
}

/// The database, and the number of its newest batch.
fn open_once(path: &Path) -> Result<(::sled::Db, u64), StoreError> {
    // The hook belongs to the whole process.
    static HOOK: Mutex<()> = Mutex::new(());
    let _exchanging = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let damaged = |detail: &str| StoreError::Damaged {
        path: path.to_owned(),
        detail: detail.to_owned(),
    };
    let files = Files::read(path).map_err(|source| StoreError::Disk {
        attempt: "read",
        path: path.to_owned(),
        source,
    })?;
    let files = Arc::new(files);
    let usual = Arc::new(panic::take_hook());
    let (others, found) = (Arc::clone(&usual), Arc::clone(&files));
    let (ours, gave_up) = (thread::current().id(), damaged(GAVE_UP).to_string());
    panic::set_hook(Box::new(move |info| {
        // sled's own threads read, too. Where panics unwind, who called learns of it below.
        let ours = thread::current().id() == ours || in_sled(info);
        if ours && cfg!(panic = "abort") {
            let _ = found.restore();
            eprintln!("cabana: {gave_up}");
            std::process::exit(Exit::Failed.code().into());
        } else if !ours {
            others(info);
        }
    }));
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        ::sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .and_then(|db| read_all(&db).map(|newest| (db, newest)))
    }));
    panic::set_hook(Box::new(move |info| usual(info)));
    let opened = match opened {
        Ok(Ok((db, newest))) if newest < files.promised() => {
            // Closed before its files are written.
            drop(db);
            Err(damaged(ROLLED_BACK))
        }
        Ok(opened) => opened.map_err(|error| translate("open", path, error)),
        Err(_) => Err(damaged(GAVE_UP)),
    };
    if matches!(opened, Err(StoreError::Damaged { .. })) {
        // The engine cuts off what it cannot read, and what is behind it with it.
        let _ = files.restore();
    }
    opened
}

/// Whether the panic comes from the engine's own code.
fn in_sled(info: &panic::PanicHookInfo<'_>) -> bool {
    info.location()
        .is_some_and(|location| location.file().contains("/sled-"))
}

/// Finds now what would be found at some later read. The engine's own check looks at the shape of the
/// tree and passes over pages that it cannot read. Gives the number of the newest batch.
fn read_all(db: &::sled::Db) -> ::sled::Result<u64> {
    db.verify_integrity()?;
    db.iter().try_for_each(|row| row.map(drop))?;
    let witness = db.get(witness::KEY)?;
    let witness = witness.and_then(|row| Witness::decode(&row));
    Ok(witness.unwrap_or_default().number)
}

fn full_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table as u8);
    full.extend_from_slice(key);
    full
}

/// Tries again for a while what fails because somebody holds the lock.
pub(super) fn with_patience<T>(
    mut attempt: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    for _ in 1..LOCK_TRIES {
        match attempt() {
            Err(StoreError::InUse { .. }) => thread::sleep(LOCK_PAUSE),
            done => return done,
        }
    }
    attempt()
}

fn translate(attempt: &'static str, path: &Path, error: ::sled::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        // sled wraps the refusal of its lock file in an error of kind `Other`.
        ::sled::Error::Io(error)
            if error.kind() == io::ErrorKind::WouldBlock
                || error.to_string().contains("could not acquire lock") =>
        {
            StoreError::InUse { path }
        }
        ::sled::Error::Io(source) => StoreError::Disk {
            attempt,
            path,
            source,
        },
        other => StoreError::Damaged {
            path,
            detail: other.to_string(),
        },
    }
}

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &SledStore, key: &[u8], value: &[u8]) {
        let put = Change::Put {
            table: Table::Pools,
            key: key.to_vec(),
            value: value.to_vec(),
        };
        store.apply(&[put]).unwrap();
    }

    #[test]
    fn store_opened_again_holds_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        write(&store, b"a", b"1");
        drop(store);
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(
            store.get(Table::Pools, b"a").unwrap().as_deref(),
            Some(&b"1"[..])
        );
    }

    #[test]
    fn write_is_on_disk_before_it_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(&dir.path().join("live")).unwrap();
        write(&store, b"a", b"1");
        // A copy of the files, taken while the store is open, is what a power cut would leave.
        let copy = dir.path().join("copy");
        copy_tree(&dir.path().join("live"), &copy);
        let recovered = SledStore::open(&copy).unwrap();
        assert_eq!(
            recovered.get(Table::Pools, b"a").unwrap().as_deref(),
            Some(&b"1"[..])
        );
    }

    #[test]
    fn store_that_is_open_elsewhere_is_in_use_and_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledStore::open(dir.path()).unwrap();
        let error = SledStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    }

    #[test]
    fn damaged_store_is_reported_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        for n in 0..2000_u32 {
            write_unflushed(&store, &n.to_le_bytes());
        }
        store.db.flush().unwrap();
        drop(store);
        let mut conf = std::fs::read(dir.path().join("conf")).unwrap();
        conf.iter_mut().for_each(|byte| *byte ^= 0x5a);
        std::fs::write(dir.path().join("conf"), conf).unwrap();
        let error = SledStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(
            error.to_string().contains("store export --salvage"),
            "{error}"
        );
    }

    fn write_unflushed(store: &SledStore, key: &[u8]) {
        store
            .db
            .insert(full_key(Table::Pools, key), &[7; 200][..])
            .unwrap();
    }

    pub fn copy_tree(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_tree(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
