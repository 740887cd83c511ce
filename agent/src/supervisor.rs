//! The loop that owns everything, and what the host is told when.
//!
//! The order of messages on the control stream: `Hello`, as soon as there is a stream; `Renewed`
//! after `Renew`, when the container's process is prepared, or `Failed` and nothing more; then, after `Start`, either `Started`, `Output`...,
//! `Ready` once, and `Exited` behind the last output that was written before the end; or `Failed`
//! and `Exited` with 125 (cannot be set up), 126 (not executable) or 127 (not found). After
//! `Freeze` comes `Frozen`, behind all output that was written before, and then no output until
//! `Renewed`. After `Stop` comes `Exited`, unless nothing was ever started, and then the end of the
//! stream.

use std::io;
use std::time::{Duration, Instant};

use wire::{ContainerSpec, GuestMessage, HostMessage, Identity, timing};

use crate::attempt::{Attempt, SetupError, chain};
use crate::cli::ProcessOptions;
use crate::container::{Container, News};
use crate::control::Control;
use crate::host_socket::{HostSocket, Outcome};
use crate::operator::{Around, Operator};
use crate::poller::{Poller, Readiness, Token};
use crate::proxy::Proxy;
use crate::ready::Probe;
use crate::reaper::{self, Reaped, SignalPipe};
use crate::renew::Renewal;
use crate::transport::Transport;

/// How long the last messages may take to reach the host.
const FAREWELL: Duration = Duration::from_secs(1);
const _: () = assert!(
    FAREWELL.as_millis() < timing::AGENT_POWEROFF_GRACE.as_millis(),
    "syncing the disk and powering off must fit behind it"
);

/// What an operator's command needs of the supervisor's own. A macro, because only some fields are borrowed.
macro_rules! around {
    ($supervisor:expr) => {
        Around::new(
            &$supervisor.poller,
            &$supervisor.container,
            $supervisor.renewal.hostname(),
        )
    };
}

/// Everything the agent is responsible for while it serves.
pub struct Supervisor {
    poller: Poller,
    transport: Transport,
    control: Control,
    children: SignalPipe,
    terminate: Option<Terminate>,
    container: Result<Container, String>,
    renewal: Renewal,
    probe: Probe,
    /// The host was told so, and the container has not ended.
    is_ready: bool,
    proxy: Proxy,
    operator: Operator,
    target_port: u16,
    /// `Some` after `Stop`.
    stop: Option<Stop>,
    /// `Some` when nothing is left to do but to deliver the last messages, until then at most.
    farewell: Option<Instant>,
    has_children: bool,
}

/// The container was asked to end.
struct Stop {
    kill_at: Instant,
    killed: bool,
}

/// Signals that end an ordinary process: SIGTERM like `Stop`, SIGINT without any grace.
struct Terminate {
    gently: SignalPipe,
    at_once: SignalPipe,
}

/// Serves a worker's host socket until it is stopped.
pub fn run_as_process(options: &ProcessOptions) -> Result<(), SetupError> {
    raise_open_files_limit();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .attempt(|| "become the reaper of orphans".into())?;
    let signals = |signal| SignalPipe::new(&[signal]).attempt(|| "watch for signals".into());
    let terminate = Terminate {
        gently: signals(libc::SIGTERM)?,
        at_once: signals(libc::SIGINT)?,
    };
    let poller = Poller::new().attempt(|| "make an epoll instance".into())?;
    for pipe in [&terminate.gently, &terminate.at_once] {
        poller
            .watch_level(pipe, Token::Terminate)
            .attempt(|| "watch for signals".into())?;
    }
    let children = SignalPipe::new(&[libc::SIGCHLD]).attempt(|| "watch for children".into())?;
    let transport = Transport::Socket(HostSocket::bind(&options.socket)?);
    // Whoever started us may connect from now on.
    println!("listening on {}", options.socket.display());
    let control = Control::new(Some(Instant::now()));
    let container = Container::prepare(&options.container, &poller);
    let mut supervisor = Supervisor::new(poller, (transport, control), children, container)?;
    supervisor.terminate = Some(terminate);
    supervisor.serve().attempt(|| "wait for events".into())
}

/// A stream takes two descriptors; the usual soft limit of 1024 is too low for them.
pub fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Raising the soft limit to the hard one is always allowed.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

impl Supervisor {
    /// A container that could not be prepared is reported as soon as there is somebody to tell.
    pub fn new(
        poller: Poller,
        (transport, control): (Transport, Control),
        children: SignalPipe,
        container: Result<Container, SetupError>,
    ) -> Result<Self, SetupError> {
        poller
            .watch_level(&children, Token::Child)
            .attempt(|| "watch for children".into())?;
        transport
            .watch(&poller)
            .attempt(|| "watch for connections".into())?;
        let mut supervisor = Self {
            poller,
            transport,
            control,
            children,
            terminate: None,
            container: container.map_err(|error| chain(&error)),
            renewal: Renewal::new(),
            probe: Probe::idle(),
            is_ready: false,
            proxy: Proxy::new(),
            operator: Operator::new(),
            target_port: 0,
            stop: None,
            farewell: None,
            has_children: true,
        };
        if let Err(message) = &supervisor.container {
            supervisor.control.send(&GuestMessage::Failed {
                message: message.clone(),
            });
        }
        Ok(supervisor)
    }

    /// Lets `Renew` set the clock and the random numbers of the machine.
    pub fn own_the_machine(&mut self) -> Result<(), SetupError> {
        self.renewal.own_the_machine()
    }

    /// Serves until the host says stop and everything has stopped.
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            self.on_time(Instant::now());
            let events = self.poller.wait(self.patience())?;
            let now = Instant::now();
            for (token, readiness) in events {
                self.on_event(token, readiness, now)?;
            }
            self.proxy.take_turns();
            let around = around!(self);
            self.operator.take_turns(around, now);
            self.converse(now);
            if self.is_finished(now) {
                return Ok(());
            }
        }
    }

    fn patience(&self) -> Option<Duration> {
        let kill_at = self
            .stop
            .as_ref()
            .filter(|stop| !stop.killed)
            .map(|stop| stop.kill_at);
        let deadlines = [
            self.control.deadline(),
            self.probe.deadline(),
            kill_at,
            self.farewell,
            self.operator.deadline(),
        ];
        let next = deadlines.into_iter().flatten().min();
        let until_next = next.map(|next| next.saturating_duration_since(Instant::now()));
        if self.has_output_to_send() {
            Some(Duration::ZERO)
        } else {
            let busy = self.proxy.patience().or(self.operator.patience());
            busy.or(until_next)
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.control.deadline().is_some_and(|at| at <= now) {
            self.control
                .attach(self.transport.connect_control(), &self.poller, now);
        }
        self.probe.on_time(now, &self.poller);
        self.operator.on_time(now);
        if let (Some(stop), Ok(container)) = (&mut self.stop, &mut self.container)
            && stop.kill_at <= now
            && !stop.killed
        {
            stop.killed = true;
            container.kill();
        }
    }

    fn on_event(&mut self, token: Token, readiness: Readiness, now: Instant) -> io::Result<()> {
        match token {
            Token::Child => return self.reap(now),
            Token::Terminate => self.on_terminate(now),
            Token::Listener => {
                for stream in self.transport.on_listener(&self.poller) {
                    self.proxy.open(stream, &self.poller);
                }
            }
            Token::LoopbackListener => {
                for stream in self.transport.on_loopback_listener() {
                    self.proxy.open_named(stream, &self.poller);
                }
            }
            Token::Handshake(id) => match self.transport.on_handshake(id) {
                Outcome::Stream(stream) => self.proxy.open(stream, &self.poller),
                Outcome::Loopback(stream) => self.proxy.open_named(stream, &self.poller),
                Outcome::Exec(stream) => self.operator.open(stream, around!(self), now),
                Outcome::Acceptor if self.control.is_down() => {
                    self.control
                        .attach(self.transport.connect_control(), &self.poller, now);
                }
                Outcome::Acceptor | Outcome::Pending => {}
            },
            Token::Control => self.control.on_event(readiness, now),
            Token::Stage => self.on_stage(now),
            Token::Output(stream) => {
                if let Ok(container) = &mut self.container {
                    container.output(stream).on_event(readiness);
                }
            }
            Token::Probe => {
                if self.probe.on_event(now, &self.poller) {
                    self.is_ready = true;
                    self.control.send(&GuestMessage::Ready);
                }
            }
            Token::Freezer => {
                if let Ok(container) = &mut self.container {
                    let frozen = container.on_freezer();
                    self.tell_frozen(frozen);
                }
            }
            Token::ExecListener => {
                for stream in self.transport.on_exec_listener() {
                    self.operator.open(stream, around!(self), now);
                }
            }
            Token::Exec(id, part) => {
                self.operator
                    .on_event(id, (part, readiness), around!(self), now);
            }
            Token::Client(id) => self.proxy.on_client(id, readiness, &self.poller),
            Token::Target(id) => self.proxy.on_target(id, readiness, &self.poller),
        }
        Ok(())
    }

    fn on_stage(&mut self, now: Instant) {
        if let Ok(container) = &mut self.container
            && let Some(news) = container.on_stage()
        {
            self.tell(news, now);
        }
    }

    /// Takes every child that has ended.
    fn reap(&mut self, now: Instant) -> io::Result<()> {
        self.children.clear();
        loop {
            match reaper::reap()? {
                Reaped::Child(pid, exit) => {
                    // The container may have started and ended since the last look.
                    self.on_stage(now);
                    if let Ok(container) = &mut self.container
                        && let Some(news) = container.on_reaped(pid, exit)
                    {
                        self.tell(news, now);
                    }
                    self.operator.on_reaped(pid, exit, around!(self), now);
                }
                Reaped::NoneEnded => return Ok(()),
                Reaped::NoChildren => {
                    self.has_children = false;
                    return Ok(());
                }
            }
        }
    }

    fn tell(&mut self, news: News, now: Instant) {
        let message = match news {
            News::Started(pid) => {
                self.proxy.set_target(self.target_port);
                self.probe.start(self.target_port, now);
                GuestMessage::Started {
                    pid: pid.as_raw_pid().unsigned_abs(),
                }
            }
            News::Failed(message) => GuestMessage::Failed { message },
            News::Exited(ending) => {
                self.probe.stop();
                self.is_ready = false;
                self.operator.on_container_ended();
                self.send_last_output();
                GuestMessage::Exited(ending)
            }
        };
        self.control.send(&message);
    }

    /// Whatever the backlog: what was written before the end must arrive before the end.
    fn send_last_output(&mut self) {
        if let Ok(container) = &mut self.container {
            for output in container.outputs() {
                output.drain(&mut |message| {
                    self.control.send(&message);
                });
            }
        }
    }

    fn on_terminate(&mut self, now: Instant) {
        let Some(terminate) = &mut self.terminate else {
            return;
        };
        terminate.gently.clear();
        let grace = if terminate.at_once.clear() {
            Duration::ZERO
        } else {
            timing::STOP_GRACE
        };
        self.stop(grace, now);
    }

    /// Listens to the host, and says what there is to say. What the host wants waits until the container's process is
    /// prepared.
    fn converse(&mut self, now: Instant) {
        if self.control.greet() {
            self.renewal.on_new_stream();
        }
        while let Some(message) = self.next_message(now) {
            match message {
                HostMessage::Renew(identity) => self.renew(&identity),
                HostMessage::Continue => self.renewal.carry_on(),
                HostMessage::Start(spec) => self.start(&spec, now),
                HostMessage::Freeze => self.freeze(),
                HostMessage::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms), now),
                HostMessage::Unknown => {}
            }
        }
        self.control.flush(now);
        if self.has_output_to_send()
            && let Ok(container) = &mut self.container
        {
            for output in container.outputs() {
                output.pump(&mut |message| self.control.send(&message));
            }
            self.control.flush(now);
        }
    }

    fn next_message(&mut self, now: Instant) -> Option<HostMessage> {
        let is_preparing = self.container.as_ref().is_ok_and(Container::is_preparing);
        if is_preparing {
            return None;
        }
        self.control.receive(now)
    }

    /// Whether lines wait in a pipe and there is room for them.
    fn has_output_to_send(&self) -> bool {
        self.control.has_room() && self.container.as_ref().is_ok_and(Container::has_output)
    }

    fn start(&mut self, spec: &ContainerSpec, now: Instant) {
        let news = match (self.renewal.hostname(), &mut self.container) {
            (Err(message), _) => Some(News::Failed(message)),
            (Ok(_), Err(message)) => Some(News::Failed(message.clone())),
            (Ok(hostname), Ok(container)) => container.start(spec, hostname),
        };
        match news {
            Some(news) => self.tell(news, now),
            None => self.target_port = spec.target_port,
        }
    }

    fn renew(&mut self, identity: &Identity) {
        let message = match self.renewal.renew(identity, &mut self.container) {
            Ok(()) => GuestMessage::Renewed,
            Err(message) => GuestMessage::Failed { message },
        };
        self.control.send(&message);
    }

    fn freeze(&mut self) {
        match &mut self.container {
            Ok(container) if self.is_ready => {
                let frozen = container.freeze(&self.poller);
                self.tell_frozen(frozen);
            }
            Ok(container) if container.is_prepared() => self.tell_frozen(Ok(true)),
            Ok(_) | Err(_) => {
                let message =
                    "A guest is frozen before its container starts or when it is ready".into();
                self.control.send(&GuestMessage::Failed { message });
            }
        }
    }

    /// What was written before goes first: in a snapshot it would be said again by every fork.
    fn tell_frozen(&mut self, frozen: Result<bool, SetupError>) {
        let settled = match frozen {
            Ok(false) => return,
            Ok(true) => self.renewal.settle(),
            Err(error) => Err(error),
        };
        let message = match settled {
            Ok(()) => GuestMessage::Frozen,
            Err(error) => GuestMessage::Failed {
                message: chain(&error),
            },
        };
        if let Ok(container) = &mut self.container {
            for output in container.outputs() {
                output.catch_up(&mut |message| {
                    self.control.send(&message);
                });
            }
        }
        self.control.send(&message);
    }

    /// A second request can only shorten the grace.
    fn stop(&mut self, grace: Duration, now: Instant) {
        let kill_at = now
            .checked_add(grace)
            .unwrap_or(now + timing::HOST_KILL_AFTER);
        match &mut self.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => {
                self.stop = Some(Stop {
                    kill_at,
                    killed: false,
                });
                if let Ok(container) = &mut self.container {
                    container.stop();
                }
            }
        }
    }

    /// After `Stop`: whether the container is gone, and the host knows.
    fn is_finished(&mut self, now: Instant) -> bool {
        let is_over = match &self.container {
            Ok(container) => container.is_over() && (container.is_isolated() || !self.has_children),
            Err(_) => true,
        };
        if self.stop.is_none() || !is_over {
            return false;
        }
        let until = *self.farewell.get_or_insert_with(|| now + FAREWELL);
        let has_ended = self.control.say_goodbye() && self.operator.is_idle();
        has_ended || until <= now
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::Command;
    use std::sync::{Mutex, PoisonError};
    use std::thread;

    use super::*;
    use crate::container::stage::PREPARED;
    use crate::guest::random::tests::{Answer, fake_answers};
    use crate::renew::tests::identity;
    use rustix::process::Pid;

    /// An agent reaps every child of its process, and so would those of an agent beside it.
    static ALONE: Mutex<()> = Mutex::new(());

    /// An agent that owns its machine, on a thread to which the kernel gives these answers.
    fn serve(socket: &Path, container: Container, add: Answer, reseed: Answer) {
        fake_answers(add, reseed);
        let children = SignalPipe::new(&[libc::SIGCHLD]).unwrap();
        let transport = Transport::Socket(HostSocket::bind(socket).unwrap());
        let poller = Poller::new().unwrap();
        let streams = (transport, Control::new(Some(Instant::now())));
        let mut agent = Supervisor::new(poller, streams, children, Ok(container)).unwrap();
        agent.own_the_machine().unwrap();
        agent.serve().unwrap();
    }

    fn connect(socket: &Path) -> UnixStream {
        let mut stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) => thread::yield_now(),
            }
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.write_all(b"LISTEN 1024\n").unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK 1024\n");
        stream
    }

    /// What the agent answers to `Renew` and to the `Start` behind it, and what its stage heard.
    fn answers(add: Answer, reseed: Answer) -> (Vec<GuestMessage>, Vec<u8>) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let mut stage = Command::new("sleep").arg("1000").spawn().unwrap();
        let (container, mut heard) = Container::prepared(Pid::from_child(&stage));
        let at = socket.clone();
        let agent = thread::spawn(move || serve(&at, container, add, reseed));
        let mut host = connect(&socket);
        let mut tell = |message| wire::write_frame(&mut host, &message).unwrap();
        tell(HostMessage::Renew(Box::new(identity())));
        tell(HostMessage::Start(Box::default()));
        tell(HostMessage::Stop { grace_ms: 0 });
        let mut said = Vec::new();
        while let Ok(message) = wire::read_frame(&mut host) {
            said.push(message);
        }
        drop(host);
        agent.join().unwrap();
        assert!(stage.wait().is_err(), "the agent reaped it");
        let mut bytes = Vec::new();
        heard.read_to_end(&mut bytes).unwrap();
        (said, bytes)
    }

    #[test]
    fn nothing_starts_in_a_guest_whose_random_numbers_could_not_be_renewed() {
        for (add, reseed, which) in [
            (Answer::Refused, Answer::Done, "RNDADDENTROPY"),
            (Answer::Done, Answer::Refused, "RNDRESEEDCRNG"),
        ] {
            let (said, heard) = answers(add, reseed);
            let [
                GuestMessage::Hello { .. },
                GuestMessage::Failed { message },
                refused,
            ] = said.as_slice()
            else {
                panic!("{said:?}");
            };
            assert!(message.contains(which), "{message}");
            let message = message.clone();
            assert_eq!(*refused, GuestMessage::Failed { message });
            assert_eq!(heard, b"", "the container was told to start");
        }
    }

    #[test]
    fn hello_comes_before_the_container_is_prepared_and_a_freeze_waits_until_it_is() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let mut stage = Command::new("sleep").arg("1000").spawn().unwrap();
        let (container, mut of_stage) = Container::preparing(Pid::from_child(&stage));
        let at = socket.clone();
        let agent = thread::spawn(move || {
            let poller = Poller::new().unwrap();
            container.watch(&poller).unwrap();
            let children = SignalPipe::new(&[libc::SIGCHLD]).unwrap();
            let transport = Transport::Socket(HostSocket::bind(&at).unwrap());
            let streams = (transport, Control::new(Some(Instant::now())));
            let agent = Supervisor::new(poller, streams, children, Ok(container)).unwrap();
            agent.serve().unwrap();
        });
        let mut host = connect(&socket);
        let hello: GuestMessage = wire::read_frame(&mut host).unwrap();
        assert!(matches!(hello, GuestMessage::Hello { .. }), "{hello:?}");
        wire::write_frame(&mut host, &HostMessage::Freeze).unwrap();
        of_stage.write_all(&[PREPARED]).unwrap();
        let answer: GuestMessage = wire::read_frame(&mut host).unwrap();
        assert_eq!(answer, GuestMessage::Frozen);
        wire::write_frame(&mut host, &HostMessage::Stop { grace_ms: 0 }).unwrap();
        while wire::read_frame::<GuestMessage>(&mut host).is_ok() {}
        drop(host);
        agent.join().unwrap();
        assert!(stage.wait().is_err(), "the agent reaped it");
    }

    #[test]
    fn guest_whose_random_numbers_were_renewed_starts_its_container() {
        let (said, heard) = answers(Answer::Done, Answer::Done);
        let [GuestMessage::Hello { .. }, GuestMessage::Renewed] = said.as_slice() else {
            panic!("{said:?}");
        };
        let mut heard = heard.as_slice();
        let spec: ContainerSpec = wire::read_frame(&mut heard).unwrap();
        assert_eq!(spec, ContainerSpec::default());
        let hostname: String = wire::read_frame(&mut heard).unwrap();
        assert_eq!(hostname, identity().hostname);
    }
}
