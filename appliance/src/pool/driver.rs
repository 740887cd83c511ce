//! The one task of a pool that owns its sessions.
//!
//! Others send it messages and get a typed answer; what follows from a message is decided by the
//! pure [`Table`]. The driver never waits for a guest or the disk: that is the work of one
//! [`Attendant`] task per slot, so a slow start delays nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::Identifier;
use super::attendant::{Attendant, Order, Report};
use super::launcher::Launcher;
use super::names::FingerprintKey;
use super::session::{Moment, Ticket};
use super::slot::SlotId;
use super::table::{Action, Denied, Limits, Table};
use super::upstream::Upstream;
use crate::store::{PoolRecord, Records};

/// What a pool's driver works with.
#[derive(Clone)]
pub struct Tools {
    pub launcher: Arc<dyn Launcher>,
    pub records: Records,
    pub fingerprints: FingerprintKey,
    pub start_timeout: Duration,
}

/// A way to talk to the driver of one pool. Cheap to clone.
#[derive(Clone)]
pub struct PoolHandle {
    messages: mpsc::UnboundedSender<Message>,
}

/// A claimed session. The session is in use until this is dropped.
pub struct Lease {
    pub upstream: Arc<Upstream>,
    /// The session's own id: not a secret, unlike the identifier.
    pub session: Uuid,
    _hold: Hold,
}

/// Tells the driver when a request or stream has ended.
struct Hold {
    slot: SlotId,
    messages: mpsc::UnboundedSender<Message>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Without a driver there is no idle clock either.
        let _ = self.messages.send(Message::Released(self.slot));
    }
}

enum Message {
    Claim {
        identifier: Identifier,
        answer: oneshot::Sender<Result<Lease, Denied>>,
    },
    Released(SlotId),
    Update(Arc<PoolRecord>),
    Close(oneshot::Sender<()>),
}

impl PoolHandle {
    /// Starts the driver of `pool`.
    pub fn start(pool: Arc<PoolRecord>, tools: Tools) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let handle = Self { messages };
        let (reports, from_slots) = mpsc::unbounded_channel();
        let driver = Driver {
            table: Table::new(limits(&pool)),
            pool,
            tools,
            clock: Instant::now(),
            slots: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            // Weak, so that the driver ends when nobody can ask it for anything any more.
            messages: handle.messages.downgrade(),
            reports,
            closing: Vec::new(),
        };
        tokio::spawn(driver.run(inbox, from_slots));
        handle
    }

    /// The session of this identifier; a new one if there is none. Waits until it answers. The work
    /// is done by other tasks: dropping this future loses the answer and nothing else.
    pub async fn claim(&self, identifier: Identifier) -> Result<Lease, Denied> {
        let (answer, answered) = oneshot::channel();
        self.messages
            .send(Message::Claim { identifier, answer })
            .map_err(|_| Denied::Closing)?;
        answered.await.unwrap_or(Err(Denied::Closing))
    }

    /// From now on new sessions are made from `pool`, and its limits hold.
    pub fn update(&self, pool: Arc<PoolRecord>) {
        let _ = self.messages.send(Message::Update(pool));
    }

    /// Ends every session and the driver. Returns when nothing is left.
    pub async fn close(&self) {
        let (done, is_done) = oneshot::channel();
        if self.messages.send(Message::Close(done)).is_ok() {
            let _ = is_done.await;
        }
    }
}

struct Driver {
    table: Table,
    pool: Arc<PoolRecord>,
    tools: Tools,
    clock: Instant,
    slots: HashMap<SlotId, Live>,
    tickets: HashMap<Ticket, oneshot::Sender<Result<Lease, Denied>>>,
    next_ticket: u64,
    messages: mpsc::WeakUnboundedSender<Message>,
    reports: mpsc::UnboundedSender<(SlotId, Report)>,
    closing: Vec<oneshot::Sender<()>>,
}

/// The driver's side of a slot.
struct Live {
    session: Uuid,
    orders: mpsc::UnboundedSender<Order>,
    upstream: Option<Arc<Upstream>>,
    /// For logs.
    fingerprint: String,
    since: Instant,
}

impl Driver {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut from_slots: mpsc::UnboundedReceiver<(SlotId, Report)>,
    ) {
        let mut open = true;
        while open || self.table.slots_in_use() > 0 {
            let deadline = self.table.next_deadline().map(|moment| self.clock + moment);
            let actions = tokio::select! {
                message = inbox.recv(), if open => match message {
                    Some(message) => self.on_message(message),
                    None => {
                        open = false;
                        self.table.close()
                    }
                },
                Some((slot, report)) = from_slots.recv() => self.on_report(slot, report),
                () = until(deadline) => self.table.tick(self.now()),
            };
            self.perform(actions);
            if !self.closing.is_empty() && self.table.slots_in_use() == 0 {
                break;
            }
        }
        for done in self.closing {
            let _ = done.send(());
        }
    }

    fn now(&self) -> Moment {
        self.clock.elapsed()
    }

    fn on_message(&mut self, message: Message) -> Vec<Action> {
        match message {
            Message::Claim { identifier, answer } => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.tickets.insert(ticket, answer);
                self.table.claim(ticket, &identifier, self.now())
            }
            Message::Released(slot) => {
                self.table.released(slot, self.now());
                Vec::new()
            }
            Message::Update(pool) => {
                self.table.set_limits(limits(&pool));
                self.pool = pool;
                Vec::new()
            }
            Message::Close(done) => {
                self.closing.push(done);
                self.table.close()
            }
        }
    }

    fn on_report(&mut self, slot: SlotId, report: Report) -> Vec<Action> {
        match report {
            Report::Ready { guest } => {
                if let Some(live) = self.slots.get_mut(&slot) {
                    live.upstream = Some(Upstream::new(guest));
                }
                self.table.slot_ready(slot)
            }
            Report::Bound => {
                self.log(slot, "session started", None);
                self.table.bound(slot, self.now())
            }
            Report::BindFailed => self.table.bind_failed(slot),
            Report::Failed(failure) => {
                self.log(
                    slot,
                    "session failed or ended by itself",
                    Some(&failure.cause),
                );
                self.table.slot_failed(slot, failure)
            }
            Report::Gone => {
                self.log(slot, "session gone", None);
                self.slots.remove(&slot);
                self.table.slot_gone(slot, self.now())
            }
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fill { slot, identifier } => self.fill(slot, &identifier),
                Action::Bind { slot, identifier } => {
                    let session = self.slots.get(&slot).map(|live| live.session);
                    if let Some(session) = session {
                        self.order(
                            slot,
                            Order::Bind {
                                session,
                                identifier,
                            },
                        );
                    }
                }
                Action::Drain { slot, reason } => {
                    self.log(slot, "session ends", Some(&format_args!("{reason:?}")));
                    if let Some(upstream) = self
                        .slots
                        .get(&slot)
                        .and_then(|live| live.upstream.as_ref())
                    {
                        upstream.close();
                    }
                    self.order(slot, Order::Stop);
                }
                Action::Answer { ticket, answer } => self.answer(ticket, answer),
            }
        }
    }

    fn fill(&mut self, slot: SlotId, identifier: &Identifier) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let live = Live {
            session: Uuid::new_v4(),
            orders,
            upstream: None,
            fingerprint: identifier.fingerprint(&self.tools.fingerprints),
            since: Instant::now(),
        };
        self.slots.insert(slot, live);
        let attendant = Attendant {
            slot,
            pool: Arc::clone(&self.pool),
            launcher: Arc::clone(&self.tools.launcher),
            records: self.tools.records.clone(),
            start_timeout: self.tools.start_timeout,
            orders: inbox,
            reports: self.reports.clone(),
        };
        tokio::spawn(attendant.run());
    }

    fn order(&self, slot: SlotId, order: Order) {
        if let Some(live) = self.slots.get(&slot) {
            // An attendant that is gone has said so, and its report is on the way.
            let _ = live.orders.send(order);
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<SlotId, Denied>) {
        let Some(caller) = self.tickets.remove(&ticket) else {
            return;
        };
        let answer = answer.and_then(|slot| self.lease(slot).ok_or(Denied::Closing));
        // A caller that hung up gets nothing: the lease comes back, is dropped, and so released.
        let _ = caller.send(answer);
    }

    fn lease(&self, slot: SlotId) -> Option<Lease> {
        let live = self.slots.get(&slot)?;
        Some(Lease {
            upstream: Arc::clone(live.upstream.as_ref()?),
            session: live.session,
            _hold: Hold {
                slot,
                messages: self.messages.upgrade()?,
            },
        })
    }

    fn log(&self, slot: SlotId, what: &str, detail: Option<&dyn std::fmt::Display>) {
        let Some(live) = self.slots.get(&slot) else {
            return;
        };
        let detail = detail.map(tracing::field::display);
        tracing::info!(
            pool = %self.pool.name,
            session = %live.session,
            identifier_hash = %live.fingerprint,
            age_ms = live.since.elapsed().as_millis(),
            detail,
            "{what}"
        );
    }
}

fn limits(pool: &PoolRecord) -> Limits {
    Limits {
        max_sessions: usize::try_from(pool.max_sessions).unwrap_or(usize::MAX),
        cooldown: Duration::from_secs(pool.cooldown_seconds),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
