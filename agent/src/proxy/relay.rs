//! One direction of a joined stream. No epoll in here: the caller says what is ready.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use crate::poller::Readiness;

/// Bytes moved in one read, and the most that one direction holds back.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Reads before another stream gets its turn.
const READS_PER_TURN: usize = 16;

/// A socket and what may be tried on it without blocking.
pub struct End {
    socket: OwnedFd,
    ready: Readiness,
}

impl End {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            ready: Readiness::default(),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn note(&mut self, readiness: Readiness) {
        self.ready.readable |= readiness.readable;
        self.ready.writable |= readiness.writable;
        self.ready.ended |= readiness.ended;
    }

    /// Whether the peer has closed its end for reading too. An empty send asks without sending.
    pub fn refuses_bytes(&self) -> bool {
        rustix::net::send(&self.socket, &[], SendFlags::NOSIGNAL) == Err(Errno::PIPE)
    }

    /// `None` when nothing can be read now. A short read has taken all that there was, and what comes later is a change that is
    /// reported (epoll(7)); the end that was reported already is not, and is still to be read.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.ready.readable {
            return Ok(None);
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut *buffer)) {
            Ok(n) => {
                self.ready.readable = n == buffer.len() || self.ready.ended;
                Ok(Some(n))
            }
            Err(Errno::AGAIN) => {
                self.ready.readable = false;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How much was written, 0 when nothing can be written now.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if !self.ready.writable {
            return Ok(0);
        }
        let send = || rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL);
        match rustix::io::retry_on_intr(send) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN) => {
                self.ready.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

/// How far [`Direction::advance`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Until one of the ends would block, or the direction is over.
    All,
    /// Until its turn was used up.
    Turn,
}

/// Bytes from one end to the other.
#[derive(Default)]
pub struct Direction {
    /// Read and not written yet; almost always empty.
    held: Vec<u8>,
    state: State,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Flowing,
    /// The source has ended; what is held goes out first.
    Ending,
    /// The end was passed on, or nobody reads any more.
    Over,
}

impl Direction {
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// A direction that says `bytes` before anything of its source.
    pub fn beginning_with(bytes: &[u8]) -> Self {
        Self {
            held: bytes.to_vec(),
            ..Self::default()
        }
    }

    /// Drops what is held: the reader has gone.
    pub fn abandon(&mut self) {
        self.held = Vec::new();
        self.state = State::Over;
    }

    /// Moves bytes until something would block. An error is one of `from`; a writing error ends
    /// only this direction, because `to` may still have an answer in flight (a server that refuses
    /// a long upload answers first and then closes).
    pub fn advance(
        &mut self,
        from: &mut End,
        to: &mut End,
        buffer: &mut [u8],
    ) -> io::Result<Moved> {
        for _ in 0..READS_PER_TURN {
            if !self.send_held(to) {
                return Ok(Moved::All);
            }
            match self.state {
                State::Over => return Ok(Moved::All),
                State::Ending => {
                    // It fails when the peer has gone, and then there is nothing to tell it.
                    let _ = rustix::net::shutdown(to.fd(), Shutdown::Write);
                    self.state = State::Over;
                    return Ok(Moved::All);
                }
                // What cannot be written on is left with the kernel, which slows the writer down.
                State::Flowing if !to.ready.writable => return Ok(Moved::All),
                State::Flowing => {}
            }
            match from.read(buffer)? {
                None => return Ok(Moved::All),
                Some(0) => self.state = State::Ending,
                Some(n) => self.send(&buffer[..n], to),
            }
        }
        Ok(Moved::Turn)
    }

    fn send(&mut self, bytes: &[u8], to: &mut End) {
        match to.write(bytes) {
            Ok(sent) => self.held.extend_from_slice(&bytes[sent..]),
            Err(_) => self.abandon(),
        }
    }

    /// Whether nothing is held any more.
    fn send_held(&mut self, to: &mut End) -> bool {
        while !self.held.is_empty() {
            match to.write(&self.held) {
                Ok(0) => return false,
                Ok(sent) => drop(self.held.drain(..sent)),
                Err(_) => self.abandon(),
            }
        }
        self.held = Vec::new(); // gives the memory back
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const READY: Readiness = Readiness {
        readable: true,
        writable: true,
        ended: false,
    };

    /// A peer that the test holds, and the end that the direction holds.
    fn end() -> (UnixStream, End) {
        let (peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut end = End::new(ours.into());
        end.note(READY);
        (peer, end)
    }

    #[test]
    fn bytes_and_then_the_end_are_passed_on() {
        let ((mut source, mut from), (mut sink, mut to)) = (end(), end());
        let mut direction = Direction::default();
        source.write_all(b"hello").unwrap();
        source.shutdown(std::net::Shutdown::Write).unwrap();
        from.note(Readiness {
            ended: true,
            ..READY
        });
        let moved = direction.advance(&mut from, &mut to, &mut [0; 64]).unwrap();
        assert!(moved == Moved::All && direction.is_over());
        let mut text = String::new();
        sink.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn end_that_comes_after_a_short_read_is_passed_on_when_it_is_reported() {
        let ((mut source, mut from), (mut sink, mut to)) = (end(), end());
        let mut direction = Direction::default();
        source.write_all(b"hello").unwrap();
        direction.advance(&mut from, &mut to, &mut [0; 64]).unwrap();
        assert!(!from.ready.readable, "it would be read for nothing");
        drop(source);
        direction.advance(&mut from, &mut to, &mut [0; 64]).unwrap();
        assert!(!direction.is_over(), "nobody has said that it ended");
        from.note(Readiness {
            ended: true,
            ..READY
        });
        direction.advance(&mut from, &mut to, &mut [0; 64]).unwrap();
        assert!(direction.is_over());
        let mut text = String::new();
        sink.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn slow_reader_loses_nothing_and_bounds_what_is_held() {
        let ((mut source, mut from), (mut sink, mut to)) = (end(), end());
        source.set_nonblocking(true).unwrap();
        sink.set_nonblocking(true).unwrap();
        let mut direction = Direction::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let sent: Vec<u8> = (0..2_000_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let (mut rest, mut received) = (sent.as_slice(), Vec::new());
        let mut chunk = [0; 5000];
        while received.len() < sent.len() {
            let written = source.write(rest).unwrap_or(0);
            rest = &rest[written..];
            from.note(READY);
            while direction.advance(&mut from, &mut to, &mut buffer).unwrap() == Moved::Turn {}
            assert!(direction.held.capacity() <= BUFFER_BYTES);
            let read = sink.read(&mut chunk).unwrap();
            received.extend_from_slice(&chunk[..read]);
            to.note(READY);
        }
        assert!(received == sent);
        assert_eq!(direction.held.capacity(), 0, "memory is kept for nothing");
    }

    #[test]
    fn reader_that_has_gone_ends_the_direction_and_nothing_else() {
        let ((mut source, mut from), (sink, mut to)) = (end(), end());
        let mut direction = Direction::default();
        drop(sink);
        source.write_all(b"hello").unwrap();
        direction.advance(&mut from, &mut to, &mut [0; 64]).unwrap();
        assert!(direction.is_over());
        assert!(to.refuses_bytes() && !from.refuses_bytes());
    }

    #[test]
    fn busy_stream_gives_up_its_turn() {
        let ((mut source, mut from), (_sink, mut to)) = (end(), end());
        source.write_all(&[7; READS_PER_TURN + 1]).unwrap();
        let mut direction = Direction::default();
        assert_eq!(
            direction.advance(&mut from, &mut to, &mut [0; 1]).unwrap(),
            Moved::Turn
        );
        assert_eq!(
            direction.advance(&mut from, &mut to, &mut [0; 1]).unwrap(),
            Moved::All
        );
    }
}
