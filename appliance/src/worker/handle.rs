//! Starting a worker and holding on to it.
//!
//! A launch makes everything that the worker lives on: a folder with its socket and console file,
//! an empty disk, copies of the sealed guest. From then on one task (`supervisor`) owns it, and
//! whatever happens to the caller, that task ends the worker and removes all of it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;
use wire::ContainerSpec;

use super::console::{self, Ring};
use super::control::{Control, MAX_ANSWER_BYTES};
use super::exit::WorkerExit;
use super::spec::WorkerSpec;
use super::supervisor::{Command, Supervisor};
use crate::config::Paths;
use crate::guest::{Guest, GuestError};
use crate::images;
use crate::warden::client::{ImageJobError, SpawnError, WardenClient};

/// Events that wait for their reader; a worker has no more than six in its life.
const EVENTS: usize = 8;
const COMMANDS: usize = 16;

/// Starts workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHost {
    warden: WardenClient,
    guest: Guest,
    paths: Arc<Paths>,
}

/// What a session needs from its worker.
#[derive(Debug)]
pub struct LaunchRequest {
    /// The worker's own id, a new one for every launch.
    pub id: Uuid,
    /// The read-only squashfs.
    pub root_image: File,
    pub vcpus: u8,
    pub cpu_millis: u32,
    pub mem_mib: u32,
    pub container: ContainerSpec,
}

/// What a worker tells whoever launched it, in this order. Output is kept for
/// [`Worker::console_tail`] and told to nobody.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The agent answered; `elapsed` counts from the call of [`WorkerHost::launch`].
    Booted { elapsed: Duration },
    /// The container's process runs.
    Started,
    /// The target port accepts.
    Ready,
    /// The container's first process ended. The guest is still there until it is stopped.
    ContainerExited(wire::Exit),
    /// The container could not be started, for example because its command does not exist.
    StartFailed { message: String },
    /// Always the last: the process, its cgroup, sockets, disk and folder are removed.
    Gone(WorkerExit),
}

/// Why there is no worker. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("Cannot prepare the worker's folder {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("No worker can have this shape: {0}")]
    Shape(String),
    #[error("Cannot prepare the worker's disk")]
    Disk(#[from] GuestError),
    #[error("Cannot copy a descriptor")]
    Descriptor(#[source] io::Error),
    #[error("Cannot spawn the worker")]
    Spawn(#[from] SpawnError),
    #[error("The launch was interrupted")]
    Interrupted,
}

/// Why there is no stream to the container's port.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("The worker is gone")]
    Gone,
    /// Nothing in the guest accepts: the container does not listen, or not any more.
    #[error("The guest refused the connection")]
    Refused,
    #[error("Cannot use the worker's socket")]
    Socket(#[source] io::Error),
}

impl WorkerHost {
    pub fn new(warden: WardenClient, guest: Guest, paths: Paths) -> io::Result<Self> {
        match private_folder(&paths.workers) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Self {
            warden,
            guest,
            paths: Arc::new(paths),
        })
    }

    /// Starts a worker and its container. The events come on the receiver; when that and every
    /// [`Worker`] are dropped, the worker is killed.
    pub async fn launch(
        &self,
        request: LaunchRequest,
    ) -> Result<(Worker, mpsc::Receiver<WorkerEvent>), LaunchError> {
        let host = self.clone();
        // On a task of its own: a caller that goes away half way must not leave half a worker.
        let launch = tokio::spawn(async move { host.launch_now(request).await });
        launch.await.map_err(|_| LaunchError::Interrupted)?
    }

    /// Runs one image job in a process of its own; see [`WardenClient::run_image_job`].
    pub async fn run_image_job(
        &self,
        job: images::Job,
        fds: Vec<OwnedFd>,
    ) -> Result<images::JobReport, ImageJobError> {
        self.warden.run_image_job(job, fds).await
    }

    async fn launch_now(
        &self,
        request: LaunchRequest,
    ) -> Result<(Worker, mpsc::Receiver<WorkerEvent>), LaunchError> {
        let launched = Instant::now();
        let LaunchRequest {
            id,
            root_image,
            vcpus,
            cpu_millis,
            mem_mib,
            container,
        } = request;
        let spec = WorkerSpec {
            vcpus,
            cpu_millis,
            mem_mib,
        };
        if let Some(objection) = spec.objection() {
            return Err(LaunchError::Shape(objection));
        }
        let folder = RunFolder::create(&self.paths.workers, id)?;
        let (fds, serial) = self.descriptors(&folder, root_image)?;
        let ended = self.warden.spawn_worker(id, spec, fds).await?;

        let (events, receiver) = mpsc::channel(EVENTS);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (gone_sender, gone) = watch::channel(None);
        let socket = folder.socket();
        let shared = Shared {
            socket: socket.clone(),
            output: Mutex::default(),
            serial,
        };
        let worker = Worker {
            shared: Arc::new(shared),
            commands,
            gone,
        };
        let supervisor = Supervisor {
            id,
            launched,
            container,
            warden: self.warden.clone(),
            control: Control::new(socket),
            ended,
            commands: inbox,
            events,
            shared: Arc::clone(&worker.shared),
            gone: gone_sender,
            folder,
        };
        tokio::spawn(supervisor.run());
        Ok((worker, receiver))
    }

    /// In the order of `WorkerFd::FROM_APPLIANCE`, and a second descriptor of the console.
    fn descriptors(
        &self,
        folder: &RunFolder,
        root_image: File,
    ) -> Result<(Vec<OwnedFd>, File), LaunchError> {
        let failed = |source| LaunchError::Folder {
            path: folder.path.clone(),
            source,
        };
        let vsock = std::os::unix::net::UnixListener::bind(folder.socket()).map_err(failed)?;
        let console = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path.join("console.log"))
            .map_err(failed)?;
        let serial = console.try_clone().map_err(LaunchError::Descriptor)?;
        let kernel = self
            .guest
            .kernel()
            .try_clone()
            .map_err(LaunchError::Descriptor)?;
        let initramfs = self
            .guest
            .initramfs()
            .try_clone()
            .map_err(LaunchError::Descriptor)?;
        let scratch = self.guest.new_disk(&self.paths.disks)?;
        let fds = vec![
            kernel.into(),
            initramfs.into(),
            root_image.into(),
            scratch.into(),
            vsock.into(),
            console.into(),
        ];
        Ok((fds, serial))
    }
}

/// What every clone of a [`Worker`] and its supervisor look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub socket: PathBuf,
    pub output: Mutex<Ring>,
    pub serial: File,
}

/// A running worker. Clones are the same worker; when the last one and the receiver of its events
/// are gone, it is killed.
#[derive(Debug, Clone)]
pub struct Worker {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    gone: watch::Receiver<Option<WorkerExit>>,
}

impl Worker {
    /// A stream to the container's port, raw from its first byte. Both ends may half-close.
    pub async fn connect(&self) -> Result<UnixStream, ConnectError> {
        if self.gone.borrow().is_some() {
            return Err(ConnectError::Gone);
        }
        let mut stream = match UnixStream::connect(&self.shared.socket).await {
            Ok(stream) => stream,
            Err(error) if self.gone.borrow().is_some() || is_gone(&error) => {
                return Err(ConnectError::Gone);
            }
            Err(error) => return Err(ConnectError::Socket(error)),
        };
        let request = format!("CONNECT {}\n", wire::port::STREAM);
        match stream.write_all(request.as_bytes()).await {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Err(ConnectError::Gone),
            Err(error) => return Err(ConnectError::Socket(error)),
        }
        read_answer(&mut stream).await?;
        Ok(stream)
    }

    /// Ends the container in order, then the guest; kills what does not end in time. Returns when
    /// everything is removed.
    pub async fn stop(&self, grace: Duration) {
        // A supervisor that is gone has removed everything.
        let _ = self.commands.send(Command::Stop { grace }).await;
        let mut gone = self.gone.clone();
        let _ = gone.wait_for(Option::is_some).await;
    }

    /// The last lines of the container's output, or of the kernel when the container wrote none.
    pub fn console_tail(&self) -> Vec<String> {
        self.shared.tail()
    }
}

impl Shared {
    pub fn tail(&self) -> Vec<String> {
        let ring = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.is_empty() {
            console::serial_lines(&self.serial)
        } else {
            ring.lines()
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionRefused | ConnectionReset | NotFound
    )
}

/// Reads `OK <port>\n` and not a byte more: what follows belongs to the container.
async fn read_answer(stream: &mut UnixStream) -> Result<(), ConnectError> {
    let mut line = [0; MAX_ANSWER_BYTES];
    let mut filled = 0;
    // The shortest answer is `OK 1\n`.
    let mut next = 5;
    while next <= line.len() {
        match stream.read(&mut line[filled..next]).await {
            Ok(0) => return Err(ConnectError::Refused),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ConnectError::Refused);
            }
            Err(error) => return Err(ConnectError::Socket(error)),
        }
        if line[..filled].ends_with(b"\n") {
            break;
        }
        next = next.max(filled + 1);
    }
    if line.starts_with(b"OK ") && line[..filled].ends_with(b"\n") {
        Ok(())
    } else {
        Err(ConnectError::Socket(io::ErrorKind::InvalidData.into()))
    }
}

/// A worker's folder below the run folder; removed when dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    fn create(workers: &Path, id: Uuid) -> Result<Self, LaunchError> {
        let path = workers.join(id.simple().to_string());
        match private_folder(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(LaunchError::Folder { path, source }),
        }
    }

    fn socket(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(bytes: &[u8]) -> (Result<(), ConnectError>, Vec<u8>) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        drop(theirs);
        let result = read_answer(&mut ours).await;
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        (result, rest)
    }

    #[tokio::test]
    async fn answer_is_read_and_not_a_byte_more() {
        for answer in ["OK 1\n", "OK 1025\n", "OK 4294967295\n"] {
            let (result, rest) = answered(format!("{answer}HTTP/1.1\n").as_bytes()).await;
            result.unwrap();
            assert_eq!(rest, b"HTTP/1.1\n", "{answer}");
        }
    }

    #[tokio::test]
    async fn closed_socket_is_a_refusal_and_nonsense_is_an_error() {
        assert!(matches!(answered(b"").await.0, Err(ConnectError::Refused)));
        assert!(matches!(
            answered(b"OK 1").await.0,
            Err(ConnectError::Refused)
        ));
        assert!(matches!(
            answered(b"NO 12\n").await.0,
            Err(ConnectError::Socket(_))
        ));
        assert!(matches!(
            answered(&[b'x'; 64]).await.0,
            Err(ConnectError::Socket(_))
        ));
    }

    #[test]
    fn folder_of_a_worker_is_private_and_gone_when_dropped() {
        use std::os::unix::fs::PermissionsExt;
        let workers = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(workers.path(), Uuid::new_v4()).unwrap();
        std::fs::write(folder.path.join("console.log"), "x").unwrap();
        let mode = std::fs::metadata(&folder.path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700);
        drop(folder);
        assert_eq!(std::fs::read_dir(workers.path()).unwrap().count(), 0);
    }
}
