//! Launches against a warden, a worker and a guest that are threads of the test.

mod adoption;
mod forks;
mod life;
mod spares;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;
use wire::{ContainerSpec, GuestMessage, HostMessage, Identity};

use super::exit::WorkerExit;
use super::launch::{LaunchError, LaunchRequest, Purpose, Settings, Source, Urgency};
use super::orders::server::{Desk, Heard};
use super::orders::{Answer, Order};
use super::spec::{ForkPoint, RateLimits, WorkerSpec};
use super::{Worker, WorkerEvent, WorkerHost};
use crate::config::Paths;
use crate::guest::Guest;
use crate::warden::channel;
use crate::warden::client::WardenClient;
use crate::warden::protocol::{Event, Request, Status};

const DEADLINE: Duration = Duration::from_secs(20);
const POWER_OFF: Option<&str> = Some(r#"{"end":"powerOff"}"#);
const DISK_BYTES: u64 = 1 << 30;

/// The other end of the appliance's socket.
struct FakeWarden {
    socket: OwnedFd,
    /// What came while something else was waited for.
    passed: VecDeque<(Request, Vec<OwnedFd>)>,
}

impl FakeWarden {
    fn next(&mut self) -> Request {
        self.next_where(|_| true).0
    }

    /// The oldest request of this kind; others stay in their order.
    fn next_where(&mut self, wanted: impl Fn(&Request) -> bool) -> (Request, Vec<OwnedFd>) {
        if let Some(place) = self.passed.iter().position(|(it, _)| wanted(it)) {
            return self.passed.remove(place).unwrap();
        }
        loop {
            let next = self.receive().expect("no request");
            if wanted(&next.0) {
                return next;
            }
            self.passed.push_back(next);
        }
    }

    fn receive(&self) -> Option<(Request, Vec<OwnedFd>)> {
        let message = channel::receive(self.socket.as_fd(), false).unwrap()?;
        let request = Request::parse(&message).unwrap();
        request.check(&message.fds).unwrap();
        Some((request, message.fds))
    }

    fn tell(&self, event: &Event) {
        let bytes = serde_json::to_vec(event).unwrap();
        channel::send(self.socket.as_fd(), &bytes, &[], false).unwrap();
    }

    /// Takes the request for a worker and says that it runs.
    fn spawn(&mut self) -> FakeWorker {
        match self.next_where(|request| matches!(request, Request::SpawnWorker { .. })) {
            (Request::SpawnWorker { id }, fds) => {
                self.tell(&Event::Spawned { id });
                FakeWorker::new(id, fds)
            }
            (other, _) => panic!("{other:?} and no spawn"),
        }
    }

    /// Gives a worker its shape, as it is asked to.
    fn shape(&mut self, worker: &FakeWorker) -> WorkerSpec {
        let shape = |it: &Request| matches!(it, Request::Shape { id, .. } if *id == worker.id);
        match self.next_where(shape) {
            (Request::Shape { id, spec }, _) => {
                self.tell(&Event::Shaped { id });
                spec
            }
            (other, _) => panic!("{other:?} and no shape"),
        }
    }

    /// A worker that has done what it was ordered first.
    fn start(&mut self) -> FakeWorker {
        let mut worker = self.spawn();
        self.shape(&worker);
        worker.carry_out();
        worker
    }

    fn limited(&mut self, worker: &FakeWorker) {
        self.next_where(|it| matches!(it, Request::LimitCpu { id } if *id == worker.id));
    }

    fn killed(&mut self) -> Uuid {
        match self.next() {
            Request::Kill { id } => id,
            other => panic!("{other:?} and no kill"),
        }
    }

    /// Answers [`Setting::settle`].
    fn settle(&mut self) {
        let Request::Usage { id } = self.next() else {
            panic!("no question")
        };
        self.tell(&Event::Usage { id, usage: None });
    }

    fn end(&self, id: Uuid, report: Option<&str>) {
        let status = if report.is_some() {
            Status::Code(0)
        } else {
            Status::Signal(9)
        };
        self.tell(&Event::Exited {
            id,
            status,
            report: report.map(str::to_owned),
        });
    }

    /// Stays until the appliance goes, as a warden does.
    fn stay(self) {
        while self.receive().is_some() {}
    }
}

/// What a worker lives on.
struct FakeWorker {
    id: Uuid,
    vsock: UnixListener,
    console: std::fs::File,
    desk: Desk,
    /// The warden's end of its socket.
    _warden: OwnedFd,
}

impl FakeWorker {
    fn new(id: Uuid, fds: Vec<OwnedFd>) -> Self {
        let [vsock, console, orders] = <[OwnedFd; 3]>::try_from(fds).unwrap();
        let (warden, socket) = channel::pair().unwrap();
        Self {
            id,
            vsock: UnixListener::from(vsock),
            console: console.into(),
            desk: Desk::new(socket, orders),
            _warden: warden,
        }
    }

    fn order(&mut self) -> (Order, Vec<OwnedFd>) {
        match self.desk.wait().unwrap() {
            Heard::Order(order, fds) => (order, fds),
            Heard::End => panic!("the warden is gone"),
        }
    }

    /// Takes the next order and says that it is done.
    fn carry_out(&mut self) -> (Order, Vec<OwnedFd>) {
        let taken = self.order();
        let steps = vec![("inner".to_owned(), 1)];
        self.desk.answer(&Answer::Done { steps });
        taken
    }

    /// Plays the device: joins the host's next `LISTEN` with the guest, which this test is.
    fn control(&self) -> UnixStream {
        let (stream, line) = self.accept();
        assert_eq!(line, "LISTEN 1024");
        answer(stream)
    }

    fn accept(&self) -> (UnixStream, String) {
        use std::io::Read as _;
        let (mut stream, _) = self.vsock.accept().unwrap();
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            match byte {
                [b'\n'] => return (stream, String::from_utf8(line).unwrap()),
                [byte] => line.push(byte),
            }
        }
    }
}

fn answer(mut stream: UnixStream) -> UnixStream {
    use std::io::Write as _;
    stream.write_all(b"OK 40000\n").unwrap();
    stream
}

fn say(stream: &mut UnixStream, message: &GuestMessage) {
    wire::write_frame(stream, message).unwrap();
}

fn hello(stream: &mut UnixStream) {
    say(
        stream,
        &GuestMessage::Hello {
            version: wire::VERSION,
            uptime_us: 1,
        },
    );
}

fn hear(stream: &mut UnixStream) -> HostMessage {
    wire::read_frame(stream).unwrap()
}

fn identity(stream: &mut UnixStream) -> Identity {
    match hear(stream) {
        HostMessage::Renew(identity) => *identity,
        other => panic!("{other:?} and no identity"),
    }
}

/// From the agent's first word until it has its identity.
fn renew(stream: &mut UnixStream) -> Identity {
    hello(stream);
    let identity = identity(stream);
    say(stream, &GuestMessage::Renewed);
    identity
}

fn started(stream: &mut UnixStream) -> ContainerSpec {
    match hear(stream) {
        HostMessage::Start(spec) => *spec,
        other => panic!("{other:?} and no start"),
    }
}

fn guest() -> Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::unpack().unwrap()).clone()
}

struct Setting {
    host: WorkerHost,
    client: WardenClient,
    root: tempfile::TempDir,
}

impl Setting {
    /// Without spares. Runs `warden` on a thread of its own.
    fn new(warden: impl FnOnce(FakeWarden) + Send + 'static) -> Self {
        let settings = Settings {
            spares: 0,
            parallel_starts: 4,
        };
        Self::with(settings, warden)
    }

    fn with(settings: Settings, warden: impl FnOnce(FakeWarden) + Send + 'static) -> Self {
        Self::in_root(tempfile::tempdir().unwrap(), settings, warden)
    }

    fn in_root(
        root: tempfile::TempDir,
        settings: Settings,
        warden: impl FnOnce(FakeWarden) + Send + 'static,
    ) -> Self {
        let paths = Paths::under(root.path()).unwrap();
        std::fs::create_dir_all(&paths.run).unwrap();
        std::fs::create_dir_all(&paths.disks).unwrap();
        let (ours, socket) = channel::pair().unwrap();
        let passed = VecDeque::new();
        std::thread::spawn(move || warden(FakeWarden { socket, passed }));
        let client = WardenClient::start(ours).unwrap();
        Self {
            host: WorkerHost::new(client.clone(), guest(), paths, settings).unwrap(),
            client,
            root,
        }
    }

    /// Until everything that the warden said before has been heard by whom it concerns.
    async fn settle(&self) {
        assert_eq!(self.client.usage(Uuid::nil()).await, None);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    async fn launch(&self) -> Result<(Worker, mpsc::Receiver<WorkerEvent>), LaunchError> {
        self.launch_as(boot(), session(ForkPoint::BeforeStart))
            .await
    }

    async fn launch_as(
        &self,
        source: Source,
        purpose: Purpose,
    ) -> Result<(Worker, mpsc::Receiver<WorkerEvent>), LaunchError> {
        timeout(DEADLINE, self.host.launch(request(source, purpose)))
            .await
            .expect("the launch never ended")
    }

    fn folders(&self) -> usize {
        let workers = Paths::under(self.root.path()).unwrap().workers;
        std::fs::read_dir(workers).unwrap().count()
    }
}

/// Of every guest that is launched here.
const LIMITS: RateLimits = RateLimits {
    disk_bytes_per_second: None,
    disk_iops: std::num::NonZeroU64::new(700),
    stream_bytes_per_second: None,
};

fn request(source: Source, purpose: Purpose) -> LaunchRequest {
    LaunchRequest {
        source,
        vcpus: 1,
        cpu_millis: 250,
        limits: LIMITS,
        mem_mib: 128,
        purpose,
        urgency: Urgency::Claim,
    }
}

fn boot() -> Source {
    Source::Boot {
        root_image: tempfile::tempfile().unwrap(),
        disk_bytes: DISK_BYTES,
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        argv: vec!["/x".to_owned()],
        ..ContainerSpec::default()
    }
}

fn session(point: ForkPoint) -> Purpose {
    Purpose::Session {
        container: container(),
        point,
    }
}

async fn next(events: &mut mpsc::Receiver<WorkerEvent>) -> WorkerEvent {
    timeout(DEADLINE, events.recv())
        .await
        .expect("no event came")
        .expect("the events ended")
}

/// The names of the next events.
async fn names(events: &mut mpsc::Receiver<WorkerEvent>, count: usize) -> Vec<&'static str> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(match next(events).await {
            WorkerEvent::Booted { .. } => "booted",
            WorkerEvent::Renewed { .. } => "renewed",
            WorkerEvent::Started => "started",
            WorkerEvent::Ready => "ready",
            WorkerEvent::Held => "held",
            WorkerEvent::ContainerExited(_) => "exited",
            WorkerEvent::StartFailed { .. } => "failed",
            WorkerEvent::Gone(_) => "gone",
        });
    }
    names
}

async fn gone(events: &mut mpsc::Receiver<WorkerEvent>) -> WorkerExit {
    loop {
        if let WorkerEvent::Gone(exit) = next(events).await {
            assert!(
                events.recv().await.is_none(),
                "something came after the end"
            );
            return exit;
        }
    }
}

async fn start_failed(events: &mut mpsc::Receiver<WorkerEvent>) -> String {
    loop {
        match next(events).await {
            WorkerEvent::StartFailed { message } => return message,
            WorkerEvent::Gone(exit) => panic!("no failure, only {exit}"),
            _ => {}
        }
    }
}
