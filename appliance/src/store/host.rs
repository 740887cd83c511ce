//! The store of an appliance that serves: two databases, because two kinds of truth are kept.
//!
//! Pools and keys are in the state folder, and survive a power cut. Who owns which session is in the run
//! folder, like the sockets of the workers that it speaks of: it is there for the next appliance process of this host's
//! life, and after a reboot neither is. So a claim waits for no disk (`decisions/sessions-store.md`).

use std::path::Path;

use super::{Change, Outlives, Rows, SledStore, Store, StoreError, Table};

/// See the module documentation.
#[derive(Debug)]
pub struct HostStore {
    kept: SledStore,
    running: SledStore,
}

impl HostStore {
    /// Opens both folders, or makes them.
    pub fn open(kept: &Path, running: &Path) -> Result<Self, StoreError> {
        let kept = SledStore::open(kept)?;
        forget_sessions(&kept)?;
        Ok(Self {
            kept,
            running: open_running(running)?,
        })
    }

    fn of(&self, table: Table) -> &dyn Store {
        match table.outlives() {
            Outlives::PowerCut => &self.kept,
            Outlives::Process => &self.running,
        }
    }
}

impl Store for HostStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.of(table).get(table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError> {
        self.of(table).scan(table, prefix)
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let Some(first) = changes.first().map(Change::table) else {
            return Ok(());
        };
        let apart = |change: &Change| change.table().outlives() != first.outlives();
        if changes.iter().any(apart) {
            return Err(StoreError::Apart);
        }
        self.of(first).apply(changes)
    }
}

/// Sessions that an import or an older build left there ended with their workers.
fn forget_sessions(kept: &SledStore) -> Result<(), StoreError> {
    let left = kept.scan(Table::Sessions, b"")?;
    let remove = |(key, _)| Change::Remove {
        table: Table::Sessions,
        key,
    };
    let changes: Vec<_> = left.into_iter().map(remove).collect();
    if changes.is_empty() {
        return Ok(());
    }
    kept.apply(&changes)
}

/// A damaged one is begun anew: nobody has a backup of who owns a session, and an appliance that does not start would
/// end all of them.
fn open_running(path: &Path) -> Result<SledStore, StoreError> {
    let open = || SledStore::open_for(path, Outlives::Process);
    match open() {
        Err(error @ StoreError::Damaged { .. }) => {
            let shown: &dyn std::error::Error = &error;
            tracing::error!(
                error = shown,
                "it is not known any more who owns the sessions of an earlier run"
            );
            std::fs::remove_dir_all(path).map_err(|source| StoreError::Disk {
                attempt: "begin anew",
                path: path.to_owned(),
                source,
            })?;
            open()
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: Table) -> Change {
        Change::Put {
            table,
            key: b"k".to_vec(),
            value: b"v".to_vec(),
        }
    }

    #[test]
    fn sessions_lie_apart_and_are_not_there_after_a_reboot() {
        let root = tempfile::tempdir().unwrap();
        let (kept, running) = (root.path().join("kept"), root.path().join("running"));
        let store = HostStore::open(&kept, &running).unwrap();
        store.apply(&[put(Table::Sessions)]).unwrap();
        store.apply(&[put(Table::Pools)]).unwrap();
        drop(store);
        let store = HostStore::open(&kept, &running).unwrap();
        assert_eq!(store.scan(Table::Sessions, b"").unwrap().len(), 1);
        drop(store);
        std::fs::remove_dir_all(&running).unwrap();
        let store = HostStore::open(&kept, &running).unwrap();
        assert_eq!(store.scan(Table::Sessions, b"").unwrap(), []);
        assert_eq!(store.scan(Table::Pools, b"").unwrap().len(), 1);
    }

    #[test]
    fn batch_that_could_not_be_all_or_none_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = HostStore::open(&root.path().join("a"), &root.path().join("b")).unwrap();
        let error = store.apply(&[put(Table::Pools), put(Table::Sessions)]);
        assert!(matches!(error, Err(StoreError::Apart)), "{error:?}");
        assert_eq!(store.scan(Table::Pools, b"").unwrap(), []);
    }

    #[test]
    fn sessions_of_an_older_build_or_an_import_are_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        let imported = SledStore::open(&kept).unwrap();
        imported
            .apply(&[put(Table::Sessions), put(Table::Pools)])
            .unwrap();
        drop(imported);
        drop(HostStore::open(&kept, &root.path().join("running")).unwrap());
        let after = SledStore::open(&kept).unwrap();
        assert_eq!(after.scan(Table::Sessions, b"").unwrap(), []);
        assert_eq!(after.scan(Table::Pools, b"").unwrap().len(), 1);
    }

    #[test]
    fn damaged_record_of_sessions_is_begun_anew() {
        let root = tempfile::tempdir().unwrap();
        let (kept, running) = (root.path().join("kept"), root.path().join("running"));
        drop(HostStore::open(&kept, &running).unwrap());
        std::fs::write(running.join("db"), [0x55; 4096]).unwrap();
        let store = HostStore::open(&kept, &running).unwrap();
        assert_eq!(store.scan(Table::Sessions, b"").unwrap(), []);
    }
}
