//! A client on the host's Unix socket, from its greeting to the end of its stream.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use vm_memory::VolatileSlice;

use super::connection::{Connection, HostShutdown};
use super::greeting::{self, Greeting, Wish};
use crate::devices::event_loop::{Interest, Ready, Watcher};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::iovec;

/// Receive buffers that one read fills at most: with Linux's buffers, the window of 64 KiB and more.
const MAX_BURST: usize = 32;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// Where a client is.
pub enum Client {
    /// It has not sent its line.
    Greeting(UnixStream),
    /// It waits for the guest to connect to `port`.
    Accepting { port: u32, stream: UnixStream },
    /// It is, or will be, joined to the guest.
    Joined(Box<Joined>),
}

impl Client {
    /// The client's socket, for its next role.
    pub fn into_stream(self) -> UnixStream {
        match self {
            Client::Greeting(stream) | Client::Accepting { stream, .. } => stream,
            Client::Joined(joined) => joined.stream,
        }
    }
}

/// Reads the line of a client without taking what follows it.
pub fn read_greeting(stream: &UnixStream) -> io::Result<Option<Wish>> {
    let mut bytes = [0; greeting::MAX_LINE];
    let (_, count) = match rustix::net::recv(stream, &mut bytes[..], rustix::net::RecvFlags::PEEK) {
        Ok(received) => received,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match greeting::parse(&bytes[..count]) {
        _ if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        Greeting::Partial => Ok(None),
        Greeting::Wrong => Err(io::ErrorKind::InvalidData.into()),
        Greeting::Line { wish, len } => {
            let mut reader = stream;
            reader.read_exact(&mut bytes[..len])?;
            Ok(Some(wish))
        }
    }
}

/// Tells a client that its stream begins.
pub fn welcome(mut stream: &UnixStream, port: u32) -> io::Result<()> {
    // Never blocks: it is the first thing written to this socket, and short.
    stream.write_all(format!("OK {port}\n").as_bytes())
}

/// A client's stream and the connection it is joined to.
pub struct Joined {
    pub ports: Ports,
    pub connection: Connection,
    stream: UnixStream,
    watcher: Option<(Watcher, u32)>,
    /// The guest's bytes that the socket did not take at once. Bounded by the credit window.
    backlog: VecDeque<u8>,
    /// The socket may have bytes: nothing else was learnt since the last event.
    readable: bool,
    /// The stream may have ended, which no further event tells: a short read proves nothing.
    may_have_ended: bool,
    /// It is in line for the guest's next receive buffer.
    pub in_line: bool,
    /// Receive buffers to offer at once. Doubles while they are filled.
    pub burst: usize,
}

/// What a read from a client gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    Bytes(usize),
    /// Nothing now; an event tells when there is.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Joined {
    pub fn new(
        ports: Ports,
        connection: Connection,
        stream: UnixStream,
        watcher: Option<(Watcher, u32)>,
    ) -> Self {
        Self {
            ports,
            connection,
            stream,
            watcher,
            backlog: VecDeque::new(),
            // The client may have sent bytes behind its line and hung up, and those events are gone.
            readable: true,
            may_have_ended: true,
            in_line: false,
            burst: 1,
        }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Notes what epoll said.
    pub fn on_ready(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.may_have_ended |= ready.ended;
        if ready.hung_up {
            self.backlog = VecDeque::new();
            self.connection.on_client_deaf();
        } else if ready.writable {
            self.flush();
        }
    }

    /// Whether the guest has something to get.
    pub fn has_offer(&self) -> bool {
        self.connection.has_control() || (self.readable && self.connection.room() > 0)
    }

    /// Hands the guest's bytes to the client: at once as far as the socket takes them.
    pub fn forward(&mut self, mut payload: Buffers<'_>) {
        if !self.connection.client_receives() {
            return self.connection.on_forwarded(payload.len());
        }
        while self.backlog.is_empty() && !payload.is_empty() {
            match iovec::send(&self.stream, payload.slices()) {
                Ok(count) => {
                    payload.advance(count);
                    self.connection.on_forwarded(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.connection.on_forwarded(payload.len());
                    return self.connection.on_client_deaf();
                }
            }
        }
        if !payload.is_empty() {
            self.keep(payload);
        }
    }

    /// Keeps what the socket did not take and asks to be told when it does.
    fn keep(&mut self, mut payload: Buffers<'_>) {
        let was_empty = self.backlog.is_empty();
        let mut chunk = [0; 4096];
        while !payload.is_empty() {
            let count = payload.copy_out(&mut chunk);
            self.backlog.extend(&chunk[..count]);
        }
        if was_empty {
            self.watch(Interest::ReadableAndWritable);
        }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match (&self.stream).write(self.backlog.as_slices().0) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.connection.on_forwarded(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.backlog.clear();
                    self.connection.on_client_deaf();
                }
            }
        }
        // An idle connection keeps no buffer, and events about room in its socket are of no use.
        self.backlog = VecDeque::new();
        self.watch(Interest::Readable);
    }

    fn watch(&self, interest: Interest) {
        if let Some((watcher, token)) = &self.watcher {
            // It is watched already, so that there is nothing left to fail but a bug.
            let result = watcher.rewatch(&self.stream, *token, interest);
            debug_assert!(result.is_ok(), "{result:?}");
        }
    }

    /// Takes bytes from the client for the guest.
    pub fn receive(&mut self, to: &[VolatileSlice<'_>]) -> Received {
        let capacity: usize = to.iter().map(VolatileSlice::len).sum();
        let received = loop {
            match iovec::receive(&self.stream, to) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match received {
            Ok(count) if count > 0 => {
                // A short read has emptied the socket, and what comes now is another event.
                self.readable = count == capacity || self.may_have_ended;
                self.burst = if count == capacity {
                    MAX_BURST.min(2 * self.burst)
                } else {
                    1
                };
                self.connection.on_sent(count);
                Received::Bytes(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.may_have_ended = false;
                Received::Nothing
            }
            // An error is how a client that hangs up with bytes unread looks like.
            Ok(_) | Err(_) => {
                self.readable = false;
                self.connection.on_client_end();
                Received::End
            }
        }
    }

    /// Passes on what the guest said about its own directions.
    pub fn shut_down(&mut self) {
        while let Some(direction) = self.connection.take_host_shutdown() {
            let how = match direction {
                HostShutdown::Write => Shutdown::Write,
                HostShutdown::Read => Shutdown::Read,
            };
            // Fails only when the client is gone, which the next event tells.
            let _ = self.stream.shutdown(how);
        }
    }
}
