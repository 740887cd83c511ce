//! What survives a restart: pools, who owns which session, the appliance's own keys.
//!
//! [`Store`] is small on purpose: bytes in tables, changed by atomic batches that are written before
//! the call returns. [`Records`] puts the types on top, so that all implementations hold the same
//! bytes and an export of one can be read by the other.
//!
//! How much a record survives depends on its table, see [`Table::outlives`]. An appliance that serves
//! keeps each kind where it belongs, see [`HostStore`].
//!
//! Truth about running workers is not here: the host knows it. The store says who owns them.

mod export;
mod host;
#[cfg(test)]
mod memory;
mod records;
mod salvage;
mod schema;
mod sled;
mod witness;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub use schema::tests;

use std::path::PathBuf;

pub use export::{ImportError, Tally, export, import, of_pools};
pub use host::HostStore;
#[cfg(test)]
pub use memory::MemoryStore;
pub use records::Records;
pub use salvage::pools as salvage_pools;
pub use schema::{
    DEFAULT_DISK_MIB, EnvVar, Lifecycle, OperationEnd, OperationFailure, OperationKind,
    OperationRecord, PoolRecord, PoolSecret, RegistryLogin, SchemaError, SealedText, SessionRecord,
    SlotNote, TokenRecord, Use, decode, encode,
};
pub use sled::SledStore;

/// The tables. The number is the first byte of every key on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Pool name → pool.
    Pools = 1,
    /// Pool name, zero byte, identifier → session.
    Sessions = 2,
    /// Name → key material of the appliance.
    Keys = 3,
    /// Pool name → what the pool still serves from while another revision of it warms up. Absent: the
    /// pool's own record.
    Serving = 4,
    /// Id of a session → when it was last used. Beside the session's own row, so that writing it late can
    /// never bring a session back that has ended.
    Uses = 5,
    /// Id → a change of a pool that a caller may ask about.
    Operations = 6,
    /// Id of a token that this appliance has issued → what it is good for; never the token. Goes with the keys.
    Tokens = 7,
}

/// What a change outlives once it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlives {
    /// The process, however it ends.
    Process,
    /// The power of the host, too.
    PowerCut,
}

impl Table {
    pub const ALL: [Self; 7] = [
        Self::Pools,
        Self::Sessions,
        Self::Keys,
        Self::Serving,
        Self::Uses,
        Self::Operations,
        Self::Tokens,
    ];

    /// Whether its records go with a store that is exported. When sessions were used matters to their workers alone, and
    /// operations to those who began them: neither travels.
    pub const fn travels(self) -> bool {
        !matches!(self, Self::Uses | Self::Operations)
    }

    /// What a record of this table survives. A session does not survive the end of its host: its guest is memory.
    /// So what is said of it need not either.
    pub const fn outlives(self) -> Outlives {
        match self {
            Self::Sessions | Self::Uses => Outlives::Process,
            Self::Pools | Self::Keys | Self::Serving | Self::Operations | Self::Tokens => {
                Outlives::PowerCut
            }
        }
    }

    /// In exports and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pools => "pools",
            Self::Sessions => "sessions",
            Self::Keys => "keys",
            Self::Serving => "serving",
            Self::Uses => "uses",
            Self::Operations => "operations",
            Self::Tokens => "tokens",
        }
    }

    /// What travels with the appliance's own keys only. To bring back an older record of tokens, and not the keys
    /// that they were signed with, would make revoked ones good again.
    const fn goes_with_keys(self) -> bool {
        matches!(self, Self::Keys | Self::Tokens)
    }
}

/// One step of a batch.
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes, or replaces.
    Put {
        table: Table,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// Removes; a key that is not there is not an error.
    Remove { table: Table, key: Vec<u8> },
}

impl Change {
    /// The table that it is of.
    pub const fn table(&self) -> Table {
        match self {
            Self::Put { table, .. } | Self::Remove { table, .. } => *table,
        }
    }
}

/// Rows of a scan: key and value.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Durable bytes in tables. Calls block: callers on the runtime go through [`Records`].
pub trait Store: Send + Sync + 'static {
    /// The value under `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Every row whose key begins with `prefix`, in the order of the keys.
    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Rows, StoreError>;

    /// Makes all changes or none. When this returns `Ok` they survive what their tables are to survive. A batch
    /// is of tables that survive the same.
    fn apply(&self, changes: &[Change]) -> Result<(), StoreError>;
}

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the database.
    #[error("The store {path} is in use by another process; only one appliance may run on it")]
    InUse { path: PathBuf },
    /// The database does not open, or a part of it does not add up.
    #[error(
        "The store {path} is damaged: {detail}. Put a backup of the directory in its place; or save the pools that can \
         still be read (`cabana store export --salvage --output FILE`), move the directory away, and bring them \
         back (`cabana store import FILE`)"
    )]
    Damaged { path: PathBuf, detail: String },
    /// Disk full, no permission, and the like.
    #[error("Cannot {attempt} the store {path}")]
    Disk {
        attempt: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A row was written by another version, or is not a row at all.
    #[error("The record {key} in table {table:?} cannot be read")]
    Record {
        table: Table,
        key: String,
        source: SchemaError,
    },
    /// Its parts could not be made all or none.
    #[error("A change of the store is of tables that lie apart")]
    Apart,
    /// The blocking task that carried the call was lost.
    #[error("The call to the store was cancelled because the process is stopping")]
    Stopping,
}

impl StoreError {
    /// Of a row that cannot be read.
    fn record(table: Table, key: &[u8], source: SchemaError) -> Self {
        // The part of a session's key after the zero byte is its identifier, which is not for logs.
        let shown = key.split(|byte| *byte == 0).next().unwrap_or_default();
        Self::Record {
            table,
            key: String::from_utf8_lossy(shown).into_owned(),
            source,
        }
    }
}
