//! Joins streams from the host to the container's port, both half-closes included.
//!
//! An idle stream costs two descriptors and a few dozen bytes: there is one buffer for all of
//! them, and a stream owns memory only while its reader is slower than its writer, and then no
//! more than [`relay::BUFFER_BYTES`] each way. Not `splice(2)`: it needs two pipes (four more descriptors)
//! per stream, and vsock has no zero-copy path for it, the kernel would copy all the same.
//!
//! A refused port closes the stream. A container's connection that is reset ends the
//! stream; a stream that is reset resets the container's connection.
//!
//! A stream goes to the target port, or to the port that the host names in its first two bytes. Either
//! way it goes to a loopback address ([`Loopback`] knows no other), so nothing but the container can
//! be reached.

mod caller;
mod relay;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt;

use crate::poller::{Poller, Readiness, Token};
use crate::target::{self, Loopback};
use caller::Caller;
use relay::{BUFFER_BYTES, Direction, End, Moved};

/// Streams to the target port at one time.
const MAX_STREAMS: usize = 1008;
/// With those that name their port, by which the host asks how the container is: a busy container must not look
/// like an unhealthy one. The VMM's vsock device allows 1024 connections, the control stream among them.
const MAX_WITH_NAMED: usize = MAX_STREAMS + 8;

/// All joined streams.
pub struct Proxy {
    target_port: Option<u16>,
    streams: HashMap<u32, Joined>,
    /// Streams that have not named their port yet.
    callers: HashMap<u32, Caller>,
    next_id: u32,
    /// Streams that used up their turn and have more to do.
    waiting: VecDeque<u32>,
    buffer: Box<[u8]>,
}

/// One stream from the host and its connection to the container.
struct Joined {
    client: End,
    target: End,
    port: u16,
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
            callers: HashMap::new(),
            next_id: 0,
            waiting: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        }
    }

    /// Where streams go from now on. Before the first call they are closed.
    pub fn set_target(&mut self, port: u16) {
        self.target_port = Some(port);
    }

    /// Joins a new stream to the target port. `client` does not block.
    pub fn open(&mut self, client: OwnedFd, poller: &Poller) {
        let Some(port) = self.target_port else { return };
        if let Some((id, client)) = self.admit(client, MAX_STREAMS, poller) {
            self.join(id, client, port, Direction::default(), poller);
        }
    }

    /// Joins a new stream to the port that its first two bytes will name. Before the first call of
    /// [`Self::set_target`] it is closed: a guest that is held for forking uses no TCP.
    pub fn open_named(&mut self, client: OwnedFd, poller: &Poller) {
        if self.target_port.is_some()
            && let Some((id, client)) = self.admit(client, MAX_WITH_NAMED, poller)
        {
            self.callers.insert(id, Caller::new(client));
        }
    }

    /// Watches a new stream, unless there are as many as this.
    fn admit(&mut self, client: OwnedFd, limit: usize, poller: &Poller) -> Option<(u32, End)> {
        if self.streams.len() + self.callers.len() >= limit {
            return None;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let watched = poller
            .watch_edge(&client, Token::Client(id))
            .or_else(|_| poller.watch_edge_as(&client, Token::Client(id)));
        // An error drops the stream: the host sees it closed.
        watched.ok().map(|()| (id, End::new(client)))
    }

    /// `down` may hold what is said to the client once it is joined.
    fn join(&mut self, id: u32, client: End, port: u16, down: Direction, poller: &Poller) {
        // An error drops the client: the host sees its stream closed.
        let Ok((loopback, target)) = connect(Loopback::V4, port, id, poller) else {
            return;
        };
        let joined = Joined {
            client,
            target: End::new(target),
            port,
            connecting: Some(loopback),
            up: Direction::default(),
            down,
        };
        self.streams.insert(id, joined);
    }

    pub fn on_client(&mut self, id: u32, readiness: Readiness, poller: &Poller) {
        if let Some(joined) = self.streams.get_mut(&id) {
            joined.client.note(readiness);
            self.advance(id);
        } else if let Some(mut caller) = self.callers.remove(&id) {
            match caller.on_ready(readiness) {
                Ok(Some(port)) => {
                    let answer = Direction::beginning_with(&port.to_be_bytes());
                    self.join(id, caller.into_client(), port, answer, poller);
                }
                Ok(None) => drop(self.callers.insert(id, caller)),
                // The host has gone, or has named no port.
                Err(_) => {}
            }
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
        let Some(joined) = self.streams.get_mut(&id) else {
            return;
        };
        match connect(Loopback::V6, joined.port, id, poller) {
            Ok((loopback, target)) => {
                joined.target = End::new(target);
                joined.connecting = Some(loopback);
            }
            Err(_) => self.close(id),
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
            // A connect to a container that accepts nothing takes minutes to fail; the host may have
            // gone before.
            if joined.client.refuses_bytes() {
                self.close(id);
            }
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
