//! A thin epoll wrapper with typed tokens.
//!
//! Streams are watched edge-triggered, for reading and writing at once: no `epoll_ctl` per change
//! of interest, and a peer that has hung up cannot spin the loop. Their owners remember what is
//! readable or writable until a call says "would block". Listeners and signals are level-triggered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use wire::Stream;

/// Events taken from the kernel in one call.
const BATCH: usize = 128;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A child changed state.
    Child,
    /// Somebody asked an ordinary process to end.
    Terminate,
    /// A new connection on the transport.
    Listener,
    /// A connection that has not said yet what it wants (process mode).
    Handshake(u32),
    /// The control stream.
    Control,
    /// The stage: the process that becomes the container.
    Stage,
    /// The container's standard output or error.
    Output(Stream),
    /// The probe of the target port.
    Probe,
    /// The container's control group changed state.
    Freezer,
    /// The listener of streams that name their port.
    LoopbackListener,
    /// The host's end of a joined stream.
    Client(u32),
    /// The container's end of a joined stream.
    Target(u32),
    /// A new connection for a command of an operator.
    ExecListener,
    /// A command of an operator.
    Exec(u32, ExecPart),
}

/// What of a command an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecPart {
    /// The stream from the host.
    Client,
    /// The socket of the process that becomes the command.
    Channel,
    Stdin,
    /// Standard output, or both ways of a terminal.
    Stdout,
    Stderr,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Self::Child => (0, 0),
            Self::Terminate => (1, 0),
            Self::Listener => (2, 0),
            Self::Handshake(id) => (3, id),
            Self::Control => (4, 0),
            Self::Stage => (5, 0),
            Self::Output(Stream::Stdout) => (6, 0),
            Self::Output(Stream::Stderr) => (7, 0),
            Self::Probe => (8, 0),
            Self::Client(id) => (9, id),
            Self::Target(id) => (10, id),
            Self::Freezer => (11, 0),
            Self::LoopbackListener => (12, 0),
            Self::ExecListener => (20, 0),
            Self::Exec(id, ExecPart::Client) => (21, id),
            Self::Exec(id, ExecPart::Channel) => (22, id),
            Self::Exec(id, ExecPart::Stdin) => (23, id),
            Self::Exec(id, ExecPart::Stdout) => (24, id),
            Self::Exec(id, ExecPart::Stderr) => (25, id),
        };
        (kind << 32) | u64::from(id)
    }

    fn decode(data: u64) -> Option<Self> {
        let id = u32::try_from(data & u64::from(u32::MAX)).ok()?;
        Some(match data >> 32 {
            0 => Self::Child,
            1 => Self::Terminate,
            2 => Self::Listener,
            3 => Self::Handshake(id),
            4 => Self::Control,
            5 => Self::Stage,
            6 => Self::Output(Stream::Stdout),
            7 => Self::Output(Stream::Stderr),
            8 => Self::Probe,
            9 => Self::Client(id),
            10 => Self::Target(id),
            11 => Self::Freezer,
            12 => Self::LoopbackListener,
            20 => Self::ExecListener,
            21 => Self::Exec(id, ExecPart::Client),
            22 => Self::Exec(id, ExecPart::Channel),
            23 => Self::Exec(id, ExecPart::Stdin),
            24 => Self::Exec(id, ExecPart::Stdout),
            25 => Self::Exec(id, ExecPart::Stderr),
            _ => return None,
        })
    }
}

/// What may be tried without blocking. A hang-up or an error counts as all, so that the next
/// read or write reports it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer says nothing after what can be read now.
    pub ended: bool,
}

impl Readiness {
    fn of(flags: EventFlags) -> Self {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        Self {
            readable: broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
            writable: broken || flags.intersects(EventFlags::OUT),
            ended: broken || flags.intersects(EventFlags::RDHUP),
        }
    }
}

/// The set of watched descriptors. Closing a descriptor takes it out.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Reports the token again and again while there is something to read.
    pub fn watch_level(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN)
    }

    /// Reports the token once per change.
    pub fn watch_edge(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(
            fd,
            token,
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )
    }

    /// Reports the token when the kernel has changed what the file holds, until it is read.
    pub fn watch_changes(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(fd, token, EventFlags::PRI)
    }

    /// Watches a descriptor that is watched already, under another token.
    pub fn watch_edge_as(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::delete(&self.epoll, &fd)?;
        self.watch_edge(fd, token)
    }

    fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.encode()),
            flags,
        )?)
    }

    /// Waits for events, at most for `timeout`; `None` waits for ever.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(Token, Readiness)>> {
        // Longer than the 24.8 days that every kernel accepts is as good as for ever.
        let timeout = timeout.and_then(|timeout| {
            let timeout = timeout.min(Duration::from_secs(1 << 20));
            Timespec::try_from(timeout).ok()
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let typed = |event: &Event| {
            let Event { flags, data, .. } = *event;
            Token::decode(data.u64()).map(|token| (token, Readiness::of(flags)))
        };
        Ok(self.events.iter().filter_map(typed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_kernel() {
        for token in [
            Token::Child,
            Token::Terminate,
            Token::Listener,
            Token::Handshake(7),
            Token::Control,
            Token::Stage,
            Token::Output(Stream::Stdout),
            Token::Output(Stream::Stderr),
            Token::Probe,
            Token::Client(u32::MAX),
            Token::Target(0),
            Token::Freezer,
            Token::LoopbackListener,
            Token::ExecListener,
            Token::Exec(1, ExecPart::Client),
            Token::Exec(2, ExecPart::Channel),
            Token::Exec(3, ExecPart::Stdin),
            Token::Exec(4, ExecPart::Stdout),
            Token::Exec(u32::MAX, ExecPart::Stderr),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
