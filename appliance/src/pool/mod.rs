//! Pools and the sessions in them.
//!
//! ```text
//! front ── claim ──▶ Pools ──▶ PoolHandle ──▶ driver (one task per pool, owns the sessions)
//!                                               │  decides by: table (pure) ─ session, slot (pure)
//!                                               └──▶ attendant (one task per slot) ──▶ launcher, store
//! ```
//!
//! The store is written, and flushed, before a caller is told.

pub mod container;
pub mod launcher;

mod attendant;
mod driver;
mod names;
mod registry;
mod session;
mod slot;
mod table;
mod upstream;

#[cfg(test)]
pub mod testing;

pub use driver::{Lease, Tools};
pub use names::{FingerprintKey, IDENTIFIER_RULE, Identifier, POOL_NAME_RULE, PoolName};
pub use registry::{PoolChangeError, Pools, Put};
pub use table::Denied;
pub use upstream::{Connection, RequestBody, Upstream};

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as milliseconds since the Unix epoch.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
