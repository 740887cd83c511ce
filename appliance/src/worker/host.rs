//! Starting workers.
//!
//! A launch waits for its turn, takes a spare (or makes one on the spot), lets the warden give it
//! its limits, and orders it to boot or to restore its guest. From then on one task (`supervisor`)
//! owns it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::control::Control;
use super::exit::WorkerExit;
use super::handle::{Shared, Worker, WorkerEvent};
use super::launch::{LaunchError, LaunchRequest, Settings, Snapshot, Source, WorkingSet};
use super::leftovers::{Leftover, Leftovers};
use super::orders::{FirstPages, Order, OrderError, Orders};
use super::progress::{Progress, Script};
use super::shell::{RunFolder, Shell, ShellMaker, private_folder};
use super::spares::Spares;
use super::spec::WorkerSpec;
use super::steps::Steps;
use super::supervisor::{Start, Supervisor};
use super::turns::{Turn, Turns};
use crate::config::Paths;
use crate::guest::{Guest, GuestError};
use crate::images;
use crate::warden::client::{ImageJobError, KillOnDrop, ProcessEnd, SpawnError, WardenClient};

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
    leftovers: Leftovers,
}

/// Why a worker of an earlier appliance was not taken over. It ends.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("It has no folder")]
    Unknown,
    #[error(transparent)]
    Warden(#[from] SpawnError),
    #[error("Its sockets or its console cannot be used")]
    Folder(#[source] io::Error),
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
        // Before anything of our own is there.
        let leftovers = Leftovers::look(&paths.workers)?;
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
            leftovers,
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

    /// Resolves when everything is made ahead that is to be.
    pub async fn at_rest(&self) {
        self.spares.complete().await;
    }

    /// Runs one image job in a process of its own; see [`WardenClient::run_image_job`].
    pub async fn run_image_job(
        &self,
        job: images::Job,
        fds: Vec<OwnedFd>,
    ) -> Result<images::JobReport, ImageJobError> {
        self.warden.run_image_job(job, fds).await
    }

    /// The workers that an earlier appliance has left and that say what they are. Not all of them need live.
    pub fn leftovers(&self) -> Vec<Leftover> {
        self.leftovers.noted()
    }

    /// Takes over what an earlier appliance has left. Its guest can be used at once.
    pub async fn adopt(&self, id: Uuid) -> Result<Launched, AdoptError> {
        let folder = self.leftovers.folder(id).ok_or(AdoptError::Unknown)?;
        let folder = RunFolder::of_a_guest(folder);
        let (kill, ended) = self.warden.adopt(id).await?;
        let control = Control::open(folder.socket()).await;
        let control = control.map_err(AdoptError::Folder)?;
        let orders = Orders::connect(&folder.orders()).map_err(AdoptError::Folder)?;
        let serial = File::open(folder.console()).map_err(AdoptError::Folder)?;
        let folder = self.leftovers.take(id).ok_or(AdoptError::Unknown)?;
        let hold = Hold {
            kill,
            id,
            ended,
            orders,
            control,
            serial,
            folder,
        };
        let start = Start {
            launched: Instant::now(),
            steps: None,
            container: None,
            progress: Progress::adopted(),
            turn: None,
        };
        Ok(self.supervise(hold, start))
    }

    /// Whatever an earlier appliance has left, and nobody has taken over, ends now; see [`WardenClient::settled`].
    pub async fn settled(&self) {
        self.warden.settled().await;
        self.leftovers.clear();
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
        let LaunchRequest {
            source, purpose, ..
        } = request;
        if let Err(error) = self.order(&shell, spec, source, &mut steps).await {
            let end = shell.end().await;
            return Err(match error {
                // Its report says more.
                LaunchError::Order(OrderError::Gone) => {
                    LaunchError::Died(WorkerExit::new(end, false, &[]))
                }
                other => other,
            });
        }
        let start = Start {
            launched,
            steps: Some(steps),
            container: purpose.into_container(),
            progress: Progress::new(script),
            turn: Some(turn),
        };
        Ok(self.supervise(shell.into(), start))
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

    fn supervise(&self, hold: Hold, start: Start) -> Launched {
        let Hold {
            kill,
            id,
            ended,
            orders,
            control,
            serial,
            folder,
        } = hold;
        let (events, receiver) = mpsc::channel(EVENTS);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (gone_sender, gone) = watch::channel(None);
        let shared = Arc::new(Shared {
            id,
            folder: folder.path().to_owned(),
            socket: folder.socket(),
            orders,
            warden: self.warden.clone(),
            output: Arc::default(),
            serial,
            version: AtomicU16::default(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            commands,
            gone,
        };
        let supervisor = Supervisor {
            id,
            start,
            warden: self.warden.clone(),
            control,
            ended,
            commands: inbox,
            events,
            shared,
            gone: gone_sender,
            stop_when_heard: None,
            kill,
            folder,
        };
        tokio::spawn(supervisor.run());
        (worker, receiver)
    }
}

/// What there is of a worker with a guest.
struct Hold {
    kill: KillOnDrop,
    id: Uuid,
    ended: oneshot::Receiver<ProcessEnd>,
    orders: Orders,
    control: Control,
    serial: File,
    folder: RunFolder,
}

impl From<Shell> for Hold {
    fn from(shell: Shell) -> Self {
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
        Self {
            kill,
            id,
            ended,
            orders,
            control,
            serial,
            folder: folder.into_a_guests(),
        }
    }
}
