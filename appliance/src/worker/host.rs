//! Starting workers.
//!
//! A launch waits for its turn, takes a spare (or makes one on the spot), lets the warden give it
//! its limits, and orders it to boot or to restore its guest. From then on one task (`supervisor`)
//! owns it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::exit::WorkerExit;
use super::handle::{Shared, Worker, WorkerEvent};
use super::launch::{LaunchError, LaunchRequest, Purpose, Settings, Snapshot, Source, WorkingSet};
use super::orders::{FirstPages, Order, OrderError};
use super::progress::{Progress, Script};
use super::shell::{Shell, ShellMaker, private_folder};
use super::spares::Spares;
use super::spec::WorkerSpec;
use super::steps::Steps;
use super::supervisor::Supervisor;
use super::turns::{Turn, Turns};
use crate::config::Paths;
use crate::guest::{Guest, GuestError};
use crate::images;
use crate::warden::client::{ImageJobError, WardenClient};

/// Events that wait for their reader; a worker has no more than nine in its life.
const EVENTS: usize = 16;
const COMMANDS: usize = 16;

type Launched = (Worker, mpsc::Receiver<WorkerEvent>);

/// Starts workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHost {
    warden: WardenClient,
    guest: Guest,
    maker: ShellMaker,
    spares: Spares,
    turns: Turns,
}

impl WorkerHost {
    /// Begins to make spares; needs a running tokio.
    pub fn new(
        warden: WardenClient,
        guest: Guest,
        paths: Paths,
        settings: Settings,
    ) -> io::Result<Self> {
        match private_folder(&paths.workers) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let maker = ShellMaker {
            warden: warden.clone(),
            paths: Arc::new(paths),
        };
        let turns = Turns::new(settings.parallel_starts);
        let ending = warden.ending();
        let spares = Spares::keep(settings.spares, maker.clone(), turns.clone(), ending);
        Ok(Self {
            warden,
            guest,
            maker,
            spares,
            turns,
        })
    }

    /// Starts a worker. The events come on the receiver; when that and every [`Worker`] are
    /// dropped, the worker is killed.
    pub async fn launch(&self, request: LaunchRequest) -> Result<Launched, LaunchError> {
        let launched = Instant::now();
        if let Some(objection) = request.spec().objection() {
            return Err(LaunchError::Shape(objection));
        }
        let host = self.clone();
        let (mut answer, answered) = oneshot::channel();
        // On a task of its own: a caller that goes away half way must not leave half a worker. One
        // that is gone before its turn came takes none.
        tokio::spawn(async move {
            let turn = tokio::select! {
                () = answer.closed() => return,
                turn = host.turns.take(request.urgency) => turn,
            };
            let _ = answer.send(host.launch_now(request, launched, turn).await);
        });
        answered.await.map_err(|_| LaunchError::Interrupted)?
    }

    /// Runs one image job in a process of its own; see [`WardenClient::run_image_job`].
    pub async fn run_image_job(
        &self,
        job: images::Job,
        fds: Vec<OwnedFd>,
    ) -> Result<images::JobReport, ImageJobError> {
        self.warden.run_image_job(job, fds).await
    }

    /// Whoever an earlier appliance has left ends now; see [`WardenClient::settled`].
    pub async fn settled(&self) {
        self.warden.settled().await;
    }

    /// Asks for the end of everything; see [`WardenClient::request_stop`].
    pub async fn request_stop(&self) {
        self.warden.request_stop().await;
    }

    async fn launch_now(
        &self,
        request: LaunchRequest,
        launched: Instant,
        turn: Turn,
    ) -> Result<Launched, LaunchError> {
        let mut steps = Steps::since(launched);
        steps.lap("turn");
        let spec = request.spec();
        let shell = match self.spares.take().await {
            Some(spare) => {
                steps.lap("spare");
                spare
            }
            None => {
                let shell = self.maker.make().await?;
                steps.lap("spawn");
                shell
            }
        };
        let script = Script::new(&request.purpose, &request.source);
        if let Err(error) = self.order(&shell, spec, request.source, &mut steps).await {
            let end = shell.end().await;
            return Err(match error {
                // Its report says more.
                LaunchError::Order(OrderError::Gone) => {
                    LaunchError::Died(WorkerExit::new(end, false, &[]))
                }
                other => other,
            });
        }
        Ok(self.supervise(shell, script, request.purpose, launched, steps, turn))
    }

    /// Makes a guest of the shell. When this returns, the guest runs.
    async fn order(
        &self,
        shell: &Shell,
        spec: WorkerSpec,
        source: Source,
        steps: &mut Steps,
    ) -> Result<(), LaunchError> {
        let shaped = self.warden.shape(shell.id, spec.clone());
        // Side by side: the warden sets the limits while the descriptors are made ready.
        let prepare = async { self.prepare(&shell.disk, spec, source) };
        let (shaped, prepared) = tokio::join!(shaped, prepare);
        let (order, fds) = prepared?;
        // The guest must not run before its limits hold.
        shaped?;
        steps.lap("shape");
        let parts = shell.orders.give(order, fds).await?;
        steps.lap_of("hand over", parts);
        Ok(())
    }

    fn prepare(
        &self,
        disk: &File,
        spec: WorkerSpec,
        source: Source,
    ) -> Result<(Order, Vec<OwnedFd>), LaunchError> {
        let copy = |file: &File| file.try_clone().map_err(LaunchError::Descriptor);
        match source {
            Source::Boot {
                root_image,
                disk_bytes,
            } => {
                self.guest.format_disk(disk, disk_bytes)?;
                let files = [
                    copy(self.guest.kernel())?,
                    copy(self.guest.initramfs())?,
                    root_image,
                    copy(disk)?,
                ];
                Ok((Order::Boot { spec }, files.map(Into::into).into()))
            }
            Source::Fork {
                snapshot,
                root_image,
            } => {
                let Snapshot {
                    state,
                    memory,
                    disk: base,
                    working_set,
                    disk_bytes,
                } = snapshot;
                disk.set_len(disk_bytes).map_err(GuestError::fill)?;
                let files = [state, memory, root_image, base, copy(disk)?];
                let mut fds: Vec<OwnedFd> = files.map(Into::into).into();
                let first_pages = match working_set {
                    WorkingSet::Unknown => FirstPages::AsNeeded,
                    WorkingSet::Known(file) => {
                        fds.push(file.into());
                        FirstPages::Prefetched
                    }
                    WorkingSet::Wanted => FirstPages::Recorded,
                };
                Ok((Order::Restore { spec, first_pages }, fds))
            }
        }
    }

    fn supervise(
        &self,
        shell: Shell,
        script: Script,
        purpose: Purpose,
        launched: Instant,
        steps: Steps,
        turn: Turn,
    ) -> Launched {
        let Shell {
            kill,
            id,
            ended,
            orders,
            control,
            serial,
            disk: _,
            folder,
        } = shell;
        let (events, receiver) = mpsc::channel(EVENTS);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (gone_sender, gone) = watch::channel(None);
        let shared = Arc::new(Shared {
            id,
            socket: folder.socket(),
            orders,
            warden: self.warden.clone(),
            output: Arc::default(),
            serial,
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            commands,
            gone,
        };
        let supervisor = Supervisor {
            id,
            launched,
            steps: Some(steps),
            container: purpose.into_container(),
            progress: Progress::new(script),
            turn: Some(turn),
            warden: self.warden.clone(),
            control,
            ended,
            commands: inbox,
            events,
            shared,
            gone: gone_sender,
            kill,
            folder,
        };
        tokio::spawn(supervisor.run());
        (worker, receiver)
    }
}
