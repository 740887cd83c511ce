//! The one task of a pool that owns its slots and sessions.
//!
//! Others send it messages and get a typed answer; what follows from a message is decided by the
//! pure [`Table`]. The driver never waits for a guest or the disk: that is the work of one
//! [`Attendant`] task per slot, so a slow start delays nobody else.
//!
//! Two things happen with every request, and mostly need no decision: the claim of a session that serves, and its release. They are
//! done where they come up ([`at_once`]), if nobody else is at the driver's state at that moment, and are messages otherwise.

mod at_once;
mod show;
mod takeover;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::Identifier;
use super::action::{Action, Denied, EndReason, Life, Limits};
use super::attendant::{Attendant, Order, Report};
use super::budget::{Budget, Reservation};
use super::clock::Clock;
use super::handle::{Drain, Lease, Message};
use super::inherit::Legacy;
use super::launcher::{Launcher, StartOrder, Urgency};
use super::names::FingerprintKey;
use super::session::{Moment, Ticket};
use super::slot::SlotId;
use super::table::Table;
use super::upstream::Upstream;
use super::uses::Uses;
use super::view::{SessionState, SessionView};
use crate::store::{Lifecycle, PoolRecord, Records, Use};

pub(super) use at_once::{AtOnce, Hold};

/// What a pool's driver works with.
#[derive(Clone)]
pub struct Tools {
    pub launcher: Arc<dyn Launcher>,
    pub records: Records,
    pub uses: Uses,
    pub fingerprints: FingerprintKey,
    pub start_timeout: Duration,
    pub budget: Budget,
}

/// The state of the task.
pub(super) struct Driver {
    table: Table,
    /// What claims get.
    active: Arc<PoolRecord>,
    /// What they will get.
    desired: Option<Arc<PoolRecord>>,
    tools: Tools,
    clock: Clock,
    slots: HashMap<SlotId, Live>,
    callers: HashMap<Ticket, Caller>,
    messages: mpsc::WeakUnboundedSender<Message>,
    reports: mpsc::UnboundedSender<(SlotId, Report)>,
    activated: watch::Sender<Arc<PoolRecord>>,
    closing: Vec<oneshot::Sender<()>>,
    /// What an earlier appliance has left of this pool, until it is taken over.
    legacies: Vec<Legacy>,
    at_once: AtOnce,
    /// When the task looks at the table again by itself.
    wakes_at: Option<Moment>,
    /// Wakes it sooner.
    wake: Arc<Notify>,
    /// Nothing is begun and nothing ended any more: another appliance goes on.
    detached: bool,
}

/// Somebody who waits for a session.
struct Caller {
    identifier: Identifier,
    answer: oneshot::Sender<Result<Lease, Denied>>,
}

/// The driver's side of a slot.
struct Live {
    record: Arc<PoolRecord>,
    urgency: Urgency,
    orders: mpsc::UnboundedSender<Order>,
    guest: Option<(Uuid, Arc<Upstream>)>,
    since: Moment,
    /// Set when it has one.
    session: Option<Owned>,
}

/// What the driver knows of a session beside the table.
struct Owned {
    id: Uuid,
    fingerprint: String,
    since: Moment,
    created_at_ms: u64,
    stopping: Vec<(oneshot::Sender<Option<SessionView>>, SessionView)>,
}

impl Driver {
    /// Starts a driver that claims get `serving` from, or else `pool`. It goes on with `legacies`.
    pub fn start(
        pool: Arc<PoolRecord>,
        serving: Option<Arc<PoolRecord>>,
        legacies: Vec<Legacy>,
        tools: Tools,
        messages: mpsc::WeakUnboundedSender<Message>,
        inbox: mpsc::UnboundedReceiver<Message>,
    ) -> (AtOnce, watch::Receiver<Arc<PoolRecord>>) {
        let (reports, from_slots) = mpsc::unbounded_channel();
        let active = serving.unwrap_or_else(|| Arc::clone(&pool));
        let (activated, is_active) = watch::channel(Arc::clone(&active));
        let seed = RandomState::new().hash_one(pool.name.as_str());
        let shared = Arc::new_cyclic(|shared| {
            Mutex::new(Self {
                table: Table::new(limits(&pool), active.revision, seed),
                active,
                desired: Some(pool),
                tools,
                clock: Clock::start(Legacy::longest_ago(&legacies)),
                slots: HashMap::new(),
                callers: HashMap::new(),
                messages,
                reports,
                activated,
                closing: Vec::new(),
                legacies,
                at_once: AtOnce::of(shared),
                wakes_at: None,
                wake: Arc::default(),
                detached: false,
            })
        });
        let at_once = lock(&shared).at_once.clone();
        tokio::spawn(Self::run(shared, inbox, from_slots));
        (at_once, is_active)
    }

    /// Serves until the pool is closed, or nobody is left who could ask for anything.
    async fn run(
        shared: Arc<Mutex<Self>>,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut from_slots: mpsc::UnboundedReceiver<(SlotId, Report)>,
    ) {
        let mut open = true;
        let wake = {
            let mut driver = lock(&shared);
            driver.begin();
            Arc::clone(&driver.wake)
        };
        while lock(&shared).goes_on(open) {
            let deadline = lock(&shared).deadline();
            tokio::select! {
                message = inbox.recv(), if open => match message {
                    Some(Message::Detach(done)) => {
                        lock(&shared).detached = true;
                        let _ = done.send(());
                        // Neither ends anything nor lets go of anything until the process has gone.
                        return std::future::pending().await;
                    }
                    Some(message) => lock(&shared).then(|driver| driver.on_message(message)),
                    None => {
                        open = false;
                        lock(&shared).then(|driver| driver.table.close(driver.clock.now()));
                    }
                },
                Some((slot, report)) = from_slots.recv() => {
                    lock(&shared).then(|driver| driver.on_report(slot, report));
                }
                () = wake.notified() => {}
                () = until(deadline) => {
                    lock(&shared).then(|driver| driver.table.tick(driver.clock.now()));
                }
            }
        }
        for done in std::mem::take(&mut lock(&shared).closing) {
            let _ = done.send(());
        }
    }

    fn goes_on(&self, open: bool) -> bool {
        (open && self.closing.is_empty()) || self.table.slots_in_use() > 0
    }

    /// When the table has something to do next.
    fn deadline(&mut self) -> Option<Instant> {
        self.wakes_at = self.table.next_deadline(self.clock.now());
        self.wakes_at.map(|moment| self.clock.instant(moment))
    }

    fn then(&mut self, decide: impl FnOnce(&mut Self) -> Vec<Action>) {
        let actions = decide(self);
        self.perform(actions);
    }

    fn on_message(&mut self, message: Message) -> Vec<Action> {
        let now = self.clock.now();
        match message {
            Message::Claim {
                ticket,
                identifier,
                answer,
            } => {
                let actions = self.table.claim(ticket, &identifier, now);
                let caller = Caller { identifier, answer };
                self.callers.insert(ticket, caller);
                return actions;
            }
            // A claim of a session that serves is answered at once and starts nothing.
            Message::Visit {
                ticket,
                identifier,
                answer,
            } if self.serving(&identifier).is_some() => {
                return self.on_message(Message::Claim {
                    ticket,
                    identifier,
                    answer,
                });
            }
            Message::Visit { .. } => {}
            Message::Guest { identifier, answer } => {
                let upstream = self.serving(&identifier);
                let _ = answer.send(upstream.map(|upstream| upstream.guest()));
            }
            Message::Abandoned(ticket) => {
                if let Some(caller) = self.callers.remove(&ticket) {
                    self.table.abandon(ticket, &caller.identifier);
                }
            }
            Message::Released(slot) => {
                let actions = self.table.released(slot, now);
                self.note_use(slot);
                return actions;
            }
            Message::Session { identifier, answer } => {
                let _ = answer.send(self.view(&identifier, now));
            }
            Message::Sessions(answer) => {
                let views = self.table.identifiers();
                let views = views.filter_map(|identifier| self.view(identifier, now));
                let _ = answer.send(views.collect());
            }
            Message::Stop { identifier, answer } => return self.stop(&identifier, answer, now),
            Message::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Message::Update(pool) => return self.update(pool),
            Message::Close(done) => {
                self.closing.push(done);
                return self.table.close(now);
            }
            Message::Drain(Drain::Begin) => return self.table.begin_drain(now),
            Message::Drain(Drain::Hurry) => return self.table.hurry_drain(now),
            Message::Drain(Drain::End) => return self.table.end_drain(now),
            Message::Records(answer) => {
                let records = self.slots.values().map(|live| Arc::clone(&live.record));
                let _ = answer.send(records.collect());
            }
            Message::InUse(answer) => {
                let _ = answer.send(self.table.slots_in_use());
            }
            // Taken where messages are received.
            Message::Detach(_) => {}
        }
        Vec::new()
    }

    fn update(&mut self, pool: Arc<PoolRecord>) -> Vec<Action> {
        let (limits, revision) = (limits(&pool), pool.revision);
        if revision == self.active.revision {
            self.desired = None;
            self.active = Arc::clone(&pool);
            // Whoever watches waits for another revision.
            self.activated.send_if_modified(|active| {
                *active = pool;
                false
            });
        } else {
            self.desired = Some(pool);
        }
        self.table.update(limits, revision, self.clock.now())
    }

    fn stop(
        &mut self,
        identifier: &Identifier,
        answer: oneshot::Sender<Option<SessionView>>,
        now: Moment,
    ) -> Vec<Action> {
        let view = self.view(identifier, now);
        let stopped = self.table.stop(identifier, now);
        let (Some(view), Some((slot, actions))) = (view, stopped) else {
            let _ = answer.send(None);
            return Vec::new();
        };
        if let Some(session) = self.session_mut(slot) {
            session.stopping.push((answer, view));
        }
        actions
    }

    fn on_report(&mut self, slot: SlotId, report: Report) -> Vec<Action> {
        let now = self.clock.now();
        match report {
            Report::Ready { worker, guest } => {
                if let Some(live) = self.slots.get_mut(&slot) {
                    live.guest = Some((worker, Upstream::new(guest)));
                }
                self.table.slot_ready(slot, now)
            }
            Report::Bound => {
                self.log(slot, "session started", None);
                self.table.bound(slot, now)
            }
            Report::BindFailed => self.table.bind_failed(slot, now),
            Report::Failed(failure) => {
                self.log_failure(slot, &failure);
                self.table.slot_failed(slot, failure, now)
            }
            Report::Gone => {
                self.log(slot, "session gone", None);
                let live = self.slots.remove(&slot);
                let session = live.and_then(|live| live.session);
                if let Some(session) = &session {
                    self.tools.uses.forget(session.id);
                }
                for (answer, view) in session.into_iter().flat_map(|session| session.stopping) {
                    let _ = answer.send(Some(view));
                }
                self.table.slot_gone(slot, now)
            }
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fill {
                    slot,
                    revision,
                    urgency,
                } => self.fill(slot, revision, urgency),
                Action::Bind { slot, identifier } => self.bind(slot, identifier),
                Action::Drain { slot, reason } => self.drain(slot, reason),
                Action::Answer { ticket, answer } => self.answer(ticket, answer),
                Action::Activate { revision } => {
                    if let Some(pool) = self.desired.take() {
                        tracing::info!(pool = %pool.name, %revision, before = %self.active.revision, "sessions are of a new revision");
                        self.active = Arc::clone(&pool);
                        self.activated.send_replace(pool);
                    }
                }
            }
        }
    }

    fn fill(&mut self, slot: SlotId, revision: Uuid, urgency: Urgency) {
        let desired = self.desired.as_ref();
        let desired = desired.filter(|desired| desired.revision == revision);
        let record = Arc::clone(desired.unwrap_or(&self.active));
        let reservation = match self.tools.budget.reserve(&record) {
            Ok(reservation) => reservation,
            Err(shortage) => {
                tracing::warn!(pool = %record.name, %revision, ?urgency, %shortage, "no slot could be started");
                let actions = self.table.start_refused(slot, shortage, self.clock.now());
                return self.perform(actions);
            }
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let live = Live {
            record: Arc::clone(&record),
            urgency,
            orders,
            guest: None,
            since: self.clock.now(),
            session: None,
        };
        self.slots.insert(slot, live);
        let attendant = self.attendant(slot, record, urgency, reservation, inbox);
        tokio::spawn(attendant.run());
    }

    fn attendant(
        &self,
        slot: SlotId,
        pool: Arc<PoolRecord>,
        urgency: Urgency,
        reservation: Reservation,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Attendant {
        Attendant {
            slot,
            order: StartOrder { pool, urgency },
            reservation,
            launcher: Arc::clone(&self.tools.launcher),
            records: self.tools.records.clone(),
            start_timeout: self.tools.start_timeout,
            orders,
            reports: self.reports.clone(),
        }
    }

    fn bind(&mut self, slot: SlotId, identifier: Identifier) {
        let Some(live) = self.slots.get_mut(&slot) else {
            return;
        };
        let now = self.clock.now();
        let owned = Owned {
            id: Uuid::new_v4(),
            fingerprint: identifier.fingerprint(&self.tools.fingerprints),
            since: now,
            created_at_ms: self.clock.wall(now),
            stopping: Vec::new(),
        };
        let order = Order::Bind {
            session: owned.id,
            identifier,
            created_at_ms: owned.created_at_ms,
        };
        live.session = Some(owned);
        // An attendant that is gone has said so, and its report is on the way.
        let _ = live.orders.send(order);
    }

    fn drain(&self, slot: SlotId, reason: EndReason) {
        self.log(slot, "session ends", Some(&format_args!("{reason:?}")));
        let Some(live) = self.slots.get(&slot) else {
            return;
        };
        if live.session.is_none() {
            tracing::debug!(pool = %live.record.name, revision = %live.record.revision, ?reason, "slot that nobody had is given up");
        }
        if let Some((_, upstream)) = &live.guest {
            upstream.close();
        }
        let _ = live.orders.send(Order::Stop);
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<SlotId, Denied>) {
        let Some(caller) = self.callers.remove(&ticket) else {
            return;
        };
        if let Ok(slot) = answer {
            self.note_use(slot);
        }
        let answer = answer.and_then(|slot| self.lease(slot).ok_or(Denied::Closing));
        // A caller that hung up gets nothing: the lease comes back, is dropped, and so released.
        let _ = caller.answer.send(answer);
    }

    fn lease(&self, slot: SlotId) -> Option<Lease> {
        let live = self.slots.get(&slot)?;
        let (_, upstream) = live.guest.as_ref()?;
        Some(Lease {
            upstream: Arc::clone(upstream),
            session: live.session.as_ref()?.id,
            _hold: Hold {
                slot,
                at_once: self.at_once.clone(),
                messages: self.messages.upgrade()?,
            },
        })
    }

    /// Where the session of this identifier is reached, if it answers requests now.
    fn serving(&self, identifier: &Identifier) -> Option<&Arc<Upstream>> {
        let look = self.table.look(identifier, self.clock.now())?;
        let live = self.slots.get(&look.slot)?;
        let (_, upstream) = live.guest.as_ref()?;
        (look.state == SessionState::Active).then_some(upstream)
    }

    /// So that the idle clock goes on after a restart.
    fn note_use(&self, slot: SlotId) {
        let session = self.slots.get(&slot).and_then(|live| live.session.as_ref());
        let Some(((accessed, in_use), session)) = self.table.use_of(slot).zip(session) else {
            return;
        };
        let used = Use {
            last_used_at_ms: self.clock.wall(accessed),
            in_use,
        };
        self.tools.uses.note(session.id, used);
    }

    fn session_mut(&mut self, slot: SlotId) -> Option<&mut Owned> {
        self.slots.get_mut(&slot)?.session.as_mut()
    }
}

fn limits(pool: &PoolRecord) -> Limits {
    let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Limits {
        max_sessions: count(pool.max_sessions),
        ready_sessions: count(pool.ready_sessions),
        life: match pool.lifecycle {
            Lifecycle::Timed => Life::Idle(Duration::from_secs(pool.cooldown_seconds)),
            Lifecycle::OnContainerExit { max_alive_seconds } => {
                Life::Alive(Duration::from_secs(max_alive_seconds))
            }
        },
    }
}

/// What panics here is the driver's task, and who meets what it has left can do no more than it could.
fn lock(shared: &Mutex<Driver>) -> MutexGuard<'_, Driver> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
