//! Launches against a warden and a guest that are threads of the test.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;
use wire::{ContainerSpec, Exit, GuestMessage, HostMessage, Stream};

use super::exit::WorkerExit;
use super::handle::{ConnectError, LaunchError, LaunchRequest, Worker, WorkerEvent, WorkerHost};
use super::spec::WorkerFd;
use crate::config::Paths;
use crate::guest::Guest;
use crate::warden::channel;
use crate::warden::client::WardenClient;
use crate::warden::protocol::{Event, Request, Status};

const DEADLINE: Duration = Duration::from_secs(20);

/// The other end of the appliance's socket.
struct FakeWarden {
    socket: OwnedFd,
}

impl FakeWarden {
    fn next(&self) -> (Request, Vec<OwnedFd>) {
        let message = channel::receive(self.socket.as_fd(), false)
            .unwrap()
            .expect("no request");
        (Request::parse(&message).unwrap(), message.fds)
    }

    fn tell(&self, event: &Event) {
        let bytes = serde_json::to_vec(event).unwrap();
        channel::send(self.socket.as_fd(), &bytes, &[], false).unwrap();
    }

    /// Takes the request for a worker and says that it runs.
    fn spawn(&self) -> FakeWorker {
        let (Request::SpawnWorker { id, .. }, fds) = self.next() else {
            panic!("no spawn")
        };
        let [.., vsock, console] = <[OwnedFd; 6]>::try_from(fds).unwrap();
        self.tell(&Event::Spawned { id });
        FakeWorker {
            id,
            vsock: UnixListener::from(vsock),
            console: console.into(),
        }
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
}

/// What a worker lives on.
struct FakeWorker {
    id: Uuid,
    vsock: UnixListener,
    console: std::fs::File,
}

impl FakeWorker {
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

fn guest() -> Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::unpack().unwrap()).clone()
}

struct Setting {
    host: WorkerHost,
    root: tempfile::TempDir,
}

impl Setting {
    /// Runs `warden` on a thread of its own.
    fn new(warden: impl FnOnce(FakeWarden) + Send + 'static) -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        std::fs::create_dir_all(&paths.run).unwrap();
        std::fs::create_dir_all(&paths.disks).unwrap();
        let (ours, theirs) = channel::pair().unwrap();
        std::thread::spawn(move || warden(FakeWarden { socket: theirs }));
        let client = WardenClient::start(ours).unwrap();
        Self {
            host: WorkerHost::new(client, guest(), paths).unwrap(),
            root,
        }
    }

    async fn launch(&self) -> Result<(Worker, mpsc::Receiver<WorkerEvent>), LaunchError> {
        let request = LaunchRequest {
            id: Uuid::new_v4(),
            root_image: tempfile::tempfile().unwrap(),
            vcpus: 1,
            cpu_millis: 250,
            mem_mib: 128,
            container: ContainerSpec {
                argv: vec!["/x".to_owned()],
                ..ContainerSpec::default()
            },
        };
        timeout(DEADLINE, self.host.launch(request))
            .await
            .expect("the launch never ended")
    }

    fn folders(&self) -> usize {
        folders(self.root.path())
    }
}

fn folders(root: &Path) -> usize {
    std::fs::read_dir(Paths::under(root).unwrap().workers)
        .unwrap()
        .count()
}

async fn next(events: &mut mpsc::Receiver<WorkerEvent>) -> WorkerEvent {
    timeout(DEADLINE, events.recv())
        .await
        .expect("no event came")
        .expect("the events ended")
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

const POWER_OFF: Option<&str> = Some(r#"{"end":"powerOff"}"#);

#[tokio::test]
async fn life_of_a_worker_is_told_in_order_and_nothing_is_left_at_its_end() {
    let setting = Setting::new(|warden| {
        let worker = warden.spawn();
        let mut guest = worker.control();
        hello(&mut guest);
        assert!(matches!(warden.next().0, Request::LimitCpu { id } if id == worker.id));
        let HostMessage::Start(spec) = hear(&mut guest) else {
            panic!("no start")
        };
        assert_eq!(spec.argv, ["/x"]);
        assert_ne!(spec.unix_time_ns, 0);
        say(&mut guest, &GuestMessage::Started { pid: 7 });
        say(
            &mut guest,
            &GuestMessage::Output {
                stream: Stream::Stdout,
                line: "up".into(),
            },
        );
        say(&mut guest, &GuestMessage::Ready);
        assert_eq!(hear(&mut guest), HostMessage::Stop { grace_ms: 1000 });
        say(
            &mut guest,
            &GuestMessage::Exited {
                exit: Exit::Signal(15),
            },
        );
        drop((guest, worker.vsock));
        warden.end(worker.id, POWER_OFF);
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    assert!(matches!(
        next(&mut events).await,
        WorkerEvent::Booted { .. }
    ));
    assert!(matches!(next(&mut events).await, WorkerEvent::Started));
    assert!(matches!(next(&mut events).await, WorkerEvent::Ready));
    assert_eq!(worker.console_tail(), ["up"]);
    assert_eq!(setting.folders(), 1);
    timeout(DEADLINE, worker.stop(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(setting.folders(), 0);
    let exited = next(&mut events).await;
    assert!(
        matches!(exited, WorkerEvent::ContainerExited(Exit::Signal(15))),
        "{exited:?}"
    );
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
    assert!(matches!(worker.connect().await, Err(ConnectError::Gone)));
}

#[tokio::test]
async fn refused_spawn_is_an_error_and_leaves_nothing() {
    let setting = Setting::new(|warden| {
        let (Request::SpawnWorker { id, .. }, fds) = warden.next() else {
            panic!("no spawn")
        };
        assert_eq!(fds.len(), WorkerFd::FROM_APPLIANCE.len());
        warden.tell(&Event::SpawnFailed {
            id,
            message: "no room".to_owned(),
        });
        // Stays until the appliance goes, as a warden does.
        let _ = channel::receive(warden.socket.as_fd(), false);
    });
    let error = setting.launch().await.unwrap_err();
    assert!(crate::exit::chain(&error).contains("no room"), "{error}");
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn worker_that_is_stopped_before_its_agent_answers_is_killed() {
    let setting = Setting::new(|warden| {
        let worker = warden.spawn();
        let (Request::Kill { id }, _) = warden.next() else {
            panic!("no kill")
        };
        assert_eq!(id, worker.id);
        drop(worker.vsock);
        warden.end(id, None);
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    timeout(DEADLINE, worker.stop(Duration::from_secs(60)))
        .await
        .unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn worker_that_nobody_holds_any_more_is_killed() {
    let (killed, wait) = tokio::sync::oneshot::channel();
    let setting = Setting::new(|warden| {
        let worker = warden.spawn();
        let _ = killed.send(matches!(warden.next().0, Request::Kill { id } if id == worker.id));
    });
    drop(setting.launch().await.unwrap());
    assert!(
        timeout(DEADLINE, wait)
            .await
            .expect("it was not killed")
            .unwrap()
    );
}

#[tokio::test]
async fn launch_that_nobody_waits_for_any_more_leaves_no_worker() {
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let (go, may_go) = std::sync::mpsc::channel();
    let (killed, wait) = tokio::sync::oneshot::channel();
    let setting = Setting::new(move |warden| {
        let (Request::SpawnWorker { id, .. }, _fds) = warden.next() else {
            panic!("no spawn")
        };
        asked.send(()).unwrap();
        may_go.recv().unwrap();
        warden.tell(&Event::Spawned { id });
        let killed_id = matches!(warden.next().0, Request::Kill { id: other } if other == id);
        let _ = killed.send(killed_id);
    });
    tokio::select! {
        _ = setting.launch() => panic!("the launch ended before the warden answered"),
        asked = was_asked => asked.unwrap(),
    }
    go.send(()).unwrap();
    assert!(
        timeout(DEADLINE, wait)
            .await
            .expect("it was not killed")
            .unwrap()
    );
}

#[tokio::test]
async fn guest_that_repeats_itself_is_believed_once() {
    let setting = Setting::new(|warden| {
        let worker = warden.spawn();
        let mut guest = worker.control();
        for _ in 0..100 {
            hello(&mut guest);
            say(&mut guest, &GuestMessage::Started { pid: 1 });
            say(&mut guest, &GuestMessage::Ready);
            say(
                &mut guest,
                &GuestMessage::Failed {
                    message: "a\nb".to_owned(),
                },
            );
            say(
                &mut guest,
                &GuestMessage::Exited {
                    exit: Exit::Code(0),
                },
            );
        }
        assert!(matches!(warden.next().0, Request::LimitCpu { .. }));
        assert!(matches!(hear(&mut guest), HostMessage::Start(_)));
        drop((guest, worker.vsock));
        warden.end(worker.id, POWER_OFF);
    });
    let (_worker, mut events) = setting.launch().await.unwrap();
    assert!(matches!(
        next(&mut events).await,
        WorkerEvent::Booted { .. }
    ));
    assert!(matches!(next(&mut events).await, WorkerEvent::Started));
    assert!(matches!(next(&mut events).await, WorkerEvent::Ready));
    let WorkerEvent::StartFailed { message } = next(&mut events).await else {
        panic!("no failure")
    };
    assert!(!message.contains('\n'), "{message:?}");
    assert!(matches!(
        next(&mut events).await,
        WorkerEvent::Gone(WorkerExit::PowerOff)
    ));
}

#[tokio::test]
async fn guest_that_sends_a_frame_of_gigabytes_is_killed() {
    let setting = Setting::new(|warden| {
        use std::io::Write as _;
        let worker = warden.spawn();
        let mut guest = worker.control();
        guest.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let (Request::Kill { id }, _) = warden.next() else {
            panic!("no kill")
        };
        drop((guest, worker.vsock));
        warden.end(id, None);
    });
    let (_worker, mut events) = setting.launch().await.unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn agent_that_comes_back_is_not_told_to_start_again() {
    let setting = Setting::new(|warden| {
        let worker = warden.spawn();
        let mut first = worker.control();
        hello(&mut first);
        assert!(matches!(warden.next().0, Request::LimitCpu { .. }));
        assert!(matches!(hear(&mut first), HostMessage::Start(_)));
        drop(first);
        let mut second = worker.control();
        hello(&mut second);
        say(&mut second, &GuestMessage::Started { pid: 1 });
        // The next thing it hears is the end.
        assert_eq!(hear(&mut second), HostMessage::Stop { grace_ms: 0 });
        drop((second, worker.vsock));
        warden.end(worker.id, POWER_OFF);
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    assert!(matches!(
        next(&mut events).await,
        WorkerEvent::Booted { .. }
    ));
    assert!(matches!(next(&mut events).await, WorkerEvent::Started));
    timeout(DEADLINE, worker.stop(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
}

#[tokio::test]
async fn kernel_panic_is_told_with_its_line_and_the_serial_console_is_the_tail() {
    let setting = Setting::new(|warden| {
        use std::io::Write as _;
        let mut worker = warden.spawn();
        worker
            .console
            .write_all(b"booting\r\nKernel panic - not syncing: oops\r\n")
            .unwrap();
        drop(worker.vsock);
        warden.end(worker.id, Some(r#"{"end":"reset"}"#));
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    let exit = gone(&mut events).await;
    assert_eq!(
        exit,
        WorkerExit::GuestPanic("Kernel panic - not syncing: oops".to_owned())
    );
    assert_eq!(worker.console_tail().len(), 2);
}

#[tokio::test]
async fn stream_to_the_container_is_raw_after_the_answer_and_a_closed_one_is_a_refusal() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let setting = Setting::new(|warden| {
        use std::io::{Read as _, Write as _};
        let worker = warden.spawn();
        let control = worker.control();
        let (stream, line) = worker.accept();
        assert_eq!(line, "CONNECT 1025");
        let mut stream = answer(stream);
        stream.write_all(b"first").unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert_eq!(got, "request");
        stream.write_all(b" last").unwrap();
        drop(stream);
        drop(worker.accept());
        drop((control, worker.vsock));
        warden.end(worker.id, POWER_OFF);
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    let mut stream = timeout(DEADLINE, worker.connect()).await.unwrap().unwrap();
    stream.write_all(b"request").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, "first last");
    let refused = timeout(DEADLINE, worker.connect()).await.unwrap();
    assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
}

#[tokio::test]
async fn warden_that_dies_ends_every_worker() {
    let setting = Setting::new(|warden| drop(warden.spawn()));
    let (_worker, mut events) = setting.launch().await.unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::WardenGone);
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn impossible_shape_is_refused_before_anything_is_made() {
    let setting = Setting::new(|warden| {
        let end = channel::receive(warden.socket.as_fd(), false).unwrap();
        assert!(end.is_none(), "the warden was asked");
    });
    let request = LaunchRequest {
        id: Uuid::new_v4(),
        root_image: tempfile::tempfile().unwrap(),
        vcpus: 0,
        cpu_millis: 250,
        mem_mib: 128,
        container: ContainerSpec::default(),
    };
    let error = setting.host.launch(request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Shape(_)), "{error}");
    assert_eq!(setting.folders(), 0);
}
