//! What making and using goldens needs of workers. Tests put their own in the place of these.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::exit::chain;
use crate::pool::launcher::BoxFuture;
use crate::worker::{
    ConnectError, LaunchRequest, Leftover, Log, SaveFiles, Worker, WorkerEvent, WorkerHost,
};

/// Starts guests.
pub trait Machines: Send + Sync + 'static {
    fn launch(&self, request: LaunchRequest) -> BoxFuture<'static, Result<Started, MachineError>>;

    /// What an earlier appliance has left, as far as it says what it is.
    fn leftovers(&self) -> Vec<Leftover>;

    /// Takes one of these over.
    fn adopt(&self, worker: Uuid) -> BoxFuture<'static, Result<Started, MachineError>>;
}

/// A guest on its way up. When both are dropped, it is killed.
pub struct Started {
    pub machine: Box<dyn Machine>,
    pub events: mpsc::Receiver<WorkerEvent>,
}

/// A running guest.
pub trait Machine: Send + Sync + 'static {
    fn id(&self) -> Uuid;

    /// A new stream to the container's target port.
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// A new stream to any port of the container, which has accepted it.
    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// A stream for one command of an operator.
    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// Lets the container be frozen as soon as it is ready, so that the guest is held.
    fn freeze_when_ready(&self) -> BoxFuture<'_, ()>;

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Writes a paused guest down.
    fn save(&self, files: SaveFiles) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Writes down which pages a paused fork has touched.
    fn save_working_set(&self, file: File) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Ends it in order within `grace`, then by force. Resolves when nothing of it is left.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()>;

    /// Ends it by force. Resolves when nothing of it is left.
    fn kill(&self) -> BoxFuture<'_, ()>;

    fn console_tail(&self) -> Vec<String>;

    fn log(&self) -> Arc<Log>;

    /// See [`Worker::note_ready`].
    fn note_ready(&self, note: &[u8]) -> io::Result<()>;

    fn note_leased(&self) -> io::Result<()>;

    fn forget_note(&self);
}

/// Why a worker did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MachineError {
    pub message: String,
    /// Another fork of the same snapshot would fail as well.
    pub blames_snapshot: bool,
}

impl MachineError {
    fn of(error: &dyn std::error::Error) -> Self {
        Self {
            message: chain(error),
            blames_snapshot: false,
        }
    }
}

impl Machines for WorkerHost {
    fn launch(&self, request: LaunchRequest) -> BoxFuture<'static, Result<Started, MachineError>> {
        let host = self.clone();
        Box::pin(async move {
            let launched = WorkerHost::launch(&host, request).await;
            let (worker, events) = launched.map_err(|error| MachineError {
                blames_snapshot: error.blames_snapshot(),
                ..MachineError::of(&error)
            })?;
            let machine = Box::new(worker);
            Ok(Started { machine, events })
        })
    }

    fn leftovers(&self) -> Vec<Leftover> {
        WorkerHost::leftovers(self)
    }

    fn adopt(&self, worker: Uuid) -> BoxFuture<'static, Result<Started, MachineError>> {
        let host = self.clone();
        Box::pin(async move {
            let adopted = WorkerHost::adopt(&host, worker).await;
            let (worker, events) = adopted.map_err(|error| MachineError::of(&error))?;
            let machine = Box::new(worker);
            Ok(Started { machine, events })
        })
    }
}

impl Machine for Worker {
    fn id(&self) -> Uuid {
        Worker::id(self)
    }

    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async { Worker::connect(self).await.map_err(refused) })
    }

    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async move { Worker::connect_to(self, port).await.map_err(refused) })
    }

    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async { Worker::connect_exec(self).await.map_err(refused) })
    }

    fn freeze_when_ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(Worker::freeze_when_ready(self))
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async {
            Worker::pause(self)
                .await
                .map_err(|error| MachineError::of(&error))
        })
    }

    fn save(&self, files: SaveFiles) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async {
            Worker::save(self, files)
                .await
                .map_err(|error| MachineError::of(&error))
        })
    }

    fn save_working_set(&self, file: File) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async {
            let saved = Worker::save_working_set(self, file).await;
            saved.map_err(|error| MachineError::of(&error))
        })
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(Worker::stop(self, grace))
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(Worker::kill(self))
    }

    fn console_tail(&self) -> Vec<String> {
        Worker::console_tail(self)
    }

    fn log(&self) -> Arc<Log> {
        Worker::log(self)
    }

    fn note_ready(&self, note: &[u8]) -> io::Result<()> {
        Worker::note_ready(self, note)
    }

    fn note_leased(&self) -> io::Result<()> {
        Worker::note_leased(self)
    }

    fn forget_note(&self) {
        Worker::forget_note(self);
    }
}

fn refused(error: ConnectError) -> io::Error {
    match error {
        ConnectError::Gone | ConnectError::Refused => {
            io::Error::new(io::ErrorKind::ConnectionRefused, error)
        }
        ConnectError::TooOld { .. } => io::Error::new(io::ErrorKind::Unsupported, error),
        ConnectError::Socket(error) => error,
    }
}
