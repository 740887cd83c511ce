//! Starts sessions: as a fork where there is a golden, from the kernel on where there is none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::builder::GoldenError;
use super::machine::{Machine, Machines, Started};
use super::recipe::Recipe;
use super::{Golden, Goldens};
use crate::exit::chain;
use crate::pool::launcher::{
    BoxFuture, Guest, GuestEvent, Launched, Launcher, NotAdopted, PrepareFailure, StartFailure,
    StartFailureCause, StartOrder, Survivor,
};
use crate::store::{PoolRecord, SlotNote, decode, encode};
use crate::worker::{LaunchRequest, Leftover, Log, Purpose, Source, Urgency, WorkerEvent};

/// Events between a worker and the attendant of its slot.
const EVENTS: usize = 16;

/// Starts guests as workers. Cheap to clone.
#[derive(Clone)]
pub struct HostLauncher {
    pub machines: Arc<dyn Machines>,
    pub goldens: Goldens,
    /// How long a fork may take to answer. What is left of a session's time to start must be enough
    /// for a boot.
    pub fork_limit: Duration,
}

impl Launcher for HostLauncher {
    fn launch(&self, order: StartOrder) -> BoxFuture<'static, Result<Launched, StartFailure>> {
        let this = self.clone();
        Box::pin(async move {
            let started = match this.goldens.recipe(&order.pool) {
                Ok(recipe) => match this.fork(&recipe, order.urgency).await {
                    Some(started) => Ok(started),
                    None => this.boot(recipe, order.urgency).await,
                },
                Err(message) => Err(message),
            };
            let started = started
                .map_err(|message| StartFailure::silent(StartFailureCause::Launch { message }))?;
            Ok(launched(started))
        })
    }

    fn prepare(&self, pool: Arc<PoolRecord>) -> BoxFuture<'static, Result<(), PrepareFailure>> {
        let goldens = self.goldens.clone();
        Box::pin(async move {
            let recipe = goldens
                .recipe(&pool)
                .map_err(|message| PrepareFailure::Host { message })?;
            let built = goldens.ensure(recipe).await;
            built.map_err(|error| not_prepared(&error))
        })
    }

    fn pools_changed(&self, pools: Vec<Arc<PoolRecord>>) -> BoxFuture<'static, ()> {
        let goldens = self.goldens.clone();
        Box::pin(async move { goldens.pools_changed(pools).await })
    }

    fn survivors(&self) -> Vec<Survivor> {
        self.machines
            .leftovers()
            .into_iter()
            .filter_map(survivor)
            .collect()
    }

    fn adopt(&self, worker: Uuid) -> BoxFuture<'static, Result<Launched, NotAdopted>> {
        let adopting = self.machines.adopt(worker);
        Box::pin(async move {
            match adopting.await {
                Ok(started) => Ok(launched(started)),
                Err(error) => Err(NotAdopted {
                    message: error.message,
                }),
            }
        })
    }
}

/// `None`: a newer version wrote the note, so nobody here knows what the guest is.
fn survivor(leftover: Leftover) -> Option<Survivor> {
    let Leftover {
        worker,
        noted,
        note,
    } = leftover;
    match decode::<SlotNote>(&note) {
        Ok(SlotNote { pool }) => Some(Survivor {
            worker,
            pool: Arc::new(pool),
            noted,
        }),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%worker, error, "the note of a worker of an earlier run cannot be read");
            None
        }
    }
}

fn launched(Started { machine, events }: Started) -> Launched {
    Launched {
        worker: machine.id(),
        guest: Arc::new(MachineGuest(machine)),
        events: translate(events),
    }
}

impl HostLauncher {
    /// `None`: there is no golden, or this fork of it failed. Then the session boots, which takes longer
    /// and needs nothing of the golden.
    async fn fork(&self, recipe: &Recipe, urgency: Urgency) -> Option<Started> {
        let golden = self.goldens.find(recipe)?;
        match self.try_fork(&golden, recipe, urgency).await {
            Ok(started) => return Some(started),
            Err(Failed::Golden(why)) => self.goldens.set_aside(&golden, &why).await,
            Err(Failed::Host(why)) => {
                tracing::warn!(key = %golden.key, pool = %recipe.pool, why, "session could not be forked and boots");
            }
        }
        None
    }

    /// A fork that has an identity of its own.
    async fn try_fork(
        &self,
        golden: &Golden,
        recipe: &Recipe,
        urgency: Urgency,
    ) -> Result<Started, Failed> {
        let snapshot = golden
            .open()
            .map_err(|error| Failed::Golden(chain(&error)))?;
        let source = Source::Fork {
            snapshot,
            root_image: recipe
                .root_image()
                .map_err(|error| Failed::Host(chain(&error)))?,
        };
        let launched = self.machines.launch(request(recipe, source, urgency)).await;
        let Started {
            machine,
            mut events,
        } = launched.map_err(|error| match error.blames_snapshot {
            true => Failed::Golden(error.message),
            false => Failed::Host(error.message),
        })?;
        let renewed = async {
            loop {
                return match events.recv().await {
                    Some(WorkerEvent::Renewed { .. }) => Ok(()),
                    Some(WorkerEvent::StartFailed { message }) => Err(message),
                    Some(WorkerEvent::Gone(exit)) => Err(exit.to_string()),
                    None => Err("its worker is gone".to_owned()),
                    Some(_) => continue,
                };
            }
        };
        let renewed = timeout(self.fork_limit, renewed).await;
        let seconds = self.fork_limit.as_secs_f32();
        let renewed = renewed.unwrap_or_else(|_| Err(format!("no answer in {seconds} seconds")));
        match renewed {
            Ok(()) => Ok(Started { machine, events }),
            Err(why) => {
                drop(events);
                machine.kill().await;
                Err(Failed::Golden(why))
            }
        }
    }

    async fn boot(&self, recipe: Recipe, urgency: Urgency) -> Result<Started, String> {
        let source = Source::Boot {
            root_image: recipe.root_image().map_err(|error| chain(&error))?,
            disk_bytes: recipe.manifest.template.disk_bytes,
        };
        let launched = self
            .machines
            .launch(request(&recipe, source, urgency))
            .await;
        launched.map_err(|error| error.message)
    }
}

/// Why there is no fork, and whether the next one would fare better.
enum Failed {
    Golden(String),
    Host(String),
}

fn request(recipe: &Recipe, source: Source, urgency: Urgency) -> LaunchRequest {
    let template = &recipe.manifest.template;
    LaunchRequest {
        source,
        vcpus: template.vcpus,
        cpu_millis: recipe.cpu_millis,
        mem_mib: template.mem_mib,
        limits: recipe.limits,
        purpose: Purpose::Session {
            container: recipe.container.clone(),
            point: template.fork_point,
        },
        urgency,
    }
}

fn not_prepared(error: &GoldenError) -> PrepareFailure {
    match error {
        GoldenError::Container(failure) => PrepareFailure::Container(failure.clone()),
        GoldenError::Guest(failure) => PrepareFailure::Host {
            message: failure.describe(&error.to_string()),
        },
        GoldenError::Machine { .. } | GoldenError::Store(_) | GoldenError::Lost => {
            PrepareFailure::Host {
                message: chain(error),
            }
        }
        GoldenError::Stopping => PrepareFailure::Closing,
    }
}

struct MachineGuest(Box<dyn Machine>);

impl Guest for MachineGuest {
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        self.0.connect()
    }

    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>> {
        self.0.connect_to(port)
    }

    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        self.0.connect_exec()
    }

    fn stop_within(&self, grace: Duration) -> BoxFuture<'_, ()> {
        self.0.stop(grace)
    }

    fn console_tail(&self) -> Vec<String> {
        self.0.console_tail()
    }

    fn log(&self) -> Arc<Log> {
        self.0.log()
    }

    fn note_ready(&self, pool: &PoolRecord) -> io::Result<()> {
        self.0.note_ready(&encode(&SlotNote { pool: pool.clone() }))
    }

    fn note_leased(&self) -> io::Result<()> {
        self.0.note_leased()
    }

    fn forget_note(&self) {
        self.0.forget_note();
    }
}

/// The worker's events in the pool's words; ends after `Gone`, like the worker's own.
fn translate(mut events: mpsc::Receiver<WorkerEvent>) -> mpsc::Receiver<GuestEvent> {
    let (sender, translated) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let event = match event {
                WorkerEvent::Ready => GuestEvent::Ready,
                WorkerEvent::ContainerExited(ending) => GuestEvent::ContainerExited {
                    how: ending.to_string(),
                },
                WorkerEvent::StartFailed { message } => GuestEvent::StartFailed { message },
                WorkerEvent::Gone(exit) => GuestEvent::Gone {
                    how: exit.to_string(),
                },
                WorkerEvent::Booted { .. }
                | WorkerEvent::Renewed { .. }
                | WorkerEvent::Started
                | WorkerEvent::Held => continue,
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    translated
}

#[cfg(test)]
#[path = "launcher_tests.rs"]
mod tests;
