//! The store without a disk, for tests.

use std::sync::{Mutex, PoisonError};

use super::rows::RowMap;
use super::{Change, Rows, Store, StoreError, Table};

/// Forgets everything when dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: Mutex<RowMap>,
}

impl Store for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.get(table, key))
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.scan(table, prefix))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.apply(changes);
        Ok(())
    }
}
