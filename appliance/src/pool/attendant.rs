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
use super::launcher::{
    Guest, GuestEvent, Launched, Launcher, StartFailure, StartFailureCause, StartOrder,
};
use super::slot::SlotId;
use super::unix_millis;
use crate::store::{PoolRecord, Records, SessionRecord};

/// What the driver wants of the slot.
#[derive(Debug)]
pub enum Order {
    /// Record that the slot belongs to this identifier.
    Bind {
        session: Uuid,
        identifier: Identifier,
    },
    /// End it.
    Stop,
}

/// What happened in the slot.
pub enum Report {
    /// The container answers; this is how to reach it.
    Ready { guest: Arc<dyn Guest> },
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
    pub pool: Arc<PoolRecord>,
    pub launcher: Arc<dyn Launcher>,
    pub records: Records,
    pub start_timeout: Duration,
    pub orders: mpsc::UnboundedReceiver<Order>,
    pub reports: mpsc::UnboundedSender<(SlotId, Report)>,
}

impl Attendant {
    /// The whole life of the slot.
    pub async fn run(mut self) {
        let deadline = Instant::now() + self.start_timeout;
        if let Some(mut launched) = self.launch(deadline).await {
            let mut owned = None;
            let alive = match self.wait_until_ready(&mut launched, deadline).await {
                Outcome::Ready => {
                    self.report(Report::Ready {
                        guest: Arc::clone(&launched.guest),
                    });
                    self.serve(&mut launched, &mut owned).await
                }
                Outcome::Failed { failure, alive } => {
                    self.report(Report::Failed(failure));
                    alive
                }
                Outcome::Stopped => true,
            };
            if alive {
                stop(launched).await;
            }
            if let Some(identifier) = owned {
                self.forget(identifier).await;
            }
        }
        self.report(Report::Gone);
    }

    /// Never abandons a launch half way: one that comes too late is stopped.
    async fn launch(&mut self, deadline: Instant) -> Option<Launched> {
        let order = StartOrder {
            pool: Arc::clone(&self.pool),
        };
        let mut launching = self.launcher.launch(order);
        let in_time = tokio::select! {
            launched = &mut launching => Some(launched),
            () = tokio::time::sleep_until(deadline) => {
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
                    stop(launched).await;
                }
            }
        }
        None
    }

    async fn wait_until_ready(&mut self, launched: &mut Launched, deadline: Instant) -> Outcome {
        let gone = |how| (StartFailureCause::GuestEnded { how }, false);
        let (cause, alive) = tokio::select! {
            event = launched.events.recv() => match event {
                Some(GuestEvent::Ready) => return Outcome::Ready,
                Some(GuestEvent::ContainerExited { how }) => {
                    (StartFailureCause::Exited { how, port: self.pool.target_port }, true)
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
        let failure = StartFailure {
            cause,
            console: launched.guest.console_tail(),
        };
        Outcome::Failed { failure, alive }
    }

    /// Serves orders until the end. `false`: the guest is gone already.
    async fn serve(&mut self, launched: &mut Launched, owned: &mut Option<Identifier>) -> bool {
        loop {
            let (cause, alive) = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Bind { session, identifier }) => {
                        *owned = Some(identifier.clone());
                        let report = self.bind(session, launched.worker, identifier).await;
                        self.report(report);
                        continue;
                    }
                    Some(Order::Stop) | None => return true,
                },
                event = launched.events.recv() => match event {
                    Some(GuestEvent::ContainerExited { how }) => {
                        (StartFailureCause::Ended { how }, true)
                    }
                    Some(GuestEvent::StartFailed { message }) => {
                        (StartFailureCause::Container { message }, true)
                    }
                    Some(GuestEvent::Gone { how }) => (StartFailureCause::GuestEnded { how }, false),
                    Some(GuestEvent::Ready) => continue,
                    None => (StartFailure::vanished().cause, false),
                },
            };
            let console = launched.guest.console_tail();
            self.report(Report::Failed(StartFailure { cause, console }));
            return alive;
        }
    }

    async fn bind(&self, session: Uuid, worker: Uuid, identifier: Identifier) -> Report {
        let record = SessionRecord {
            pool: self.pool.name.clone(),
            identifier,
            session,
            worker,
            revision: self.pool.revision,
            created_at_ms: unix_millis(),
        };
        match self.records.put_session(record).await {
            Ok(()) => Report::Bound,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(pool = %self.pool.name, error, "a session could not be recorded");
                Report::BindFailed
            }
        }
    }

    async fn forget(&self, identifier: Identifier) {
        if let Err(error) = self
            .records
            .remove_session(self.pool.name.clone(), identifier)
            .await
        {
            // The next start removes it: no session of an earlier run is kept.
            let error: &dyn std::error::Error = &error;
            tracing::error!(pool = %self.pool.name, error, "the record of an ended session could not be removed");
        }
    }

    fn timed_out(&self) -> StartFailureCause {
        StartFailureCause::TimedOut {
            after: self.start_timeout,
            port: self.pool.target_port,
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

/// Resolves when the slot is to end, or when nobody is left to give orders.
async fn stop_ordered(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Stop) {
            return;
        }
    }
}

/// Stops the guest, and takes its events meanwhile: it may have many lines left to say.
async fn stop(launched: Launched) {
    let Launched {
        guest, mut events, ..
    } = launched;
    let stopping = guest.stop();
    let draining = async { while events.recv().await.is_some() {} };
    tokio::join!(stopping, draining);
}
