//! What becomes of a database when bytes of its files change.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::store::salvage_pools;
use crate::store::schema::{self, PoolRecord, tests::pool};

const POOLS: u64 = 60;
const ROUNDS: u64 = 3;

fn name(number: u64) -> String {
    format!("pool-{number:02}")
}

/// Pools that were made and changed, as in the life of an appliance.
fn lived(path: &Path) {
    let store = SledStore::open(path).unwrap();
    for round in 0..ROUNDS {
        for number in 0..POOLS {
            let record = PoolRecord {
                modified_at_ms: round,
                tags: [("note".to_owned(), "x".repeat(300))].into(),
                ..pool(&name(number))
            };
            let put = Change::Put {
                table: Table::Pools,
                key: name(number).into_bytes(),
                value: schema::encode(&record),
            };
            store.apply(&[put]).unwrap();
        }
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Opens a copy of the database after one of its files was changed.
fn opened_after(original: &Path, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    super::tests::copy_tree(original, &copy);
    let file = copy.join(file.strip_prefix(original).unwrap());
    let mut bytes = fs::read(&file).unwrap();
    change(&mut bytes);
    fs::write(&file, &bytes).unwrap();
    match SledStore::open(&copy) {
        Ok(store) => Opened::Holds(newest(&store)),
        Err(error) => {
            assert_eq!(fs::read(&file).unwrap(), bytes, "not as it was found");
            let salvaged = salvage_pools(&copy).unwrap();
            let newest = salvaged
                .iter()
                .filter(|pool| pool.modified_at_ms == ROUNDS - 1);
            Opened::Damaged {
                error,
                salvaged: salvaged.len(),
                newest: newest.count(),
            }
        }
    }
}

enum Opened {
    /// The names of the pools that are there as they were written last.
    Holds(Vec<String>),
    Damaged {
        error: StoreError,
        salvaged: usize,
        newest: usize,
    },
}

fn newest(store: &SledStore) -> Vec<String> {
    let rows = store.scan(Table::Pools, b"").unwrap();
    let pools = rows
        .iter()
        .map(|(_, value)| schema::decode::<PoolRecord>(value).unwrap());
    let newest = pools.filter(|pool| pool.modified_at_ms == ROUNDS - 1);
    newest.map(|pool| pool.name.to_string()).collect()
}

/// Sixteen bytes at each of many places: either nothing is lost, or it is said so and most can be saved.
#[test]
fn damage_anywhere_is_found_and_the_pools_can_be_saved() {
    const PLACES: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    lived(dir.path());
    let (mut found, mut harmless) = (0, 0);
    for file in files(dir.path()) {
        let used = fs::read(&file).unwrap().len();
        for place in 0..PLACES {
            let at = used * place / PLACES;
            let opened = opened_after(dir.path(), &file, |bytes| {
                for byte in bytes[at..].iter_mut().take(16) {
                    *byte ^= 0x5a;
                }
            });
            let shown = format!("{} at {at} of {used}", file.display());
            match opened {
                Opened::Holds(pools) => {
                    harmless += 1;
                    let lost = (0..POOLS).filter(|number| !pools.contains(&name(*number)));
                    assert_eq!(lost.count(), 0, "{shown}: lost without a word");
                }
                Opened::Damaged {
                    error,
                    salvaged,
                    newest,
                } => {
                    found += 1;
                    assert!(
                        matches!(error, StoreError::Damaged { .. }),
                        "{shown}: {error:?}"
                    );
                    let text = error.to_string();
                    assert!(
                        text.contains("store export --salvage") && !text.contains('\n'),
                        "{text}"
                    );
                    assert_eq!(salvaged as u64, POOLS, "{shown}");
                    assert!(newest as u64 >= POOLS - 2, "{shown}: only {newest} newest");
                }
            }
        }
    }
    assert!(found > PLACES, "{found} found, {harmless} harmless");
}

/// As a build before the witness has left it.
#[test]
fn database_without_a_witness_opens_and_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let db = ::sled::open(dir.path()).unwrap();
    let row = schema::encode(&pool("alpha"));
    db.insert(full_key(Table::Pools, b"alpha"), row).unwrap();
    db.flush().unwrap();
    drop(db);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.scan(Table::Pools, b"").unwrap().len(), 1);
    for expected in 1..=3 {
        store.apply(&[]).unwrap();
        let row = store.db.get(witness::KEY).unwrap().unwrap();
        let witness = Witness::decode(&row).unwrap();
        assert_eq!((witness.number, witness.flushed), (expected, expected - 1));
    }
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    // One more, by which it was closed.
    assert_eq!(*store.newest.lock().unwrap(), 4);
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(*store.newest.lock().unwrap(), 4, "nothing was written");
}

#[test]
fn witness_that_is_damaged_or_cut_short_is_none() {
    let witness = Witness {
        number: 7,
        flushed: 6,
    };
    let bytes = witness.encode();
    assert_eq!(Witness::decode(&bytes), Some(witness));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(Witness::decode(&changed), None, "{at}");
        assert_eq!(Witness::decode(&bytes[..at]), None, "{at}");
    }
}
