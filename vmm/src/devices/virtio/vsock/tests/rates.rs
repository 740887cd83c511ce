//! Streams that may carry so much in a second, on a clock of the test's.

use super::*;
use crate::devices::rate::Rate;
use crate::devices::rate::testing::{Clock, nz};

/// Bytes in a second, in each direction.
const RATE: u64 = 64 * 1024;

/// With a driver and buffers.
fn limited() -> (Guest, Clock) {
    let clock = Clock::new();
    let rate = Rate {
        bytes: Some(nz(RATE)),
        operations: None,
    };
    let limiter = || Some(clock.limiter(rate));
    let mut guest = Guest::with(|device| device.limited(limiter(), limiter()));
    guest.start_driver();
    guest.give_buffers(256);
    (guest, clock)
}

fn wait(guest: &mut Guest, clock: &Clock) -> bool {
    let Some(due) = clock.due() else {
        return false;
    };
    clock.advance_to(due);
    guest.settle();
    true
}

#[test]
fn guest_gets_no_more_in_a_second_than_it_may_and_loses_nothing() {
    const TOTAL: usize = 400_000;
    let (mut guest, clock) = limited();
    let (mut client, _) = guest.connected(1025);
    let sent: Vec<u8> = (0..TOTAL).map(|n| (n % 251) as u8).collect();
    let to_send = sent.clone();
    // As much as its socket takes, and the rest when there is room.
    let thread = std::thread::spawn(move || client.write_all(&to_send).map(|()| client));
    let mut got = Vec::new();
    while got.len() < TOTAL {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let before = got.len();
        while got.len() == before {
            assert!(
                std::time::Instant::now() < deadline,
                "{before} bytes and no more"
            );
            guest.settle();
            for (header, payload) in guest.packets() {
                assert_eq!(Op::from_raw(header.op), Some(Op::Data));
                got.extend(payload);
            }
            guest.read = got.len() as u32;
            wait(&mut guest, &clock);
        }
        // What one read may take beyond.
        let most = RATE as f64 * (1.0 + clock.now().as_secs_f64()) + 32.0 * RX_BYTES as f64;
        assert!(
            got.len() as f64 <= most,
            "{} at {:?}",
            got.len(),
            clock.now()
        );
    }
    assert_eq!(got, sent);
    // Headers count as well, so it takes a little longer than this.
    assert!(
        clock.now().as_secs_f64()
            > TOTAL as f64 / RATE as f64 - 1.0 - 32.0 * RX_BYTES as f64 / RATE as f64
    );
    thread.join().unwrap().unwrap();
}

#[test]
fn guest_sends_no_more_in_a_second_than_it_may_while_it_is_still_told_things() {
    let (mut guest, clock) = limited();
    let (mut client, host) = guest.connected(1025);
    let header = Header {
        len: 4096 - 44,
        ..guest.header(Op::Data, host, 1025)
    };
    guest.machine.put(TX_AREA, &header.to_bytes());
    for _ in 0..24 {
        guest.machine.queues[TX].add(&[(TX_AREA, 4096, false)]);
    }
    guest.notify(TX);
    // Response and request have taken of the bucket, so there are 15 whole packets left in it.
    let mut given_back = guest.machine.queues[TX].used().len();
    assert_eq!(given_back, 15);
    client.write_all(b"more").unwrap();
    let told = guest.packets();
    assert!(
        told.iter().any(|(_, payload)| payload == b"more"),
        "{told:?}"
    );
    let mut read = 0;
    while wait(&mut guest, &clock) {
        given_back += guest.machine.queues[TX].used().len();
        let bytes = bytes_that_are_there(&mut client);
        read += bytes;
        let most = RATE as f64 * (1.0 + clock.now().as_secs_f64());
        assert!((given_back * 4096) as f64 <= most);
        guest.packets();
    }
    assert_eq!((given_back, read), (24, 24 * (4096 - 44)));
    assert!(
        clock.now() >= Duration::from_millis(500),
        "{:?}",
        clock.now()
    );
}

fn bytes_that_are_there(client: &mut UnixStream) -> usize {
    client.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let read = client.read(&mut buffer).unwrap_or(0);
    client.set_nonblocking(false).unwrap();
    read
}

#[test]
fn packets_without_payload_count_with_their_headers() {
    let (mut guest, clock) = limited();
    let header = guest.header(Op::CreditUpdate, 7, 9);
    guest.machine.put(TX_AREA, &header.to_bytes());
    let mut sent = 0;
    while clock.due().is_none() {
        assert!(sent <= RATE / 44, "{sent} packets of {RATE} bytes");
        guest.machine.queues[TX].add(&[(TX_AREA, 44, false)]);
        guest.notify(TX);
        sent += 1;
    }
    assert_eq!(sent, RATE / 44 + 1);
}

#[test]
fn reset_of_a_device_that_waits_ends_its_connections_and_brings_no_tokens_back() {
    let (mut guest, clock) = limited();
    let (mut client, _) = guest.connected(1025);
    client.write_all(&vec![1; 150_000]).unwrap();
    guest.packets();
    assert!(clock.due().is_some());
    guest.machine.write(VIRTIO_MMIO_STATUS, 0);
    assert!(is_closed(&mut client));
    while wait(&mut guest, &clock) {}
    assert!(clock.now() > Duration::ZERO);
}
