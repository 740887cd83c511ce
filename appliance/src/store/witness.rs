//! Whether the database still holds what was answered for.
//!
//! sled cannot tell a damaged record in the middle of its log from one that a power cut tore at the end: it
//! takes the log for finished there, zeroes what follows, and opens in an older state without a word. So
//! every batch carries a witness: its own number, and that of the newest batch that was known to be on disk
//! when it was made. A database that opens with a smaller number than one of its files promises has lost
//! something that was answered for.
//!
//! Not found: damage to nothing but the last batch of a run that did not end in order, for which no later one
//! speaks; and a file that was cut short, since what it promised was cut off with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// How a witness is found in a file.
const MAGIC: [u8; 16] = *b"\xcacabana-witness\0";
const NUMBERS: usize = 2 * size_of::<u64>();
const DIGEST: usize = 8;
const BYTES: usize = MAGIC.len() + NUMBERS + DIGEST;

/// The row that every batch writes. No table has the number 0.
pub const KEY: &[u8] = b"\0witness";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Witness {
    /// Counts batches.
    pub number: u64,
    /// This batch, and so all before it, were on disk.
    pub flushed: u64,
}

impl Witness {
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.flushed.to_le_bytes());
        let digest = digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// `None`: this is none, or damaged itself.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (told, rest) = bytes.split_at_checked(BYTES - DIGEST)?;
        let numbers = told.strip_prefix(&MAGIC)?;
        if rest.get(..DIGEST)? != digest(told) {
            return None;
        }
        let number = |at: usize| {
            let bytes = numbers.get(at..at + size_of::<u64>())?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        Some(Self {
            number: number(0)?,
            flushed: number(size_of::<u64>())?,
        })
    }
}

/// It must only tell a witness from a damaged one.
fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&Sha256::digest(bytes)[..DIGEST]);
    digest
}

/// The files of a database before the engine has touched them. They are as large as what the appliance
/// keeps, which is small.
pub struct Files {
    folder: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    /// Reads them all; a database that is not there has none.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut paths = Vec::new();
        match list(folder, &mut paths) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            listed => listed?,
        }
        let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes));
        Ok(Self {
            folder: folder.to_owned(),
            files: paths.into_iter().map(read).collect::<io::Result<_>>()?,
        })
    }

    /// The number of the newest batch that some later batch knew to be on disk.
    pub fn promised(&self) -> u64 {
        let all = self.files.iter().flat_map(|(_, bytes)| witnesses(bytes));
        all.map(|witness| witness.flushed).max().unwrap_or(0)
    }

    /// Takes back what the engine did, for whoever wants to save what is readable.
    pub fn restore(&self) -> io::Result<()> {
        let mut now = Vec::new();
        list(&self.folder, &mut now)?;
        for path in now {
            if !self.files.iter().any(|(known, _)| *known == path) {
                fs::remove_file(path)?;
            }
        }
        for (path, bytes) in &self.files {
            fs::write(path, bytes)?;
        }
        Ok(())
    }
}

fn witnesses(bytes: &[u8]) -> impl Iterator<Item = Witness> {
    let starts = bytes.iter().enumerate();
    let starts = starts.filter(|(_, byte)| **byte == MAGIC[0]);
    starts.filter_map(|(start, _)| Witness::decode(&bytes[start..]))
}

/// Every regular file below the folder.
pub fn list(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}
