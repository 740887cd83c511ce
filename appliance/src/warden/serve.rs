//! The warden's life: prepare, spawn the appliance, answer it, end everything.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use uuid::Uuid;

use super::cgroup::Cgroups;
use super::channel::{self, Message};
use super::children::Children;
use super::folders::{FolderError, Folders};
use super::program::{Program, ProgramError};
use super::protocol::{ApplianceSetup, Event, Request, Status};
use super::signals::Signals;
use super::spawn::{OURSELVES, Process, Role};
use crate::config::Checked;
use crate::doctor::kvm::{self, KvmError};
use crate::exit::{Exit, chain};

pub use super::protocol::Task;

/// How long the appliance may take to end its sessions and itself. Longer than one session may take
/// (`wire::timing::HOST_KILL_AFTER`), and shorter than `TimeoutStopSec` of the systemd unit.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long an appliance that has closed its socket may take to be gone.
const CLOSED_LIMIT: Duration = Duration::from_secs(5);
/// Events that the appliance has not read. Beyond that it is broken.
const MAX_WAITING_EVENTS: usize = 16_384;
/// Connections that may wait for their `accept`: a burst of new callers, each with its own.
const BACKLOG: i32 = 1024;
/// Requests answered before signals and children are looked at again.
const REQUESTS_AT_ONCE: usize = 32;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Folders(#[from] FolderError),
    #[error("Cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Worker(#[from] ProgramError),
    #[error("Cannot catch signals")]
    Signals(#[source] io::Error),
    #[error("Cannot start the appliance process")]
    Appliance(#[source] io::Error),
}

impl ServeError {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Kvm(_) | Self::Worker(ProgramError::NoExec { .. }) => Exit::Unavailable,
            Self::Folders(error) if error.is_permission() => Exit::Permission,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            Self::Folders(_)
            | Self::Listen { .. }
            | Self::Worker(_)
            | Self::Signals(_)
            | Self::Appliance(_) => Exit::Failed,
        }
    }
}

/// Runs until the appliance has ended. Nothing is left running or lying about afterwards.
pub fn serve(config: Checked, task: Task) -> Result<Exit, ServeError> {
    raise_descriptor_limit();
    let kvm = kvm::open_usable()?;
    let uid = rustix::process::geteuid()
        .is_root()
        .then_some(config.uid_base);
    let folders = Folders::prepare(&config.paths, uid)?;
    let worker = Program::unpack(&config.paths.state)?;
    let listener = match task {
        Task::Serve => Some(listen(config.listen)?),
        Task::Bench(_) => None,
    };
    let signals = Signals::catch().map_err(ServeError::Signals)?;
    let cgroups = match Cgroups::prepare() {
        Ok(groups) => Some(groups),
        Err(error) => {
            tracing::warn!("Workers run without cgroup limits: {}", chain(&error));
            None
        }
    };
    let stdout = match task {
        Task::Serve => Stdio::null(),
        Task::Bench(_) => Stdio::inherit(),
    };
    let appliance =
        Process::spawn(OURSELVES, Role::Appliance, stdout).map_err(ServeError::Appliance)?;
    appliance
        .send_first(
            &ApplianceSetup {
                config,
                uid,
                cpu: kvm::cpu_digest(&kvm),
                task: task.clone(),
            },
            listener.as_ref().map(AsFd::as_fd).as_slice(),
        )
        .map_err(ServeError::Appliance)?;
    drop(listener);
    let mut warden = Warden {
        kvm,
        signals,
        appliance,
        children: Children::new(worker, cgroups, uid),
        outbox: VecDeque::new(),
        stopping: false,
        deadline: None,
    };
    let status = warden.run();
    let left = warden.children.busy();
    warden.children.end_all();
    drop(folders);
    Ok(ended(&task, warden.stopping, status, left))
}

/// The socket of the front door. It is made here, where ports below 1024 may be bound, and first, so that
/// a port in use is told before anything is started. The warden reads nothing from it.
fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(listener)
}

/// Each session takes a few descriptors here and more in the appliance, which inherits the limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("Cannot raise the limit of open files: {error}");
    }
}

/// What the end of the appliance process means for ours.
fn ended(task: &Task, stopping: bool, status: Status, left: usize) -> Exit {
    if left > 0 {
        tracing::warn!("{left} processes were still running and have been killed");
    }
    match (status, task) {
        (Status::Code(0), _) if stopping => Exit::Ok,
        (Status::Code(0), Task::Bench(_)) => Exit::Ok,
        (Status::Code(code), _) if code != 0 => Exit::from_code(code),
        _ => {
            tracing::error!("The appliance process ended with {status}");
            Exit::Internal
        }
    }
}

struct Warden {
    kvm: File,
    signals: Signals,
    appliance: Process,
    children: Children,
    outbox: VecDeque<Vec<u8>>,
    stopping: bool,
    /// When the appliance is killed, if it is still there.
    deadline: Option<Instant>,
}

/// Who has something for us.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    ApplianceEnd,
    ApplianceSocket,
    ChildEnd(Uuid),
    ChildSocket(Uuid),
}

impl Warden {
    fn run(&mut self) -> Status {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!("Cannot poll: {error}");
                    self.appliance.kill();
                    Vec::new()
                }
            };
            if self
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now())
            {
                tracing::warn!("The appliance process did not end in time and is killed");
                self.appliance.kill();
                self.deadline = None;
            }
            for (source, flags) in ready {
                match source {
                    Source::Signals => self.on_signals(),
                    Source::ApplianceSocket => self.on_socket(flags),
                    Source::ChildSocket(id) => self.children.hear(id),
                    Source::ChildEnd(id) => {
                        if let Some(event) = self.children.reap(id) {
                            self.tell(&event);
                        }
                    }
                    Source::ApplianceEnd => {}
                }
            }
            match self.appliance.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return status,
                Err(error) => {
                    tracing::error!("Cannot wait for the appliance process: {error}");
                    return Status::Signal(0);
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![(Source::Signals, self.signals.as_fd(), PollFlags::IN)];
        sources.push((Source::ApplianceEnd, self.appliance.pidfd(), PollFlags::IN));
        if let Some(socket) = &self.appliance.socket {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !self.outbox.is_empty());
            sources.push((Source::ApplianceSocket, socket.as_fd(), wanted));
        }
        for (id, pidfd, socket) in self.children.watched() {
            sources.push((Source::ChildEnd(id), pidfd, PollFlags::IN));
            if let Some(socket) = socket {
                sources.push((Source::ChildSocket(id), socket, PollFlags::IN));
            }
        }
        poll(&sources, self.deadline)
    }

    fn on_signals(&mut self) {
        if self.signals.take() == 0 {
            return;
        }
        if self.stopping {
            tracing::warn!("Asked to stop twice: ending at once");
            self.appliance.kill();
            return;
        }
        tracing::info!("Stopping");
        self.stopping = true;
        self.deadline = Some(Instant::now() + STOP_LIMIT);
        self.tell(&Event::Stop);
    }

    fn on_socket(&mut self, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.flush();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(socket) = &self.appliance.socket else {
                return;
            };
            match channel::receive(socket.as_fd(), true) {
                Ok(Some(message)) => self.on_message(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) => return self.close(),
                // It ended with answers unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.close();
                }
                Err(error) => {
                    tracing::error!("Cannot read from the appliance process: {error}");
                    return self.close();
                }
            }
        }
    }

    /// Without its socket the appliance can do nothing any more; it is given a moment to end.
    fn close(&mut self) {
        self.appliance.socket = None;
        let deadline = Instant::now() + CLOSED_LIMIT;
        self.deadline = Some(self.deadline.map_or(deadline, |at| at.min(deadline)));
    }

    fn on_message(&mut self, message: Message) {
        let request = match Request::parse(&message) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!("The appliance process is broken: {error}");
                self.appliance.kill();
                return;
            }
        };
        let checked = request.check(&message.fds);
        match request {
            Request::SpawnWorker { id } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.spawn_worker(id, &message.fds, &self.kvm));
                self.answer(id, result);
            }
            Request::Shape { id, spec } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.shape(id, spec));
                self.tell(&match result {
                    Ok(()) => Event::Shaped { id },
                    Err(error) => Event::ShapeFailed {
                        id,
                        message: chain(&error),
                    },
                });
            }
            Request::Usage { id } => {
                let usage = self.children.usage(id);
                self.tell(&Event::Usage { id, usage });
            }
            Request::SpawnImageWorker { id, job } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.spawn_image_worker(id, job, &message.fds));
                self.answer(id, result);
            }
            Request::LimitCpu { id } => self.children.limit_cpu(id),
            Request::Kill { id } => self.children.kill(id),
        }
    }

    fn answer(&mut self, id: Uuid, result: Result<(), super::children::StartError>) {
        let event = match result {
            Ok(()) => Event::Spawned { id },
            Err(error) => Event::SpawnFailed {
                id,
                message: chain(&error),
            },
        };
        self.tell(&event);
    }

    fn tell(&mut self, event: &Event) {
        match serde_json::to_vec(event) {
            Ok(bytes) => self.outbox.push_back(bytes),
            Err(error) => tracing::error!("Cannot encode an event: {error}"),
        }
        if self.outbox.len() > MAX_WAITING_EVENTS {
            tracing::error!("The appliance process does not read its events");
            self.appliance.kill();
        }
        self.flush();
    }

    /// Never waits: what does not fit now is sent when `poll` says so.
    fn flush(&mut self) {
        let Some(socket) = &self.appliance.socket else {
            return self.outbox.clear();
        };
        while let Some(event) = self.outbox.front() {
            match channel::send(socket.as_fd(), event, &[], true) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is going; its end comes as an event of its own.
                Err(_) => return self.outbox.clear(),
            }
        }
    }
}

fn poll(
    sources: &[(Source, BorrowedFd<'_>, PollFlags)],
    deadline: Option<Instant>,
) -> io::Result<Vec<(Source, PollFlags)>> {
    let mut fds: Vec<_> = sources
        .iter()
        .map(|(_, fd, wanted)| PollFd::from_borrowed_fd(*fd, *wanted))
        .collect();
    let timeout = deadline
        .map(|deadline| deadline.saturating_duration_since(Instant::now()))
        .map(|left| Timespec::try_from(left).unwrap_or_default());
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = fds
        .iter()
        .zip(sources)
        .filter(|(fd, _)| !fd.revents().is_empty());
    Ok(ready
        .map(|(fd, (source, ..))| (*source, fd.revents()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// A warden whose appliance is `cat`: it ends when its input does.
    fn warden() -> (Warden, OwnedFd) {
        let mut appliance = Process::start("/bin/cat", "-", &[], Stdio::null()).unwrap();
        // Our end of a pair of our own in the place of cat's, so that the test can speak for it.
        let (ours, theirs) = channel::pair().unwrap();
        let kept = appliance.socket.replace(ours);
        std::mem::forget(kept);
        let warden = Warden {
            kvm: tempfile::tempfile().unwrap(),
            signals: Signals::catch().unwrap(),
            appliance,
            children: Children::new(Program::named("/nonexistent/cabana"), None, None),
            outbox: VecDeque::new(),
            stopping: false,
            deadline: None,
        };
        (warden, theirs)
    }

    fn events(socket: &OwnedFd) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some(message)) = channel::receive(socket.as_fd(), true) {
            events.push(serde_json::from_slice(&message.bytes).unwrap());
        }
        events
    }

    #[test]
    fn appliance_that_sends_nonsense_is_ended() {
        let (mut warden, appliance) = warden();
        channel::send(appliance.as_fd(), b"{}", &[], true).unwrap();
        assert_eq!(warden.run(), Status::Signal(9));
    }

    #[test]
    fn hostile_request_is_refused_and_the_next_one_is_still_answered() {
        let (mut warden, appliance) = warden();
        let id = Uuid::new_v4();
        let spawn = Request::SpawnWorker { id };
        let send = |request: &Request, fds: &[BorrowedFd<'_>]| {
            let bytes = serde_json::to_vec(request).unwrap();
            channel::send(appliance.as_fd(), &bytes, fds, true).unwrap();
        };
        send(&spawn, &[]);
        send(&spawn, &[appliance.as_fd(); 3]);
        send(&Request::Kill { id: Uuid::new_v4() }, &[appliance.as_fd()]);
        warden.on_socket(PollFlags::IN);
        let refusals = events(&appliance);
        assert_eq!(refusals.len(), 2, "{refusals:?}");
        for event in refusals {
            assert!(
                matches!(event, Event::SpawnFailed { id: other, .. } if other == id),
                "{event:?}"
            );
        }
        assert_eq!(warden.children.watched().count(), 0);
    }

    #[test]
    fn appliance_that_reads_nothing_does_not_hold_the_warden_and_loses_nothing() {
        let (mut warden, appliance) = warden();
        let count = 2000;
        for _ in 0..count {
            warden.tell(&Event::Spawned { id: Uuid::new_v4() });
        }
        let mut seen = events(&appliance).len();
        assert!(
            seen < count,
            "the socket took everything, so nothing was tested"
        );
        while seen < count {
            warden.flush();
            let more = events(&appliance).len();
            assert_ne!(more, 0, "{seen} of {count} events arrived");
            seen += more;
        }
    }

    #[test]
    fn end_of_the_appliance_decides_the_exit_code() {
        let serve = |stopping, status| ended(&Task::Serve, stopping, status, 0);
        assert_eq!(serve(true, Status::Code(0)), Exit::Ok);
        assert_eq!(serve(false, Status::Code(0)), Exit::Internal);
        assert_eq!(serve(false, Status::Code(1)), Exit::Failed);
        assert_eq!(serve(false, Status::Code(134)), Exit::Internal);
        assert_eq!(serve(true, Status::Signal(9)), Exit::Internal);
        let bench = Task::Bench(crate::bench::Plan {
            measure: crate::bench::Measure::ColdBoot { count: 1 },
            json: false,
        });
        assert_eq!(ended(&bench, false, Status::Code(0), 0), Exit::Ok);
    }
}
