//! Finds the connection that a packet or an event belongs to, and decides who talks to the guest
//! next. Does the host's I/O, but sees no queue: packets come in as headers with payload and go out
//! as [`Offer`]s.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use vm_memory::VolatileSlice;

use super::client::{Client, Joined, Ports, Received, read_greeting, welcome};
use super::connection::{Connection, Outcome};
use super::credit::WINDOW;
use super::greeting::Wish;
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::slots::{CAPACITY, Slots, TOKENS};
use super::state::VsockState;
use crate::devices::event_loop::{Interest, Ready, Watcher};
use crate::devices::virtio::buffers::Buffers;

/// The listener's token; clients' tokens are below it.
const LISTENER: u32 = TOKENS;
/// From here on tokens are the device's.
pub const FREE_TOKEN: u32 = LISTENER + 1;

/// Connections that the guest asked for and nobody on the host has accepted yet.
pub const MAX_HELD: usize = 8;
/// Resets that wait for a receive buffer. A guest that causes more and gives no buffers gets none.
pub const MAX_RESETS: usize = 256;

/// Something for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// A packet without payload.
    Packet(Header),
    /// Up to `room` bytes of this client, in up to `burst` receive buffers.
    Data {
        token: u32,
        room: usize,
        burst: usize,
    },
}

struct Held {
    ports: Ports,
    connection: Connection,
}

/// All connections of one guest.
pub struct Muxer {
    state: VsockState,
    listener: UnixListener,
    watcher: Option<Watcher>,
    /// The listener has clients that could not be accepted: no event will come for them.
    accept_again: bool,
    clients: Slots<Client>,
    joined: HashMap<Ports, u32>,
    /// Clients that accept, oldest first.
    acceptors: VecDeque<u32>,
    /// Oldest first.
    held: VecDeque<Held>,
    resets: VecDeque<Header>,
    /// Clients with an offer, each once.
    line: VecDeque<u32>,
}

impl Muxer {
    pub fn new(state: VsockState, listener: UnixListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            state,
            listener,
            watcher: None,
            accept_again: true,
            clients: Slots::new(),
            joined: HashMap::new(),
            acceptors: VecDeque::new(),
            held: VecDeque::new(),
            resets: VecDeque::new(),
            line: VecDeque::new(),
        })
    }

    pub fn state(&self) -> &VsockState {
        &self.state
    }

    /// What a copy of the guest needs.
    pub fn save(&self) -> VsockState {
        let held = self.held.iter().map(|held| held.ports);
        let joined = self.clients.values().filter_map(|client| match client {
            Client::Joined(joined) if joined.connection.is_unanswered() => Some(joined.ports),
            _ => None,
        });
        // A guest that is saved soon after it was restored has not heard of these yet.
        let resets = self.resets.iter().map(|reset| Ports {
            host: reset.src_port,
            guest: reset.dst_port,
        });
        VsockState {
            unanswered: held.chain(joined).chain(resets).collect(),
            ..self.state.clone()
        }
    }

    /// Goes on with the address and the ports of a saved device. Of its connections nothing is known here but
    /// which ones the guest waits for.
    pub fn restore(&mut self, mut state: VsockState) {
        let unanswered = std::mem::take(&mut state.unanswered);
        self.state = state;
        self.resets = unanswered
            .into_iter()
            .map(|ports| Header {
                op: Op::Reset.to_raw(),
                ..self.header(ports)
            })
            .collect();
    }

    pub fn set_features(&mut self, features: u64) {
        self.state.features = features;
    }

    pub fn watch(&mut self, watcher: Watcher) -> std::io::Result<()> {
        watcher.watch(&self.listener, LISTENER, Interest::Readable)?;
        self.watcher = Some(watcher);
        Ok(())
    }

    /// The driver is gone, and with it all it knew. Clients that it never heard of keep waiting.
    pub fn reset(&mut self) {
        self.state.features = 0;
        self.held.clear();
        self.resets.clear();
        for token in self.clients.tokens() {
            if let Some(Client::Joined(joined)) = self.clients.get_mut(token)
                && !joined.connection.is_unsent()
            {
                self.remove(token);
            }
        }
    }

    // Host side.

    /// Something happened to a host descriptor.
    pub fn on_host(&mut self, token: u32, ready: Ready) {
        if token == LISTENER {
            self.accept_again = true;
        } else {
            self.on_client(token, ready);
        }
        self.accept();
    }

    fn accept(&mut self) {
        if !self.accept_again {
            return;
        }
        // A bound against a client that connects faster than this loop turns.
        for _ in 0..CAPACITY {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.accept_again = false;
                    return;
                }
                // Out of descriptors: try again when one was closed. Others are about one client.
                Err(_) => return,
            }
        }
    }

    /// Takes a new client, or closes it when there are too many.
    fn add(&mut self, stream: UnixStream) {
        let watcher = self.watcher.as_ref();
        let token = self.clients.insert(|token| {
            stream.set_nonblocking(true).ok()?;
            if let Some(watcher) = watcher {
                watcher
                    .watch(stream.as_fd(), token, Interest::Readable)
                    .ok()?;
            }
            Some(Client::Greeting(stream))
        });
        if let Some(token) = token {
            // Its line may be here already: then no event comes for it but the first.
            self.on_client(token, Ready::default());
        }
    }

    fn on_client(&mut self, token: u32, ready: Ready) {
        match self.clients.get_mut(token) {
            None => {}
            Some(Client::Greeting(stream)) => match read_greeting(stream) {
                Ok(Some(Wish::Connect(port))) => self.connect(token, port),
                Ok(Some(Wish::Listen(port))) => self.listen(token, port),
                Ok(None) if !ready.hung_up => {}
                Ok(None) | Err(_) => self.remove(token),
            },
            Some(Client::Accepting { .. }) if ready.hung_up => self.remove(token),
            Some(Client::Accepting { .. }) => {}
            Some(Client::Joined(joined)) => {
                if ready.hung_up && joined.connection.is_asking() {
                    return self.abandon(token);
                }
                joined.on_ready(ready);
                self.settle(token);
            }
        }
    }

    /// A client hung up before the guest answered it.
    fn abandon(&mut self, token: u32) {
        if let Some(Client::Joined(joined)) = self.clients.get_mut(token) {
            let ports = joined.ports;
            if joined.connection.abandon() {
                let reset = Header {
                    op: Op::Reset.to_raw(),
                    ..self.header(ports)
                };
                self.push_reset(reset);
            }
            self.remove(token);
        }
    }

    fn connect(&mut self, token: u32, guest: u32) {
        let mut host = self.state.take_host_port();
        while self.joined.contains_key(&Ports { host, guest }) {
            host = self.state.take_host_port();
        }
        self.join(token, Ports { host, guest }, Connection::from_host());
    }

    fn listen(&mut self, token: u32, port: u32) {
        // The newest: an older one may be of an application that has given up since, which no
        // packet tells the host.
        let newest = self.held.iter().rposition(|held| held.ports.host == port);
        match newest.and_then(|index| self.held.remove(index)) {
            Some(held) => {
                if let Err(held) = self.accept_guest(token, held) {
                    self.held.push_back(held);
                }
            }
            None => {
                self.acceptors.push_back(token);
                self.clients.replace(token, |client| Client::Accepting {
                    port,
                    stream: client.into_stream(),
                });
            }
        }
    }

    fn join(&mut self, token: u32, ports: Ports, connection: Connection) {
        let watcher = self.watcher.clone().map(|watcher| (watcher, token));
        self.clients.replace(token, |client| {
            let stream = client.into_stream();
            Client::Joined(Box::new(Joined::new(ports, connection, stream, watcher)))
        });
        self.joined.insert(ports, token);
        self.settle(token);
    }

    /// Joins a connection of the guest's to a client. Gives it back if the client has gone.
    fn accept_guest(&mut self, token: u32, mut held: Held) -> Result<(), Held> {
        let welcomed = match self.clients.get_mut(token) {
            Some(Client::Greeting(stream) | Client::Accepting { stream, .. }) => {
                welcome(stream, held.ports.guest).is_ok()
            }
            Some(Client::Joined(_)) | None => false,
        };
        if !welcomed {
            self.remove(token);
            return Err(held);
        }
        held.connection.accept();
        self.acceptors.retain(|&acceptor| acceptor != token);
        self.join(token, held.ports, held.connection);
        Ok(())
    }

    /// Draws the conclusions from whatever happened to a joined client.
    fn settle(&mut self, token: u32) {
        let Some(Client::Joined(joined)) = self.clients.get_mut(token) else {
            return;
        };
        joined.shut_down();
        if joined.connection.is_over() {
            self.remove(token);
        } else if !joined.in_line && joined.has_offer() {
            joined.in_line = true;
            self.line.push_back(token);
        }
    }

    /// Closes a client's stream and forgets it.
    fn remove(&mut self, token: u32) {
        match self.clients.remove(token) {
            Some(Client::Joined(joined)) => {
                self.joined.remove(&joined.ports);
                if joined.in_line {
                    self.line.retain(|&waiting| waiting != token);
                }
            }
            Some(Client::Accepting { .. }) => self.acceptors.retain(|&waiting| waiting != token),
            Some(Client::Greeting(_)) | None => {}
        }
    }

    // Guest side.

    /// A packet from the guest. `payload` is what followed the header, which may not be as long as
    /// the header says.
    pub fn on_packet(&mut self, header: &Header, mut payload: Buffers<'_>) {
        // Section 5.10.6.6: the device answers for no other pair of addresses.
        if header.src_cid != self.state.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let Some(op) = Op::from_raw(header.op) else {
            // What the guest is told to be over is over here as well.
            self.forget(ports);
            return self.refuse(header);
        };
        if let Some(&token) = self.joined.get(&ports) {
            let whole = payload.len() >= header.len as usize;
            payload.split_off(header.len as usize);
            self.on_joined(token, op, header, whole.then_some(payload));
        } else if let Some(index) = self.held.iter().position(|held| held.ports == ports) {
            self.on_held(index, op, header);
        } else if op == Op::Request {
            self.on_request(ports, header);
        } else {
            self.refuse(header);
        }
    }

    /// Ends whatever there is between two ports, without a word.
    fn forget(&mut self, ports: Ports) {
        if let Some(&token) = self.joined.get(&ports) {
            self.remove(token);
        }
        self.held.retain(|held| held.ports != ports);
    }

    fn on_joined(&mut self, token: u32, op: Op, header: &Header, payload: Option<Buffers<'_>>) {
        let Some(Client::Joined(joined)) = self.clients.get_mut(token) else {
            return;
        };
        let outcome = match (op, payload) {
            (Op::Data, None) => Outcome::Over { reset: true },
            (Op::Data, Some(payload)) => match joined.connection.on_data(header) {
                Outcome::Continue => {
                    joined.forward(payload);
                    Outcome::Continue
                }
                other => other,
            },
            (op, _) => joined.connection.on_control(op, header),
        };
        match outcome {
            Outcome::Continue => self.settle(token),
            Outcome::Accepted => {
                if welcome(joined.stream(), joined.ports.host).is_err() {
                    joined.connection.on_client_deaf();
                }
                self.settle(token);
            }
            Outcome::Over { reset } => {
                self.remove(token);
                if reset {
                    self.refuse(header);
                }
            }
        }
    }

    fn on_held(&mut self, index: usize, op: Op, header: &Header) {
        let Some(mut held) = self.held.remove(index) else {
            return;
        };
        // A second request for the same ports: the guest has given the first one up.
        if op == Op::Request {
            return self.on_request(held.ports, header);
        }
        match held.connection.on_control(op, header) {
            Outcome::Over { reset: true } => self.refuse(header),
            Outcome::Over { reset: false } => {}
            Outcome::Continue | Outcome::Accepted => self.held.insert(index, held),
        }
    }

    fn on_request(&mut self, ports: Ports, header: &Header) {
        let mut held = Held {
            ports,
            connection: Connection::from_guest(header),
        };
        while let Some(token) = self.acceptor(ports.host) {
            match self.accept_guest(token, held) {
                Ok(()) => return,
                Err(back) => held = back,
            }
        }
        if self.held.len() == MAX_HELD
            && let Some(oldest) = self.held.pop_front()
        {
            let reset = Header {
                op: Op::Reset.to_raw(),
                ..self.header(oldest.ports)
            };
            self.push_reset(reset);
        }
        self.held.push_back(held);
    }

    /// The client that has waited longest for this port.
    fn acceptor(&mut self, wanted: u32) -> Option<u32> {
        let clients = &mut self.clients;
        self.acceptors.iter().copied().find(|&token| {
            matches!(clients.get_mut(token), Some(Client::Accepting { port, .. }) if *port == wanted)
        })
    }

    /// Answers a packet that belongs to nothing. Resets are never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset.to_raw() {
            self.push_reset(header.reset());
        }
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    fn header(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.state.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            buf_alloc: WINDOW,
            ..Header::default()
        }
    }

    /// Whether [`Muxer::next_offer`] may have something.
    pub fn has_offers(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// What the guest gets next. The caller must have a receive buffer in hand: a packet that was
    /// taken is not offered again.
    pub fn next_offer(&mut self) -> Option<Offer> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(Offer::Packet(reset));
        }
        while let Some(token) = self.line.pop_front() {
            let Some(Client::Joined(joined)) = self.clients.get_mut(token) else {
                continue;
            };
            joined.in_line = false;
            if let Some(control) = joined.connection.take_control() {
                let (ports, (_, fwd_cnt)) = (joined.ports, joined.connection.announce());
                self.settle(token);
                let op = control.op.to_raw();
                return Some(Offer::Packet(Header {
                    op,
                    flags: control.flags,
                    fwd_cnt,
                    ..self.header(ports)
                }));
            }
            if joined.has_offer() {
                let (room, burst) = (joined.connection.room(), joined.burst);
                return Some(Offer::Data { token, room, burst });
            }
        }
        None
    }

    /// Carries [`Offer::Data`] out: reads from the client into receive buffers. Gives the number of
    /// bytes and the header for them, but for the length.
    pub fn receive(&mut self, token: u32, to: &[VolatileSlice<'_>]) -> Option<(usize, Header)> {
        let Some(Client::Joined(joined)) = self.clients.get_mut(token) else {
            return None;
        };
        let received = joined.receive(to);
        let (ports, (_, fwd_cnt)) = (joined.ports, joined.connection.announce());
        self.settle(token);
        match received {
            Received::Bytes(count) => {
                let op = Op::Data.to_raw();
                Some((
                    count,
                    Header {
                        op,
                        fwd_cnt,
                        ..self.header(ports)
                    },
                ))
            }
            Received::Nothing | Received::End => None,
        }
    }
}
