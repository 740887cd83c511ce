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

/// What an attendant needs.
pub struct Attendant {
    pub slot: SlotId,
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
                    self.report(Report::Ready {
                        worker: launched.worker,
                        guest: Arc::clone(&launched.guest),
                    });
                    self.serve(&mut launched, &mut owned, &mut prober).await
                }
                Outcome::Failed { failure, alive } => {
                    self.report(Report::Failed(failure));
                    alive
                }
                Outcome::Stopped => true,
            };
            if alive {
                stop(launched, prober.grace()).await;
            }
            if let Some(identifier) = owned {
                self.forget(identifier).await;
            }
        }
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
        owned: &mut Option<Identifier>,
        prober: &mut Prober,
    ) -> bool {
        let guest = Arc::clone(&launched.guest);
        let connect = |port| guest.connect_to(port);
        loop {
            let (cause, alive) = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Bind { session, identifier, created_at_ms }) => {
                        *owned = Some(identifier.clone());
                        let record = SessionRecord {
                            pool: self.order.pool.name.clone(),
                            identifier,
                            session,
                            worker: launched.worker,
                            revision: self.order.pool.revision,
                            created_at_ms,
                        };
                        self.report(self.bind(record).await);
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

    async fn bind(&self, record: SessionRecord) -> Report {
        match self.records.put_session(record).await {
            Ok(()) => Report::Bound,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(pool = %self.order.pool.name, error, "a session could not be recorded");
                Report::BindFailed
            }
        }
    }

    async fn forget(&self, identifier: Identifier) {
        if let Err(error) = self
            .records
            .remove_session(self.order.pool.name.clone(), identifier)
            .await
        {
            // The next start removes it: no session of an earlier run is kept.
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

/// Stops the guest, and takes its events meanwhile: it may have many lines left to say.
async fn stop(launched: Launched, grace: Duration) {
    let Launched {
        guest, mut events, ..
    } = launched;
    let stopping = guest.stop_within(grace);
    let draining = async { while events.recv().await.is_some() {} };
    tokio::join!(stopping, draining);
}
