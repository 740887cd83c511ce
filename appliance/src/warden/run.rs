//! The warden at work: it answers the appliance, starts it again when it dies, and brings everything to its end.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use uuid::Uuid;

use super::appliance::{Appliance, Heard, Launch};
use super::channel::Message;
use super::children::{Children, StartError};
use super::protocol::{Ending, Event, Request, Status, Task};
use super::respawn::Respawns;
use super::signals::Signals;
use super::watch::News;
use crate::exit::chain;

/// How long the appliance may take to end its sessions and itself. Longer than one session may take
/// (`wire::timing::HOST_KILL_AFTER`), and shorter than `TimeoutStopSec` of the systemd unit.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to let go of its sessions and end itself: the requests that it lets finish have five seconds.
const DETACH_LIMIT: Duration = Duration::from_secs(10);
/// How long an appliance that has closed its socket may take to be gone.
const CLOSED_LIMIT: Duration = Duration::from_secs(5);
/// Requests answered before signals and children are looked at again.
const REQUESTS_AT_ONCE: usize = 32;

pub struct Warden {
    kvm: File,
    signals: Signals,
    launch: Launch,
    appliance: Appliance,
    children: Children,
    respawns: Respawns,
    /// How everything ends, once somebody has asked for it.
    ending: Option<Ending>,
    /// When the appliance is killed, if it is still there.
    deadline: Option<Instant>,
}

/// How it came to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Of the last appliance.
    pub status: Status,
    /// Whether that one ever served.
    pub settled: bool,
    /// What somebody asked for.
    pub ending: Option<Ending>,
}

/// Who has something for us.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signal(Ending),
    ApplianceEnd,
    ApplianceSocket,
    Children,
}

impl Warden {
    pub fn new(
        kvm: File,
        signals: Signals,
        launch: Launch,
        appliance: Appliance,
        children: Children,
    ) -> Self {
        Self {
            kvm,
            signals,
            launch,
            appliance,
            children,
            respawns: Respawns::default(),
            ending: None,
            deadline: None,
        }
    }

    /// Until there is no appliance any more. Then the children are somebody else's to end.
    pub fn run(mut self) -> (Outcome, Children) {
        loop {
            let status = self.serve();
            let outcome = Outcome {
                status,
                settled: self.appliance.settled,
                ending: self.ending,
            };
            if !self.may_respawn() || !self.respawn(status) {
                return (outcome, self.children);
            }
        }
    }

    /// An appliance that never served would not serve the next time either, and who asked for an end gets it.
    fn may_respawn(&self) -> bool {
        self.launch.setup.task == Task::Serve && self.appliance.settled && self.ending.is_none()
    }

    fn respawn(&mut self, status: Status) -> bool {
        if !self.respawns.allow(Instant::now()) {
            tracing::error!("The appliance process ended with {status}, and too often: giving up");
            return false;
        }
        tracing::error!("The appliance process ended with {status} and is started again");
        self.children.leave();
        self.deadline = None;
        match self.launch.start(self.children.records()) {
            Ok(appliance) => {
                self.appliance = appliance;
                true
            }
            Err(error) => {
                tracing::error!("Cannot start the appliance process again: {error}");
                false
            }
        }
    }

    /// Until the appliance has ended.
    fn serve(&mut self) -> Status {
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
                    Source::Signal(how) => self.on_signal(how),
                    Source::ApplianceSocket => self.on_socket(flags),
                    Source::Children => self.on_children(),
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
        let mut sources: Vec<_> = [Ending::Stop, Ending::Detach]
            .map(|how| (Source::Signal(how), self.signals.fd(how), PollFlags::IN))
            .into();
        sources.push((Source::ApplianceEnd, self.appliance.pidfd(), PollFlags::IN));
        if let Some(socket) = self.appliance.socket() {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, self.appliance.has_more());
            sources.push((Source::ApplianceSocket, socket, wanted));
        }
        sources.push((Source::Children, self.children.watched(), PollFlags::IN));
        poll(&sources, self.deadline)
    }

    fn on_children(&mut self) {
        let news = match self.children.news() {
            Ok(news) => news,
            Err(error) => {
                tracing::error!("Cannot learn what the children have: {error}");
                self.appliance.kill();
                return;
            }
        };
        for (id, what) in news {
            match what {
                News::Words => self.children.hear(id),
                News::End => {
                    if let Some(event) = self.children.reap(id) {
                        self.appliance.tell(&event);
                    }
                }
            }
        }
    }

    fn on_signal(&mut self, how: Ending) {
        if self.signals.take(how) > 0 {
            self.end(how);
        }
    }

    /// Asked for the second time, nothing is waited for any more. A stop is a stop from then on; a detach does not make one less.
    fn end(&mut self, how: Ending) {
        // A benchmark has nothing that another one could use.
        let how = match self.launch.setup.task {
            Task::Serve => how,
            Task::Bench(_) => Ending::Stop,
        };
        if let Some(earlier) = self.ending {
            tracing::warn!("Asked to end twice: ending at once");
            self.ending = Some(if how == Ending::Stop { how } else { earlier });
            self.appliance.kill();
            return;
        }
        let limit = match how {
            Ending::Stop => {
                tracing::info!("Stopping");
                STOP_LIMIT
            }
            Ending::Detach => {
                tracing::info!("Ending without the sessions, which live on");
                DETACH_LIMIT
            }
        };
        self.ending = Some(how);
        self.deadline = Some(Instant::now() + limit);
        self.launch.close_door();
        self.appliance.tell(&Event::End { how });
    }

    fn on_socket(&mut self, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.appliance.flush();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        for _ in 0..REQUESTS_AT_ONCE {
            match self.appliance.hear() {
                Heard::Message(message) => self.on_message(message),
                Heard::Nothing => return,
                Heard::End => {
                    // It can do nothing any more, and is given a moment to end.
                    let deadline = Instant::now() + CLOSED_LIMIT;
                    self.deadline = Some(self.deadline.map_or(deadline, |at| at.min(deadline)));
                    return;
                }
            }
        }
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
        let event = match request {
            Request::SpawnWorker { id } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.spawn_worker(id, &message.fds, &self.kvm));
                spawned(id, result)
            }
            Request::SpawnImageWorker { id, job } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.spawn_image_worker(id, job, &message.fds));
                spawned(id, result)
            }
            Request::Shape { id, spec } => {
                let result = checked
                    .map_err(Into::into)
                    .and_then(|()| self.children.shape(id, spec));
                match result {
                    Ok(()) => Event::Shaped { id },
                    Err(error) => Event::ShapeFailed {
                        id,
                        message: chain(&error),
                    },
                }
            }
            Request::Usage { id } => {
                let usage = self.children.usage(id);
                Event::Usage { id, usage }
            }
            Request::Adopt { id } => match checked.and_then(|()| self.children.adopt(id)) {
                Ok(()) => Event::Adopted { id },
                Err(error) => Event::AdoptFailed {
                    id,
                    message: error.to_string(),
                },
            },
            Request::LimitCpu { id } => return self.children.limit_cpu(id),
            Request::Kill { id } => return self.children.kill(id),
            Request::Settled => {
                self.appliance.settled = true;
                return self.children.settle();
            }
            Request::Stop => {
                // Said while it ends already, it is no hurry.
                if self.ending.is_none() {
                    self.end(Ending::Stop);
                }
                return;
            }
        };
        self.appliance.tell(&event);
    }
}

fn spawned(id: Uuid, result: Result<(), StartError>) -> Event {
    match result {
        Ok(()) => Event::Spawned { id },
        Err(error) => Event::SpawnFailed {
            id,
            message: chain(&error),
        },
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
    use std::net::TcpListener;
    use std::os::fd::{AsFd, OwnedFd};

    use super::super::channel;
    use super::super::children::Terms;
    use super::super::program::Program;
    use super::super::protocol::ApplianceSetup;
    use super::super::records::Records;
    use super::super::spawn::{Output, Place, Process};
    use super::*;
    use crate::config::{self, Overrides};
    use crate::worker::spec::WorkerSpec;

    const SMALL: WorkerSpec = WorkerSpec {
        vcpus: 1,
        cpu_millis: 250,
        mem_mib: 128,
        limits: crate::worker::spec::RateLimits::NONE,
    };

    /// A warden whose appliance is `cat`, for which the test speaks. Workers are `yes`.
    struct Setting {
        warden: Warden,
        appliance: OwnedFd,
        _state: tempfile::TempDir,
    }

    fn setting(task: Task) -> Setting {
        let state = tempfile::tempdir().unwrap();
        let (process, theirs) = appliance();
        let children = Children::new(Terms {
            worker: Program::at("/usr/bin/yes").unwrap(),
            ourselves: Program::at("/usr/bin/yes").unwrap(),
            room: None,
            confined: true,
            cgroups: None,
            uid_base: None,
            orphan_limit_seconds: 1,
            records: Records::open(state.path()).unwrap(),
        })
        .unwrap();
        let config = config::load(state.path(), None, &Overrides::default()).unwrap();
        let setup = ApplianceSetup {
            config,
            uid: None,
            confined: true,
            cpu: None,
            task,
        };
        let launch = Launch {
            program: Program::at("/bin/true").unwrap(),
            setup,
            listeners: vec![TcpListener::bind("127.0.0.1:0").unwrap()],
        };
        let warden = Warden::new(
            tempfile::tempfile().unwrap(),
            Signals::catch().unwrap(),
            launch,
            process,
            children,
        );
        Setting {
            warden,
            appliance: theirs,
            _state: state,
        }
    }

    /// `cat` ends when its input does, which is when this process ends; or when it is killed.
    fn appliance() -> (Appliance, OwnedFd) {
        let mut process = {
            let program = Program::at("/bin/cat").unwrap();
            Process::start(&program, c"-", &[], Output::Nowhere, Place::default()).unwrap()
        };
        // Our end of a pair of our own in the place of cat's, so that the test can speak for it.
        let (ours, theirs) = channel::pair().unwrap();
        let kept = process.socket.replace(ours);
        std::mem::forget(kept);
        (Appliance::new(process, None), theirs)
    }

    impl Setting {
        fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
            let bytes = serde_json::to_vec(request).unwrap();
            channel::send(self.appliance.as_fd(), &bytes, fds, true).unwrap();
        }

        fn events(&self) -> Vec<Event> {
            let mut events = Vec::new();
            while let Ok(Some(message)) = channel::receive(self.appliance.as_fd(), true) {
                events.push(serde_json::from_slice(&message.bytes).unwrap());
            }
            events
        }

        /// Sends a request and lets the warden answer it.
        fn ask(&mut self, request: &Request) -> Vec<Event> {
            self.send(request, &[]);
            self.warden.on_socket(PollFlags::IN);
            self.events()
        }

        /// A worker with a guest. Its descriptors do not matter to `yes`.
        fn worker(&mut self) -> Uuid {
            let id = Uuid::new_v4();
            let kvm = tempfile::tempfile().unwrap();
            self.warden.children.spawn_worker(id, &[], &kvm).unwrap();
            self.warden.children.shape(id, SMALL).unwrap();
            id
        }
    }

    #[test]
    fn appliance_that_sends_nonsense_is_ended() {
        let Setting {
            warden, appliance, ..
        } = setting(Task::Serve);
        channel::send(appliance.as_fd(), b"{}", &[], true).unwrap();
        let (outcome, _) = warden.run();
        let expected = Outcome {
            status: Status::Signal(9),
            settled: false,
            ending: None,
        };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn hostile_request_is_refused_and_the_next_one_is_still_answered() {
        let mut setting = setting(Task::Serve);
        let id = Uuid::new_v4();
        let spawn = Request::SpawnWorker { id };
        setting.send(&spawn, &[]);
        setting.send(&spawn, &[setting.appliance.as_fd(); 3]);
        let kill = Request::Kill { id: Uuid::new_v4() };
        setting.send(&kill, &[setting.appliance.as_fd()]);
        setting.warden.on_socket(PollFlags::IN);
        let refusals = setting.events();
        assert_eq!(refusals.len(), 2, "{refusals:?}");
        for event in refusals {
            assert!(
                matches!(event, Event::SpawnFailed { id: other, .. } if other == id),
                "{event:?}"
            );
        }
        assert_eq!(setting.warden.children.running.len(), 0);
    }

    #[test]
    fn appliance_that_reads_nothing_does_not_hold_the_warden_and_loses_nothing() {
        let mut setting = setting(Task::Serve);
        let count = 2000;
        for _ in 0..count {
            let event = Event::Spawned { id: Uuid::new_v4() };
            setting.warden.appliance.tell(&event);
        }
        let mut seen = setting.events().len();
        assert!(
            seen < count,
            "the socket took everything, so nothing was tested"
        );
        while seen < count {
            setting.warden.appliance.flush();
            let more = setting.events().len();
            assert_ne!(more, 0, "{seen} of {count} events arrived");
            seen += more;
        }
    }

    #[test]
    fn next_appliance_adopts_what_the_last_one_had_and_settles() {
        let mut setting = setting(Task::Serve);
        let (wanted, other) = (setting.worker(), setting.worker());
        setting.warden.children.leave();
        let adopted = setting.ask(&Request::Adopt { id: wanted });
        assert_eq!(adopted, [Event::Adopted { id: wanted }]);
        let again = setting.ask(&Request::Adopt { id: wanted });
        assert!(matches!(again[..], [Event::AdoptFailed { id, .. }] if id == wanted));
        assert!(!setting.warden.may_respawn(), "it has not served yet");
        assert_eq!(setting.ask(&Request::Settled), []);
        assert!(setting.warden.may_respawn());
        let refused = setting.ask(&Request::Adopt { id: Uuid::new_v4() });
        assert!(matches!(refused[..], [Event::AdoptFailed { .. }]));
        // The other one was killed, and its end is nobody's news.
        let pidfd = setting.warden.children.running[&other].process.pidfd();
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert_eq!(setting.warden.children.reap(other), None);
        setting.warden.children.end_all();
    }

    #[test]
    fn end_is_told_as_it_is_meant_and_the_door_is_closed() {
        for how in [Ending::Stop, Ending::Detach] {
            let mut setting = setting(Task::Serve);
            let address = &setting.warden.launch.listeners[0];
            let address = address.local_addr().unwrap();
            setting.warden.end(how);
            assert_eq!(setting.events(), [Event::End { how }]);
            assert!(std::net::TcpStream::connect(address).is_err());
            assert!(!setting.warden.may_respawn());
        }
        let mut setting = setting(Task::Serve);
        let how = Ending::Stop;
        assert_eq!(setting.ask(&Request::Stop), [Event::End { how }]);
        // An operator who says it again does not mean that it is urgent.
        assert_eq!(setting.ask(&Request::Stop), []);
        assert_eq!(setting.warden.appliance.try_wait().unwrap(), None);
    }

    #[test]
    fn second_signal_ends_at_once_and_only_a_stop_among_them_ends_the_sessions() {
        use Ending::{Detach, Stop};
        for (first, second, expected) in [
            (Detach, Detach, Detach),
            (Detach, Stop, Stop),
            (Stop, Detach, Stop),
            (Stop, Stop, Stop),
        ] {
            let mut setting = setting(Task::Serve);
            setting.warden.end(first);
            setting.warden.end(second);
            let (outcome, _) = setting.warden.run();
            assert_eq!(outcome.ending, Some(expected), "{first:?}, {second:?}");
            assert_eq!(outcome.status, Status::Signal(9));
        }
    }

    #[test]
    fn every_end_of_a_benchmark_is_a_stop() {
        let plan = crate::bench::Plan {
            measure: crate::bench::Measure::ColdBoot { count: 1 },
            json: false,
        };
        let mut setting = setting(Task::Bench(plan));
        setting.warden.end(Ending::Detach);
        assert_eq!(setting.warden.ending, Some(Ending::Stop));
        assert!(!setting.warden.may_respawn());
    }

    #[test]
    fn appliance_that_dies_too_often_is_not_started_again_and_its_workers_live_on() {
        let mut setting = setting(Task::Serve);
        let id = setting.worker();
        setting.ask(&Request::Settled);
        let now = Instant::now();
        while setting.warden.respawns.allow(now) {}
        setting.warden.appliance.kill();
        let (outcome, mut children) = setting.warden.run();
        assert!(outcome.settled && outcome.ending.is_none());
        assert!(children.running.contains_key(&id));
        children.end_all();
    }
}
