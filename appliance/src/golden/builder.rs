//! Makes one golden: boots a guest, leads it to the fork point, writes it down, and proves that
//! what was written can be forked before anybody relies on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::files::StoreError;
use super::machine::{Machine, MachineError, Machines, Started};
use super::recipe::Recipe;
use super::store::{Draft, Golden, Store};
use crate::pool::launcher::{StartFailure, StartFailureCause};
use crate::pool::probe::Prober;
use crate::worker::spec::{ForkPoint, RateLimits};
use crate::worker::{LaunchRequest, Purpose, Source, Urgency, WorkerEvent};

/// Writing a guest down takes as long as its memory and disk need; beyond this the disk hangs.
const SAVE_LIMIT: Duration = Duration::from_secs(300);
/// Between two answers of a worker that has nothing to write.
const ORDER_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no golden. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The pool's own image or settings are at fault.
    #[error("{}", .0.cause)]
    Container(StartFailure),
    /// No guest came up.
    #[error("No guest could be started to make the pool's golden of: {}", .0.cause)]
    Guest(StartFailure),
    #[error("The pool's golden could not be {what}: {message}")]
    Machine { what: &'static str, message: String },
    #[error("The pool's golden could not be stored")]
    Store(#[from] StoreError),
    #[error("A task of the build died")]
    Lost,
    #[error("The appliance is stopping")]
    Stopping,
}

/// Makes goldens.
#[derive(Clone)]
pub struct Builder {
    pub machines: Arc<dyn Machines>,
    pub store: Store,
    /// From the launch of a worker until it is where it shall be.
    pub start_timeout: Duration,
}

impl Builder {
    /// When this fails or is dropped, nothing is left of it.
    pub async fn build(&self, recipe: Recipe) -> Result<Arc<Golden>, GoldenError> {
        let begun = Instant::now();
        let Recipe { pool, .. } = &recipe;
        let key = recipe.manifest.key();
        tracing::debug!(%key, %pool, "making a golden");
        let store = self.store.clone();
        let draft = Arc::new(blocking(move || store.draft()).await?);
        self.make(&recipe, &draft).await?;
        self.prove(&recipe, &draft).await?;
        let store = self.store.clone();
        let manifest = recipe.manifest.clone();
        // The blocking threads that looked at the draft are done with it.
        let draft = Arc::into_inner(draft).ok_or(GoldenError::Lost)?;
        let golden = blocking(move || store.publish(draft, manifest)).await?;
        tracing::info!(
            %key,
            %pool,
            fork_point = %golden.about.manifest.template.fork_point,
            elapsed_ms = begun.elapsed().as_millis(),
            memory_bytes = golden.memory_bytes,
            disk_bytes = golden.disk_bytes,
            "golden made"
        );
        Ok(golden)
    }

    /// Boots a guest and writes it down at the fork point.
    async fn make(&self, recipe: &Recipe, draft: &Arc<Draft>) -> Result<(), GoldenError> {
        let point = recipe.manifest.template.fork_point;
        let source = Source::Boot {
            root_image: recipe.root_image()?,
            disk_bytes: recipe.manifest.template.disk_bytes,
        };
        let purpose = Purpose::Golden {
            point,
            container: recipe.container.clone(),
        };
        let draft = Arc::clone(draft);
        let files = blocking(move || draft.create()).await?;
        let Started {
            machine,
            mut events,
        } = self.launch(recipe, source, purpose).await?;
        let saved = async {
            if point == ForkPoint::AfterReady {
                let started = self.until_started(&*machine, &mut events, recipe).await;
                started.map_err(|failure| failure.blame(point))?;
                machine.freeze_when_ready().await;
            }
            let held = |event: &WorkerEvent| matches!(event, WorkerEvent::Held);
            let reached = self.until(held, &*machine, &mut events, recipe).await;
            // Where a container runs at all, the guest was renewed before.
            reached.map_err(|failure| {
                Failure {
                    renewed: true,
                    ..failure
                }
                .blame(point)
            })?;
            order("paused", ORDER_LIMIT, machine.pause()).await?;
            order("written down", SAVE_LIMIT, machine.save(files)).await
        }
        .await;
        end(machine, events).await;
        saved
    }

    /// Makes a first fork, which shows that it can be done and which pages it needs first.
    async fn prove(&self, recipe: &Recipe, draft: &Arc<Draft>) -> Result<(), GoldenError> {
        let (snapshot, working_set) = {
            let draft = Arc::clone(draft);
            let manifest = recipe.manifest.clone();
            blocking(move || Ok((draft.open(&manifest)?, draft.create_working_set()?))).await?
        };
        let source = Source::Fork {
            snapshot,
            root_image: recipe.root_image()?,
        };
        let Started {
            machine,
            mut events,
        } = self.launch(recipe, source, Purpose::Trial).await?;
        let renewed = |event: &WorkerEvent| matches!(event, WorkerEvent::Renewed { .. });
        let proved = self.until(renewed, &*machine, &mut events, recipe).await;
        let recorded = match &proved {
            Ok(()) => {
                let recorded = async {
                    if recipe.manifest.template.fork_point == ForkPoint::AfterReady {
                        // The first thing that a session does: its pages belong to the first as well.
                        let _ = timeout(ORDER_LIMIT, machine.connect()).await;
                    }
                    order("paused", ORDER_LIMIT, machine.pause()).await?;
                    order(
                        "recorded",
                        SAVE_LIMIT,
                        machine.save_working_set(working_set),
                    )
                    .await
                };
                recorded.await
            }
            Err(_) => Ok(()),
        };
        end(machine, events).await;
        proved.map_err(|failure| GoldenError::Machine {
            what: "forked",
            message: failure.why.cause.to_string(),
        })?;
        if let Err(error) = recorded {
            // Forks take their pages one by one then, which is slower and nothing else.
            tracing::warn!(
                pool = %recipe.pool,
                error = &error as &dyn std::error::Error,
                "golden without a working set"
            );
            let draft = Arc::clone(draft);
            blocking(move || draft.drop_working_set()).await?;
        }
        Ok(())
    }

    async fn launch(
        &self,
        recipe: &Recipe,
        source: Source,
        purpose: Purpose,
    ) -> Result<Started, GoldenError> {
        let template = &recipe.manifest.template;
        let what = match &source {
            Source::Boot { .. } => "started",
            Source::Fork { .. } => "forked",
        };
        let request = LaunchRequest {
            source,
            vcpus: template.vcpus,
            // All that the guest has: a golden is the appliance's own work, and pools wait for it.
            cpu_millis: u32::from(template.vcpus) * 1000,
            mem_mib: template.mem_mib,
            // They are no part of a golden, and come with each fork of it.
            limits: RateLimits::default(),
            purpose,
            // Somebody waits for the pool, or its sessions boot meanwhile.
            urgency: Urgency::Claim,
        };
        match timeout(self.start_timeout, self.machines.launch(request)).await {
            Ok(launched) => launched.map_err(|error| machine_error(what, error)),
            Err(_) => Err(GoldenError::Machine {
                what,
                message: format!(
                    "no worker within {} seconds",
                    self.start_timeout.as_secs_f32()
                ),
            }),
        }
    }

    /// Waits until the container accepts and its startup probe, if any, has succeeded. That takes the
    /// time that the probe was given on top of the start deadline.
    async fn until_started(
        &self,
        machine: &dyn Machine,
        events: &mut mpsc::Receiver<WorkerEvent>,
        recipe: &Recipe,
    ) -> Result<(), Failure> {
        let ready = |event: &WorkerEvent| matches!(event, WorkerEvent::Ready);
        self.until(ready, machine, events, recipe).await?;
        let mut prober = Prober::of_golden(recipe.startup.clone());
        let connect = |port| machine.connect_to(port);
        let cause = tokio::select! {
            started = prober.started(&connect) => match started {
                Ok(()) => return Ok(()),
                Err(unhealthy) => StartFailureCause::Unhealthy(unhealthy),
            },
            cause = ended(events) => cause,
        };
        let console = machine.console_tail();
        let why = StartFailure { cause, console };
        Err(Failure { why, renewed: true })
    }

    /// Waits for an event; whatever makes it impossible is a failure with the guest's last lines.
    async fn until(
        &self,
        wanted: impl Fn(&WorkerEvent) -> bool,
        machine: &dyn Machine,
        events: &mut mpsc::Receiver<WorkerEvent>,
        recipe: &Recipe,
    ) -> Result<(), Failure> {
        let port = recipe.container.target_port;
        let mut renewed = false;
        let reached = async {
            loop {
                let cause = match events.recv().await {
                    Some(event) if wanted(&event) => return Ok(()),
                    Some(WorkerEvent::Renewed { .. }) => {
                        renewed = true;
                        continue;
                    }
                    Some(WorkerEvent::ContainerExited(ending)) => StartFailureCause::Exited {
                        how: ending.to_string(),
                        port,
                    },
                    Some(WorkerEvent::StartFailed { message }) => {
                        StartFailureCause::Container { message }
                    }
                    Some(WorkerEvent::Gone(exit)) => StartFailureCause::GuestEnded {
                        how: exit.to_string(),
                    },
                    None => StartFailure::vanished().cause,
                    Some(_) => continue,
                };
                return Err(cause);
            }
        };
        let after = self.start_timeout;
        let reached = timeout(after, reached)
            .await
            .unwrap_or(Err(StartFailureCause::TimedOut { after, port }));
        reached.map_err(|cause| Failure {
            why: StartFailure {
                cause,
                console: machine.console_tail(),
            },
            renewed,
        })
    }
}

/// A guest did not get as far as it should.
struct Failure {
    why: StartFailure,
    /// It had an identity, so whatever came then was the container's.
    renewed: bool,
}

impl Failure {
    /// Whose fault it is.
    fn blame(self, point: ForkPoint) -> GoldenError {
        use StartFailureCause::*;
        let Self { why, renewed } = self;
        let of_container = point == ForkPoint::AfterReady && renewed;
        match &why.cause {
            Container { .. } | Exited { .. } | Ended { .. } | TimedOut { .. } | Unhealthy(_)
                if of_container =>
            {
                GoldenError::Container(why)
            }
            // The cause speaks of a container, which is not there yet.
            Container { message } => GoldenError::Machine {
                what: "made",
                message: message.clone(),
            },
            TimedOut { after, .. } => GoldenError::Machine {
                what: "made",
                message: format!(
                    "its guest was not up within {} seconds",
                    after.as_secs_f32()
                ),
            },
            Launch { .. } | GuestEnded { .. } | Exited { .. } | Ended { .. } | Unhealthy(_) => {
                GoldenError::Guest(why)
            }
        }
    }
}

/// How a container that has been ready ends.
async fn ended(events: &mut mpsc::Receiver<WorkerEvent>) -> StartFailureCause {
    loop {
        return match events.recv().await {
            Some(WorkerEvent::ContainerExited(ending)) => StartFailureCause::Ended {
                how: ending.to_string(),
            },
            Some(WorkerEvent::StartFailed { message }) => StartFailureCause::Container { message },
            Some(WorkerEvent::Gone(exit)) => StartFailureCause::GuestEnded {
                how: exit.to_string(),
            },
            None => StartFailure::vanished().cause,
            Some(_) => continue,
        };
    }
}

async fn order(
    what: &'static str,
    limit: Duration,
    done: impl Future<Output = Result<(), MachineError>>,
) -> Result<(), GoldenError> {
    match timeout(limit, done).await {
        Ok(result) => result.map_err(|error| machine_error(what, error)),
        Err(_) => Err(GoldenError::Machine {
            what,
            message: format!(
                "its worker did not answer within {} seconds",
                limit.as_secs()
            ),
        }),
    }
}

/// A worker tells its errors as text; the one that the operator can do something about is a full disk.
fn machine_error(what: &'static str, error: MachineError) -> GoldenError {
    let mut message = error.message;
    if message.contains("os error 28") || message.contains("No space left") {
        message.push_str(" (free disk space and try again)");
    }
    GoldenError::Machine { what, message }
}

/// Its events are of no use any more, and nobody waits for them.
async fn end(machine: Box<dyn Machine>, events: mpsc::Receiver<WorkerEvent>) {
    drop(events);
    machine.kill().await;
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, GoldenError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| GoldenError::Lost)?.map_err(Into::into)
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
