//! Both ends of the socket against each other.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::server::{Desk, Heard};
use super::*;
use crate::warden::channel;

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
    match desk.wait().unwrap() {
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
        let _ = desk.wait();
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
        let _ = told.send(matches!(desk.wait(), Ok(Heard::End)));
    });
    drop(setting.warden);
    assert!(heard.await.unwrap());
}
