//! The whole device, from rings to host sockets, with a guest that writes its own packets.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

mod connecting;
mod data;
mod ending;
mod fuzz;
mod hostile;
mod rates;
mod restoring;

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
        Self::with(|device| device)
    }

    /// Without a driver, and with what `change` makes of the device.
    fn with(change: impl FnOnce(Vsock) -> Vsock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock.sock")).unwrap();
        let device = change(Vsock::new(CID, listener).unwrap());
        let machine = Machine::new(Box::new(device));
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
