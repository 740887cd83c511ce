//! What a pool tells about itself.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::Identifier;
use crate::store::PoolRecord;

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    pub identifier: Identifier,
    pub session: Uuid,
    pub worker: Uuid,
    pub revision: Uuid,
    pub state: SessionState,
    /// Milliseconds since the Unix epoch, as all times here.
    pub created_at_ms: u64,
    /// When a request last began or ended.
    pub last_accessed_at_ms: u64,
    /// When it ends if nobody uses it any more, or whatever happens, by the pool's lifecycle. `None`
    /// while it is starting or ending.
    pub expires_at_ms: Option<u64>,
    pub open_requests: u64,
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionState {
    /// Its slot is ready, and is being recorded as its own.
    Starting,
    Active,
    /// It is being stopped.
    Ending,
}

/// A pool.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    /// What claims get.
    pub active: RevisionStatus,
    /// What they will get; only while it is another one.
    pub desired: Option<RevisionStatus>,
    /// Slots of revisions that were active before: their sessions live on.
    pub earlier: Counts,
}

/// One revision of a pool.
#[derive(Debug, Clone)]
pub struct RevisionStatus {
    pub revision: Uuid,
    pub record: Arc<PoolRecord>,
    pub counts: Counts,
    /// Why the last start that failed did so.
    pub last_failure: Option<String>,
}

/// How many slots of a revision are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many are to be ready.
    pub expected: u32,
    pub ready: u32,
    /// On their way to be ready.
    pub pending: u32,
    /// Those that belong to a session.
    pub allocated: u32,
    pub draining: u32,
    /// Starts that failed since the last one that did not.
    pub failed: u32,
}
