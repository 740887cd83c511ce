//! What guests are led to: forks, goldens, trials.

use std::fs::File;

use super::*;
use crate::warden::protocol::Usage;
use crate::worker::launch::{SaveFiles, Snapshot, WorkingSet};
use crate::worker::orders::FirstPages;

const ALL: [FirstPages; 3] = [
    FirstPages::AsNeeded,
    FirstPages::Prefetched,
    FirstPages::Recorded,
];

/// Files of a snapshot, opened as a golden's are.
fn snapshot(first_pages: FirstPages) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, name).unwrap();
        File::open(path).unwrap()
    };
    Snapshot {
        state: file("state"),
        memory: file("memory"),
        disk: file("disk"),
        working_set: match first_pages {
            FirstPages::AsNeeded => WorkingSet::Unknown,
            FirstPages::Prefetched => WorkingSet::Known(file("working-set")),
            FirstPages::Recorded => WorkingSet::Wanted,
        },
        disk_bytes: DISK_BYTES,
    }
}

fn fork(first_pages: FirstPages) -> Source {
    Source::Fork {
        snapshot: snapshot(first_pages),
        root_image: tempfile::tempfile().unwrap(),
    }
}

fn ends(mut warden: FakeWarden, worker: FakeWorker, guest: UnixStream) {
    let id = warden.killed();
    assert_eq!(id, worker.id);
    drop((guest, worker));
    warden.end(id, None);
    warden.stay();
}

#[tokio::test]
async fn fork_gets_the_snapshot_and_an_empty_disk_of_its_size() {
    let setting = Setting::new(|mut warden| {
        for first_pages in ALL {
            use std::os::unix::fs::MetadataExt as _;
            let mut worker = warden.spawn();
            let spec = warden.shape(&worker);
            let (order, fds) = worker.carry_out();
            assert_eq!(order, Order::Restore { spec, first_pages });
            let metadata = File::from(fds.into_iter().nth(4).unwrap())
                .metadata()
                .unwrap();
            assert_eq!((metadata.len(), metadata.blocks()), (DISK_BYTES, 0));
            let id = warden.killed();
            drop(worker);
            warden.end(id, None);
        }
        warden.stay();
    });
    for first_pages in ALL {
        let (worker, _events) = setting
            .launch_as(fork(first_pages), Purpose::Trial)
            .await
            .unwrap();
        timeout(DEADLINE, worker.kill()).await.unwrap();
    }
    assert_eq!(setting.folders(), 0);
}

#[tokio::test]
async fn snapshot_that_could_be_written_to_is_not_handed_to_a_worker() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.spawn();
        warden.shape(&worker);
        let id = warden.killed();
        drop(worker);
        warden.end(id, None);
        warden.stay();
    });
    let source = Source::Fork {
        snapshot: Snapshot {
            memory: tempfile::tempfile().unwrap(),
            ..snapshot(FirstPages::AsNeeded)
        },
        root_image: tempfile::tempfile().unwrap(),
    };
    let error = setting.launch_as(source, Purpose::Trial).await.unwrap_err();
    assert!(crate::exit::chain(&error).contains("Memory"), "{error}");
    assert!(!error.blames_snapshot());
}

#[tokio::test]
async fn fork_of_a_frozen_container_is_renewed_and_not_started() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut guest = worker.control();
        hello(&mut guest);
        say(&mut guest, &GuestMessage::Started { pid: 1 });
        say(&mut guest, &GuestMessage::Ready);
        // Renewing thaws it.
        warden.limited(&worker);
        identity(&mut guest);
        say(&mut guest, &GuestMessage::Renewed);
        assert!(matches!(hear(&mut guest), HostMessage::Stop { .. }));
        let id = worker.id;
        drop((guest, worker));
        warden.end(id, POWER_OFF);
        warden.stay();
    });
    let (worker, mut events) = setting
        .launch_as(fork(FirstPages::Prefetched), session(ForkPoint::AfterReady))
        .await
        .unwrap();
    assert_eq!(
        names(&mut events, 4).await,
        ["booted", "renewed", "started", "ready"]
    );
    timeout(DEADLINE, worker.stop(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn two_forks_get_different_identities_and_the_time_of_their_own() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let setting = Setting::new(move |mut warden| {
        for _ in 0..2 {
            let worker = warden.start();
            let mut guest = worker.control();
            sender.send(renew(&mut guest)).unwrap();
            let id = worker.id;
            drop((guest, worker));
            warden.end(id, POWER_OFF);
        }
        warden.stay();
    });
    let mut identities = Vec::new();
    for _ in 0..2 {
        let (_worker, mut events) = setting
            .launch_as(
                fork(FirstPages::Prefetched),
                session(ForkPoint::BeforeStart),
            )
            .await
            .unwrap();
        assert_eq!(names(&mut events, 2).await, ["booted", "renewed"]);
        identities.push(receiver.recv_timeout(DEADLINE).unwrap());
        gone(&mut events).await;
    }
    let [first, second] = &identities[..] else {
        panic!("two were sent")
    };
    assert_ne!(first.seed, second.seed);
    assert_ne!(first.hostname, second.hostname);
    assert_ne!(first.machine_id, second.machine_id);
    assert_ne!(first.boot_id, second.boot_id);
    assert!(first.unix_time_ns < second.unix_time_ns);
}

#[tokio::test]
async fn guest_that_cannot_be_renewed_is_killed() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut guest = worker.control();
        hello(&mut guest);
        identity(&mut guest);
        say(
            &mut guest,
            &GuestMessage::Failed {
                message: "RNDRESEEDCRNG: no".to_owned(),
            },
        );
        say(&mut guest, &GuestMessage::Renewed);
        say(&mut guest, &GuestMessage::Ready);
        ends(warden, worker, guest);
    });
    let (_worker, mut events) = setting
        .launch_as(
            fork(FirstPages::Prefetched),
            session(ForkPoint::BeforeStart),
        )
        .await
        .unwrap();
    let message = start_failed(&mut events).await;
    assert!(message.contains("RNDRESEEDCRNG"), "{message}");
    assert_eq!(names(&mut events, 1).await, ["gone"], "it was believed");
}

#[tokio::test]
async fn guest_that_claims_to_be_ready_before_it_is_renewed_is_killed() {
    for source in [boot(), fork(FirstPages::Prefetched)] {
        let setting = Setting::new(|mut warden| {
            let worker = warden.start();
            let mut guest = worker.control();
            hello(&mut guest);
            say(&mut guest, &GuestMessage::Ready);
            ends(warden, worker, guest);
        });
        let (_worker, mut events) = setting
            .launch_as(source, session(ForkPoint::BeforeStart))
            .await
            .unwrap();
        start_failed(&mut events).await;
        assert_eq!(names(&mut events, 1).await, ["gone"]);
    }
}

#[tokio::test]
async fn guest_that_never_answers_its_identity_is_killed() {
    let (heard, was_heard) = tokio::sync::oneshot::channel();
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut guest = worker.control();
        hello(&mut guest);
        identity(&mut guest);
        heard.send(()).unwrap();
        ends(warden, worker, guest);
    });
    let (_worker, mut events) = setting
        .launch_as(
            fork(FirstPages::Prefetched),
            session(ForkPoint::BeforeStart),
        )
        .await
        .unwrap();
    assert_eq!(names(&mut events, 1).await, ["booted"]);
    was_heard.await.unwrap();
    // From here on time jumps to the next timer, which is the limit.
    tokio::time::pause();
    let Some(WorkerEvent::StartFailed { message }) = events.recv().await else {
        panic!("no failure")
    };
    assert!(message.contains("identity within 120 s"), "{message}");
    tokio::time::resume();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn golden_before_the_start_stands_still_and_can_be_paused_saved_and_killed() {
    let setting = Setting::new(|mut warden| {
        let mut worker = warden.start();
        let mut guest = worker.control();
        hello(&mut guest);
        assert_eq!(hear(&mut guest), HostMessage::Freeze);
        say(&mut guest, &GuestMessage::Frozen);
        assert_eq!(worker.carry_out().0, Order::Pause);
        let (order, fds) = worker.carry_out();
        assert_eq!((order, fds.len()), (Order::Save, 3));
        let Request::Usage { id } = warden.next() else {
            panic!("not asked for its memory")
        };
        let usage = Some(Usage {
            rss: 4,
            pss: 3,
            private: 2,
            anonymous: 1,
            cpu_ns: None,
        });
        warden.tell(&Event::Usage { id, usage });
        assert_eq!(worker.carry_out().0, Order::Resume);
        assert_eq!(warden.killed(), worker.id, "it was told something");
        guest.set_nonblocking(true).unwrap();
        let silence = wire::read_frame::<HostMessage>(&mut guest);
        assert!(silence.is_err(), "{silence:?}");
        let id = worker.id;
        drop((guest, worker));
        warden.end(id, None);
        warden.stay();
    });
    let purpose = Purpose::Golden {
        point: ForkPoint::BeforeStart,
        container: container(),
    };
    let (worker, mut events) = setting.launch_as(boot(), purpose).await.unwrap();
    assert_eq!(names(&mut events, 2).await, ["booted", "held"]);
    worker.pause().await.unwrap();
    let file = || tempfile::tempfile().unwrap();
    let files = SaveFiles {
        state: file(),
        memory: file(),
        disk: file(),
    };
    worker.save(files).await.unwrap();
    assert_eq!(worker.usage().await.unwrap().private, 2);
    worker.resume().await.unwrap();
    timeout(DEADLINE, worker.stop(Duration::from_secs(60)))
        .await
        .unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn golden_after_ready_is_started_frozen_and_held() {
    let setting = Setting::new(|mut warden| {
        let worker = warden.start();
        let mut guest = worker.control();
        renew(&mut guest);
        warden.limited(&worker);
        assert_eq!(started(&mut guest).argv, ["/x"]);
        say(&mut guest, &GuestMessage::Started { pid: 1 });
        say(&mut guest, &GuestMessage::Ready);
        assert_eq!(hear(&mut guest), HostMessage::Freeze);
        say(&mut guest, &GuestMessage::Frozen);
        ends(warden, worker, guest);
    });
    let purpose = Purpose::Golden {
        point: ForkPoint::AfterReady,
        container: container(),
    };
    let (worker, mut events) = setting.launch_as(boot(), purpose).await.unwrap();
    assert_eq!(
        names(&mut events, 4).await,
        ["booted", "renewed", "started", "ready"]
    );
    worker.freeze_when_ready().await;
    assert_eq!(names(&mut events, 1).await, ["held"]);
    drop(worker);
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}

#[tokio::test]
async fn trial_is_renewed_and_hears_nothing_else() {
    let setting = Setting::new(|mut warden| {
        let mut worker = warden.start();
        let mut guest = worker.control();
        hello(&mut guest);
        warden.limited(&worker);
        identity(&mut guest);
        say(&mut guest, &GuestMessage::Renewed);
        assert_eq!(worker.carry_out().0, Order::SaveWorkingSet);
        guest.set_nonblocking(true).unwrap();
        let silence = wire::read_frame::<HostMessage>(&mut guest);
        assert!(silence.is_err(), "{silence:?}");
        ends(warden, worker, guest);
    });
    let (worker, mut events) = setting
        .launch_as(fork(FirstPages::Recorded), Purpose::Trial)
        .await
        .unwrap();
    assert_eq!(names(&mut events, 2).await, ["booted", "renewed"]);
    let to = tempfile::tempfile().unwrap();
    worker.save_working_set(to).await.unwrap();
    timeout(DEADLINE, worker.kill()).await.unwrap();
    assert_eq!(gone(&mut events).await, WorkerExit::Stopped);
}
