//! Workers made ahead, and the limit on how many come up at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::warden::protocol::Ending;

fn settings(spares: usize, parallel_starts: usize) -> Settings {
    Settings {
        spares,
        parallel_starts,
    }
}

/// Waits until the host has so many worker folders.
async fn until_folders(setting: &Setting, count: usize) {
    timeout(DEADLINE, async {
        while setting.folders() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} folders, not {count}", setting.folders()));
}

#[tokio::test]
async fn spare_is_taken_and_another_one_is_made() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let setting = Setting::with(settings(1, 4), move |mut warden| {
        let mut spare = warden.spawn();
        sender.send(spare.id).unwrap();
        warden.settle();
        // The replacement is asked for at once, and nobody waits for it.
        let next = warden.spawn();
        sender.send(next.id).unwrap();
        warden.shape(&spare);
        spare.carry_out();
        warden.stay();
    });
    setting.settle().await;
    let made = receiver.recv_timeout(DEADLINE).unwrap();
    let (worker, _events) = setting.launch().await.unwrap();
    assert_eq!(worker.id(), made);
    let replacement = receiver.recv_timeout(DEADLINE).unwrap();
    assert_ne!(replacement, made);
    assert_eq!(setting.folders(), 2);
}

#[tokio::test]
async fn without_a_spare_a_worker_is_made_on_the_spot() {
    let setting = Setting::new(|mut warden| {
        let _first = warden.start();
        let _second = warden.start();
        warden.stay();
    });
    let (first, _events) = setting.launch().await.unwrap();
    let (second, _more) = setting.launch().await.unwrap();
    assert_ne!(first.id(), second.id());
    assert_eq!(setting.folders(), 2, "a spare was made");
}

#[tokio::test]
async fn burst_of_launches_comes_up_a_few_at_a_time() {
    const AT_ONCE: usize = 3;
    const BURST: usize = 20;
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let setting = Setting::with(settings(0, AT_ONCE), move |mut warden| {
        let mut rising = VecDeque::new();
        let mut up = Vec::new();
        while up.len() < BURST {
            // As many as come; the next one comes only when one of these is up.
            while rising.len() < AT_ONCE && up.len() + rising.len() < BURST {
                rising.push_back(warden.start());
                seen.fetch_max(rising.len(), Ordering::SeqCst);
            }
            assert!(
                !readable(&warden),
                "more than {AT_ONCE} came up at the same time"
            );
            let worker: FakeWorker = rising.pop_front().unwrap();
            let mut guest = worker.control();
            renew(&mut guest);
            started(&mut guest);
            warden.limited(&worker);
            up.push((worker, guest));
        }
        warden.stay();
    });
    let launches: Vec<_> = (0..BURST)
        .map(|_| {
            let host = setting.host.clone();
            tokio::spawn(async move {
                let purpose = session(ForkPoint::BeforeStart);
                host.launch(request(boot(), purpose)).await
            })
        })
        .collect();
    let mut workers = Vec::new();
    for launch in launches {
        let launched = timeout(DEADLINE, launch).await.expect("a launch hangs");
        workers.push(launched.unwrap().unwrap());
    }
    assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    assert_eq!(setting.folders(), BURST);
}

/// Whether something comes within a moment.
fn readable(warden: &FakeWarden) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    let mut fds = [PollFd::new(&warden.socket, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&moment)).unwrap() > 0
}

#[tokio::test]
async fn launch_given_up_before_its_turn_takes_no_worker() {
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let setting = Setting::with(settings(0, 1), move |mut warden| {
        let worker = warden.start();
        may_go.recv().unwrap();
        let mut guest = worker.control();
        renew(&mut guest);
        started(&mut guest);
        warden.limited(&worker);
        // The one that was not given up.
        let _next = warden.start();
        warden.stay();
    });
    let (_first, _events) = setting.launch().await.unwrap();
    let purpose = || session(ForkPoint::BeforeStart);
    let given_up = setting.host.launch(request(boot(), purpose()));
    let waited = timeout(Duration::from_millis(20), given_up).await;
    assert!(waited.is_err(), "there was no turn to have");
    go.send(()).unwrap();
    let (_second, _more) = setting.launch().await.unwrap();
    assert_eq!(setting.folders(), 2);
}

#[tokio::test]
async fn turn_of_a_guest_that_dies_before_it_is_up_goes_to_the_next_one() {
    let setting = Setting::with(settings(0, 1), |mut warden| {
        let first = warden.start();
        let id = first.id;
        drop(first);
        warden.end(id, None);
        let _second = warden.start();
        warden.stay();
    });
    let (_first, mut events) = setting.launch().await.unwrap();
    assert!(matches!(gone(&mut events).await, WorkerExit::Died(_)));
    setting.launch().await.unwrap();
}

#[tokio::test]
async fn spare_that_dies_is_removed_and_replaced_later() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let setting = Setting::with(settings(1, 1), move |mut warden| {
        for _ in 0..3 {
            let spare = warden.spawn();
            sender.send(std::time::Instant::now()).unwrap();
            let id = spare.id;
            drop(spare);
            warden.end(id, Some(r#"{"end":"notStarted","what":"no KVM"}"#));
        }
        let _alive = warden.spawn();
        sender.send(std::time::Instant::now()).unwrap();
        warden.stay();
    });
    let times = tokio::task::spawn_blocking(move || {
        (0..4)
            .map(|_| receiver.recv_timeout(DEADLINE).unwrap())
            .collect::<Vec<_>>()
    });
    let times = times.await.unwrap();
    let waits: Vec<u128> = times
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_millis())
        .collect();
    assert!(
        waits[0] >= 90 && waits[1] >= 190 && waits[2] >= 390,
        "{waits:?}"
    );
    until_folders(&setting, 1).await;
}

#[tokio::test]
async fn spares_end_when_the_appliance_is_asked_to_stop() {
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let setting = Setting::with(settings(2, 1), move |mut warden| {
        let spares = [warden.spawn(), warden.spawn()];
        may_go.recv().unwrap();
        warden.tell(&Event::End { how: Ending::Stop });
        for _ in &spares {
            let id = warden.killed();
            warden.end(id, None);
        }
        // A launch that was on its way is still served.
        let _worker = warden.start();
        warden.stay();
    });
    until_folders(&setting, 2).await;
    go.send(()).unwrap();
    until_folders(&setting, 0).await;
    setting.launch().await.unwrap();
    assert_eq!(setting.folders(), 1, "a spare was made again");
}

#[tokio::test]
async fn spares_end_when_nobody_can_take_them_any_more() {
    let (killed, wait) = tokio::sync::oneshot::channel();
    let setting = Setting::with(settings(1, 1), |mut warden| {
        let spare = warden.spawn();
        let _ = killed.send(warden.killed() == spare.id);
    });
    until_folders(&setting, 1).await;
    let Setting { host, root, .. } = setting;
    drop(host);
    let killed = timeout(DEADLINE, wait).await.expect("it was not killed");
    assert!(killed.unwrap());
    drop(root);
}
