//! The codec, and both ends of the socket against each other.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::server::{Desk, Heard};
use super::*;
use crate::warden::channel;

const SPEC: WorkerSpec = WorkerSpec {
    vcpus: 1,
    cpu_millis: 250,
    mem_mib: 128,
};

fn all() -> [Order; 7] {
    [
        Order::Boot { spec: SPEC },
        Order::Restore {
            spec: SPEC,
            prefetch: false,
        },
        Order::Restore {
            spec: SPEC,
            prefetch: true,
        },
        Order::Pause,
        Order::Resume,
        Order::Save,
        Order::SaveWorkingSet,
    ]
}

/// Descriptors as they should be, those of shared files read-only.
fn descriptors(order: &Order, folder: &std::path::Path) -> Vec<OwnedFd> {
    let path = folder.join("file");
    std::fs::write(&path, "x").unwrap();
    let writable = std::fs::File::options();
    order
        .roles()
        .iter()
        .map(|role| {
            let mut options = writable.clone();
            options.read(true).write(!role.is_shared());
            options.open(&path).unwrap().into()
        })
        .collect()
}

#[test]
fn order_written_and_read_back_is_the_same() {
    for order in all() {
        let bytes = serde_json::to_vec(&order).unwrap();
        assert_eq!(Order::parse(&bytes).unwrap(), order);
        assert!(order.roles().len() <= channel::MAX_FDS);
    }
}

#[test]
fn order_with_its_own_descriptors_is_good_and_with_more_or_fewer_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    for order in all() {
        let mut fds = descriptors(&order, folder.path());
        assert_eq!(order.check(&fds), Ok(()), "{order:?}");
        let expected = fds.len();
        fds.push(tempfile::tempfile().unwrap().into());
        let found = fds.len();
        assert_eq!(order.check(&fds), Err(BadOrder::Count { expected, found }));
        fds.truncate(expected.saturating_sub(1));
        if expected > 0 {
            let found = fds.len();
            assert_eq!(order.check(&fds), Err(BadOrder::Count { expected, found }));
        }
    }
}

#[test]
fn snapshot_that_can_be_written_to_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let order = Order::Restore {
        spec: SPEC,
        prefetch: true,
    };
    for (place, role) in order.roles().iter().enumerate() {
        let mut fds = descriptors(&order, folder.path());
        fds[place] = tempfile::tempfile().unwrap().into();
        let expected = if role.is_shared() {
            Err(BadOrder::Writable { role: *role })
        } else {
            Ok(())
        };
        assert_eq!(order.check(&fds), expected);
    }
}

#[test]
fn folder_or_socket_in_the_place_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let order = Order::SaveWorkingSet;
    let role = OrderFd::SavedWorkingSet;
    for fd in [
        std::fs::File::open(folder.path()).unwrap().into(),
        channel::pair().unwrap().0,
    ] {
        assert_eq!(order.check(&[fd]), Err(BadOrder::NotAFile { role }));
    }
}

#[test]
fn unknown_order_or_field_is_not_an_order() {
    for text in [
        "{}",
        r#"{"order":"fly"}"#,
        r#"{"order":"boot","spec":{"vcpus":1,"cpuMillis":1}}"#,
        r#"{"order":"restore","spec":{"vcpus":1,"cpuMillis":1,"memMib":1}}"#,
    ] {
        assert!(Order::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn longest_answer_fits_a_message() {
    let message = "\u{1f980}\u{0}\"".repeat(100_000);
    let bytes = Answer::Failed { message }.encode();
    assert!(bytes.len() <= channel::MAX_MESSAGE_BYTES);
    serde_json::from_slice::<Answer>(&bytes).unwrap();
    let steps = vec![("step".to_owned(), u64::MAX); 100_000];
    let bytes = Answer::Done { steps }.encode();
    assert!(bytes.len() <= channel::MAX_MESSAGE_BYTES);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Order::parse(&bytes);
    }
}

struct Setting {
    _folder: tempfile::TempDir,
    path: PathBuf,
    orders: Orders,
    /// The warden's end of its socket.
    warden: OwnedFd,
}

impl Setting {
    /// Runs `worker` on a thread of its own.
    fn new(worker: impl FnOnce(Desk) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.sock");
        let (orders, listener) = Orders::open(&path).unwrap();
        let (warden, socket) = channel::pair().unwrap();
        std::thread::spawn(move || worker(Desk::new(socket, listener)));
        Self {
            _folder: folder,
            path,
            orders,
            warden,
        }
    }
}

fn order(desk: &mut Desk) -> (Order, Vec<OwnedFd>) {
    match desk.next().unwrap() {
        Heard::Order(order, fds) => (order, fds),
        Heard::End => panic!("the warden is gone"),
    }
}

fn done() -> Answer {
    Answer::Done {
        steps: vec![("step".to_owned(), 1500)],
    }
}

#[tokio::test]
async fn orders_are_carried_out_in_turn_and_each_gets_its_answer() {
    let setting = Setting::new(|mut desk| {
        let (first, fds) = order(&mut desk);
        assert_eq!((first, fds.len()), (Order::SaveWorkingSet, 1));
        desk.answer(&done());
        assert_eq!(order(&mut desk).0, Order::Pause);
        let message = "no\nguest".to_owned();
        desk.answer(&Answer::Failed { message });
        assert_eq!(order(&mut desk).0, Order::Resume);
        desk.answer(&done());
    });
    let file = tempfile::tempfile().unwrap();
    let (first, second, third) = tokio::join!(
        setting
            .orders
            .give(Order::SaveWorkingSet, vec![file.into()]),
        setting.orders.give(Order::Pause, Vec::new()),
        setting.orders.give(Order::Resume, Vec::new()),
    );
    let step = ("step".to_owned(), Duration::from_micros(1500));
    assert_eq!(first.unwrap(), [step]);
    let refused = second.unwrap_err().to_string();
    assert_eq!(refused, "The worker could not pause its guest: noguest");
    third.unwrap();
}

#[tokio::test]
async fn worker_that_goes_away_is_gone_for_this_order_and_for_the_next() {
    let setting = Setting::new(|mut desk| drop(order(&mut desk)));
    for _ in 0..2 {
        let error = setting.orders.give(Order::Pause, Vec::new()).await;
        assert!(matches!(error, Err(OrderError::Gone)), "{error:?}");
    }
}

#[tokio::test]
async fn bad_order_is_not_even_sent() {
    let setting = Setting::new(|mut desk| {
        assert_eq!(order(&mut desk).0, Order::Resume);
        desk.answer(&done());
    });
    let error = setting.orders.give(Order::Save, Vec::new()).await;
    assert!(
        matches!(error, Err(OrderError::Descriptors(_))),
        "{error:?}"
    );
    setting
        .orders
        .give(Order::Resume, Vec::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn nonsense_is_refused_and_the_next_appliance_is_heard() {
    let setting = Setting::new(|mut desk| {
        assert_eq!(order(&mut desk).0, Order::Pause);
        desk.answer(&done());
        let _ = desk.next();
    });
    let Setting {
        orders,
        path,
        warden,
        _folder,
    } = setting;
    drop(orders);
    let next = tokio::task::spawn_blocking(move || {
        let socket = connect(&path);
        for nonsense in [&b"nonsense"[..], br#"{"order":"save"}"#] {
            channel::send(socket.as_fd(), nonsense, &[], false).unwrap();
            let answer = channel::receive(socket.as_fd(), false).unwrap().unwrap();
            let answer: Answer = serde_json::from_slice(&answer.bytes).unwrap();
            assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
        }
        channel::send(socket.as_fd(), br#"{"order":"pause"}"#, &[], false).unwrap();
        let answer = channel::receive(socket.as_fd(), false).unwrap().unwrap();
        serde_json::from_slice::<Answer>(&answer.bytes).unwrap()
    });
    assert_eq!(next.await.unwrap(), done());
    drop(warden);
}

fn connect(path: &std::path::Path) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

#[tokio::test]
async fn end_of_the_warden_ends_the_wait_for_orders() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let setting = Setting::new(|mut desk| {
        let _ = told.send(matches!(desk.next(), Ok(Heard::End)));
    });
    drop(setting.warden);
    assert!(heard.await.unwrap());
}
