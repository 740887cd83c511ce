//! A worker's host socket, served by the agent itself: process mode.
//!
//! A client says one line and then owns a stream. `CONNECT <port>` is answered with `OK <port>` when
//! something listens on that port of the "guest", and otherwise closed. `LISTEN <port>` waits
//! until the "guest" connects to that port of its host, and is answered then.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use wire::port;

use crate::attempt::{Attempt, SetupError};
use crate::poller::{Poller, Token};

/// The longest line, its end included.
const MAX_LINE_BYTES: usize = 32;
/// Clients that may wait for a connection from the guest.
const MAX_ACCEPTORS: usize = 8;
/// Clients that may be about to say their line.
const MAX_HANDSHAKES: usize = 256;

/// The listening socket and everyone who has not got a stream yet.
pub struct HostSocket {
    listener: UnixListener,
    path: PathBuf,
    handshakes: HashMap<u32, Handshake>,
    next_id: u32,
    acceptors: VecDeque<(u32, OwnedFd)>,
}

struct Handshake {
    stream: OwnedFd,
    line: Vec<u8>,
}

/// What a client's line asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Connect(u32),
    Listen(u32),
}

/// What came of a handshake.
pub enum Outcome {
    /// Nothing for the caller to do.
    Pending,
    /// The client is joined to [`port::STREAM`].
    Stream(OwnedFd),
    /// The client is joined to [`port::LOOPBACK`].
    Loopback(OwnedFd),
    /// The client is joined to [`port::EXEC`].
    Exec(OwnedFd),
    /// Somebody waits for the guest now.
    Acceptor,
}

impl HostSocket {
    pub fn bind(path: &Path) -> Result<Self, SetupError> {
        let listener =
            UnixListener::bind(path).attempt(|| format!("listen on {}", path.display()))?;
        listener
            .set_nonblocking(true)
            .attempt(|| format!("make {} non-blocking", path.display()))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            handshakes: HashMap::new(),
            next_id: 0,
            acceptors: VecDeque::new(),
        })
    }

    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes new clients in.
    pub fn on_listener(&mut self, poller: &Poller) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.handshakes.len() >= MAX_HANDSHAKES {
                continue;
            }
            stream.set_nonblocking(true)?;
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            poller.watch_edge(&stream, Token::Handshake(id))?;
            self.handshakes.insert(
                id,
                Handshake {
                    stream: stream.into(),
                    line: Vec::new(),
                },
            );
        }
    }

    /// Reads on in a client's line.
    pub fn on_handshake(&mut self, id: u32) -> Outcome {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return Outcome::Pending;
        };
        match handshake.read_line() {
            Ok(false) => Outcome::Pending,
            Ok(true) => self.grant(id),
            Err(_) => {
                self.handshakes.remove(&id);
                Outcome::Pending
            }
        }
    }

    fn grant(&mut self, id: u32) -> Outcome {
        let Some(Handshake { stream, line }) = self.handshakes.remove(&id) else {
            return Outcome::Pending;
        };
        match parse(&line) {
            Some(Wish::Connect(port::STREAM)) if answer(&stream, port::STREAM).is_ok() => {
                Outcome::Stream(stream)
            }
            Some(Wish::Connect(port::LOOPBACK)) if answer(&stream, port::LOOPBACK).is_ok() => {
                Outcome::Loopback(stream)
            }
            Some(Wish::Connect(port::EXEC)) if answer(&stream, port::EXEC).is_ok() => {
                Outcome::Exec(stream)
            }
            Some(Wish::Listen(port)) if self.acceptors.len() < MAX_ACCEPTORS => {
                self.acceptors.push_back((port, stream));
                Outcome::Acceptor
            }
            // Nothing listens on that port, or the line is nonsense: closed without an answer.
            _ => Outcome::Pending,
        }
    }

    /// The guest connects to its host: the first client that still waits on that port.
    pub fn connect(&mut self, port: u32) -> Option<OwnedFd> {
        while let Some(index) = self
            .acceptors
            .iter()
            .position(|(waits_on, _)| *waits_on == port)
        {
            let (_, stream) = self.acceptors.remove(index)?;
            if answer(&stream, port).is_ok() {
                return Some(stream);
            }
        }
        None
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Handshake {
    /// Whether the line is whole. One byte at a time: what follows the line is not ours.
    fn read_line(&mut self) -> Result<bool, Errno> {
        while self.line.len() < MAX_LINE_BYTES {
            let mut byte = [0];
            match rustix::io::read(&self.stream, &mut byte) {
                Ok(1) if byte[0] == b'\n' => return Ok(true),
                Ok(1) => self.line.push(byte[0]),
                Ok(_) => return Err(Errno::PIPE),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::MSGSIZE)
    }
}

fn parse(line: &[u8]) -> Option<Wish> {
    let line = std::str::from_utf8(line).ok()?;
    let (verb, port) = line.split_once(' ')?;
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok()?;
    match verb {
        "CONNECT" => Some(Wish::Connect(port)),
        "LISTEN" => Some(Wish::Listen(port)),
        _ => None,
    }
}

/// The socket buffer of a new stream is empty, so the line goes out whole or the client has gone.
fn answer(stream: &OwnedFd, port: u32) -> Result<(), Errno> {
    let line = format!("OK {port}\n");
    let sent = rustix::io::retry_on_intr(|| rustix::io::write(stream, line.as_bytes()))?;
    if sent == line.len() {
        Ok(())
    } else {
        Err(Errno::AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_protocol_are_understood_and_others_are_not() {
        assert_eq!(parse(b"CONNECT 1025"), Some(Wish::Connect(1025)));
        assert_eq!(parse(b"LISTEN 1024"), Some(Wish::Listen(1024)));
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT +1",
            "CONNECT 1 ",
            "connect 1",
            "OK 1",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT 4294967296"), None);
        assert_eq!(parse(b"\xff 1"), None);
    }
}
