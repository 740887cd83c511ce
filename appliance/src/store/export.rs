//! The store as lines of JSON, and back: for backups, for moving to another host, and for looking.
//!
//! ```text
//! {"format":"cabana-store","version":1,"records":1,"keys":false}
//! {"table":"pools","key":"demo","version":2,"record":{...}}
//! ```
//!
//! A record has the version of its row, so an export is read by every build that reads the rows.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema::{
    self, OperationRecord, PoolRecord, SchemaError, SessionRecord, TokenRecord, Use, VERSION,
    operation_key, session_key,
};
use super::{Change, Store, StoreError, Table};

const FORMAT: &str = "cabana-store";
/// Of the lines, not of the records.
const FORMAT_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: String,
    version: u32,
    /// How many lines follow: an export that was cut short is not one.
    records: usize,
    /// Whether key material is among them.
    keys: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    table: String,
    key: String,
    version: u32,
    record: Value,
}

/// Records by table, by the table's name.
pub type Tally = BTreeMap<&'static str, usize>;

/// Why an export was not imported. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("The first line is not the header of an export of a store")]
    NotAnExport,
    #[error("The export has version {found}, this build reads up to {FORMAT_VERSION}")]
    Version { found: u32 },
    #[error("The export is cut short: it has {found} records, and its header promises {promised}")]
    Incomplete { promised: usize, found: usize },
    #[error("Line {number} is not a record")]
    Line {
        number: usize,
        source: serde_json::Error,
    },
    #[error("Line {number}, of table {table}, cannot be read")]
    Record {
        number: usize,
        table: String,
        source: SchemaError,
    },
    #[error("Line {number} {what}")]
    Rule { number: usize, what: &'static str },
    #[error("The store is not empty: it holds {what}. With --replace it is overwritten")]
    NotEmpty { what: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Every record, one per line, after the header.
pub fn export(store: &dyn Store, with_keys: bool) -> Result<(String, Tally), StoreError> {
    let mut lines = Vec::new();
    let tables = Table::ALL
        .into_iter()
        .filter(|table| (with_keys || !table.goes_with_keys()) && table.travels());
    for table in tables {
        for (key, value) in store.scan(table, b"")? {
            let (version, record) =
                schema::open(&value).map_err(|source| StoreError::record(table, &key, source))?;
            lines.push((table, key, version, record));
        }
    }
    Ok(written(lines, with_keys))
}

/// An export of these pools, which a damaged store still had.
pub fn of_pools(pools: Vec<PoolRecord>) -> (String, Tally) {
    let line = |pool: PoolRecord| {
        let key = pool.name.as_str().as_bytes().to_vec();
        (Table::Pools, key, VERSION, schema::to_value(&pool))
    };
    written(pools.into_iter().map(line).collect(), false)
}

fn written(records: Vec<(Table, Vec<u8>, u32, Value)>, keys: bool) -> (String, Tally) {
    let header = Header {
        format: FORMAT.to_owned(),
        version: FORMAT_VERSION,
        records: records.len(),
        keys,
    };
    let mut tally = Tally::new();
    let mut text = schema::to_value(&header).to_string() + "\n";
    for (table, key, version, record) in records {
        *tally.entry(table.name()).or_default() += 1;
        let line = Line {
            table: table.name().to_owned(),
            // Every key is made of names and identifiers, which are ASCII.
            key: String::from_utf8_lossy(&key).into_owned(),
            version,
            record,
        };
        text.push_str(&schema::to_value(&line).to_string());
        text.push('\n');
    }
    (text, tally)
}

/// Puts every record of an export into the store, or none. A store that holds records of its own is
/// left alone, unless it is to be replaced. Keys stay when the export has none, so that tokens stay good or revoked.
pub fn import(store: &dyn Store, text: &str, replace: bool) -> Result<Tally, ImportError> {
    let (header, rows) = parsed(text)?;
    let overwritten = |table: &Table| header.keys || !table.goes_with_keys();
    let mut changes = Vec::new();
    let mut held = Vec::new();
    for table in Table::ALL.into_iter().filter(overwritten) {
        let found = store.scan(table, b"")?;
        if !found.is_empty() && table.travels() {
            held.push(format!("{} {}", found.len(), table.name()));
        }
        changes.extend(
            found
                .into_iter()
                .map(|(key, _)| Change::Remove { table, key }),
        );
    }
    if !held.is_empty() && !replace {
        let what = held.join(", ");
        return Err(ImportError::NotEmpty { what });
    }
    let mut tally = Tally::new();
    for ((table, key), value) in rows {
        *tally.entry(table.name()).or_default() += 1;
        changes.push(Change::Put { table, key, value });
    }
    store.apply(&changes)?;
    Ok(tally)
}

type ParsedRows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Everything is checked before anything is written.
fn parsed(text: &str) -> Result<(Header, ParsedRows), ImportError> {
    let mut lines = text.lines();
    let header: Header = lines
        .next()
        .and_then(|line| serde_json::from_str(line).ok())
        .filter(|header: &Header| header.format == FORMAT)
        .ok_or(ImportError::NotAnExport)?;
    if header.version > FORMAT_VERSION {
        return Err(ImportError::Version {
            found: header.version,
        });
    }
    let mut rows = ParsedRows::new();
    for (line, number) in lines.zip(2..) {
        let line: Line =
            serde_json::from_str(line).map_err(|source| ImportError::Line { number, source })?;
        let rule = |what| ImportError::Rule { number, what };
        let table = Table::ALL
            .into_iter()
            .find(|table| table.name() == line.table)
            .ok_or(rule("names a table that this build does not know"))?;
        if table.goes_with_keys() && !header.keys {
            return Err(rule(
                "is a key or a token, and the header says that there are none",
            ));
        }
        let value = schema::sealed(line.version, &line.record);
        let key = key_of(table, &value).map_err(|source| ImportError::Record {
            number,
            table: line.table.clone(),
            source,
        })?;
        let key = key.unwrap_or_else(|| line.key.as_bytes().to_vec());
        if key != line.key.as_bytes() {
            return Err(rule("has a key that is not that of its record"));
        }
        if rows.insert((table, key), value).is_some() {
            return Err(rule("repeats a record"));
        }
    }
    if rows.len() != header.records {
        return Err(ImportError::Incomplete {
            promised: header.records,
            found: rows.len(),
        });
    }
    Ok((header, rows))
}

/// The key under which the record in this row belongs, if the record says it. Reads the record whole.
fn key_of(table: Table, value: &[u8]) -> Result<Option<Vec<u8>>, SchemaError> {
    fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, SchemaError> {
        schema::decode(value)
    }
    Ok(match table {
        Table::Pools | Table::Serving => {
            let pool: PoolRecord = read(value)?;
            Some(pool.name.as_str().as_bytes().to_vec())
        }
        Table::Sessions => {
            let session: SessionRecord = read(value)?;
            Some(session_key(&session.pool, &session.identifier))
        }
        Table::Tokens => {
            let token: TokenRecord = read(value)?;
            Some(token.id.to_string().into_bytes())
        }
        Table::Keys => read::<Vec<u8>>(value).map(|_| None)?,
        Table::Uses => read::<Use>(value).map(|_| None)?,
        Table::Operations => {
            let operation: OperationRecord = read(value)?;
            Some(operation_key(operation.id))
        }
    })
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
