//! Pools and the sessions in them.
//!
//! ```text
//! front ── claim ──▶ Pools ──▶ PoolHandle ──▶ driver (one task per pool, owns slots and sessions)
//!                                               │  decides by: table, supply (pure) ─ session, slot,
//!                                               │              queue, stock, pace (pure)
//!                                               ├──▶ budget (what the host has left, for all pools)
//!                                               └──▶ attendant (one task per slot) ──▶ launcher, store
//! ```
//!
//! The store is written, and flushed, before a caller is told. What an earlier appliance has left is found by `inherit`
//! and handed to the drivers before anybody can ask for anything.

pub mod budget;
pub mod container;
pub mod launcher;
pub mod probe;
pub mod view;

mod action;
mod adopt;
mod attendant;
mod clock;
mod drain;
mod driver;
mod handle;
mod inherit;
mod inspect;
mod names;
mod pace;
mod queue;
mod registry;
mod request_body;
mod session;
mod slot;
mod stock;
mod supply;
mod table;
mod upstream;
mod uses;

#[cfg(test)]
pub mod testing;

pub use action::Denied;
pub use driver::Tools;
pub use handle::{Lease, PoolHandle};
pub use names::{FingerprintKey, IDENTIFIER_RULE, Identifier, POOL_NAME_RULE, PoolName};
pub use registry::{Draining, PoolChangeError, Pools, Put};
pub use request_body::{BodyError, BodyLimits, RequestBody};
pub use upstream::{Connection, Upstream};
pub use uses::Uses;

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as milliseconds since the Unix epoch.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
