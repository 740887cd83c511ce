//! Rows in memory, in the order of their keys.

use std::collections::BTreeMap;

use super::{Change, Rows, Table};

#[derive(Debug, Default)]
pub struct RowMap(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl RowMap {
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(&(table, key.to_vec())).cloned()
    }

    pub fn scan(&self, table: Table, prefix: &[u8]) -> Rows {
        let from = self.0.range((table, prefix.to_vec())..);
        from.take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put { table, key, value } => {
                    self.0.insert((*table, key.clone()), value.clone());
                }
                Change::Remove { table, key } => {
                    self.0.remove(&(*table, key.clone()));
                }
            }
        }
    }

    /// Every row.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        let rows = self.0.iter();
        rows.map(|((table, key), value)| (*table, key.as_slice(), value.as_slice()))
    }
}
