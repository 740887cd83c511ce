//! Rows that outlive the process and nothing more: in memory, and in a file to which every batch is appended before it is
//! answered.
//!
//! What was written to a file is the kernel's, so it is there for whoever reads the file next, however this process
//! ends. Nothing waits for a disk, nor for another thread: a batch is one `write` of some hundred bytes.
//!
//! ```text
//! magic, then batches: length (4 bytes) · digest (8) · changes
//! change: 1 = put, 2 = remove · table · length of the key (4) · key · length of the value (4) · value
//! ```
//!
//! A process that is killed in the midst of a `write` leaves a beginning of a batch at the end. Nobody was told of that one, and it is
//! cut off. Whoever opens the file must be the only one; the lock of the database beside it sees to that.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use super::rows::RowMap;
use super::{Change, Rows, Store, StoreError, Table};

const MAGIC: &[u8; 16] = b"cabana-journal 1";
const DIGEST: usize = 8;
const HEAD: usize = size_of::<u32>() + DIGEST;
const PUT: u8 = 1;
const REMOVE: u8 = 2;
/// The file is written anew when it is so much longer than twice what it holds. A thousand sessions are half of this,
/// and written in a fraction of a millisecond.
const SLACK_BYTES: u64 = 1 << 20;

/// See the module documentation.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rows: RowMap,
    file: File,
    bytes: u64,
    /// The file is written anew beyond this.
    limit: u64,
}

impl Journal {
    /// Opens the file, or makes it. `Damaged`: it is none, or was changed by somebody else.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let damaged = |detail: &str| StoreError::Damaged {
            path: path.to_owned(),
            detail: detail.to_owned(),
        };
        let written = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => MAGIC.to_vec(),
            read => read.map_err(failed("read", path))?,
        };
        let batches = written.strip_prefix(MAGIC);
        let mut rest = batches.ok_or_else(|| damaged("it is no journal"))?;
        let mut rows = RowMap::default();
        while let Some((batch, behind)) = next_batch(rest) {
            let changes = batch.ok_or_else(|| damaged("a batch in it is not what was written"))?;
            rows.apply(&changes);
            rest = behind;
        }
        // Without what an earlier process did not finish, and without rows that were replaced.
        let (file, bytes) = write_anew(path, &rows)?;
        Ok(Self {
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                rows,
                file,
                bytes,
                limit: 2 * bytes + SLACK_BYTES,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Journal {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().rows.get(table, key))
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError> {
        Ok(self.lock().rows.scan(table, prefix))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let batch = encode(changes.iter().map(parts));
        let mut inner = self.lock();
        if let Err(error) = inner.file.write_all(&batch) {
            // A part of it would hide whatever is written behind it.
            let bytes = inner.bytes;
            inner
                .file
                .set_len(bytes)
                .map_err(failed("shorten", &self.path))?;
            return Err(failed("write", &self.path)(error));
        }
        inner.bytes += batch.len() as u64;
        inner.rows.apply(changes);
        if inner.bytes > inner.limit {
            inner.shorten(&self.path);
        }
        Ok(())
    }

    fn waits(&self, _: Table) -> bool {
        false
    }
}

impl Inner {
    fn shorten(&mut self, path: &Path) {
        match write_anew(path, &self.rows) {
            Ok((file, bytes)) => (self.file, self.bytes) = (file, bytes),
            // The one that is there is whole.
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the journal of sessions could not be made shorter");
            }
        }
        self.limit = 2 * self.bytes + SLACK_BYTES;
    }
}

/// Puts a file with these rows in the place of the one that is there. Gives its length, too.
fn write_anew(path: &Path, rows: &RowMap) -> Result<(File, u64), StoreError> {
    let new = path.with_extension("new");
    let write = || {
        let mut bytes = MAGIC.to_vec();
        let mut rows = rows.iter().peekable();
        if rows.peek().is_some() {
            bytes.extend(encode(
                rows.map(|(table, key, value)| (table, key, Some(value))),
            ));
        }
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = File::options();
        let mut file = options
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        std::fs::rename(&new, path)?;
        Ok((file, bytes.len() as u64))
    };
    write().map_err(failed("write", path))
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Disk {
        attempt,
        path,
        source,
    }
}

/// Table and key of a change, and the value that is put.
type Parts<'a> = (Table, &'a [u8], Option<&'a [u8]>);

fn parts(change: &Change) -> Parts<'_> {
    match change {
        Change::Put { table, key, value } => (*table, key, Some(value)),
        Change::Remove { table, key } => (*table, key, None),
    }
}

fn encode<'a>(changes: impl Iterator<Item = Parts<'a>>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    for (table, key, value) in changes {
        bytes.push(if value.is_some() { PUT } else { REMOVE });
        bytes.push(table as u8);
        for part in [key, value.unwrap_or_default()] {
            bytes.extend_from_slice(&length(part));
            bytes.extend_from_slice(part);
        }
    }
    let (head, changes) = bytes.split_at_mut(HEAD);
    head[..size_of::<u32>()].copy_from_slice(&length(changes));
    head[size_of::<u32>()..].copy_from_slice(&digest(changes));
    bytes
}

/// Everything that is kept together is far below four gibibytes.
fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// It must only tell a batch from a damaged one.
fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&Sha256::digest(bytes)[..DIGEST]);
    digest
}

/// The first batch and what is behind it. `None`: there is no whole one any more. The inner `None`: it is damaged.
fn next_batch(bytes: &[u8]) -> Option<(Option<Vec<Change>>, &[u8])> {
    let (length, rest) = take_length(bytes)?;
    let (told, rest) = rest.split_at_checked(DIGEST)?;
    let (batch, behind) = rest.split_at_checked(length)?;
    let changes = (told == digest(batch)).then(|| decode(batch)).flatten();
    Some((changes, behind))
}

fn decode(mut batch: &[u8]) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    while let [kind, table, rest @ ..] = batch {
        let table = Table::ALL.into_iter().find(|it| *it as u8 == *table)?;
        let (key, rest) = take_part(rest)?;
        let (value, rest) = take_part(rest)?;
        changes.push(match *kind {
            PUT => Change::Put { table, key, value },
            REMOVE => Change::Remove { table, key },
            _ => return None,
        });
        batch = rest;
    }
    batch.is_empty().then_some(changes)
}

fn take_part(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (length, rest) = take_length(bytes)?;
    let (part, rest) = rest.split_at_checked(length)?;
    Some((part.to_vec(), rest))
}

fn take_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*length)).ok()?, rest))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
