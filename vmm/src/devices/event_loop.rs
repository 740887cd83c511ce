//! The one thread per microVM that does all device work: epoll over doorbells and host files.
//!
//! A [`Handler`] is one device. It watches as many descriptors as it likes through its [`Watcher`]
//! and is called with the token it gave each. All handlers share the thread, so each call must be
//! bounded; a device that has more to do rings its own doorbell and is called again after the others.
//!
//! The loop knows nothing of KVM or of the guest. It parks and ends when its [`Gate`] says so, between two
//! calls of handlers; it also ends when the kernel refuses to wait, which does not happen to a valid epoll
//! descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_sys_util::eventfd::EventFd;

use super::gate::{Gate, Pass};

/// Events taken from the kernel at a time.
const BATCH: usize = 64;
/// The source number of the gate's event. Handlers count up from 0 and never reach it.
const GATE: u32 = u32::MAX;

/// A device on the loop.
pub trait Handler: Send {
    /// Something happened to the descriptor watched as `token`. May be late: when the descriptor
    /// was closed in the meantime and `token` reused, the event is for the old one.
    fn ready(&mut self, token: u32, events: Ready);
}

/// What epoll said, in the words the devices use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The other side will send no more; what it sent may still be there.
    pub ended: bool,
    /// Both directions are gone, or the descriptor is in error.
    pub hung_up: bool,
}

/// When a descriptor is reported. Always edge-triggered: a device that cannot take more data now
/// must not spin on a descriptor that stays readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Readable,
    ReadableAndWritable,
}

impl From<Interest> for EventFlags {
    fn from(interest: Interest) -> Self {
        let base = EventFlags::ET | EventFlags::IN | EventFlags::RDHUP;
        match interest {
            Interest::Readable => base,
            Interest::ReadableAndWritable => base | EventFlags::OUT,
        }
    }
}

/// One handler's right to have descriptors watched.
#[derive(Debug, Clone)]
pub struct Watcher {
    epoll: Arc<OwnedFd>,
    source: u32,
    first_token: u32,
}

impl Watcher {
    /// The same right, with `by` added to every token.
    pub fn shifted(mut self, by: u32) -> Self {
        self.first_token += by;
        self
    }

    /// Reports what happens to `fd` as `token`. Closing the descriptor ends it.
    pub fn watch(&self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &*self.epoll,
            fd,
            self.data(token),
            interest.into(),
        )?)
    }

    /// Changes the interest in a watched descriptor. What is true already is reported again.
    pub fn rewatch(&self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &*self.epoll,
            fd,
            self.data(token),
            interest.into(),
        )?)
    }

    fn data(&self, token: u32) -> EventData {
        EventData::new_u64(u64::from(self.source) << 32 | u64::from(self.first_token + token))
    }

    /// As [`Watcher::watch`], for an eventfd. Nobody has to read it: every write to it is an edge.
    pub fn watch_event(&self, event: &EventFd, token: u32) -> io::Result<()> {
        self.watch(borrow(event), token, Interest::Readable)
    }
}

/// `EventFd` predates `AsFd`.
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow must not outlive the open descriptor. `event` owns it, closes it only when
    // dropped, and the result borrows `event`.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// The loop itself, before and while it runs.
pub struct EventLoop {
    epoll: Arc<OwnedFd>,
    handlers: Vec<Box<dyn Handler>>,
    gate: Gate,
}

impl EventLoop {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let gate = Gate::new()?;
        let data = EventData::new_u64(u64::from(GATE) << 32);
        // Level-triggered on purpose: a wish is not forgotten before it was looked at.
        epoll::add(&epoll, borrow(gate.wake()), data, EventFlags::IN)?;
        Ok(Self {
            epoll: Arc::new(epoll),
            handlers: Vec::new(),
            gate,
        })
    }

    /// Adds a handler. `build` gets the watcher first, so that a handler that cannot watch what it
    /// needs never joins the loop.
    pub fn add<E>(
        &mut self,
        build: impl FnOnce(Watcher) -> Result<Box<dyn Handler>, E>,
    ) -> Result<(), E> {
        let source = u32::try_from(self.handlers.len()).unwrap_or(GATE);
        assert!(source < GATE, "a microVM has a handful of devices");
        let handler = build(Watcher {
            epoll: self.epoll.clone(),
            source,
            first_token: 0,
        })?;
        self.handlers.push(handler);
        Ok(())
    }

    /// What parks and ends this loop.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Serves devices until stopped.
    pub fn run(mut self) -> io::Result<()> {
        let _ended = EndOnDrop(self.gate.clone());
        let mut events = Vec::with_capacity(BATCH);
        while self.turn(&mut events, None)? == Turn::Served {}
        Ok(())
    }

    /// Waits for events once and hands them out.
    fn turn(
        &mut self,
        events: &mut Vec<epoll::Event>,
        timeout: Option<&Timespec>,
    ) -> io::Result<Turn> {
        events.clear();
        let spare = rustix::buffer::spare_capacity(events);
        match epoll::wait(&*self.epoll, spare, timeout) {
            Ok(0) => return Ok(Turn::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Turn::Served),
            Err(error) => return Err(error.into()),
        }
        let mut knocked = false;
        for event in events {
            // The event is packed: copy fields out, never borrow them.
            let (data, flags) = (event.data, event.flags);
            let (source, token) = split(data.u64());
            if source == GATE {
                // After the others: an event that was taken from the kernel does not come again.
                knocked = true;
            } else if let Some(handler) = self.handlers.get_mut(source as usize) {
                handler.ready(token, Ready::from(flags));
            }
        }
        if knocked && self.gate.pass() == Pass::Stop {
            return Ok(Turn::Stopped);
        }
        Ok(Turn::Served)
    }
}

/// Whoever waits for the loop to park hears when it ends, also by a panic.
struct EndOnDrop(Gate);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// How one wait for events ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Served,
    Stopped,
    TimedOut,
}

#[cfg(test)]
impl EventLoop {
    /// Serves devices on the caller's thread until nothing more happens by itself.
    pub fn settle(&mut self) {
        let mut events = Vec::with_capacity(BATCH);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while self.turn(&mut events, Some(&now)).unwrap() == Turn::Served {}
    }
}

impl From<EventFlags> for Ready {
    fn from(flags: EventFlags) -> Self {
        Self {
            readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP),
            writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
            ended: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
            hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "takes a u64 apart into its two halves"
)]
fn split(data: u64) -> (u32, u32) {
    ((data >> 32) as u32, data as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    /// Sends on what it is told; stops the loop at a given token.
    struct Probe {
        seen: mpsc::Sender<(u32, Ready)>,
    }

    impl Handler for Probe {
        fn ready(&mut self, token: u32, events: Ready) {
            self.seen.send((token, events)).unwrap();
        }
    }

    #[test]
    fn event_reaches_the_handler_that_watches_it_with_its_token() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut event_loop = EventLoop::new().unwrap();
        let gate = event_loop.gate();
        let (first, first_seen) = mpsc::channel();
        let (second, second_seen) = mpsc::channel();
        event_loop
            .add(|_| io::Result::Ok(Box::new(Probe { seen: first })))
            .unwrap();
        event_loop
            .add(|watcher| {
                watcher.watch(&far, 7, Interest::Readable)?;
                io::Result::Ok(Box::new(Probe { seen: second }))
            })
            .unwrap();
        let thread = std::thread::spawn(move || event_loop.run());

        near.write_all(b"x").unwrap();
        let (token, events) = second_seen.recv().unwrap();
        assert_eq!(token, 7);
        assert_eq!(
            events,
            Ready {
                readable: true,
                ..Ready::default()
            }
        );

        drop(near);
        assert!(second_seen.recv().unwrap().1.hung_up);
        gate.stop();
        thread.join().unwrap().unwrap();
        assert_eq!(first_seen.try_recv().ok(), None);
    }

    #[test]
    fn parked_loop_calls_no_handler_and_loses_no_event() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut event_loop = EventLoop::new().unwrap();
        let gate = event_loop.gate();
        let (sender, seen) = mpsc::channel();
        event_loop
            .add(|watcher| {
                watcher.watch(&far, 1, Interest::Readable)?;
                io::Result::Ok(Box::new(Probe { seen: sender }))
            })
            .unwrap();
        let thread = std::thread::spawn(move || event_loop.run());
        gate.park().unwrap();
        near.write_all(b"x").unwrap();
        let wait = std::time::Duration::from_millis(20);
        assert_eq!(seen.recv_timeout(wait).ok(), None);
        gate.unpark().unwrap();
        assert_eq!(seen.recv().unwrap().0, 1);
        gate.stop();
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn loop_that_was_stopped_before_it_ran_ends_at_once() {
        let event_loop = EventLoop::new().unwrap();
        event_loop.gate().stop();
        event_loop.run().unwrap();
    }

    #[test]
    fn handler_that_fails_to_build_is_not_added() {
        let mut event_loop = EventLoop::new().unwrap();
        let result = event_loop.add(|_| Err::<Box<dyn Handler>, _>("no"));
        assert_eq!(result, Err("no"));
        assert!(event_loop.handlers.is_empty());
    }
}
