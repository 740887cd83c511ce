//! Joins streams from the host to the container's port, both half-closes included.
//!
//! An idle stream costs two descriptors and a few dozen bytes: there is one buffer for all of
//! them, and a stream owns memory only while its reader is slower than its writer, and then no
//! more than [`relay::BUFFER_BYTES`] each way. Not `splice(2)`: it needs two pipes (four more descriptors)
//! per stream, and vsock has no zero-copy path for it, the kernel would copy all the same.
//!
//! A refused target port closes the stream. A container's connection that is reset ends the
//! stream; a stream that is reset resets the container's connection.

mod relay;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt;

use crate::poller::{Poller, Readiness, Token};
use crate::target::{self, Loopback};
use relay::{BUFFER_BYTES, Direction, End, Moved};

/// Streams at one time; the VMM's vsock device allows as many connections.
pub const MAX_STREAMS: usize = 1024;

/// All joined streams.
pub struct Proxy {
    target_port: Option<u16>,
    streams: HashMap<u32, Joined>,
    next_id: u32,
    /// Streams that used up their turn and have more to do.
    waiting: VecDeque<u32>,
    buffer: Box<[u8]>,
}

/// One stream from the host and its connection to the container.
struct Joined {
    client: End,
    target: End,
    /// The address that is being tried; `None` once connected.
    connecting: Option<Loopback>,
    /// From the client to the target.
    up: Direction,
    /// From the target to the client.
    down: Direction,
}

impl Proxy {
    pub fn new() -> Self {
        Self {
            target_port: None,
            streams: HashMap::new(),
            next_id: 0,
            waiting: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        }
    }

    /// Where streams go from now on. Before the first call they are closed.
    pub fn set_target(&mut self, port: u16) {
        self.target_port = Some(port);
    }

    /// Joins a new stream. `client` does not block.
    pub fn open(&mut self, client: OwnedFd, poller: &Poller) {
        let Some(port) = self.target_port else { return };
        if self.streams.len() >= MAX_STREAMS {
            return;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        // An error drops both ends: the host sees its stream closed.
        let Ok((loopback, target)) = connect(Loopback::V4, port, id, poller) else {
            return;
        };
        let registered = poller
            .watch_edge(&client, Token::Client(id))
            .or_else(|_| poller.watch_edge_as(&client, Token::Client(id)));
        if registered.is_ok() {
            let joined = Joined {
                client: End::new(client),
                target: End::new(target),
                connecting: Some(loopback),
                up: Direction::default(),
                down: Direction::default(),
            };
            self.streams.insert(id, joined);
        }
    }

    pub fn on_client(&mut self, id: u32, readiness: Readiness) {
        if let Some(joined) = self.streams.get_mut(&id) {
            joined.client.note(readiness);
            self.advance(id);
        }
    }

    pub fn on_target(&mut self, id: u32, readiness: Readiness, poller: &Poller) {
        let Some(joined) = self.streams.get_mut(&id) else {
            return;
        };
        let Some(loopback) = joined.connecting else {
            joined.target.note(readiness);
            return self.advance(id);
        };
        match (target::outcome(joined.target.fd()), loopback) {
            (None, _) => {}
            (Some(Ok(())), _) => {
                joined.connecting = None;
                joined.target.note(readiness);
                self.advance(id);
            }
            (Some(Err(_)), Loopback::V4) => self.try_v6(id, poller),
            (Some(Err(_)), Loopback::V6) => self.close(id),
        }
    }

    fn try_v6(&mut self, id: u32, poller: &Poller) {
        let connected = self
            .target_port
            .map(|port| connect(Loopback::V6, port, id, poller));
        match (connected, self.streams.get_mut(&id)) {
            (Some(Ok((loopback, target))), Some(joined)) => {
                joined.target = End::new(target);
                joined.connecting = Some(loopback);
            }
            _ => self.close(id),
        }
    }

    /// How long the loop may sleep: not at all while a stream waits for its turn.
    pub fn patience(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(Duration::ZERO)
    }

    /// Gives one turn to each stream that had more to do.
    pub fn take_turns(&mut self) {
        for _ in 0..self.waiting.len() {
            if let Some(id) = self.waiting.pop_front() {
                self.advance(id);
            }
        }
    }

    fn advance(&mut self, id: u32) {
        let Some(joined) = self.streams.get_mut(&id) else {
            return;
        };
        if joined.connecting.is_some() {
            return;
        }
        match joined.advance(&mut self.buffer) {
            Ok(Moved::All) if joined.up.is_over() && joined.down.is_over() => self.close(id),
            Ok(Moved::All) => {}
            Ok(Moved::Turn) => {
                if !self.waiting.contains(&id) {
                    self.waiting.push_back(id);
                }
            }
            Err(_) => {
                // So that the container sees a reset and not an orderly end.
                let _ = sockopt::set_socket_linger(joined.target.fd(), Some(Duration::ZERO));
                self.close(id);
            }
        }
    }

    fn close(&mut self, id: u32) {
        self.streams.remove(&id);
    }
}

impl Joined {
    /// Moves what can be moved. An error is a reset from either end.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<Moved> {
        let up = self
            .up
            .advance(&mut self.client, &mut self.target, buffer)?;
        let down = self
            .down
            .advance(&mut self.target, &mut self.client, buffer)?;
        // A client that has gone altogether looks like one that only finished its request, until
        // something is written to it. A container that never writes would keep the stream for ever.
        if self.up.is_over() && !self.down.is_over() && self.client.refuses_bytes() {
            self.down.abandon();
        }
        Ok(if up == Moved::Turn || down == Moved::Turn {
            Moved::Turn
        } else {
            Moved::All
        })
    }
}

/// Begins to connect to `loopback`, and to the next address when that fails at once.
fn connect(
    loopback: Loopback,
    port: u16,
    id: u32,
    poller: &Poller,
) -> io::Result<(Loopback, OwnedFd)> {
    match (target::begin(loopback, port), loopback) {
        (Ok(socket), _) => {
            poller.watch_edge(&socket, Token::Target(id))?;
            Ok((loopback, socket))
        }
        (Err(_), Loopback::V4) => connect(Loopback::V6, port, id, poller),
        (Err(error), Loopback::V6) => Err(error),
    }
}
