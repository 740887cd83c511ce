//! The store without a disk, for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Change, Rows, Store, StoreError, Table};

type RowMap = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Forgets everything when dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: Mutex<RowMap>,
}

impl Store for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rows
            .range((table, prefix.to_vec())..)
            .take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Put { table, key, value } => {
                    rows.insert((*table, key.clone()), value.clone());
                }
                Change::Remove { table, key } => {
                    rows.remove(&(*table, key.clone()));
                }
            }
        }
        Ok(())
    }
}
