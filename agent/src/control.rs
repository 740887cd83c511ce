//! The control stream: frames to and from the host, without blocking.
//!
//! The stream may be lost (a host process that restarts, a snapshot that is restored); then
//! another one is opened. What was queued and not wholly sent goes out on the new stream, after
//! [`GuestMessage::Hello`] and everything the host must know about the container (started, ready,
//! failed, ended), which is said again on every stream.
//!
//! A fork finds its stream reset, and nothing it is for can begin before the next one stands. So the
//! first connect comes at once and not after a pause, and a refusal is answered with pauses that begin at one
//! millisecond: a host that is about to listen does so within a few of them, and one that is not there for
//! longer costs a try every two seconds. A stream that stands, or a connect that waits for the host
//! to accept, has no timer at all.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use wire::{GuestMessage, HostMessage, frame};

use crate::clock;
use crate::poller::{Poller, Readiness, Token};
use crate::transport::Transport;

/// How long the first hello may hold up what comes after it. A host that waits for its guest accepts within a fraction of this; one
/// that does not hears the hello when it accepts.
const FIRST_GREETING: Duration = Duration::from_millis(50);
/// Output waits in its pipe while more than this is queued.
const QUEUE_BYTES: usize = 256 << 10;
/// Frames that go out in one call.
const FRAMES_PER_WRITE: usize = 64;
/// Bytes taken in by one read.
const READ_BYTES: usize = 4 << 10;
/// A connect that the host refuses is tried again after this, doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// The control stream and both its queues.
pub struct Control {
    link: Link,
    retry: Duration,
    inbox: Vec<u8>,
    outbox: VecDeque<Queued>,
    outbox_bytes: usize,
    /// How much of the first frame in the outbox this stream has taken.
    sent_of_first: usize,
    /// What every new stream is told again, in the order in which it was said.
    told: Vec<Queued>,
}

enum Link {
    /// No stream. `Some`: open one at this time; `None`: when the transport says so.
    Down(Option<Instant>),
    Connecting(OwnedFd),
    Up(Up),
}

struct Up {
    stream: OwnedFd,
    ready: Readiness,
    /// Whether the first message was queued. Nothing is read or written before.
    greeted: bool,
}

struct Queued {
    frame: Vec<u8>,
    kind: Kind,
}

/// What becomes of a message when its stream is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Opens a stream, and belongs to it.
    Greeting,
    /// Every new stream must hear it again.
    Lasting,
    /// Said once.
    Passing,
}

impl Queued {
    fn new(message: &GuestMessage) -> Self {
        let kind = match message {
            GuestMessage::Hello { .. } => Kind::Greeting,
            GuestMessage::Started { .. }
            | GuestMessage::Ready
            | GuestMessage::Exited(_)
            | GuestMessage::Failed { .. } => Kind::Lasting,
            // A snapshot lies between two streams: what was renewed and frozen on the one says nothing
            // about the other.
            GuestMessage::Renewed
            | GuestMessage::Frozen
            | GuestMessage::Output { .. }
            | GuestMessage::Unknown => Kind::Passing,
        };
        let frame = frame::encode(message).expect("a line and a failure text are at most 16 KiB");
        Self { frame, kind }
    }
}

impl Control {
    /// No stream yet; `open_at` is when to open one.
    pub fn new(open_at: Option<Instant>) -> Self {
        Self {
            link: Link::Down(open_at),
            retry: FIRST_RETRY,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            sent_of_first: 0,
            told: Vec::new(),
        }
    }

    /// One that has said hello already, if the host accepts at once. For a poller that watches nothing else yet.
    pub fn greeting_at_once(transport: &mut Transport, poller: &mut Poller) -> io::Result<Self> {
        let started = Instant::now();
        let mut control = Self::new(None);
        control.attach(transport.connect_control(), poller, started);
        while let (Link::Connecting(_), Some(patience)) =
            (&control.link, FIRST_GREETING.checked_sub(started.elapsed()))
        {
            for (token, readiness) in poller.wait(Some(patience))? {
                if token == Token::Control {
                    control.on_event(readiness, Instant::now());
                }
            }
        }
        control.greet();
        control.flush(Instant::now());
        Ok(control)
    }

    /// When a stream should be opened with [`Control::attach`].
    pub fn deadline(&self) -> Option<Instant> {
        match self.link {
            Link::Down(at) => at,
            Link::Connecting(_) | Link::Up(_) => None,
        }
    }

    pub fn is_down(&self) -> bool {
        matches!(self.link, Link::Down(_))
    }

    /// Takes a stream whose connect was begun. `None`: there is none to be had for now.
    pub fn attach(&mut self, stream: io::Result<Option<OwnedFd>>, poller: &Poller, now: Instant) {
        let watched = stream.and_then(|stream| {
            if let Some(stream) = &stream {
                poller
                    .watch_edge(stream, Token::Control)
                    .or_else(|_| poller.watch_edge_as(stream, Token::Control))?;
            }
            Ok(stream)
        });
        self.link = match watched {
            Ok(Some(stream)) => Link::Connecting(stream),
            Ok(None) => Link::Down(None),
            Err(_) => self.refused(now),
        };
    }

    fn refused(&mut self, now: Instant) -> Link {
        let at = now + self.retry;
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        Link::Down(Some(at))
    }

    pub fn on_event(&mut self, readiness: Readiness, now: Instant) {
        match &mut self.link {
            Link::Down(_) => {}
            Link::Up(up) => {
                up.ready.readable |= readiness.readable;
                up.ready.writable |= readiness.writable;
            }
            Link::Connecting(stream) => {
                let refused =
                    sockopt::socket_error(&*stream).map_or(true, |result| result.is_err());
                if refused {
                    self.link = self.refused(now);
                } else if readiness.writable
                    && let Link::Connecting(stream) =
                        std::mem::replace(&mut self.link, Link::Down(None))
                {
                    self.retry = FIRST_RETRY;
                    self.link = Link::Up(Up {
                        stream,
                        ready: readiness,
                        greeted: false,
                    });
                }
            }
        }
    }

    /// Says hello on a stream that has not heard it, when there is one. Answers whether it did.
    pub fn greet(&mut self) -> bool {
        let Link::Up(up) = &mut self.link else {
            return false;
        };
        if up.greeted {
            return false;
        }
        up.greeted = true;
        let hello = GuestMessage::Hello {
            version: wire::VERSION,
            uptime_us: clock::uptime_us(),
        };
        for queued in self.told.drain(..).rev() {
            self.outbox_bytes += queued.frame.len();
            self.outbox.push_front(queued);
        }
        let hello = Queued::new(&hello);
        self.outbox_bytes += hello.frame.len();
        self.outbox.push_front(hello);
        true
    }

    /// Queues a message. Answers whether there is room for more output behind it.
    pub fn send(&mut self, message: &GuestMessage) -> bool {
        let queued = Queued::new(message);
        self.outbox_bytes += queued.frame.len();
        self.outbox.push_back(queued);
        self.has_room()
    }

    pub fn has_room(&self) -> bool {
        self.outbox_bytes < QUEUE_BYTES
    }

    /// Writes what the stream takes.
    pub fn flush(&mut self, now: Instant) {
        while let Link::Up(Up {
            stream,
            ready: Readiness { writable, .. },
            greeted: true,
        }) = &mut self.link
        {
            if !*writable || self.outbox.is_empty() {
                return;
            }
            let mut slices = Vec::with_capacity(FRAMES_PER_WRITE);
            for (index, queued) in self.outbox.iter().take(FRAMES_PER_WRITE).enumerate() {
                let from = if index == 0 { self.sent_of_first } else { 0 };
                slices.push(IoSlice::new(&queued.frame[from..]));
            }
            match rustix::io::writev(&*stream, &slices) {
                Ok(sent) => self.note_sent(sent),
                Err(Errno::AGAIN) => *writable = false,
                Err(Errno::INTR) => {}
                Err(_) => self.lose(now),
            }
        }
    }

    fn note_sent(&mut self, sent: usize) {
        let mut sent = sent + self.sent_of_first;
        while let Some(first) = self.outbox.front() {
            if sent < first.frame.len() {
                break;
            }
            sent -= first.frame.len();
            self.outbox_bytes -= first.frame.len();
            let first = self.outbox.pop_front();
            self.told
                .extend(first.filter(|queued| queued.kind == Kind::Lasting));
        }
        self.sent_of_first = sent;
    }

    /// The next message of the host. A frame that is no message closes the stream.
    pub fn receive(&mut self, now: Instant) -> Option<HostMessage> {
        loop {
            match self.next_frame() {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(_) => {
                    self.lose(now);
                    return None;
                }
            }
            let Link::Up(Up {
                stream,
                ready: Readiness { readable, .. },
                greeted: true,
            }) = &mut self.link
            else {
                return None;
            };
            if !*readable {
                return None;
            }
            // Into the same memory again and again: what a fork writes to is its own from then on.
            self.inbox.reserve(READ_BYTES);
            match rustix::io::read(&*stream, spare_capacity(&mut self.inbox)) {
                Ok(n) if n > 0 => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => *readable = false,
                Ok(_) | Err(_) => self.lose(now),
            }
        }
    }

    fn next_frame(&mut self) -> Result<Option<HostMessage>, wire::FrameError> {
        let Some((prefix, rest)) = self.inbox.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = frame::checked_length(*prefix)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = frame::decode(body)?;
        self.inbox.drain(..4 + length);
        Ok(Some(message))
    }

    /// Drops the stream; another one is opened at once.
    fn lose(&mut self, now: Instant) {
        self.link = Link::Down(Some(now));
        self.inbox.clear();
        self.sent_of_first = 0;
        self.outbox.retain(|queued| queued.kind != Kind::Greeting);
        self.outbox_bytes = self.outbox.iter().map(|queued| queued.frame.len()).sum();
    }

    /// When everything is sent, tells the host that nothing follows. Its answer is to close the
    /// stream, which proves that it has read everything: then, or without a stream, this is true.
    pub fn say_goodbye(&mut self) -> bool {
        match &self.link {
            Link::Up(up) if up.greeted => {
                if self.outbox.is_empty() {
                    // Again on every call, which does no harm; it fails when the host has gone,
                    // and that is reported as an event.
                    let _ = rustix::net::shutdown(up.stream.as_fd(), Shutdown::Write);
                }
                false
            }
            Link::Up(_) | Link::Down(_) | Link::Connecting(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use wire::{Exit, Stream};

    use super::*;

    /// A control stream that is up, and the host's end of it.
    fn attach(control: &mut Control, poller: &Poller) -> UnixStream {
        let (host, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        control.attach(Ok(Some(agent.into())), poller, Instant::now());
        control.on_event(
            Readiness {
                readable: true,
                writable: true,
                ended: false,
            },
            Instant::now(),
        );
        control.greet();
        host
    }

    fn read(host: &mut UnixStream) -> GuestMessage {
        host.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        wire::read_frame(host).unwrap()
    }

    fn line(line: &str) -> GuestMessage {
        GuestMessage::Output {
            stream: Stream::Stdout,
            line: line.to_owned(),
        }
    }

    #[test]
    fn nothing_is_lost_or_said_in_another_order_when_a_stream_breaks_inside_a_message() {
        let (poller, now) = (Poller::new().unwrap(), Instant::now());
        let mut control = Control::new(None);
        control.send(&GuestMessage::Started { pid: 7 });
        let mut host = attach(&mut control, &poller);
        control.flush(now);
        assert!(matches!(read(&mut host), GuestMessage::Hello { .. }));
        assert_eq!(read(&mut host), GuestMessage::Started { pid: 7 });
        // The stream takes a part of the queue and then breaks.
        let text = "x".repeat(16 << 10);
        while control.send(&line(&text)) {}
        control.send(&GuestMessage::Exited(Exit::Code(1).into()));
        control.flush(now);
        assert!(
            control.sent_of_first > 0,
            "the queue must be larger than a socket's buffer"
        );
        let queued = control.outbox.len();
        drop(host);
        control.on_event(
            Readiness {
                readable: true,
                writable: true,
                ended: false,
            },
            now,
        );
        assert_eq!(control.receive(now), None);
        assert!(control.is_down());
        let mut host = attach(&mut control, &poller);
        let reader = std::thread::spawn(move || {
            let messages: Vec<_> = (0..queued + 2).map(|_| read(&mut host)).collect();
            (messages, host)
        });
        while !control.outbox.is_empty() {
            control.on_event(
                Readiness {
                    readable: false,
                    writable: true,
                    ended: false,
                },
                now,
            );
            control.flush(now);
        }
        let (messages, _host) = reader.join().unwrap();
        assert!(matches!(messages[0], GuestMessage::Hello { .. }));
        assert_eq!(messages[1], GuestMessage::Started { pid: 7 });
        assert!(
            messages[2..=queued]
                .iter()
                .all(|message| *message == line(&text))
        );
        assert_eq!(
            messages[queued + 1],
            GuestMessage::Exited(Exit::Code(1).into())
        );
    }

    #[test]
    fn stream_that_breaks_before_its_greeting_is_sent_greets_once_on_the_next() {
        let (poller, now) = (Poller::new().unwrap(), Instant::now());
        let mut control = Control::new(None);
        let host = attach(&mut control, &poller);
        drop(host);
        assert_eq!(control.receive(now), None);
        let mut host = attach(&mut control, &poller);
        control.send(&line("after"));
        control.flush(now);
        assert!(matches!(read(&mut host), GuestMessage::Hello { .. }));
        assert_eq!(read(&mut host), line("after"));
        assert_eq!(control.outbox_bytes, 0);
    }
}
