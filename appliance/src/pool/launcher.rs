//! What the pool needs of the world below it: somebody who starts guests.
//!
//! The appliance's own implementation forks workers from goldens or boots them; tests use local
//! servers.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::probe::Unhealthy;
use crate::store::PoolRecord;
use crate::worker::Log;
pub use crate::worker::{Noted, Urgency};

/// Most console lines that a failure is told with.
const CONSOLE_LINES: usize = 20;

/// A future that can be named.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts guests.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one. When this fails, nothing of it is left.
    fn launch(&self, order: StartOrder) -> BoxFuture<'static, Result<Launched, StartFailure>>;

    /// Makes what sessions of this pool are started from. Returns when it is there, which it may
    /// have been before.
    fn prepare(&self, pool: Arc<PoolRecord>) -> BoxFuture<'static, Result<(), PrepareFailure>>;

    /// Tells all pools that there are now: what others were started from is not needed any more.
    fn pools_changed(&self, pools: Vec<Arc<PoolRecord>>) -> BoxFuture<'static, ()>;

    /// The guests of an earlier appliance that say what they are. Not all of them need live still.
    fn survivors(&self) -> Vec<Survivor>;

    /// Takes one of them over, ready as it is: no event says so again.
    fn adopt(&self, worker: Uuid) -> BoxFuture<'static, Result<Launched, NotAdopted>>;
}

/// A guest that an earlier appliance has left.
#[derive(Debug, Clone)]
pub struct Survivor {
    pub worker: Uuid,
    /// What it was made of.
    pub pool: Arc<PoolRecord>,
    /// Leased: whose it is says the store.
    pub noted: Noted,
}

/// Why a guest was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotAdopted {
    pub message: String,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct StartOrder {
    pub pool: Arc<PoolRecord>,
    pub urgency: Urgency,
}

/// A guest on its way up.
pub struct Launched {
    /// The id of its worker.
    pub worker: Uuid,
    pub guest: Arc<dyn Guest>,
    pub events: mpsc::Receiver<GuestEvent>,
}

/// A handle on a guest.
pub trait Guest: Send + Sync + 'static {
    /// A new stream to the container's target port.
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// A new stream to any port that the container has open on loopback. Other than with
    /// [`Guest::connect`], the container has accepted it.
    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// A stream for one command of an operator, see [`wire::exec`].
    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// Ends it: orderly within `grace`, then by force. Resolves when nothing of it is left.
    fn stop_within(&self, grace: Duration) -> BoxFuture<'_, ()>;

    /// The last lines that it printed.
    fn console_tail(&self) -> Vec<String>;

    /// What its container has printed and will print.
    fn log(&self) -> Arc<Log>;

    /// Notes beside the guest, where a later appliance finds it, that it is ready, and what it was made of.
    fn note_ready(&self, pool: &PoolRecord) -> io::Result<()>;

    /// Notes that somebody gets it. From then on it is never taken for a guest that nobody had. One that was not noted as ready is
    /// left without a note.
    fn note_leased(&self) -> io::Result<()>;

    /// Takes the note away: nobody gets it any more.
    fn forget_note(&self);
}

/// What a guest reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The target port accepts.
    Ready,
    /// The container's first process ended, like this.
    ContainerExited { how: String },
    /// The container could not be started.
    StartFailed { message: String },
    /// The last event: the guest ended like this and nothing of it is left.
    Gone { how: String },
}

/// Why no session of a pool can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrepareFailure {
    /// Its container did not come up.
    Container(StartFailure),
    /// The host could not do its part.
    Host { message: String },
    /// The appliance is stopping.
    Closing,
}

/// Why a session did not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    pub cause: StartFailureCause,
    /// The last lines that the container (or else the kernel) printed.
    pub console: Vec<String>,
}

/// See [`StartFailure`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailureCause {
    /// No guest could be made.
    Launch { message: String },
    /// The guest is there, but its container could not be started.
    Container { message: String },
    /// The container ended before its port accepted.
    Exited { how: String, port: u16 },
    /// The container ended after its port had accepted.
    Ended { how: String },
    /// The guest ended by itself.
    GuestEnded { how: String },
    /// The port did not accept in time.
    TimedOut { after: Duration, port: u16 },
    /// A probe says so.
    Unhealthy(Unhealthy),
}

impl StartFailure {
    /// A failure without output.
    pub fn silent(cause: StartFailureCause) -> Self {
        Self {
            cause,
            console: Vec::new(),
        }
    }

    /// `what`, and the last lines of the console behind it.
    pub fn describe(&self, what: &str) -> String {
        let skipped = self.console.len().saturating_sub(CONSOLE_LINES);
        let lines = &self.console[skipped..];
        let mut text = what.to_owned();
        if lines.is_empty() {
            text.push_str(". It printed nothing");
        } else {
            text.push_str(". Its last lines:");
            for line in lines {
                text.push('\n');
                text.push_str(line);
            }
        }
        text
    }

    /// The guest is gone and nobody said why.
    pub fn vanished() -> Self {
        Self::silent(StartFailureCause::GuestEnded {
            how: "its worker is gone".to_owned(),
        })
    }
}

impl fmt::Display for StartFailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { message } => write!(f, "No guest could be started: {message}"),
            Self::Container { message } => {
                write!(f, "The container could not be started: {message}")
            }
            Self::Exited { how, port } => {
                write!(
                    f,
                    "The container ended with {how} before its port {port} accepted connections"
                )
            }
            Self::Ended { how } => write!(f, "The container ended with {how}"),
            Self::GuestEnded { how } => write!(f, "The guest ended: {how}"),
            Self::TimedOut { after, port } => {
                let seconds = after.as_secs_f32();
                write!(
                    f,
                    "Port {port} of the container did not accept connections within {seconds} seconds"
                )
            }
            Self::Unhealthy(unhealthy) => write!(f, "The container is not healthy: {unhealthy}"),
        }
    }
}
