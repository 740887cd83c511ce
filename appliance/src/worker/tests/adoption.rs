//! Workers that an earlier appliance has left.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tempfile::TempDir;
use wire::Exit;

use super::*;
use crate::exit::chain;
use crate::worker::notes::{self, Noted};
use crate::worker::{ConnectError, Leftover};

const NOBODY: Settings = Settings {
    spares: 0,
    parallel_starts: 4,
};
const GRACE: Duration = Duration::from_secs(1);

/// A worker that runs already, as a warden before this one has spawned it.
struct Running {
    id: Uuid,
    folder: PathBuf,
    worker: FakeWorker,
}

impl Running {
    fn below(root: &Path) -> Self {
        let id = Uuid::new_v4();
        let workers = Paths::under(root).unwrap().workers;
        let folder = workers.join(id.simple().to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let vsock = UnixListener::bind(folder.join("vsock.sock")).unwrap();
        let console = std::fs::File::create_new(folder.join("console.log")).unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let orders =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let address = SocketAddrUnix::new(folder.join("orders.sock")).unwrap();
        rustix::net::bind(&orders, &address).unwrap();
        rustix::net::listen(&orders, 4).unwrap();
        let fds = vec![vsock.into(), console.into(), orders];
        let worker = FakeWorker::new(id, fds);
        Self { id, folder, worker }
    }
}

impl FakeWarden {
    fn adopt(&mut self) -> Uuid {
        match self.next() {
            Request::Adopt { id } => {
                self.tell(&Event::Adopted { id });
                id
            }
            other => panic!("{other:?} and no adoption"),
        }
    }
}

fn root() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// As an agent does whose stream broke. The host says that the guest is what it was.
fn say_hello(stream: &mut UnixStream, version: u16) {
    let uptime_us = 1;
    say(stream, &GuestMessage::Hello { version, uptime_us });
    assert_eq!(hear(stream), HostMessage::Continue);
}

#[tokio::test]
async fn worker_is_taken_over_with_its_folder_used_at_once_and_stopped_in_order() {
    let root = root();
    let running = Running::below(root.path());
    let id = running.id;
    notes::ready(&running.folder, b"what it is").unwrap();
    notes::leased(&running.folder).unwrap();
    std::fs::write(running.folder.join("console.log"), "kernel\n").unwrap();
    let setting = Setting::in_root(root, NOBODY, move |mut warden| {
        assert_eq!(warden.adopt(), id);
        // Whoever connects need not wait for the agent.
        let (control, line) = running.worker.accept();
        assert_eq!(line, "LISTEN 1024");
        let (stream, line) = running.worker.accept();
        assert_eq!(line, "CONNECT 1025");
        drop(answer(stream));
        let mut control = answer(control);
        say_hello(&mut control, wire::VERSION);
        say(&mut control, &GuestMessage::Started { pid: 7 });
        say(&mut control, &GuestMessage::Ready);
        assert_eq!(hear(&mut control), HostMessage::Stop { grace_ms: 1000 });
        let exit = Exit::Signal(15);
        say(&mut control, &GuestMessage::Exited(exit.into()));
        drop((control, running.worker));
        let status = Status::Unknown;
        let report = None;
        warden.tell(&Event::Exited { id, status, report });
        warden.stay();
    });
    let leftover = Leftover {
        worker: id,
        noted: Noted::Leased,
        note: b"what it is".to_vec(),
    };
    assert_eq!(setting.host.leftovers(), [leftover]);
    let (worker, mut events) = setting.host.adopt(id).await.unwrap();
    assert_eq!(worker.id(), id);
    assert_eq!(worker.console_tail(), ["kernel"]);
    timeout(DEADLINE, worker.connect()).await.unwrap().unwrap();
    timeout(DEADLINE, worker.stop(GRACE)).await.unwrap();
    assert_eq!(names(&mut events, 1).await, ["exited"]);
    let exit = gone(&mut events).await;
    assert_eq!(exit, WorkerExit::Died(Status::Unknown));
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn stop_that_comes_before_the_agent_is_back_waits_for_it() {
    let root = root();
    let running = Running::below(root.path());
    let id = running.id;
    let (stopping, stopped) = std::sync::mpsc::channel();
    let setting = Setting::in_root(root, NOBODY, move |mut warden| {
        warden.adopt();
        let (control, _) = running.worker.accept();
        stopped.recv().unwrap();
        let mut control = answer(control);
        say_hello(&mut control, wire::VERSION);
        assert_eq!(hear(&mut control), HostMessage::Stop { grace_ms: 1000 });
        drop((control, running.worker));
        warden.end(id, POWER_OFF);
        warden.stay();
    });
    let (worker, mut events) = setting.host.adopt(id).await.unwrap();
    let stop = worker.stop(GRACE);
    let hello = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        stopping.send(()).unwrap();
    };
    timeout(DEADLINE, async { tokio::join!(stop, hello) })
        .await
        .unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
}

#[tokio::test(start_paused = true)]
async fn adopted_guest_whose_agent_never_comes_back_is_killed_when_it_is_stopped_and_not_before() {
    let root = root();
    let running = Running::below(root.path());
    let id = running.id;
    let setting = Setting::in_root(root, NOBODY, move |mut warden| {
        warden.adopt();
        assert_eq!(warden.killed(), id);
        warden.end(id, None);
        warden.stay();
        drop(running);
    });
    let (worker, mut events) = setting.host.adopt(id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(events.try_recv().is_err());
    worker.stop(GRACE).await;
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn agents_of_older_and_newer_versions_are_kept_and_commands_refused_where_they_cannot_be_run()
{
    for (version, refused) in [(2, true), (99, false)] {
        let root = root();
        let running = Running::below(root.path());
        let id = running.id;
        let (heard, hears) = std::sync::mpsc::channel();
        let setting = Setting::in_root(root, NOBODY, move |mut warden| {
            warden.adopt();
            let mut control = running.worker.control();
            say_hello(&mut control, version);
            // What this version says beside it is nothing that we know.
            let unknown = br#"{"type":"moodSwing","grade":7}"#;
            let length = u32::try_from(unknown.len()).unwrap().to_le_bytes();
            std::io::Write::write_all(&mut control, &[&length[..], unknown].concat()).unwrap();
            let exit = Exit::Code(0);
            hears.recv().unwrap();
            // Requests are forwarded to it as to any other.
            let (stream, line) = running.worker.accept();
            assert_eq!(line, "CONNECT 1025");
            drop(answer(stream));
            if !refused {
                let (stream, line) = running.worker.accept();
                assert_eq!(line, "CONNECT 1027");
                drop(answer(stream));
            }
            say(&mut control, &GuestMessage::Exited(exit.into()));
            warden.stay();
            drop(running.worker);
        });
        let (worker, mut events) = setting.host.adopt(id).await.unwrap();
        timeout(DEADLINE, worker.wait_for_version()).await.unwrap();
        heard.send(()).unwrap();
        timeout(DEADLINE, worker.connect()).await.unwrap().unwrap();
        let exec = timeout(DEADLINE, worker.connect_exec()).await.unwrap();
        if refused {
            let error = exec.unwrap_err();
            assert!(matches!(error, ConnectError::TooOld { .. }), "{error:?}");
            assert!(chain(&error).contains("version 2"), "{error}");
        } else {
            exec.unwrap();
        }
        assert_eq!(names(&mut events, 1).await, ["exited"], "{version}");
    }
}

#[tokio::test]
async fn what_nobody_takes_over_is_removed_when_the_appliance_has_settled() {
    let root = root();
    let (kept, left) = (Running::below(root.path()), Running::below(root.path()));
    let (kept_id, left_id) = (kept.id, left.id);
    let (settled, is_settled) = std::sync::mpsc::channel();
    let setting = Setting::in_root(root, NOBODY, move |mut warden| {
        assert_eq!(warden.adopt(), kept_id);
        let Request::Adopt { id } = warden.next() else {
            panic!("no adoption")
        };
        warden.tell(&Event::AdoptFailed {
            id,
            message: "its process is another one".to_owned(),
        });
        assert_eq!(warden.next(), Request::Settled);
        settled.send(()).unwrap();
        warden.stay();
        drop((kept, left));
    });
    let (_worker, _events) = setting.host.adopt(kept_id).await.unwrap();
    let error = setting.host.adopt(left_id).await.unwrap_err();
    assert!(chain(&error).contains("another one"), "{error}");
    assert_eq!(setting.folders(), 2);
    setting.host.settled().await;
    tokio::task::spawn_blocking(move || is_settled.recv_timeout(DEADLINE).unwrap())
        .await
        .unwrap();
    assert_eq!(setting.folders(), 1);
}
