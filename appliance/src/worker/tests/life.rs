//! From the launch of a worker to its end.

use wire::{Exit, Stream};

use super::*;
use crate::warden::protocol::Ending;
use crate::worker::ConnectError;

#[tokio::test]
async fn life_of_a_worker_is_told_in_order_and_nothing_is_left_at_its_end() {
    let setting = Setting::new(|mut warden| {
        let mut worker = warden.spawn();
        let spec = warden.shape(&worker);
        assert_eq!((spec.vcpus, spec.cpu_millis, spec.mem_mib), (1, 250, 128));
        assert_eq!(spec.limits, LIMITS);
        let (order, fds) = worker.carry_out();
        assert_eq!(order, Order::Boot { spec });
        let scratch = std::fs::File::from(fds.into_iter().next_back().unwrap());
        assert_eq!(scratch.metadata().unwrap().len(), DISK_BYTES);
        let mut guest = worker.control();
        let identity = renew(&mut guest);
        let name = worker.id.simple().to_string();
        assert_eq!(identity.hostname, format!("session-{}", &name[..12]));
        // Before anything of the tenant's runs.
        warden.limited(&worker);
        assert_eq!(started(&mut guest).argv, ["/x"]);
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
        say(&mut guest, &GuestMessage::Exited(Exit::Signal(15).into()));
        let id = worker.id;
        drop((guest, worker));
        warden.end(id, POWER_OFF);
        warden.stay();
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    let WorkerEvent::Booted { elapsed, steps } = next(&mut events).await else {
        panic!("not booted")
    };
    let sum: Duration = steps.iter().map(|(_, time)| *time).sum();
    assert_eq!(sum, elapsed, "{steps:?}");
    assert!(steps.iter().any(|(name, _)| name == "inner"), "{steps:?}");
    assert_eq!(names(&mut events, 3).await, ["renewed", "started", "ready"]);
    assert_eq!(worker.console_tail(), ["up"]);
    assert_eq!(setting.folders(), 1);
    timeout(DEADLINE, worker.stop(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(setting.folders(), 0);
    let exited = next(&mut events).await;
    assert!(
        matches!(&exited, WorkerEvent::ContainerExited(ending) if ending.exit == Exit::Signal(15)),
        "{exited:?}"
    );
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
    assert!(matches!(worker.connect().await, Err(ConnectError::Gone)));
}

#[tokio::test]
async fn refused_spawn_is_an_error_and_leaves_nothing() {
    let setting = Setting::new(|warden| {
        let Some((Request::SpawnWorker { id }, _fds)) = warden.receive() else {
            panic!("no spawn")
        };
        warden.tell(&Event::SpawnFailed {
            id,
            message: "no room".to_owned(),
        });
        warden.stay();
    });
    let error = setting.launch().await.unwrap_err();
    assert!(crate::exit::chain(&error).contains("no room"), "{error}");
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn refused_shape_or_order_is_an_error_and_the_worker_is_gone_before_it_is_told() {
    let setting = Setting::new(|mut warden| {
        let first = warden.spawn();
        let Request::Shape { id, .. } = warden.next() else {
            panic!("no shape")
        };
        warden.tell(&Event::ShapeFailed {
            id,
            message: "no room".to_owned(),
        });
        assert_eq!(warden.killed(), first.id);
        warden.end(first.id, None);

        let mut second = warden.spawn();
        warden.shape(&second);
        second.order();
        let message = "a bad file".to_owned();
        second.desk.answer(&Answer::Failed { message });
        assert_eq!(warden.killed(), second.id);
        warden.end(second.id, None);
        warden.stay();
    });
    for (expected, blamed) in [("no room", false), ("a bad file", true)] {
        let error = setting.launch().await.unwrap_err();
        assert!(crate::exit::chain(&error).contains(expected), "{error}");
        assert_eq!(error.blames_snapshot(), blamed, "{error}");
        assert_eq!(setting.folders(), 0);
    }
}

#[tokio::test]
async fn worker_that_dies_before_its_guest_runs_says_why() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.spawn();
        warden.shape(&worker);
        let id = worker.id;
        drop(worker);
        assert_eq!(warden.killed(), id);
        warden.end(id, Some(r#"{"end":"notStarted","what":"no KVM today"}"#));
        warden.stay();
    });
    let error = setting.launch().await.unwrap_err();
    assert!(
        crate::exit::chain(&error).contains("no KVM today"),
        "{error}"
    );
    assert!(!error.blames_snapshot());
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn worker_that_is_stopped_before_its_agent_answers_is_killed() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let id = warden.killed();
        assert_eq!(id, worker.id);
        drop(worker);
        warden.end(id, None);
        warden.stay();
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
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let _ = killed.send(warden.killed() == worker.id);
    });
    drop(setting.launch().await.unwrap());
    let killed = timeout(DEADLINE, wait).await.expect("it was not killed");
    assert!(killed.unwrap());
}

#[tokio::test]
async fn launch_that_nobody_waits_for_any_more_leaves_no_worker() {
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let (go, may_go) = std::sync::mpsc::channel();
    let (killed, wait) = tokio::sync::oneshot::channel();
    let setting = Setting::new(move |mut warden| {
        let Some((Request::SpawnWorker { id }, fds)) = warden.receive() else {
            panic!("no spawn")
        };
        asked.send(()).unwrap();
        may_go.recv().unwrap();
        warden.tell(&Event::Spawned { id });
        let mut worker = FakeWorker::new(id, fds);
        // It gets as far as that, since nothing tells the host how far it should.
        warden.shape(&worker);
        worker.carry_out();
        let right = warden.killed() == id;
        drop(worker);
        warden.end(id, None);
        let _ = killed.send(right);
        warden.stay();
    });
    tokio::select! {
        _ = setting.launch() => panic!("the launch ended before the warden answered"),
        asked = was_asked => asked.unwrap(),
    }
    go.send(()).unwrap();
    let killed = timeout(DEADLINE, wait).await.expect("it was not killed");
    assert!(killed.unwrap());
    timeout(DEADLINE, async {
        while setting.folders() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("its folder is still there");
}

#[tokio::test]
async fn guest_that_repeats_itself_is_believed_once() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut guest = worker.control();
        renew(&mut guest);
        for _ in 0..100 {
            hello(&mut guest);
            say(&mut guest, &GuestMessage::Renewed);
            say(&mut guest, &GuestMessage::Started { pid: 1 });
            say(&mut guest, &GuestMessage::Ready);
            say(
                &mut guest,
                &GuestMessage::Failed {
                    message: "a\nb".to_owned(),
                },
            );
            say(&mut guest, &GuestMessage::Exited(Exit::Code(0).into()));
        }
        warden.limited(&worker);
        started(&mut guest);
        let id = worker.id;
        drop((guest, worker));
        warden.end(id, POWER_OFF);
        warden.stay();
    });
    let (_worker, mut events) = setting.launch().await.unwrap();
    assert_eq!(
        names(&mut events, 4).await,
        ["booted", "renewed", "started", "ready"]
    );
    let message = start_failed(&mut events).await;
    assert!(!message.contains('\n'), "{message:?}");
    assert!(matches!(
        next(&mut events).await,
        WorkerEvent::Gone(WorkerExit::PowerOff)
    ));
}

#[tokio::test]
async fn guest_that_sends_a_frame_of_gigabytes_is_killed() {
    let setting = Setting::new(|mut warden| {
        use std::io::Write as _;
        let worker = warden.start();
        let mut guest = worker.control();
        guest.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let id = warden.killed();
        drop((guest, worker));
        warden.end(id, None);
        warden.stay();
    });
    let (_worker, mut events) = setting.launch().await.unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn agent_that_comes_back_is_not_told_to_start_again() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut first = worker.control();
        renew(&mut first);
        warden.limited(&worker);
        started(&mut first);
        drop(first);
        let mut second = worker.control();
        hello(&mut second);
        say(&mut second, &GuestMessage::Started { pid: 1 });
        // It hears that it is no fork, and then the end.
        assert_eq!(hear(&mut second), HostMessage::Continue);
        assert_eq!(hear(&mut second), HostMessage::Stop { grace_ms: 0 });
        let id = worker.id;
        drop((second, worker));
        warden.end(id, POWER_OFF);
        warden.stay();
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    assert_eq!(
        names(&mut events, 3).await,
        ["booted", "renewed", "started"]
    );
    timeout(DEADLINE, worker.stop(Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::PowerOff);
}

#[tokio::test]
async fn kernel_panic_is_told_with_its_line_and_the_serial_console_is_the_tail() {
    let setting = Setting::new(|mut warden| {
        use std::io::Write as _;
        let mut worker = warden.start();
        worker
            .console
            .write_all(b"booting\r\nKernel panic - not syncing: oops\r\n")
            .unwrap();
        let id = worker.id;
        drop(worker);
        warden.end(id, Some(r#"{"end":"reset"}"#));
        warden.stay();
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
    let setting = Setting::new(|mut warden| {
        use std::io::{Read as _, Write as _};
        let worker = warden.start();
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
        let id = worker.id;
        drop((control, worker));
        warden.end(id, POWER_OFF);
        warden.stay();
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
async fn warden_that_dies_ends_no_worker_and_removes_nothing_of_it() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        drop(warden);
        // The worker lives on, and whoever is there still can use it.
        let (stream, line) = worker.accept();
        assert_eq!(line, "LISTEN 1024");
        answer(worker.accept().0);
        drop(stream);
    });
    let (worker, mut events) = setting.launch().await.unwrap();
    let mut ending = setting.client.ending();
    timeout(
        DEADLINE,
        ending.wait_for(|how| *how == Some(Ending::Detach)),
    )
    .await
    .unwrap()
    .unwrap();
    worker.connect().await.unwrap();
    assert!(events.try_recv().is_err());
    drop((worker, events));
    tokio::task::yield_now().await;
    assert_eq!(setting.folders(), 1);
}

#[tokio::test]
async fn impossible_shape_is_refused_before_anything_is_made() {
    let setting = Setting::new(|warden| {
        assert!(warden.receive().is_none(), "the warden was asked");
    });
    let request = LaunchRequest {
        vcpus: 0,
        ..request(boot(), Purpose::Trial)
    };
    let error = setting.host.launch(request).await.unwrap_err();
    assert!(matches!(error, LaunchError::Shape(_)), "{error}");
    assert_eq!(setting.folders(), 0);
}
