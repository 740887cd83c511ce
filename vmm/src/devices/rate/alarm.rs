//! What time it is, and what rings at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A clock with one bell.
pub trait Alarm: Send {
    /// The time since some moment. Never goes back.
    fn now(&self) -> Duration;
    /// Makes the descriptor readable at a time of [`Alarm::now`], which takes the place of one that was said before.
    fn ring_at(&self, at: Duration);
    /// To be watched for edges; nobody has to read it.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// The host's: a timer descriptor. Setting it forgets that it has rung, so that every ring is an edge.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    begun: Instant,
}

impl Timer {
    /// Its time is that since `begun`.
    pub fn new(begun: Instant) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, begun })
    }
}

impl Alarm for Timer {
    fn now(&self) -> Duration {
        // The C library's way to the clock. `rustix` would look for one of its own, which this thread may not.
        self.begun.elapsed()
    }

    fn ring_at(&self, at: Duration) {
        // Zero would never ring. What is too far away for the kernel is as good as never.
        let wait = at.saturating_sub(self.now()).max(Duration::from_nanos(1));
        let wait = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        });
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: wait,
        };
        let set = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once);
        debug_assert!(set.is_ok(), "{set:?}");
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::event_loop::{EventLoop, Handler, Interest, Ready};
    use std::sync::mpsc;

    struct Heard(mpsc::Sender<u32>);

    impl Handler for Heard {
        fn ready(&mut self, token: u32, _events: Ready) {
            let _ = self.0.send(token);
        }
    }

    #[test]
    fn timer_that_nobody_reads_rings_each_time_and_never_early() {
        let timer = Timer::new(Instant::now()).unwrap();
        let (sender, heard) = mpsc::channel();
        let mut event_loop = EventLoop::new().unwrap();
        let gate = event_loop.gate();
        event_loop
            .add(|watcher| {
                watcher.watch(timer.fd(), 5, Interest::Readable)?;
                io::Result::Ok(Box::new(Heard(sender)))
            })
            .unwrap();
        let thread = std::thread::spawn(move || event_loop.run());
        for _ in 0..3 {
            let at = timer.now() + Duration::from_millis(5);
            timer.ring_at(at);
            assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(5));
            assert!(timer.now() >= at);
        }
        // A moment that has passed rings at once; one that never comes does not, and can be taken back.
        timer.ring_at(Duration::ZERO);
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(5));
        timer.ring_at(Duration::MAX);
        assert_eq!(heard.try_recv(), Err(mpsc::TryRecvError::Empty));
        timer.ring_at(timer.now());
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(5));
        gate.stop();
        thread.join().unwrap().unwrap();
    }
}
