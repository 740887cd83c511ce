//! The one task that owns a worker from its spawn to its end.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use uuid::Uuid;
use wire::{ContainerSpec, GuestMessage, HostMessage, timing};

use super::console;
use super::control::{Control, ControlError};
use super::exit::WorkerExit;
use super::handle::{RunFolder, Shared, WorkerEvent};
use crate::warden::client::{ProcessEnd, WardenClient};

/// How long a guest without a control stream may take to end by itself, as it does at power-off.
const LOST_CONTROL_GRACE: Duration = Duration::from_secs(5);
/// How long the last words of a guest may take to arrive once its worker is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Added to what the guest was granted before it is killed.
const KILL_MARGIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum Command {
    Stop { grace: Duration },
}

/// Fields as `handle` made them.
pub(super) struct Supervisor {
    pub id: Uuid,
    pub launched: Instant,
    pub container: ContainerSpec,
    pub warden: WardenClient,
    pub control: Control,
    pub ended: oneshot::Receiver<ProcessEnd>,
    pub commands: mpsc::Receiver<Command>,
    pub events: mpsc::Sender<WorkerEvent>,
    pub shared: Arc<Shared>,
    pub gone: watch::Sender<Option<WorkerExit>>,
    /// Removes the folder when it is dropped.
    pub folder: RunFolder,
}

/// How far the guest has come. Each step is taken once, whatever a guest claims.
#[derive(Debug, Default)]
struct Progress {
    booted: bool,
    started: bool,
    ready: bool,
    finished: bool,
    /// When the worker is killed, if it is still there.
    kill_at: Option<tokio::time::Instant>,
    killed: bool,
}

impl Supervisor {
    pub async fn run(mut self) {
        let mut progress = Progress::default();
        let end = self.supervise(&mut progress).await;
        self.last_words(&mut progress).await;
        let serial = console::serial_lines(&self.shared.serial);
        let exit = WorkerExit::new(end, progress.killed, &serial);
        tracing::info!(worker = %self.id, "Worker ended: {exit}");
        // Removed before anybody is told.
        drop(self.folder);
        let _ = self.gone.send(Some(exit.clone()));
        let _ = self.events.send(WorkerEvent::Gone(exit)).await;
    }

    async fn supervise(&mut self, progress: &mut Progress) -> Option<ProcessEnd> {
        let mut handles = true;
        loop {
            let kill_at = progress.kill_at;
            tokio::select! {
                end = &mut self.ended => return end.ok(),
                message = self.control.next() => match message {
                    Ok(message) => self.on_message(progress, message).await,
                    Err(error) => self.on_lost(progress, &error).await,
                },
                command = self.commands.recv(), if handles => match command {
                    Some(Command::Stop { grace }) => self.on_stop(progress, grace).await,
                    None => {
                        handles = false;
                        self.kill(progress).await;
                    }
                },
                () = sleep_until(kill_at.unwrap_or_else(tokio::time::Instant::now)), if kill_at.is_some() => {
                    tracing::warn!(worker = %self.id, "Worker did not end in time and is killed");
                    self.kill(progress).await;
                }
            }
        }
    }

    async fn on_message(&mut self, progress: &mut Progress, message: GuestMessage) {
        match message {
            GuestMessage::Hello { version, uptime_us } if !progress.booted => {
                progress.booted = true;
                let elapsed = self.launched.elapsed();
                tracing::info!(worker = %self.id, ?elapsed, uptime_us, version, "Agent answered");
                // Boot is our own code and runs at full speed; what follows is the tenant's.
                self.warden.limit_cpu(self.id).await;
                self.tell(WorkerEvent::Booted { elapsed }).await;
                self.start(progress).await;
            }
            GuestMessage::Hello { .. } => tracing::info!(worker = %self.id, "Agent is back"),
            GuestMessage::Started { .. } if !progress.started => {
                progress.started = true;
                self.tell(WorkerEvent::Started).await;
            }
            GuestMessage::Ready if !progress.ready => {
                progress.ready = true;
                let elapsed = self.launched.elapsed();
                tracing::info!(worker = %self.id, ?elapsed, "Container accepts connections");
                self.tell(WorkerEvent::Ready).await;
            }
            GuestMessage::Output { line, .. } => self.keep(&line),
            GuestMessage::Exited { exit } if !progress.finished => {
                progress.finished = true;
                self.tell(WorkerEvent::ContainerExited(exit)).await;
            }
            GuestMessage::Failed { message } if !progress.finished => {
                progress.finished = true;
                let message = console::tame(&message);
                self.tell(WorkerEvent::StartFailed { message }).await;
            }
            GuestMessage::Started { .. }
            | GuestMessage::Ready
            | GuestMessage::Exited { .. }
            | GuestMessage::Failed { .. }
            | GuestMessage::Unknown => {}
        }
    }

    async fn start(&mut self, progress: &mut Progress) {
        let mut spec = std::mem::take(&mut self.container);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        spec.unix_time_ns = u64::try_from(now.as_nanos()).unwrap_or(0);
        if let Err(error) = self.control.send(&HostMessage::Start(Box::new(spec))) {
            progress.finished = true;
            let message = format!("The container's settings do not fit a message: {error}");
            self.tell(WorkerEvent::StartFailed { message }).await;
        }
    }

    fn keep(&self, line: &str) {
        let mut output = self
            .shared
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        output.push(console::tame(line));
    }

    async fn on_lost(&mut self, progress: &mut Progress, error: &ControlError) {
        tracing::debug!(worker = %self.id, "{}", crate::exit::chain(error));
        match error {
            // At power-off the stream closes a moment before the worker ends: wait for either.
            ControlError::Closed => self.control.again(),
            ControlError::Connect(_) | ControlError::NeverConnected => {
                let deadline = tokio::time::Instant::now() + LOST_CONTROL_GRACE;
                progress.kill_at = Some(progress.kill_at.map_or(deadline, |at| at.min(deadline)));
            }
            // No agent of ours does this.
            ControlError::Frame(_) | ControlError::Stream(_) => self.kill(progress).await,
        }
    }

    async fn on_stop(&mut self, progress: &mut Progress, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        if !self.control.is_open() || self.control.send(&HostMessage::Stop { grace_ms }).is_err() {
            // Nothing runs in there yet, or nobody listens any more.
            self.kill(progress).await;
            return;
        }
        let wait = timing::HOST_KILL_AFTER.max(grace + timing::AGENT_POWEROFF_GRACE + KILL_MARGIN);
        let deadline = tokio::time::Instant::now() + wait;
        progress.kill_at = Some(progress.kill_at.map_or(deadline, |at| at.min(deadline)));
    }

    async fn kill(&mut self, progress: &mut Progress) {
        progress.killed = true;
        progress.kill_at = None;
        self.warden.kill(self.id).await;
    }

    /// What the guest said before its worker ended may still be in the socket.
    async fn last_words(&mut self, progress: &mut Progress) {
        let drain = async {
            while self.control.is_open() {
                match self.control.next().await {
                    Ok(message) => self.on_message(progress, message).await,
                    Err(_) => return,
                }
            }
        };
        let _ = timeout(LAST_WORDS, drain).await;
    }

    async fn tell(&self, event: WorkerEvent) {
        // Nobody listens: then nobody misses it.
        let _ = self.events.send(event).await;
    }
}
