//! Pools out of a database that does not open any more.
//!
//! Rows are plain JSON in sled's files, in one piece each. So the files are searched for rows, without
//! sled, which gives up at the first thing that does not add up. An older row of a pool that was changed
//! later lies about in the same files, as does that of a pool that was deleted: the newest of each name
//! is taken, and whoever imports it must look.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::StoreError;
use super::schema::{self, PoolRecord};
use super::sled::with_patience;
use super::witness;
use crate::pool::PoolName;

/// How every row begins.
const ROW: &[u8] = br#"{"version":"#;

/// The newest pool of each name that is found in the files of the database.
pub fn pools(path: &Path) -> Result<Vec<PoolRecord>, StoreError> {
    let failed = |attempt| {
        move |source: io::Error| StoreError::Disk {
            attempt,
            path: path.to_owned(),
            source,
        }
    };
    // The lock that sled takes.
    let database = File::open(path.join("db")).map_err(failed("open"))?;
    let lock = || rustix::fs::flock(&database, FlockOperation::NonBlockingLockExclusive);
    with_patience(|| {
        lock().map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => StoreError::InUse {
                path: path.to_owned(),
            },
            other => failed("lock")(other.into()),
        })
    })?;
    let mut files = Vec::new();
    witness::list(path, &mut files).map_err(failed("read"))?;
    let mut found = BTreeMap::new();
    for file in files {
        search(&std::fs::read(file).map_err(failed("read"))?, &mut found);
    }
    Ok(found.into_values().collect())
}

fn search(bytes: &[u8], found: &mut BTreeMap<PoolName, PoolRecord>) {
    let starts = bytes
        .windows(ROW.len())
        .enumerate()
        .filter(|(_, window)| *window == ROW);
    for (start, _) in starts {
        let Some(pool) = schema::decode_prefix::<PoolRecord>(&bytes[start..]) else {
            continue;
        };
        match found.get(&pool.name) {
            Some(newer) if newer.modified_at_ms > pool.modified_at_ms => {}
            _ => {
                found.insert(pool.name.clone(), pool);
            }
        }
    }
}
