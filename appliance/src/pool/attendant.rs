//! The task that looks after one slot: starts its worker, watches it, records who owns it, stops it.
//!
//! It is the only one that talks to the guest about its life, and its last word is always
//! [`Report::Gone`], said when neither the guest nor its record exists any more. A caller that hangs
//! up has no influence on it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::Identifier;
use super::budget::Reservation;
use super::launcher::{
    Guest, GuestEvent, Launched, Launcher, StartFailure, StartFailureCause, StartOrder, Urgency,
};
use super::probe::Prober;
use super::slot::SlotId;
use crate::store::{Records, SessionRecord};

/// What the driver wants of the slot.
#[derive(Debug)]
pub enum Order {
    /// Record that the slot belongs to this identifier.
    Bind {
        session: Uuid,
        identifier: Identifier,
        created_at_ms: u64,
    },
    /// End it.
    Stop,
}

/// What happened in the slot.
pub enum Report {
    /// The container answers; this is how to reach it.
    Ready { worker: Uuid, guest: Arc<dyn Guest> },
    /// The record is on disk.
    Bound,
    /// It is not.
    BindFailed,
    /// The worker did not come up, or its container ended. It is being stopped.
    Failed(StartFailure),
    /// Nothing is left.
    Gone,
}

/// A guest that was there before its attendant.
pub struct Inherited {
    pub launched: Launched,
    /// Whose it is.
    pub owner: Option<(Identifier, Uuid)>,
}

/// What an attendant needs.
pub struct Attendant {
    pub slot: SlotId,
    /// What the guest is to be started from, or was.
    pub order: StartOrder,
    /// Held until nothing is left of the guest.
    pub reservation: Reservation,
    pub launcher: Arc<dyn Launcher>,
    pub records: Records,
    pub start_timeout: Duration,
    pub orders: mpsc::UnboundedReceiver<Order>,
    pub reports: mpsc::UnboundedSender<(SlotId, Report)>,
}

impl Attendant {
    /// The whole life of the slot.
    pub async fn run(mut self) {
        let begun = Instant::now();
        if let Some(mut launched) = self.launch(begun + self.start_timeout).await {
            let mut owned = None;
            let mut prober = Prober::of_slot(&self.order.pool);
            let since = match self.order.urgency {
                Urgency::Claim => begun,
                Urgency::Refill => Instant::now(),
            };
            let deadline = since + self.start_timeout;
            let ready = self.wait_until_ready(&mut launched, deadline, &mut prober);
            let alive = match ready.await {
                Outcome::Ready => {
                    self.note_ready(&launched);
                    self.report_ready(&launched);
                    self.serve(&mut launched, &mut owned, &mut prober).await
                }
                Outcome::Failed { failure, alive } => {
                    self.report(Report::Failed(failure));
                    alive
                }
                Outcome::Stopped => true,
            };
            self.end(launched, alive, owned, prober.grace()).await;
        }
        self.gone();
    }

    /// The rest of the life of a slot that an earlier appliance began.
    pub async fn inherit(mut self, inherited: Inherited) {
        let Inherited {
            mut launched,
            owner: mut owned,
        } = inherited;
        let mut prober = Prober::of_slot(&self.order.pool);
        if owned.is_none() {
            self.report_ready(&launched);
        }
        let alive = self.serve(&mut launched, &mut owned, &mut prober).await;
        self.end(launched, alive, owned, prober.grace()).await;
        self.gone();
    }

    /// Ends the guest if it lives, and forgets whose it was.
    async fn end(
        &self,
        launched: Launched,
        alive: bool,
        owned: Option<(Identifier, Uuid)>,
        grace: Duration,
    ) {
        if alive {
            // First: nobody shall take over what is half ended.
            launched.guest.forget_note();
            stop(launched, grace).await;
        }
        if let Some((identifier, session)) = owned {
            self.forget(identifier, session).await;
        }
    }

    fn gone(self) {
        let Self {
            slot,
            reservation,
            reports,
            ..
        } = self;
        // First: whoever is told may need it at once.
        drop(reservation);
        let _ = reports.send((slot, Report::Gone));
    }

    /// Never abandons a launch half way: one that comes too late is stopped.
    async fn launch(&mut self, deadline: Instant) -> Option<Launched> {
        let urgent = self.order.urgency == Urgency::Claim;
        if !urgent {
            // The claim whose slot this one replaces is answered first.
            tokio::task::yield_now().await;
        }
        let mut launching = self.launcher.launch(self.order.clone());
        let in_time = tokio::select! {
            launched = &mut launching => Some(launched),
            // One that nobody waits for may wait long for its turn, and that is no failure.
            () = tokio::time::sleep_until(deadline), if urgent => {
                self.report(Report::Failed(StartFailure::silent(self.timed_out())));
                None
            }
            () = stop_ordered(&mut self.orders) => None,
        };
        match in_time {
            Some(Ok(launched)) => return Some(launched),
            Some(Err(failure)) => self.report(Report::Failed(failure)),
            None => {
                if let Ok(launched) = launching.await {
                    stop(launched, wire::timing::STOP_GRACE).await;
                }
            }
        }
        None
    }

    async fn wait_until_ready(
        &mut self,
        launched: &mut Launched,
        deadline: Instant,
        prober: &mut Prober,
    ) -> Outcome {
        let gone = |how| (StartFailureCause::GuestEnded { how }, false);
        let (cause, alive) = tokio::select! {
            event = launched.events.recv() => match event {
                Some(GuestEvent::Ready) => return self.wait_until_started(launched, prober).await,
                Some(GuestEvent::ContainerExited { how }) => {
                    (StartFailureCause::Exited { how, port: self.order.pool.target_port }, true)
                }
                Some(GuestEvent::StartFailed { message }) => {
                    (StartFailureCause::Container { message }, true)
                }
                Some(GuestEvent::Gone { how }) => gone(how),
                None => (StartFailure::vanished().cause, false),
            },
            () = tokio::time::sleep_until(deadline) => (self.timed_out(), true),
            () = stop_ordered(&mut self.orders) => return Outcome::Stopped,
        };
        failed(launched, cause, alive)
    }

    /// The start deadline is kept by now: a startup probe takes the time that it was given on top of it.
    async fn wait_until_started(
        &mut self,
        launched: &mut Launched,
        prober: &mut Prober,
    ) -> Outcome {
        let guest = Arc::clone(&launched.guest);
        let connect = |port| guest.connect_to(port);
        loop {
            let (cause, alive) = tokio::select! {
                started = prober.started(&connect) => match started {
                    Ok(()) => return Outcome::Ready,
                    Err(unhealthy) => (StartFailureCause::Unhealthy(unhealthy), true),
                },
                event = launched.events.recv() => match ended(event) {
                    Some(end) => end,
                    None => continue,
                },
                () = stop_ordered(&mut self.orders) => return Outcome::Stopped,
            };
            return failed(launched, cause, alive);
        }
    }

    /// Serves orders until the end. `false`: the guest is gone already.
    async fn serve(
        &mut self,
        launched: &mut Launched,
        owned: &mut Option<(Identifier, Uuid)>,
        prober: &mut Prober,
    ) -> bool {
        let guest = Arc::clone(&launched.guest);
        let connect = |port| guest.connect_to(port);
        loop {
            let (cause, alive) = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Bind { session, identifier, created_at_ms }) => {
                        *owned = Some((identifier.clone(), session));
                        let record = SessionRecord {
                            pool: self.order.pool.name.clone(),
                            identifier,
                            session,
                            worker: launched.worker,
                            revision: self.order.pool.revision,
                            created_at_ms,
                        };
                        self.report(self.bind(&launched.guest, record).await);
                        continue;
                    }
                    Some(Order::Stop) | None => return true,
                },
                event = launched.events.recv() => match ended(event) {
                    Some(end) => end,
                    None => continue,
                },
                unhealthy = prober.unhealthy(&connect) => {
                    (StartFailureCause::Unhealthy(unhealthy), true)
                }
            };
            let console = launched.guest.console_tail();
            self.report(Report::Failed(StartFailure { cause, console }));
            return alive;
        }
    }

    async fn bind(&self, guest: &Arc<dyn Guest>, record: SessionRecord) -> Report {
        // Before anybody knows of it: after a crash at any point from here on, nobody else gets this guest.
        if let Err(error) = guest.note_leased() {
            tracing::error!(pool = %self.order.pool.name, worker = %record.worker, %error, "it could not be noted that a slot has an owner");
            return Report::BindFailed;
        }
        match self.records.put_session(record).await {
            Ok(()) => Report::Bound,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(pool = %self.order.pool.name, error, "a session could not be recorded");
                Report::BindFailed
            }
        }
    }

    /// A slot without a note serves as well as any; it only ends with this appliance.
    fn note_ready(&self, launched: &Launched) {
        if let Err(error) = launched.guest.note_ready(&self.order.pool) {
            let Launched { worker, .. } = launched;
            tracing::warn!(pool = %self.order.pool.name, %worker, %error, "it could not be noted that a slot is ready, so it will not live through a restart");
        }
    }

    fn report_ready(&self, launched: &Launched) {
        self.report(Report::Ready {
            worker: launched.worker,
            guest: Arc::clone(&launched.guest),
        });
    }

    async fn forget(&self, identifier: Identifier, session: Uuid) {
        if let Err(error) = self
            .records
            .remove_session(self.order.pool.name.clone(), identifier, session)
            .await
        {
            // The next start removes it: it has no worker any more.
            let error: &dyn std::error::Error = &error;
            tracing::error!(pool = %self.order.pool.name, error, "the record of an ended session could not be removed");
        }
    }

    fn timed_out(&self) -> StartFailureCause {
        StartFailureCause::TimedOut {
            after: self.start_timeout,
            port: self.order.pool.target_port,
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens any more: the process is ending, and the guest is still stopped in order.
        let _ = self.reports.send((self.slot, report));
    }
}

enum Outcome {
    Ready,
    Failed { failure: StartFailure, alive: bool },
    Stopped,
}

fn failed(launched: &Launched, cause: StartFailureCause, alive: bool) -> Outcome {
    let console = launched.guest.console_tail();
    let failure = StartFailure { cause, console };
    Outcome::Failed { failure, alive }
}

/// How a container that has been ready ends with this event, if it does, and whether its guest is
/// there still.
fn ended(event: Option<GuestEvent>) -> Option<(StartFailureCause, bool)> {
    Some(match event {
        Some(GuestEvent::ContainerExited { how }) => (StartFailureCause::Ended { how }, true),
        Some(GuestEvent::StartFailed { message }) => {
            (StartFailureCause::Container { message }, true)
        }
        Some(GuestEvent::Gone { how }) => (StartFailureCause::GuestEnded { how }, false),
        Some(GuestEvent::Ready) => return None,
        None => (StartFailure::vanished().cause, false),
    })
}

/// Resolves when the slot is to end, or when nobody is left to give orders.
async fn stop_ordered(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Stop) {
            return;
        }
    }
}

/// Ends a guest that was there before and that nobody wants.
pub async fn give_up(launched: Launched, reservation: Reservation) {
    launched.guest.forget_note();
    stop(launched, wire::timing::STOP_GRACE).await;
    drop(reservation);
}

/// Stops the guest, and takes its events meanwhile: it may have many lines left to say.
async fn stop(launched: Launched, grace: Duration) {
    let Launched {
        guest, mut events, ..
    } = launched;
    let stopping = guest.stop_within(grace);
    let draining = async { while events.recv().await.is_some() {} };
    tokio::join!(stopping, draining);
}
