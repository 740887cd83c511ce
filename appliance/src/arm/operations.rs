//! Changes of pools that take a while: who waits for whom, and what those who began them are told.
//!
//! ```text
//! begin ─▶ Ticket ─▶ turn ─▶ (the change) ─▶ end
//!             └ the operation is in the store, and the pool is shown as being changed
//! ```
//!
//! Changes of one pool happen one by one, in the order in which they were begun. The record of an operation is in the
//! store before its caller hears of it, and outlives the appliance; one that was not done when the appliance ended is
//! ended by the next one ([`super::recovery`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::front::refusal::{Code, Refusal};
use crate::pool::{PoolName, unix_millis};
use crate::store::{
    OperationEnd, OperationFailure, OperationKind, OperationRecord, PoolRecord, Records, StoreError,
};

/// How long one may ask about an operation that has ended.
const KEPT_MILLIS: u64 = 24 * 3600 * 1000;
/// Operations that have ended and are kept; the oldest go first.
const KEPT: usize = 1000;
/// Operations that have not ended. Each waits for an image or a guest, and no host makes so many at once.
pub const MAX_OPEN: usize = 100;
/// Longest message of a failure that is kept: the last lines of a container may be in it.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// All operations.
pub struct Operations {
    records: Records,
    state: Mutex<State>,
    /// Told when one has ended.
    ended: Notify,
    /// Nothing more is to be made.
    stopping: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    known: BTreeMap<Uuid, OperationRecord>,
    /// Those that have not ended, by the name of their pool, in their order.
    open: HashMap<PoolName, Vec<Open>>,
}

/// A change of a pool that has not ended.
#[derive(Clone)]
pub struct Open {
    pub id: Uuid,
    pub kind: OperationKind,
    /// What the pool is to be; or what it was, if it is deleted.
    pub pool: Arc<PoolRecord>,
    withdrawn: Arc<watch::Sender<bool>>,
}

/// The right to change a pool when its turn has come, until it is dropped.
pub struct Ticket {
    operations: Arc<Operations>,
    open: Open,
}

impl Operations {
    /// With those of earlier runs. They have not ended where nobody has ended them.
    pub async fn open(records: Records) -> Result<Self, StoreError> {
        let known = records.operations().await?;
        let known = known.into_iter().map(|record| (record.id, record));
        let state = State {
            known: known.collect(),
            open: HashMap::new(),
        };
        Ok(Self {
            records,
            state: Mutex::new(state),
            ended: Notify::new(),
            stopping: watch::Sender::new(false),
        })
    }

    /// Those that an earlier run has left without an end.
    pub fn unfinished(&self) -> Vec<OperationRecord> {
        let state = self.lock();
        let left = state.known.values().filter(|record| record.end.is_none());
        left.cloned().collect()
    }

    pub fn get(&self, id: Uuid) -> Option<OperationRecord> {
        self.lock().known.get(&id).cloned()
    }

    /// What is being done with the pool of this name, in its order.
    pub fn of(&self, name: &PoolName) -> Vec<Open> {
        self.lock().open.get(name).cloned().unwrap_or_default()
    }

    /// The pools that are being changed, each with the first thing that is done with it.
    pub fn first_of_all(&self) -> Vec<Open> {
        let state = self.lock();
        state
            .open
            .values()
            .filter_map(|all| all.first())
            .cloned()
            .collect()
    }

    /// Lines up for a change of `pool`. With `lasting` the operation can be asked for by its id from now on.
    pub async fn begin(
        self: &Arc<Self>,
        kind: OperationKind,
        pool: Arc<PoolRecord>,
        lasting: bool,
    ) -> Result<Ticket, Refusal> {
        let record = OperationRecord {
            id: Uuid::new_v4(),
            kind,
            subscription: pool.subscription.clone(),
            resource_group: pool.resource_group.clone(),
            pool: pool.name.clone(),
            goal: None,
            begun_at_ms: unix_millis(),
            end: None,
        };
        let open = Open {
            id: record.id,
            kind,
            pool,
            withdrawn: Arc::new(watch::Sender::new(false)),
        };
        let forgotten = {
            let mut state = self.lock();
            if state.open.values().map(Vec::len).sum::<usize>() >= MAX_OPEN {
                let message = format!("{MAX_OPEN} changes of pools are being made already");
                let second = Duration::from_secs(1);
                return Err(Refusal::new(Code::TooManyOperations, message).retry_after(second));
            }
            // A delete gives up what was to be made of the pool.
            let line = state.open.entry(open.pool.name.clone()).or_default();
            if kind == OperationKind::Delete {
                for earlier in line.iter().filter(|it| it.kind != OperationKind::Delete) {
                    earlier.withdrawn.send_replace(true);
                }
            }
            line.push(open.clone());
            if lasting {
                state.known.insert(record.id, record.clone());
                state.forget()
            } else {
                Vec::new()
            }
        };
        let ticket = Ticket {
            operations: Arc::clone(self),
            open,
        };
        if lasting && let Err(error) = self.records.put_operation(record, forgotten).await {
            self.lock().known.remove(&ticket.open.id);
            let message = "The operation could not be recorded";
            return Err(Refusal::internal(message, error));
        }
        Ok(ticket)
    }

    /// An operation of an earlier run goes on.
    pub fn resume(
        self: &Arc<Self>,
        id: Uuid,
        kind: OperationKind,
        pool: Arc<PoolRecord>,
    ) -> Ticket {
        let open = Open {
            id,
            kind,
            pool,
            withdrawn: Arc::new(watch::Sender::new(false)),
        };
        let mut state = self.lock();
        let line = state.open.entry(open.pool.name.clone()).or_default();
        line.push(open.clone());
        drop(state);
        Ticket {
            operations: Arc::clone(self),
            open,
        }
    }

    /// From now on nothing is made or changed; deletions go on.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Resolves when nothing is being made or changed.
    pub async fn settled(&self) {
        loop {
            let ended = self.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            let open = |open: &Open| open.kind != OperationKind::Delete;
            if !self.lock().open.values().flatten().any(open) {
                return;
            }
            ended.await;
        }
    }

    /// An operation of an earlier run is over.
    pub async fn close(&self, id: Uuid, failure: Option<&Refusal>) {
        if let Some(record) = self.written_end(id, failure).await {
            self.lock().known.insert(id, record);
        }
    }

    /// What was done is done: that its end could not be written must not undo it. The next run finds out again.
    async fn written_end(&self, id: Uuid, failure: Option<&Refusal>) -> Option<OperationRecord> {
        let record = ended(self.get(id)?, failure);
        let written = self.records.put_operation(record.clone(), Vec::new());
        if let Err(error) = written.await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(operation = %id, error, "the end of an operation could not be recorded");
        }
        Some(record)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out what is too old, or too much, and says what that was.
    fn forget(&mut self) -> Vec<Uuid> {
        let now = unix_millis();
        let ends = self.known.values().filter_map(|record| {
            let end = record.end.as_ref()?;
            Some((end.at_ms, record.id))
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        let surplus = ends.len().saturating_sub(KEPT);
        let is_old = |at: u64| now.saturating_sub(at) > KEPT_MILLIS;
        let gone = ends.into_iter().enumerate();
        let gone = gone.filter(|(index, (at, _))| *index < surplus || is_old(*at));
        let gone: Vec<_> = gone.map(|(_, (_, id))| id).collect();
        for id in &gone {
            self.known.remove(id);
        }
        gone
    }
}

fn ended(record: OperationRecord, failure: Option<&Refusal>) -> OperationRecord {
    let failure = failure.map(|refusal| {
        let mut message = refusal.message.clone();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        OperationFailure {
            code: refusal.code.as_str().to_owned(),
            message,
            target: refusal.target.clone(),
        }
    });
    OperationRecord {
        end: Some(OperationEnd {
            at_ms: unix_millis(),
            failure,
        }),
        ..record
    }
}

impl Ticket {
    pub fn id(&self) -> Uuid {
        self.open.id
    }

    pub fn kind(&self) -> OperationKind {
        self.open.kind
    }

    /// Waits until nobody changes the pool who began earlier.
    pub async fn turn(&self) {
        loop {
            let ended = self.operations.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            let line = self.operations.of(&self.open.pool.name);
            if line.first().is_none_or(|first| first.id == self.open.id) {
                return;
            }
            ended.await;
        }
    }

    /// Why the change is not to be made any more, if there is a reason.
    pub fn given_up(&self) -> Option<Refusal> {
        let reason = if *self.open.withdrawn.borrow() {
            "The pool is being deleted"
        } else if *self.operations.stopping.borrow() {
            "The appliance is stopping"
        } else {
            return None;
        };
        let second = Duration::from_secs(1);
        Some(Refusal::new(Code::SessionPoolClosing, reason).retry_after(second))
    }

    /// Resolves when there is a reason to give the change up.
    pub async fn until_given_up(&self) {
        let mut withdrawn = self.open.withdrawn.subscribe();
        let mut stopping = self.operations.stopping.subscribe();
        tokio::select! {
            _ = withdrawn.wait_for(|withdrawn| *withdrawn) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    /// Writes what the pool will be: so the next run can tell whether it was done, should this one end now.
    pub async fn aim(&self, goal: String) -> Result<(), Refusal> {
        let Some(record) = self.operations.get(self.open.id) else {
            return Ok(());
        };
        let record = OperationRecord {
            goal: Some(goal),
            ..record
        };
        let written = self
            .operations
            .records
            .put_operation(record.clone(), Vec::new());
        let failed = |error| Refusal::internal("The operation could not be recorded", error);
        written.await.map_err(failed)?;
        self.operations.lock().known.insert(record.id, record);
        Ok(())
    }

    /// The change was made, or was not.
    pub async fn end(self, failure: Option<&Refusal>) {
        let record = self.operations.written_end(self.open.id, failure).await;
        // Together: who sees that it has ended sees the pool as it is now.
        let mut state = self.operations.lock();
        if let Some(record) = record {
            state.known.insert(record.id, record);
        }
        state.leave(&self.open);
    }
}

impl State {
    fn leave(&mut self, open: &Open) {
        if let Some(line) = self.open.get_mut(&open.pool.name) {
            line.retain(|it| it.id != open.id);
            if line.is_empty() {
                self.open.remove(&open.pool.name);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        {
            let mut state = self.operations.lock();
            state.leave(&self.open);
            // Lost: nobody will say how it ended.
            if let Some(record) = state.known.get_mut(&self.open.id)
                && record.end.is_none()
            {
                let lost = Refusal::new(Code::InternalError, "The operation was lost");
                *record = ended(record.clone(), Some(&lost));
            }
        }
        self.operations.ended.notify_waiters();
    }
}
