//! Holding on to a worker.
//!
//! One task (`supervisor`) owns it. Whatever happens to those who hold a handle, that task ends the
//! worker and removes all of it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::console::{self, Log};
use super::control::MAX_ANSWER_BYTES;
use super::exit::WorkerExit;
use super::launch::SaveFiles;
use super::notes;
use super::orders::{Order, OrderError, Orders};
use super::supervisor::Command;
use crate::warden::client::WardenClient;
use crate::warden::protocol::Usage;

/// The first version of the wire whose agents take commands of operators.
const EXEC_SINCE: u16 = 3;

/// What a worker tells whoever launched it, in this order. Output is kept for
/// [`Worker::console_tail`] and told to nobody.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The agent answered. `elapsed` counts from the call of
    /// [`WorkerHost::launch`](super::WorkerHost::launch), and `steps` say where all of it went.
    Booted {
        elapsed: Duration,
        steps: Vec<(String, Duration)>,
    },
    /// The guest has an identity of its own. Nothing of a tenant ran in it before.
    Renewed { elapsed: Duration },
    /// The container's process runs.
    Started,
    /// The target port accepts.
    Ready,
    /// A golden is where it is to be saved.
    Held,
    /// The container's first process ended. The guest is still there until it is stopped.
    ContainerExited(wire::Ending),
    /// The guest could not be given an identity, and is killed; or its container could not be
    /// started, for example because its command does not exist.
    StartFailed { message: String },
    /// Always the last: the process, its cgroup, sockets, disk and folder are removed.
    Gone(WorkerExit),
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
    /// The session is older than what is asked of it.
    #[error(
        "The guest was started by an older version, whose agent cannot do that (it speaks version {version}, and version {needed} \
         is needed); a new session can"
    )]
    TooOld { version: u16, needed: u16 },
}

/// What every clone of a [`Worker`] and its supervisor look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub id: Uuid,
    pub folder: PathBuf,
    pub socket: PathBuf,
    pub orders: Orders,
    pub warden: WardenClient,
    pub output: Arc<Log>,
    pub serial: File,
    /// What the agent said that it speaks; 0 before it said anything.
    pub version: AtomicU16,
}

/// A running worker. Clones are the same worker; when the last one and the receiver of its events
/// are gone, it is killed.
#[derive(Debug, Clone)]
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) gone: watch::Receiver<Option<WorkerExit>>,
}

impl Worker {
    /// The process's own id, new for every launch.
    pub fn id(&self) -> Uuid {
        self.shared.id
    }

    /// Until the agent of a guest that was taken over is there again.
    #[cfg(test)]
    pub async fn wait_for_version(&self) {
        while self.shared.version.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// A stream to the container's target port, raw from its first byte. Both ends may half-close. That
    /// the container accepts it is not known before it answers.
    pub async fn connect(&self) -> Result<UnixStream, ConnectError> {
        self.connect_vsock(wire::port::STREAM).await
    }

    /// A stream to any port that the container has open on its loopback interface. The container has
    /// accepted it.
    pub async fn connect_to(&self, port: u16) -> Result<UnixStream, ConnectError> {
        let mut stream = self.connect_vsock(wire::port::LOOPBACK).await?;
        name_port(&mut stream, port).await?;
        Ok(stream)
    }

    /// A stream for one command of an operator, see [`wire::exec`].
    pub async fn connect_exec(&self) -> Result<UnixStream, ConnectError> {
        let version = self.shared.version.load(Ordering::Relaxed);
        if (1..EXEC_SINCE).contains(&version) {
            return Err(ConnectError::TooOld {
                version,
                needed: EXEC_SINCE,
            });
        }
        self.connect_vsock(wire::port::EXEC).await
    }

    /// A stream to a port on which the agent listens.
    async fn connect_vsock(&self, port: u32) -> Result<UnixStream, ConnectError> {
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
        let request = format!("CONNECT {port}\n");
        match stream.write_all(request.as_bytes()).await {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Err(ConnectError::Gone),
            Err(error) => return Err(ConnectError::Socket(error)),
        }
        read_answer(&mut stream).await?;
        Ok(stream)
    }

    /// Lets the container of a golden be frozen as soon as it is ready, which ends in
    /// [`WorkerEvent::Held`].
    pub async fn freeze_when_ready(&self) {
        // When the supervisor is gone, its last event says so.
        let _ = self.commands.send(Command::FreezeWhenReady).await;
    }

    /// Ends the container in order, then the guest; kills what does not end in time. Returns when
    /// everything is removed.
    pub async fn stop(&self, grace: Duration) {
        // A supervisor that is gone has removed everything.
        let _ = self.commands.send(Command::Stop { grace }).await;
        let mut gone = self.gone.clone();
        let _ = gone.wait_for(Option::is_some).await;
    }

    /// Ends it at once, whatever runs in it. Returns when everything is removed.
    pub async fn kill(&self) {
        let _ = self.commands.send(Command::Kill).await;
        let mut gone = self.gone.clone();
        let _ = gone.wait_for(Option::is_some).await;
    }

    /// Stops the guest between two instructions, its devices too. Its clocks go on. Pausing a
    /// paused guest changes nothing.
    pub async fn pause(&self) -> Result<(), OrderError> {
        self.order(Order::Pause, Vec::new()).await
    }

    /// Lets a paused guest go on.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the other half of `pause`; no pool pauses sessions yet"
        )
    )]
    pub async fn resume(&self) -> Result<(), OrderError> {
        self.order(Order::Resume, Vec::new()).await
    }

    /// Writes the guest, which must be paused and stays so, to empty files.
    pub async fn save(&self, to: SaveFiles) -> Result<(), OrderError> {
        let SaveFiles {
            state,
            memory,
            disk,
        } = to;
        let fds = vec![state.into(), memory.into(), disk.into()];
        self.order(Order::Save, fds).await
    }

    /// Writes down which pages the guest, a paused fork, has touched since it was restored.
    pub async fn save_working_set(&self, to: File) -> Result<(), OrderError> {
        self.order(Order::SaveWorkingSet, vec![to.into()]).await
    }

    /// The memory of its process; `None` when it is gone.
    pub async fn usage(&self) -> Option<Usage> {
        self.shared.warden.usage(self.shared.id).await
    }

    /// Notes in its folder, for a later appliance, that its guest is ready and what it is.
    pub fn note_ready(&self, note: &[u8]) -> io::Result<()> {
        notes::ready(&self.shared.folder, note)
    }

    /// Notes that somebody gets its guest.
    pub fn note_leased(&self) -> io::Result<()> {
        notes::leased(&self.shared.folder)
    }

    /// Takes the note away.
    pub fn forget_note(&self) {
        if let Err(error) = notes::forget(&self.shared.folder) {
            tracing::warn!(worker = %self.shared.id, %error, "the note of a worker that ends could not be removed");
        }
    }

    async fn order(&self, order: Order, fds: Vec<std::os::fd::OwnedFd>) -> Result<(), OrderError> {
        self.shared.orders.give(order, fds).await.map(|_| ())
    }

    /// The container's output.
    pub fn log(&self) -> Arc<Log> {
        Arc::clone(&self.shared.output)
    }

    /// The last lines of the container's output, or of the kernel when the container wrote none.
    pub fn console_tail(&self) -> Vec<String> {
        self.shared.tail()
    }
}

impl Shared {
    pub fn tail(&self) -> Vec<String> {
        let lines = self.output.lines();
        if lines.is_empty() {
            console::serial_lines(&self.serial)
        } else {
            lines
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

/// Says which port is meant. The answer is the same, or nothing.
async fn name_port(stream: &mut UnixStream, port: u16) -> Result<(), ConnectError> {
    let named = port.to_be_bytes();
    let mut answer = [0; 2];
    let said = async {
        stream.write_all(&named).await?;
        stream.read_exact(&mut answer).await
    };
    match said.await {
        Ok(_) if answer == named => Ok(()),
        Ok(_) => Err(ConnectError::Socket(io::ErrorKind::InvalidData.into())),
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(ConnectError::Refused)
        }
        Err(error) => Err(ConnectError::Socket(error)),
    }
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

    #[tokio::test]
    async fn port_is_named_and_its_echo_is_the_containers_accept() {
        for (echo, accepted) in [
            (&b"\x1f\x90hello"[..], true),
            (b"", false),
            (b"\x1f", false),
            (b"\x1f\x91", false),
        ] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(echo).await.unwrap();
            theirs.shutdown().await.unwrap();
            assert_eq!(name_port(&mut ours, 8080).await.is_ok(), accepted);
            let mut named = [0; 2];
            theirs.read_exact(&mut named).await.unwrap();
            assert_eq!(named, [0x1f, 0x90]);
            if accepted {
                let mut rest = String::new();
                ours.read_to_string(&mut rest).await.unwrap();
                assert_eq!(rest, "hello");
            }
        }
    }
}
