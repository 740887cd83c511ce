//! A guest's packets and the host's clients, in any order. What one side wrote the other reads, as far as it goes: in order, once, and to
//! the right connection; and the guest gets no more than it said it had room for.

use std::collections::HashMap;

use ::fuzz::{Choices, Target};

use super::*;
use crate::devices::virtio::fuzz::{corpus, small_memory};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 200;

/// Ports that a guest listens on, or that nobody knows.
const PORTS: [u32; 3] = [80, 81, 5];
/// Receive buffers: how many, and how long.
const RX_BUFFERS: u64 = 8;
const BUFFER_BYTES: u64 = 1024;
/// Where packets to send are put together, and how long they can be.
const SENT_AREA: u64 = RX_AREA + RX_BUFFERS * BUFFER_BYTES;
const SENT_BYTES: usize = 0x4000;
/// Clients at a time.
const CLIENTS: usize = 4;

/// One client of the host. After its wish it writes the pattern.
struct Client {
    stream: UnixStream,
    /// How much of the pattern it has written.
    written: u64,
    /// What it has read.
    read: Vec<u8>,
}

impl Client {
    /// `OK <port>`, then what the guest wrote.
    fn check(&self) {
        if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            assert!(self.read.starts_with(b"OK "));
            let data = &self.read[end + 1..];
            assert!((0..).zip(data).all(|(at, byte)| *byte == pattern(at)));
        }
    }
}

/// What the guest knows of one pair of ports.
#[derive(Default)]
struct Known {
    /// The host asked for it, with a port that it never used before, and the guest never asked for the same.
    one_connection: bool,
    /// All that came.
    received: u64,
    /// How much of the pattern the host took.
    sent: u64,
    /// What the guest last said: room, and how much of what came it has taken.
    room: u32,
    taken: u32,
    /// Whether something of that was not true, so that the host need not keep to it.
    lied: bool,
    /// The host has said its last word.
    gone: bool,
}

struct World {
    machine: Machine,
    event_loop: EventLoop,
    folder: tempfile::TempDir,
    clients: Vec<Client>,
    known: HashMap<(u32, u32), Known>,
}

/// What both sides write at `at`.
fn pattern(at: u64) -> u8 {
    ((at * 7) ^ (at >> 8)) as u8
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock.sock")).unwrap();
        let device = Vsock::new(CID, listener).unwrap();
        let machine = Machine::in_memory(Box::new(device), small_memory());
        let mut event_loop = EventLoop::new().unwrap();
        machine.transport.attach_alone(&mut event_loop);
        let mut world = Self {
            machine,
            event_loop,
            folder,
            clients: Vec::new(),
            known: HashMap::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.machine.negotiate(EVENT_IDX);
        self.machine.set_up_queues();
        self.machine.write(VIRTIO_MMIO_STATUS, 0xf);
        self.give_buffers(RX_BUFFERS);
    }

    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            // A ring of 256 in which the buffers come round again: each is free when its turn comes.
            let next = u64::from(self.machine.queues[RX].next_descriptor) % RX_BUFFERS;
            let at = RX_AREA + next * BUFFER_BYTES;
            self.machine.queues[RX].add(&[(at, BUFFER_BYTES as u32, true)]);
        }
        self.notify(RX);
    }

    fn notify(&mut self, queue: usize) {
        self.machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.event_loop.settle();
    }

    fn connect(&mut self, wish: &str) {
        let path = self.folder.path().join("vsock.sock");
        let Ok(mut stream) = UnixStream::connect(path) else {
            return;
        };
        stream.set_nonblocking(true).unwrap();
        stream.write_all(wish.as_bytes()).unwrap();
        if self.clients.len() == CLIENTS {
            self.clients.remove(0).check();
        }
        self.clients.push(Client {
            stream,
            written: 0,
            read: Vec::new(),
        });
        self.event_loop.settle();
    }

    /// Takes what came to the guest, and gives the buffers back if it is to.
    fn receive(&mut self, give_back: bool) {
        self.event_loop.settle();
        let used = self.machine.queues[RX].used();
        for (head, len) in &used {
            assert!(u64::from(*len) <= BUFFER_BYTES);
            let at = RX_AREA + u64::from(*head) % RX_BUFFERS * BUFFER_BYTES;
            let bytes = self.machine.get(at, *len as usize);
            let (header, payload) = bytes.split_first_chunk().unwrap();
            self.on_packet(&Header::from_bytes(header), payload);
        }
        if give_back {
            self.give_buffers(used.len() as u64);
        }
    }

    fn on_packet(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(header.len as usize, payload.len());
        let op = Op::from_raw(header.op).expect("an operation that exists");
        assert!(op == Op::Data || payload.is_empty());
        let ports = (header.src_port, header.dst_port);
        if op == Op::Request {
            let one_connection = !self.known.contains_key(&ports);
            let known = Known {
                one_connection,
                ..Known::default()
            };
            self.known.insert(ports, known);
        }
        let known = self.known.entry(ports).or_default();
        if op == Op::Reset {
            known.gone |= header.kind == TYPE_STREAM;
            return;
        }
        assert_eq!(header.buf_alloc, WINDOW);
        let begin = known.received;
        known.received += payload.len() as u64;
        if op != Op::Data || !known.one_connection {
            return;
        }
        assert!(!known.gone, "data after the end");
        assert!(!payload.is_empty());
        assert!(known.lied || known.received <= u64::from(known.taken) + u64::from(known.room));
        assert!(
            (begin..)
                .zip(payload)
                .all(|(at, byte)| *byte == pattern(at))
        );
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.machine.put(SENT_AREA, &header.to_bytes());
        self.machine.put(SENT_AREA + 64, payload);
        let pieces = [
            (SENT_AREA, HEADER_BYTES as u32, false),
            (SENT_AREA + 64, payload.len() as u32, false),
        ];
        let count = if payload.is_empty() { 1 } else { 2 };
        self.machine.queues[TX].add(&pieces[..count]);
        self.notify(TX);
        let used = self.machine.queues[TX].used();
        assert_eq!(used.len(), 1, "every packet is given back");
        assert_eq!(used[0].1, 0, "nothing is written to what a guest sends");
    }

    /// A packet from the guest, about a connection there is or about none.
    fn packet(&mut self, choices: &mut Choices<'_>) {
        let mut ports: Vec<(u32, u32)> = self.known.keys().copied().collect();
        ports.sort_unstable();
        let (host, guest) = match choices.byte() {
            any if any >= 0xd0 || ports.is_empty() => {
                (choices.pick(&[7, 8, 1024]), choices.pick(&PORTS))
            }
            index => ports[usize::from(index) % ports.len()],
        };
        let op = choices.pick(&[2, 5, 5, 4, 6, 7, 3, 1, 5, 2, 0, 8]);
        let kind = if choices.byte() < 0xf0 {
            TYPE_STREAM
        } else {
            choices.u16()
        };
        let src_cid = if choices.byte() < 0xf8 {
            CID
        } else {
            choices.u64()
        };
        let flags = choices.number(&[0, 1, 2, 3]) as u32;
        let there = choices.number(&[100, 0, 1, 4096, 0x3000]) as usize % SENT_BYTES;
        let len = if choices.byte() < 0xe0 {
            there as u32
        } else {
            choices.u32()
        };
        let honest = choices.byte() < 0xe0;
        let known = self.known.entry((host, guest)).or_default();
        known.one_connection &= op != 1;
        (known.room, known.taken) = if honest {
            // What it once promised it keeps.
            let room = choices.number(&[4096, 0, 1, 0x1_0000]) as u32 & 0xf_ffff;
            (room.max(known.room), known.received as u32)
        } else {
            known.lied = true;
            (choices.u32(), choices.u32())
        };
        let begin = known.sent;
        let mut payload = Vec::new();
        if op == 5 {
            payload.extend((begin..begin + there as u64).map(pattern));
            if kind == TYPE_STREAM && src_cid == CID && len as usize <= there {
                known.sent += u64::from(len);
            }
        }
        let header = Header {
            src_cid,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: if op == 5 { len } else { 0 },
            kind,
            op,
            flags,
            buf_alloc: known.room,
            fwd_cnt: known.taken,
        };
        self.send(header, &payload);
    }

    fn client(&mut self, choices: &mut Choices<'_>) {
        if self.clients.is_empty() {
            return;
        }
        let index = choices.below(self.clients.len());
        let client = &mut self.clients[index];
        match choices.below(6) {
            0..=2 => {
                let count = choices.number(&[1, 100, 4096, 0x8000]) & 0xffff;
                let begin = client.written;
                let bytes: Vec<u8> = (begin..begin + count).map(pattern).collect();
                client.written += client.stream.write(&bytes).unwrap_or(0) as u64;
            }
            3 => {
                let mut bytes = vec![0; choices.number(&[16, 4096, 0x1_0000]) as usize & 0x1_ffff];
                let count = client.stream.read(&mut bytes).unwrap_or(0);
                client.read.extend_from_slice(&bytes[..count]);
            }
            4 => {
                let how = choices.pick(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]);
                let _ = client.stream.shutdown(how);
            }
            _ => self.clients.remove(index).check(),
        }
        self.event_loop.settle();
    }

    /// The driver goes and comes back.
    fn restart(&mut self) {
        self.machine.write(VIRTIO_MMIO_STATUS, 0);
        for (index, queue) in (0..).zip(&mut self.machine.queues) {
            let size = queue.size;
            *queue = DriverQueue::new(&self.machine.memory, index, size);
        }
        self.machine.put(RINGS, &[0; 0x3_0000]);
        self.known.clear();
        self.start();
    }
}

fn drive(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let mut world = World::new();
    while !choices.is_empty() {
        match choices.byte() {
            0..=0x27 => world.connect(&format!("CONNECT {}\n", choices.pick(&PORTS))),
            0x28..=0x37 => world.connect("LISTEN 1024\n"),
            0x38..=0x3b => {
                let wish = choices.bytes(40);
                world.connect(&String::from_utf8_lossy(wish).replace('\n', " "));
            }
            0x3c..=0x8f => world.packet(&mut choices),
            0x90..=0xbf => world.client(&mut choices),
            0xc0..=0xcf => world.receive(false),
            0xd0..=0xfd => world.receive(true),
            _ => world.restart(),
        }
        assert!(!world.machine.needs_reset());
    }
    world.receive(true);
    world.clients.iter().for_each(Client::check);
    let moved = |known: &Known| known.received > 0 || known.sent > 0;
    world.known.values().any(moved)
}

#[test]
fn fuzz_vsock() {
    Target::new("vsock")
        .corpus(corpus("vsock"))
        .max_bytes(512)
        .run(INPUTS, drive);
}
