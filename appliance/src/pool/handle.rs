//! How others talk to the driver of a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::Identifier;
use super::action::Denied;
use super::driver::{AtOnce, Driver, Hold, Tools};
use super::inherit::Legacy;
use super::launcher::Guest;
use super::session::Ticket;
use super::slot::SlotId;
use super::upstream::Upstream;
use super::view::{Counts, PoolStatus, RevisionStatus, SessionView};
use crate::store::PoolRecord;

/// A way to talk to the driver of one pool. Cheap to clone.
#[derive(Clone)]
pub struct PoolHandle {
    messages: mpsc::UnboundedSender<Message>,
    at_once: AtOnce,
    active: watch::Receiver<Arc<PoolRecord>>,
    tickets: Arc<AtomicU64>,
}

/// A claimed session. The session is in use until this is dropped.
pub struct Lease {
    pub upstream: Arc<Upstream>,
    /// The session's own id: not a secret, unlike the identifier.
    pub session: Uuid,
    pub(super) _hold: Hold,
}

/// How a pool empties itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// It begins no session, and sessions end when nobody uses them.
    Begin,
    /// Those that are in use end, too.
    Hurry,
    /// It serves again as ever.
    End,
}

/// What the driver is asked.
pub(super) enum Message {
    Claim {
        ticket: Ticket,
        identifier: Identifier,
        answer: oneshot::Sender<Result<Lease, Denied>>,
    },
    /// The claim of somebody who may not begin a session. Dropped unanswered when there is none.
    Visit {
        ticket: Ticket,
        identifier: Identifier,
        answer: oneshot::Sender<Result<Lease, Denied>>,
    },
    Guest {
        identifier: Identifier,
        answer: oneshot::Sender<Option<Arc<dyn Guest>>>,
    },
    /// The caller does not wait any more.
    Abandoned(Ticket),
    Released(SlotId),
    Session {
        identifier: Identifier,
        answer: oneshot::Sender<Option<SessionView>>,
    },
    Sessions(oneshot::Sender<Vec<SessionView>>),
    Stop {
        identifier: Identifier,
        answer: oneshot::Sender<Option<SessionView>>,
    },
    Status(oneshot::Sender<PoolStatus>),
    Update(Arc<PoolRecord>),
    Close(oneshot::Sender<()>),
    Drain(Drain),
    /// How many slots are in use.
    InUse(oneshot::Sender<usize>),
    /// What the slots that there are were made of.
    Records(oneshot::Sender<Vec<Arc<PoolRecord>>>),
    /// Stand still from now on, and leave everything as it is.
    Detach(oneshot::Sender<()>),
}

impl PoolHandle {
    /// Starts the driver of `pool`. `serving`: the pool as it was before its last change, if claims
    /// still get that. `legacies`: what an earlier appliance has left of it.
    pub fn start(
        pool: Arc<PoolRecord>,
        serving: Option<Arc<PoolRecord>>,
        legacies: Vec<Legacy>,
        tools: Tools,
    ) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        // Weak, so that the driver ends when nobody can ask it for anything any more.
        let back = messages.downgrade();
        let (at_once, active) = Driver::start(pool, serving, legacies, tools, back, inbox);
        Self {
            messages,
            at_once,
            active,
            tickets: Arc::default(),
        }
    }

    /// The session of this identifier; a new one if there is none. Waits until it answers. Dropping
    /// this future gives up the place in the queue; a session that is there already stays.
    pub async fn claim(&self, identifier: Identifier) -> Result<Lease, Denied> {
        if let Some(lease) = self.at_once.claim(&identifier) {
            return Ok(lease);
        }
        let ticket = self.ticket();
        let (answer, answered) = oneshot::channel();
        let claim = Message::Claim {
            ticket,
            identifier,
            answer,
        };
        self.messages.send(claim).map_err(|_| Denied::Closing)?;
        let mut waiting = Waiting {
            ticket: Some(ticket),
            messages: &self.messages,
        };
        let answer = answered.await;
        waiting.ticket = None;
        answer.unwrap_or(Err(Denied::Closing))
    }

    /// The session of this identifier if it serves already, for somebody who may not begin one. As with every lease
    /// it does not become idle meanwhile: an operator at work in it uses it.
    pub async fn visit(&self, identifier: Identifier) -> Option<Lease> {
        if let Some(lease) = self.at_once.claim(&identifier) {
            return Some(lease);
        }
        let ticket = self.ticket();
        let ask = |answer| Message::Visit {
            ticket,
            identifier,
            answer,
        };
        self.ask(ask).await?.ok()
    }

    /// The guest of the session of this identifier if it serves, without using the session: its idle clock runs on.
    pub async fn guest(&self, identifier: Identifier) -> Option<Arc<dyn Guest>> {
        let ask = |answer| Message::Guest { identifier, answer };
        self.ask(ask).await.flatten()
    }

    /// The session of this identifier, unless it is not there or still waits for a slot.
    pub async fn session(&self, identifier: Identifier) -> Option<SessionView> {
        let ask = |answer| Message::Session { identifier, answer };
        self.ask(ask).await.flatten()
    }

    /// All sessions that have a slot, by the bytes of their identifiers.
    pub async fn sessions(&self) -> Vec<SessionView> {
        let mut sessions = self.ask(Message::Sessions).await.unwrap_or_default();
        sessions.sort_unstable_by(|one, other| one.identifier.cmp(&other.identifier));
        sessions
    }

    /// Ends a session and returns when it is gone, with what it was. `None`: there is none.
    pub async fn stop(&self, identifier: Identifier) -> Option<SessionView> {
        let ask = |answer| Message::Stop { identifier, answer };
        self.ask(ask).await.flatten()
    }

    /// How the pool is. One that is closed has nothing.
    pub async fn status(&self) -> PoolStatus {
        let status = self.ask(Message::Status).await;
        status.unwrap_or_else(|| {
            let record = Arc::clone(&self.active.borrow());
            let active = RevisionStatus {
                revision: record.revision,
                record,
                counts: Counts::default(),
                last_failure: None,
            };
            PoolStatus {
                active,
                desired: None,
                earlier: Counts::default(),
            }
        })
    }

    /// From now on the limits of `pool` hold, and sessions are made from it as soon as one of its
    /// slots is ready.
    pub fn update(&self, pool: Arc<PoolRecord>) {
        let _ = self.messages.send(Message::Update(pool));
    }

    /// The record that claims get sessions of now. Changes when they move over to another revision.
    pub fn active(&self) -> watch::Receiver<Arc<PoolRecord>> {
        self.active.clone()
    }

    /// Ends every session and the driver. Returns when nothing is left.
    pub async fn close(&self) {
        self.ask(Message::Close).await;
    }

    /// Whether and how the pool empties itself.
    pub fn drain(&self, how: Drain) {
        let _ = self.messages.send(Message::Drain(how));
    }

    /// How many slots are in use, those that end included.
    pub async fn slots_in_use(&self) -> usize {
        self.ask(Message::InUse).await.unwrap_or_default()
    }

    /// Every record of the pool that something depends on: what sessions are made of now, and what those that are there were made
    /// of. One may be there more than once.
    pub async fn records(&self) -> Vec<Arc<PoolRecord>> {
        let mut records = self.ask(Message::Records).await.unwrap_or_default();
        records.push(Arc::clone(&self.active.borrow()));
        records
    }

    /// Leaves slots and sessions to the appliance that comes next. From then on nobody is answered here.
    pub async fn detach(&self) {
        self.ask(Message::Detach).await;
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.messages.send(message(answer)).ok()?;
        answered.await.ok()
    }
}

/// Tells the driver when a caller goes away before it is answered.
struct Waiting<'a> {
    ticket: Option<Ticket>,
    messages: &'a mpsc::UnboundedSender<Message>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _ = self.messages.send(Message::Abandoned(ticket));
        }
    }
}
