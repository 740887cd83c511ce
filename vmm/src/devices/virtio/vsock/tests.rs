//! The whole device, from rings to host sockets, with a guest that writes its own packets.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use tempfile::TempDir;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS};

use super::Vsock;
use super::credit::WINDOW;
use super::muxer::MAX_HELD;
use super::packet::*;
use super::slots::CAPACITY;
use super::state::FIRST_HOST_PORT;
use crate::devices::event_loop::EventLoop;
use crate::devices::virtio::testing::*;

const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
/// Where receive buffers are, and how far apart.
const RX_AREA: u64 = DATA;
const RX_BYTES: u64 = 4096;
/// Where packets to send are put together.
const TX_AREA: u64 = DATA + 256 * RX_BYTES;

/// A guest that sends what it is told and remembers what it got.
struct Guest {
    machine: Machine,
    event_loop: EventLoop,
    directory: TempDir,
    /// What the guest tells the host of its own buffer.
    window: u32,
    read: u32,
}

type Packet = (Header, Vec<u8>);

impl Guest {
    /// Without a driver.
    fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock.sock")).unwrap();
        let machine = Machine::new(Box::new(Vsock::new(CID, listener).unwrap()));
        let mut event_loop = EventLoop::new().unwrap();
        machine.transport.attach_alone(&mut event_loop);
        Self {
            machine,
            event_loop,
            directory,
            window: 1 << 20,
            read: 0,
        }
    }

    /// With a driver, and as many receive buffers as fit.
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(256);
        guest
    }

    fn without_buffers() -> Self {
        let mut guest = Self::bare();
        guest.start_driver();
        guest
    }

    fn start_driver(&mut self) {
        self.machine.negotiate(EVENT_IDX);
        self.machine.set_up_queues();
        self.machine.write(VIRTIO_MMIO_STATUS, 0xf);
        self.settle();
    }

    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let at = RX_AREA + u64::from(self.machine.queues[RX].next_descriptor) * RX_BYTES;
            self.machine.queues[RX].add(&[(at, RX_BYTES as u32, true)]);
        }
        self.notify(RX);
    }

    fn notify(&mut self, queue: usize) {
        self.machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.settle();
    }

    fn settle(&mut self) {
        self.event_loop.settle();
    }

    fn try_client(&mut self, line: &str) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.directory.path().join("vsock.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(line.as_bytes())?;
        self.settle();
        Ok(stream)
    }

    fn client(&mut self, line: &str) -> UnixStream {
        self.try_client(line).unwrap()
    }

    /// What came since the last call, until nothing more comes. Buffers are given back.
    fn packets(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            let taken = self.taken();
            if taken.is_empty() {
                return packets;
            }
            self.give_buffers(taken.len() as u64);
            packets.extend(taken);
        }
    }

    /// What came since the last call. Buffers are kept.
    fn taken(&mut self) -> Vec<Packet> {
        self.settle();
        let used = self.machine.queues[RX].used();
        let packet = |(head, len): (u32, u32)| {
            let at = RX_AREA + u64::from(head) * RX_BYTES;
            let bytes = self.machine.get(at, len as usize);
            let (header, payload) = bytes.split_first_chunk().unwrap();
            let header = Header::from_bytes(header);
            assert_eq!(header.len as usize, payload.len());
            assert_eq!(
                (header.src_cid, header.dst_cid, header.kind),
                (HOST_CID, CID, 1)
            );
            (header, payload.to_vec())
        };
        used.into_iter().map(packet).collect()
    }

    /// The one packet that came since the last call.
    fn packet(&mut self) -> Packet {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.pop().unwrap()
    }

    fn header(&self, op: Op, host: u32, port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: port,
            dst_port: host,
            kind: TYPE_STREAM,
            op: op.to_raw(),
            buf_alloc: self.window,
            fwd_cnt: self.read,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.machine.put(TX_AREA, &header.to_bytes());
        self.machine.put(TX_AREA + 64, payload);
        let pieces = [
            (TX_AREA, 44, false),
            (TX_AREA + 64, payload.len() as u32, false),
        ];
        self.send_pieces(&pieces[..if payload.is_empty() { 1 } else { 2 }]);
    }

    fn send_pieces(&mut self, pieces: &[Piece]) {
        self.machine.queues[TX].add(pieces);
        self.notify(TX);
        assert_eq!(
            self.machine.queues[TX].used().len(),
            1,
            "every packet is given back"
        );
    }

    fn control(&mut self, op: Op, host: u32, port: u32) {
        self.send(self.header(op, host, port), &[]);
    }

    fn shut_down(&mut self, host: u32, port: u32, flags: u32) {
        let header = Header {
            flags,
            ..self.header(Op::Shutdown, host, port)
        };
        self.send(header, &[]);
    }

    fn data(&mut self, host: u32, port: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        self.send(
            Header {
                len,
                ..self.header(Op::Data, host, port)
            },
            payload,
        );
    }

    /// A connection from the host to `port`. Gives the client and the host's port.
    fn connected(&mut self, port: u32) -> (UnixStream, u32) {
        let mut client = self.client(&format!("CONNECT {port}\n"));
        let host = op_of(&self.packet(), Op::Request).src_port;
        self.control(Op::Response, host, port);
        assert_eq!(line(&mut client), format!("OK {host}\n"));
        (client, host)
    }
}

#[track_caller]
fn op_of((header, _): &Packet, op: Op) -> Header {
    assert_eq!(Op::from_raw(header.op), Some(op), "{header:?}");
    *header
}

fn line(client: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

fn bytes(client: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_closed(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let result = client.read(&mut [0; 16]);
    client.set_nonblocking(false).unwrap();
    match result {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

// Connecting.

#[test]
fn configuration_is_the_guest_address() {
    let mut guest = Guest::bare();
    assert_eq!(
        (guest.machine.read(0x100), guest.machine.read(0x104)),
        (CID as u32, 0)
    );
}

#[test]
fn client_that_connects_is_told_when_the_guest_accepts() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 1025\n");
    let request = op_of(&guest.packet(), Op::Request);
    assert_eq!(
        (request.dst_port, request.src_port),
        (1025, FIRST_HOST_PORT)
    );
    assert_eq!(
        (request.buf_alloc, request.fwd_cnt, request.flags),
        (WINDOW, 0, 0)
    );
    guest.control(Op::Response, request.src_port, 1025);
    assert_eq!(line(&mut client), format!("OK {FIRST_HOST_PORT}\n"));
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_is_closed_without_an_answer_when_the_guest_refuses() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 1025\n");
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Reset, host, 1025);
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_that_connects_before_the_driver_is_up_waits_for_it() {
    let mut guest = Guest::bare();
    let mut client = guest.client("CONNECT 7\n");
    assert!(!is_closed(&mut client));
    guest.start_driver();
    guest.give_buffers(4);
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 7);
    assert_eq!(line(&mut client), format!("OK {host}\n"));
}

#[test]
fn client_may_send_its_line_in_pieces_and_bytes_right_behind_it() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONN");
    client.write_all(b"ECT 9").unwrap();
    guest.settle();
    assert_eq!(guest.packets(), []);
    client.write_all(b"\nearly").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 9);
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"early");
    assert_eq!(op_of(&packets[1], Op::Shutdown).flags, SHUTDOWN_SEND);
    assert_eq!(packets.len(), 2);
}

#[test]
fn client_that_says_anything_else_is_closed() {
    let mut guest = Guest::new();
    for text in [
        "GET / HTTP/1.1\r\n",
        "CONNECT x\n",
        "CONNECT 1 2\n",
        &"x".repeat(32),
        "\n",
    ] {
        let mut client = guest.client(text);
        assert!(is_closed(&mut client), "{text:?}");
    }
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_that_hangs_up_before_the_guest_answers_takes_its_request_back() {
    let mut guest = Guest::new();
    let client = guest.client("CONNECT 5\n");
    let host = op_of(&guest.packet(), Op::Request).src_port;
    drop(client);
    assert_eq!(op_of(&guest.packet(), Op::Reset).src_port, host);
    // The answer that was under way is for nobody.
    guest.control(Op::Response, host, 5);
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn client_that_hangs_up_before_the_driver_is_up_leaves_no_trace() {
    let mut guest = Guest::bare();
    drop(guest.client("CONNECT 5\n"));
    guest.settle();
    guest.start_driver();
    guest.give_buffers(4);
    assert_eq!(guest.packets(), []);
}

#[test]
fn guest_that_connects_is_joined_to_the_client_that_listens() {
    let mut guest = Guest::new();
    let mut other = guest.client("LISTEN 1023\n");
    let mut first = guest.client("LISTEN 1024\n");
    let mut second = guest.client("LISTEN 1024\n");
    guest.control(Op::Request, 1024, 50);
    assert_eq!(op_of(&guest.packet(), Op::Response).dst_port, 50);
    assert_eq!(line(&mut first), "OK 50\n");
    guest.control(Op::Request, 1024, 51);
    assert_eq!(line(&mut second), "OK 51\n");
    guest.packets();
    guest.data(1024, 51, b"hi");
    assert_eq!(bytes(&mut second, 2), b"hi");
    assert!(!is_closed(&mut other) && !is_closed(&mut first));
}

#[test]
fn guest_that_connects_first_is_held_until_a_client_listens() {
    let mut guest = Guest::new();
    guest.control(Op::Request, 1024, 50);
    assert_eq!(guest.packets(), []);
    let mut client = guest.client("LISTEN 1024\n");
    assert_eq!(line(&mut client), "OK 50\n");
    op_of(&guest.packet(), Op::Response);
}

#[test]
fn listener_that_left_is_not_given_a_connection() {
    let mut guest = Guest::new();
    let first = guest.client("LISTEN 1024\n");
    let mut second = guest.client("LISTEN 1024\n");
    drop(first);
    guest.control(Op::Request, 1024, 50);
    assert_eq!(line(&mut second), "OK 50\n");
}

#[test]
fn listener_that_shut_its_side_down_still_gets_its_connection() {
    let mut guest = Guest::new();
    let mut client = guest.client("LISTEN 1024\nbye");
    client.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    guest.control(Op::Request, 1024, 50);
    assert_eq!(line(&mut client), "OK 50\n");
    let packets = guest.packets();
    op_of(&packets[0], Op::Response);
    assert_eq!(packets[1].1, b"bye");
    assert_eq!(op_of(&packets[2], Op::Shutdown).flags, SHUTDOWN_SEND);
}

#[test]
fn guest_cannot_have_more_than_a_few_connections_held() {
    let mut guest = Guest::new();
    for port in 0..MAX_HELD as u32 + 3 {
        guest.control(Op::Request, 1024, port);
    }
    let refused: Vec<u32> = guest
        .packets()
        .iter()
        .map(|packet| op_of(packet, Op::Reset).dst_port)
        .collect();
    assert_eq!(refused, [0, 1, 2], "the oldest go");
    let mut client = guest.client("LISTEN 1024\n");
    assert_eq!(
        line(&mut client),
        "OK 10\n",
        "the newest is the one that still waits"
    );
}

#[test]
fn held_connection_that_the_guest_gives_up_is_forgotten() {
    let mut guest = Guest::new();
    guest.control(Op::Request, 1024, 1);
    guest.control(Op::Reset, 1024, 1);
    guest.control(Op::Request, 1024, 2);
    guest.shut_down(1024, 2, SHUTDOWN_BOTH);
    op_of(&guest.packet(), Op::Reset);
    let mut client = guest.client("LISTEN 1024\n");
    assert!(!is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

// Data.

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.write_all(b"question").unwrap();
    let (header, payload) = guest.packet();
    assert_eq!((header.src_port, header.dst_port), (host, 80));
    assert_eq!(payload, b"question");
    guest.data(host, 80, b"answer");
    assert_eq!(bytes(&mut client, 6), b"answer");
}

#[test]
fn header_and_payload_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let header = Header {
        len: 6,
        ..guest.header(Op::Data, host, 80)
    };
    guest.machine.put(
        TX_AREA,
        &[&header.to_bytes()[..], b"abcdef, and what is not counted"].concat(),
    );
    for cuts in [[1, 43, 45], [20, 44, 50], [44, 47, 49], [0, 0, 44]] {
        let [a, b, c] = cuts;
        guest.send_pieces(&[
            (TX_AREA, a, false),
            (TX_AREA + u64::from(a), b - a, false),
            (TX_AREA + u64::from(b), c - b, false),
            (TX_AREA + u64::from(c), 60 - c, false),
        ]);
        assert_eq!(bytes(&mut client, 6), b"abcdef");
    }
}

#[test]
fn long_stream_to_the_guest_arrives_whole_and_in_order() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connected(80);
    let sent: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client
    });
    let mut got = Vec::new();
    while got.len() < expected.len() {
        for (header, payload) in guest.packets() {
            op_of(&(header, Vec::new()), Op::Data);
            got.extend(payload);
        }
        guest.read = got.len() as u32;
    }
    assert_eq!(got, expected);
    writer.join().unwrap();
}

#[test]
fn host_does_not_send_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.window = 10_000;
    let (mut client, host) = guest.connected(80);
    client.write_all(&[7; 30_000]).unwrap();
    let got: usize = guest
        .packets()
        .iter()
        .map(|(_, payload)| payload.len())
        .sum();
    assert_eq!(got, 10_000);
    guest.read = 4_000;
    guest.control(Op::CreditUpdate, host, 80);
    let got: usize = guest
        .packets()
        .iter()
        .map(|(_, payload)| payload.len())
        .sum();
    assert_eq!(got, 4_000);
}

#[test]
fn guest_without_receive_buffers_gets_everything_once_it_has_some() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client("CONNECT 80\n");
    guest.settle();
    guest.give_buffers(1);
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 80);
    client.write_all(&[1; 20_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.packets();
    let got: usize = packets.iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(got, 20_000);
    assert_eq!(
        op_of(packets.last().unwrap(), Op::Shutdown).flags,
        SHUTDOWN_SEND
    );
}

#[test]
fn client_that_does_not_read_costs_one_window_and_stops_the_guest() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut sent = 0_usize;
    let mut told = 0_u32;
    // An honest guest: stops when it has no room.
    while (sent as u32).wrapping_sub(told) + 4096 <= WINDOW {
        guest.data(host, 80, &[sent as u8; 4096]);
        sent += 4096;
        for (header, _) in guest.packets() {
            op_of(&(header, Vec::new()), Op::CreditUpdate);
            told = header.fwd_cnt;
        }
    }
    assert!(sent as u32 > WINDOW, "the socket's own buffer took some");
    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(bytes(&mut client, 4096));
        guest.settle();
    }
    assert!(
        got.chunks(4096)
            .enumerate()
            .all(|(n, chunk)| chunk == [(n * 4096) as u8; 4096])
    );
    // Once it is read, the guest hears of it.
    let packets = guest.packets();
    assert_eq!(packets.last().unwrap().0.fwd_cnt as usize, sent);
}

#[test]
fn guest_that_sends_past_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut packets = Vec::new();
    for _ in 0..100 {
        guest.data(host, 80, &[1; 32 * 1024]);
        packets.extend(guest.packets());
        if packets
            .iter()
            .any(|(header, _)| header.op == Op::Reset.to_raw())
        {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert!(rest.len() < 1 << 20);
            return;
        }
    }
    panic!("{} packets and no reset", packets.len());
}

#[test]
fn credit_request_is_answered() {
    let mut guest = Guest::new();
    let (_client, host) = guest.connected(80);
    guest.data(host, 80, b"12345");
    guest.control(Op::CreditRequest, host, 80);
    let update = op_of(&guest.packet(), Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (WINDOW, 5));
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::without_buffers();
    let mut clients = [80, 81].map(|port| {
        guest.give_buffers(1);
        let client = guest.client(&format!("CONNECT {port}\n"));
        let host = op_of(&guest.taken().pop().unwrap(), Op::Request).src_port;
        guest.control(Op::Response, host, port);
        client
    });
    clients
        .iter_mut()
        .for_each(|client| client.write_all(&[1; 50_000]).unwrap());
    guest.settle();
    guest.give_buffers(100);
    let ports: Vec<u32> = guest
        .packets()
        .iter()
        .map(|(header, _)| header.dst_port)
        .collect();
    assert_ne!(ports[0], ports[1], "{ports:?}");
}

// Ending.

#[test]
fn client_that_shuts_its_side_down_still_gets_the_answer() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"request");
    assert_eq!(op_of(&packets[1], Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.data(host, 80, b"answer");
    guest.shut_down(host, 80, SHUTDOWN_BOTH);
    assert_eq!(bytes(&mut client, 6), b"answer");
    assert!(is_closed(&mut client));
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn guest_that_shuts_its_side_down_still_gets_the_answer() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.data(host, 80, b"request");
    guest.shut_down(host, 80, SHUTDOWN_SEND);
    let mut request = String::new();
    client.read_to_string(&mut request).unwrap();
    assert_eq!(request, "request");
    client.write_all(b"answer").unwrap();
    assert_eq!(guest.packet().1, b"answer");
    drop(client);
    let flags: Vec<u32> = guest
        .packets()
        .iter()
        .map(|packet| op_of(packet, Op::Shutdown).flags)
        .collect();
    assert_eq!(flags.last(), Some(&SHUTDOWN_BOTH));
    // And it is forgotten: whatever the guest says now is refused.
    guest.data(host, 80, b"late");
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn client_that_writes_and_hangs_up_has_everything_delivered_before_the_end() {
    let mut guest = Guest::new();
    guest.window = 5_000;
    let (mut client, host) = guest.connected(80);
    client.write_all(&[3; 12_000]).unwrap();
    drop(client);
    let mut got = 0;
    let mut last = None;
    while last.is_none() {
        for (header, payload) in guest.packets() {
            got += payload.len();
            last = (header.flags == SHUTDOWN_BOTH).then_some(header).or(last);
        }
        guest.read = got as u32;
        if last.is_none() {
            guest.control(Op::CreditUpdate, host, 80);
        }
    }
    assert_eq!(got, 12_000);
}

#[test]
fn guest_that_sends_and_closes_has_everything_delivered_even_if_it_gets_impatient() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut sent = 0_usize;
    let mut told = 0_u32;
    while (sent as u32).wrapping_sub(told) + 4096 <= WINDOW {
        guest.data(host, 80, &[9; 4096]);
        sent += 4096;
        told = guest
            .packets()
            .last()
            .map_or(told, |(header, _)| header.fwd_cnt);
    }
    guest.shut_down(host, 80, SHUTDOWN_BOTH);
    assert_eq!(guest.packets(), []);
    guest.control(Op::Reset, host, 80);
    guest.control(Op::Reset, host, 80);
    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(bytes(&mut client, 4096));
        guest.settle();
    }
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn reset_closes_the_client() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.control(Op::Reset, host, 80);
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn guest_that_will_not_receive_stops_the_client_from_writing() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.shut_down(host, 80, SHUTDOWN_RECEIVE);
    assert_eq!(
        client.write_all(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    guest.data(host, 80, b"still");
    assert_eq!(bytes(&mut client, 5), b"still");
}

#[test]
fn client_that_will_not_read_stops_the_guest_from_writing() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.shutdown(Shutdown::Read).unwrap();
    guest.data(host, 80, b"for nobody");
    assert_eq!(op_of(&guest.packet(), Op::Shutdown).flags, SHUTDOWN_RECEIVE);
    client.write_all(b"still").unwrap();
    assert_eq!(guest.packet().1, b"still");
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut guest = Guest::new();
    for n in 0..3 * CAPACITY as u32 {
        let (client, host) = guest.connected(80);
        match n % 3 {
            0 => drop(client),
            1 => guest.control(Op::Reset, host, 80),
            _ => guest.shut_down(host, 80, SHUTDOWN_BOTH),
        }
        guest.packets();
    }
    guest.connected(80);
}

// Limits and hostile guests.

#[test]
fn client_beyond_the_limit_is_closed_and_the_others_live() {
    let mut guest = Guest::new();
    let mut clients: Vec<UnixStream> = (0..CAPACITY).map(|_| guest.client("LISTEN 9\n")).collect();
    let mut refused = guest.try_client("").unwrap();
    assert!(is_closed(&mut refused));
    clients.pop();
    guest.settle();
    let mut welcome = guest.client("LISTEN 8\n");
    assert!(!is_closed(&mut welcome));
    guest.control(Op::Request, 9, 1);
    assert_eq!(line(&mut clients[0]), "OK 1\n");
}

#[test]
fn packets_for_connections_that_do_not_exist_are_refused_but_resets_are_not_answered() {
    let mut guest = Guest::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.control(op, 1000, 7);
        let reset = op_of(&guest.packet(), Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (1000, 7));
    }
    guest.control(Op::Reset, 1000, 7);
    assert_eq!(guest.packets(), []);
}

#[test]
fn unknown_operations_are_refused_and_unknown_addresses_ignored() {
    let mut guest = Guest::new();
    let header = guest.header(Op::Request, 1000, 7);
    for op in [0, 8, 0x1234, u16::MAX] {
        guest.send(Header { op, ..header }, &[]);
        op_of(&guest.packet(), Op::Reset);
    }
    for (src_cid, dst_cid) in [(CID, 3), (CID, 1), (CID, u64::MAX), (2, 2), (4, 2), (0, 0)] {
        guest.send(
            Header {
                src_cid,
                dst_cid,
                ..header
            },
            &[],
        );
    }
    assert_eq!(guest.packets(), []);
}

#[test]
fn unknown_socket_type_is_refused_with_that_type() {
    let mut guest = Guest::new();
    guest.send(
        Header {
            kind: 2,
            ..guest.header(Op::Request, 1000, 7)
        },
        &[],
    );
    guest.settle();
    let used = guest.machine.queues[RX].used();
    assert_eq!(used.len(), 1);
    let bytes = guest.machine.get(RX_AREA, 44);
    let reset = Header::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!((reset.kind, reset.op), (2, Op::Reset.to_raw()));
}

#[test]
fn packet_in_the_wrong_state_resets_its_connection_only() {
    let mut guest = Guest::new();
    let (mut bystander, bystander_host) = guest.connected(79);
    for op in [Op::Request, Op::Response] {
        let (mut client, host) = guest.connected(80);
        guest.control(op, host, 80);
        assert_eq!(op_of(&guest.packet(), Op::Reset).src_port, host);
        assert!(is_closed(&mut client));
    }
    for op in [
        Op::Data,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Request,
    ] {
        let mut client = guest.client("CONNECT 80\n");
        let host = op_of(&guest.packet(), Op::Request).src_port;
        guest.control(op, host, 80);
        op_of(&guest.packet(), Op::Reset);
        assert!(is_closed(&mut client));
    }
    guest.data(bystander_host, 79, b"fine");
    assert_eq!(bytes(&mut bystander, 4), b"fine");
}

#[test]
fn response_before_the_request_was_sent_is_not_believed() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client("CONNECT 80\n");
    guest.control(Op::Response, FIRST_HOST_PORT, 80);
    assert!(is_closed(&mut client));
}

#[test]
fn length_that_is_not_there_resets_the_connection() {
    for (claimed, there) in [(10, 9), (u32::MAX, 100), (1, 0), (WINDOW + 1, 100)] {
        let mut guest = Guest::new();
        let (mut client, host) = guest.connected(80);
        let header = Header {
            len: claimed,
            ..guest.header(Op::Data, host, 80)
        };
        guest.send(header, &vec![1; there]);
        op_of(&guest.packet(), Op::Reset);
        assert!(is_closed(&mut client));
    }
}

#[test]
fn data_after_the_guest_said_it_was_done_resets_the_connection() {
    let mut guest = Guest::new();
    let (_client, host) = guest.connected(80);
    guest.shut_down(host, 80, SHUTDOWN_SEND);
    guest.data(host, 80, b"more");
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn chain_too_short_for_a_header_is_given_back_and_ignored() {
    let mut guest = Guest::new();
    guest.send_pieces(&[(TX_AREA, 43, false)]);
    guest.send_pieces(&[(TX_AREA, 0, false)]);
    guest.send_pieces(&[(TX_AREA, 100, true)]);
    assert_eq!(guest.packets(), []);
    assert!(!guest.machine.needs_reset());
}

#[test]
fn receive_buffer_without_room_stops_the_device() {
    for pieces in [
        &[(RX_AREA, 44, true)][..],
        &[(RX_AREA, 4096, false)],
        &[(RX_AREA, 0, true)],
    ] {
        let mut guest = Guest::without_buffers();
        guest.machine.queues[RX].add(pieces);
        let _client = guest.client("CONNECT 80\n");
        assert!(guest.machine.needs_reset());
    }
}

#[test]
fn receive_buffer_cut_into_pieces_is_filled() {
    let mut guest = Guest::without_buffers();
    let pieces = [
        (RX_AREA, 10, true),
        (RX_AREA + 10, 30, true),
        (RX_AREA + 40, 500, true),
    ];
    guest.machine.queues[RX].add(&pieces);
    let _client = guest.client("CONNECT 80\n");
    guest.settle();
    assert_eq!(guest.machine.queues[RX].used(), [(0, 44)]);
    let header = Header::from_bytes(guest.machine.get(RX_AREA, 44).first_chunk().unwrap());
    assert_eq!((header.op, header.dst_port), (1, 80));
}

#[test]
fn guest_that_causes_resets_and_takes_none_is_kept_a_bounded_number() {
    let mut guest = Guest::without_buffers();
    for port in 0..2000 {
        guest.control(Op::Data, 1000, port);
    }
    guest.give_buffers(256);
    assert_eq!(guest.packets().len(), 256);
}

#[test]
fn loop_in_a_packet_stops_the_device_and_closes_everything() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connected(80);
    let mut listening = guest.client("LISTEN 1024\n");
    guest.machine.queues[TX].descriptor(0, TX_AREA, 44, NEXT, 0);
    guest.machine.queues[TX].publish(0);
    guest.notify(TX);
    assert!(guest.machine.needs_reset());
    assert!(is_closed(&mut client));
    assert!(!is_closed(&mut listening), "it waits for the next driver");
}

#[test]
fn driver_that_restarts_finds_waiting_clients_and_no_old_connections() {
    let mut guest = Guest::new();
    let (mut old, host) = guest.connected(80);
    guest.control(Op::Request, 1024, 50);
    guest.machine.write(VIRTIO_MMIO_STATUS, 0);
    assert!(is_closed(&mut old));
    let mut waiting = guest.client("CONNECT 81\n");

    let mut again = DriverQueue::new(&guest.machine.memory, 0, 256);
    std::mem::swap(&mut guest.machine.queues[RX], &mut again);
    guest.machine.queues[TX] = DriverQueue::new(&guest.machine.memory, 1, 256);
    guest.machine.put(RINGS, &[0; 0x2_0000]);
    guest.start_driver();
    guest.give_buffers(256);
    let request = op_of(&guest.packet(), Op::Request);
    assert_eq!(request.dst_port, 81);
    assert_ne!(request.src_port, host);
    guest.control(Op::Response, request.src_port, 81);
    assert_eq!(line(&mut waiting), format!("OK {}\n", request.src_port));
    // The held connection went with the old driver.
    let mut listening = guest.client("LISTEN 1024\n");
    assert!(!is_closed(&mut listening));
    assert_eq!(guest.packets(), []);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]

    /// Any packets at all, towards connections in all states.
    #[test]
    fn no_sequence_of_packets_panics_or_stops_the_device(
        packets in proptest::collection::vec(
            (0..10_u16, 0..4_u32, 0..4_u32, 0..4_u32, 0..200_u32, proptest::prelude::any::<(u32, u32)>()),
            0..40
        )
    ) {
        let mut guest = Guest::new();
        let (mut client, host) = guest.connected(80);
        let _listening = guest.client("LISTEN 1\n");
        let _asking = guest.client("CONNECT 81\n");
        let _ = client.write_all(&[1; 10_000]);
        for (op, host_port, guest_port, flags, len, (buf_alloc, fwd_cnt)) in packets {
            let header = Header {
                op,
                dst_port: [host, 1, 2, host + 1][host_port as usize],
                src_port: [80, 81, 5, 6][guest_port as usize],
                flags,
                len,
                buf_alloc,
                fwd_cnt,
                ..guest.header(Op::Data, 0, 0)
            };
            guest.send(header, &vec![1; len as usize]);
            guest.settle();
        }
        proptest::prop_assert!(!guest.machine.needs_reset());
    }
}
