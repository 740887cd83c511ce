//! The one task that owns a worker from its spawn to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use uuid::Uuid;
use wire::{ContainerSpec, HostMessage, timing};

use super::console;
use super::control::{Control, ControlError};
use super::exit::WorkerExit;
use super::handle::{Shared, WorkerEvent};
use super::identity;
use super::progress::{Act, Awaited, Progress, Told};
use super::shell::RunFolder;
use super::steps::Steps;
use super::turns::Turn;
use crate::exit::chain;
use crate::warden::client::{KillOnDrop, ProcessEnd, WardenClient};

/// How long a guest without a control stream may take to end by itself, as it does at power-off.
const LOST_CONTROL_GRACE: Duration = Duration::from_secs(5);
/// How long the last words of a guest may take to arrive once its worker is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Added to what the guest was granted before it is killed.
const KILL_MARGIN: Duration = Duration::from_secs(2);
/// How long the agent of a guest that was taken over may take to come back before the guest is killed instead of stopped in
/// order. It tries at least every two seconds.
const RETURN_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Command {
    FreezeWhenReady,
    Stop { grace: Duration },
    Kill,
}

/// Where the guest stands when its supervisor begins.
pub(super) struct Start {
    pub launched: Instant,
    /// Until they are told.
    pub steps: Option<Steps>,
    /// Until it is sent.
    pub container: Option<ContainerSpec>,
    pub progress: Progress,
    /// Held while the guest comes up.
    pub turn: Option<Turn>,
}

/// Fields as `host` made them.
pub(super) struct Supervisor {
    pub id: Uuid,
    pub start: Start,
    pub warden: WardenClient,
    pub control: Control,
    pub ended: oneshot::Receiver<ProcessEnd>,
    pub commands: mpsc::Receiver<Command>,
    pub events: mpsc::Sender<WorkerEvent>,
    pub shared: Arc<Shared>,
    pub gone: watch::Sender<Option<WorkerExit>>,
    /// It is to be stopped as soon as its agent is there again.
    pub stop_when_heard: Option<Duration>,
    /// Should this task be lost, the worker goes with it.
    pub kill: KillOnDrop,
    pub folder: RunFolder,
}

/// What will be done if nothing happens.
#[derive(Debug, Default)]
struct Deadlines {
    /// When the guest has taken too long for what it was asked.
    guest: Option<(Awaited, tokio::time::Instant)>,
    /// When the worker is killed, if it is still there.
    kill: Option<tokio::time::Instant>,
    killed: bool,
}

impl Supervisor {
    pub async fn run(mut self) {
        let mut deadlines = Deadlines::default();
        let end = self.supervise(&mut deadlines).await;
        self.start.turn = None;
        self.last_words(&mut deadlines).await;
        self.shared.output.close();
        let serial = console::serial_lines(&self.shared.serial);
        let exit = WorkerExit::new(Some(end), deadlines.killed, &serial);
        tracing::info!(worker = %self.id, "Worker ended: {exit}");
        self.kill.defuse();
        // Removed before anybody is told.
        self.folder.remove();
        let _ = self.gone.send(Some(exit.clone()));
        let _ = self.events.send(WorkerEvent::Gone(exit)).await;
    }

    async fn supervise(&mut self, deadlines: &mut Deadlines) -> ProcessEnd {
        let mut handles = true;
        loop {
            deadlines.follow(self.start.progress.awaited());
            let next = deadlines.next();
            tokio::select! {
                end = &mut self.ended => match end {
                    Ok(end) => return end,
                    // The warden is gone, and the worker lives on: this process ends, and the next one takes the worker over.
                    Err(_) => std::future::pending().await,
                },
                message = self.control.next() => match message {
                    Ok(message) => {
                        let acts = self.start.progress.on(message);
                        self.act(deadlines, acts).await;
                    }
                    Err(error) => self.on_lost(deadlines, &error).await,
                },
                command = self.commands.recv(), if handles => match command {
                    Some(Command::FreezeWhenReady) => {
                        let acts = self.start.progress.freeze_when_ready();
                        self.act(deadlines, acts).await;
                    }
                    Some(Command::Stop { grace }) => self.on_stop(deadlines, grace).await,
                    Some(Command::Kill) => self.kill(deadlines).await,
                    None => {
                        handles = false;
                        self.kill(deadlines).await;
                    }
                },
                () = sleep_until(next.unwrap_or_else(tokio::time::Instant::now)), if next.is_some() => {
                    self.on_late(deadlines).await;
                }
            }
        }
    }

    async fn act(&mut self, deadlines: &mut Deadlines, acts: Vec<Act>) {
        for act in acts {
            let done = match act {
                Act::LimitCpu => {
                    self.warden.limit_cpu(self.id).await;
                    Ok(())
                }
                Act::Renew => self.renew(),
                Act::Start => self.start_container(),
                Act::Freeze => self.send(&HostMessage::Freeze),
                Act::Up => {
                    self.start.turn = None;
                    Ok(())
                }
                Act::Tell(told) => {
                    self.tell(told).await;
                    Ok(())
                }
                Act::Heard { version } => self.on_heard(deadlines, version).await,
                Act::Keep(stream, line) => {
                    self.shared.output.push(stream, &line);
                    Ok(())
                }
                Act::Kill => {
                    self.kill(deadlines).await;
                    Ok(())
                }
            };
            if let Err(why) = done {
                return self.give_up(deadlines, why).await;
            }
        }
    }

    async fn give_up(&mut self, deadlines: &mut Deadlines, why: String) {
        // What remains is to tell and to kill; neither can fail.
        for act in self.start.progress.fail(why) {
            match act {
                Act::Tell(told) => self.tell(told).await,
                _ => self.kill(deadlines).await,
            }
        }
    }

    /// The identity is drawn here, at the last moment: it holds the time.
    fn renew(&mut self) -> Result<(), String> {
        let identity = identity::draw(self.id)
            .map_err(|error| format!("The host could not draw an identity: {error}"))?;
        self.send(&HostMessage::Renew(Box::new(identity)))
    }

    fn start_container(&mut self) -> Result<(), String> {
        let spec = self.start.container.take().unwrap_or_default();
        self.send(&HostMessage::Start(Box::new(spec)))
    }

    fn send(&mut self, message: &HostMessage) -> Result<(), String> {
        self.control
            .send(message)
            .map_err(|error| format!("The container's settings do not fit a message: {error}"))
    }

    async fn tell(&mut self, told: Told) {
        let elapsed = self.start.launched.elapsed();
        let event = match told {
            Told::Booted { version, uptime_us } => {
                self.shared.version.store(version, Ordering::Relaxed);
                let steps = self.start.steps.take().map(|mut steps| {
                    steps.lap("agent");
                    steps.into_laps()
                });
                let steps = steps.unwrap_or_default();
                // Measured once, so that the steps are all of it.
                let elapsed = steps.iter().map(|(_, time)| *time).sum();
                tracing::info!(worker = %self.id, ?elapsed, uptime_us, version, "Agent answered");
                WorkerEvent::Booted { elapsed, steps }
            }
            Told::Renewed => {
                tracing::info!(worker = %self.id, ?elapsed, "Guest is renewed");
                WorkerEvent::Renewed { elapsed }
            }
            Told::Started => WorkerEvent::Started,
            Told::Ready => {
                tracing::info!(worker = %self.id, ?elapsed, "Container accepts connections");
                WorkerEvent::Ready
            }
            Told::Held => {
                tracing::info!(worker = %self.id, ?elapsed, "Golden is held");
                WorkerEvent::Held
            }
            Told::Exited(ending) => WorkerEvent::ContainerExited(ending),
            Told::Failed(message) => {
                tracing::info!(worker = %self.id, ?elapsed, "Start failed");
                WorkerEvent::StartFailed {
                    message: console::tame(&message),
                }
            }
        };
        // Nobody listens: then nobody misses it.
        let _ = self.events.send(event).await;
    }

    async fn on_late(&mut self, deadlines: &mut Deadlines) {
        let now = tokio::time::Instant::now();
        match deadlines.guest {
            Some((awaited, at)) if at <= now => {
                let seconds = awaited.limit().as_secs();
                let why = format!("The guest did not {awaited} within {seconds} s");
                self.give_up(deadlines, why).await;
            }
            _ => {
                tracing::warn!(worker = %self.id, "Worker did not end in time and is killed");
                self.kill(deadlines).await;
            }
        }
    }

    async fn on_lost(&mut self, deadlines: &mut Deadlines, error: &ControlError) {
        tracing::debug!(worker = %self.id, "{}", chain(error));
        match error {
            // At power-off the stream closes a moment before the worker ends: wait for either.
            ControlError::Closed => self.control.again(),
            ControlError::Connect(_) | ControlError::NeverConnected => {
                deadlines.kill_within(LOST_CONTROL_GRACE);
            }
            // No agent of ours does this.
            ControlError::Frame(_) | ControlError::Stream(_) => self.kill(deadlines).await,
        }
    }

    /// What an agent of another version cannot do is refused where it is asked for; everything else goes on.
    async fn on_heard(&mut self, deadlines: &mut Deadlines, version: u16) -> Result<(), String> {
        tracing::debug!(worker = %self.id, version, "Agent is there again");
        self.shared.version.store(version, Ordering::Relaxed);
        // Its stream broke, and that is what a fork sees, too.
        self.send(&HostMessage::Continue)?;
        if let Some(grace) = self.stop_when_heard.take() {
            deadlines.kill = None;
            self.on_stop(deadlines, grace).await;
        }
        Ok(())
    }

    async fn on_stop(&mut self, deadlines: &mut Deadlines, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let in_order = self.start.progress.can_stop_in_order()
            && self.control.is_open()
            && self.control.send(&HostMessage::Stop { grace_ms }).is_ok();
        if in_order {
            let wait = grace + timing::AGENT_POWEROFF_GRACE + KILL_MARGIN;
            deadlines.kill_within(wait.max(timing::HOST_KILL_AFTER));
        } else if self.start.progress.can_stop_in_order() && self.awaits_agent() {
            self.stop_when_heard = Some(grace);
            deadlines.kill_within(RETURN_GRACE);
        } else {
            // Nobody is served there, or nobody listens any more.
            self.kill(deadlines).await;
        }
    }

    /// The guest was taken over, and its agent has not come back yet.
    fn awaits_agent(&self) -> bool {
        self.shared.version.load(Ordering::Relaxed) == 0
    }

    async fn kill(&mut self, deadlines: &mut Deadlines) {
        deadlines.killed = true;
        deadlines.kill = None;
        self.warden.kill(self.id).await;
    }

    /// What the guest said before its worker ended may still be in the socket.
    async fn last_words(&mut self, deadlines: &mut Deadlines) {
        let drain = async {
            while self.control.is_open() {
                match self.control.next().await {
                    Ok(message) => {
                        let acts = self.start.progress.on(message);
                        self.act(deadlines, acts).await;
                    }
                    Err(_) => return,
                }
            }
        };
        let _ = timeout(LAST_WORDS, drain).await;
    }
}

impl Deadlines {
    /// A new wait begins with the step that it is for.
    fn follow(&mut self, awaited: Option<Awaited>) {
        if self.guest.map(|(current, _)| current) != awaited {
            self.guest =
                awaited.map(|awaited| (awaited, tokio::time::Instant::now() + awaited.limit()));
        }
    }

    fn next(&self) -> Option<tokio::time::Instant> {
        let guest = self.guest.map(|(_, at)| at);
        guest.into_iter().chain(self.kill).min()
    }

    fn kill_within(&mut self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        self.kill = Some(self.kill.map_or(deadline, |at| at.min(deadline)));
    }
}
