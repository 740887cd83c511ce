//! Stops the event loop from other threads: for good, or until it is let go on.
//!
//! Parking is what makes devices quiet: when [`Gate::park`] returns, no device is in the middle of anything,
//! and none begins. What happens to their descriptors meanwhile is not lost, the kernel keeps it. A peer
//! answered "paused" with its disk still being written (firecracker issue 2193).

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Park,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not begun, or at work.
    Working,
    Parked,
    Ended,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<(Wish, Place)>,
    changed: Condvar,
    /// Readable once there is a new wish.
    wake: EventFd,
}

/// The way to a loop, from any thread.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Shared>);

/// The loop ended, so there is nothing to park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    GoOn,
    Stop,
}

impl Gate {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            state: Mutex::new((Wish::Run, Place::Working)),
            changed: Condvar::new(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })))
    }

    /// Ends the loop, parked or not. It cannot be started again.
    pub fn stop(&self) {
        self.ask(Wish::Stop);
    }

    /// Waits until the loop stands still. It must be running on a thread of its own, or be started soon.
    pub fn park(&self) -> Result<(), Ended> {
        self.ask(Wish::Park);
        let guard = self.lock();
        let shared = &self.0;
        let guard = shared
            .changed
            .wait_while(guard, |(wish, place)| {
                *wish == Wish::Park && *place == Place::Working
            })
            .unwrap_or_else(PoisonError::into_inner);
        match *guard {
            (Wish::Park, Place::Parked) => Ok(()),
            _ => Err(Ended),
        }
    }

    /// Lets a parked loop go on.
    pub fn unpark(&self) -> Result<(), Ended> {
        self.ask(Wish::Run);
        match self.lock().1 {
            Place::Ended => Err(Ended),
            Place::Working | Place::Parked => Ok(()),
        }
    }

    fn ask(&self, wish: Wish) {
        let mut guard = self.lock();
        // Nobody takes a stop back.
        if guard.0 != Wish::Stop {
            guard.0 = wish;
        }
        drop(guard);
        self.0.changed.notify_all();
        // A full counter means that the loop has been woken already.
        let _ = self.0.wake.write(1);
    }

    /// What the loop has to watch: when it is readable, [`Gate::pass`] has to be called.
    pub fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    /// Called by the loop, between two turns. Returns when the loop may go on, or has to end.
    pub fn pass(&self) -> Pass {
        // Read first: a wish that comes after it wakes the loop once more.
        let _ = self.0.wake.read();
        let mut guard = self.lock();
        loop {
            match guard.0 {
                Wish::Run => {
                    guard.1 = Place::Working;
                    return Pass::GoOn;
                }
                Wish::Stop => return Pass::Stop,
                Wish::Park => {
                    guard.1 = Place::Parked;
                    self.0.changed.notify_all();
                    guard = self
                        .0
                        .changed
                        .wait(guard)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Called by the loop when it ends for whatever reason, so that nobody waits for it.
    pub fn end(&self) {
        self.lock().1 = Place::Ended;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, (Wish, Place)> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looping(gate: &Gate) -> std::thread::JoinHandle<u32> {
        let gate = gate.clone();
        std::thread::spawn(move || {
            let mut turns = 0;
            while gate.pass() == Pass::GoOn {
                turns += 1;
                std::thread::yield_now();
            }
            gate.end();
            turns
        })
    }

    #[test]
    fn parked_loop_goes_on_only_when_it_is_let_go_and_can_be_parked_again() {
        let gate = Gate::new().unwrap();
        let thread = looping(&gate);
        for _ in 0..100 {
            gate.park().unwrap();
            gate.park().unwrap();
            assert_eq!(gate.lock().1, Place::Parked);
            gate.unpark().unwrap();
        }
        gate.stop();
        thread.join().unwrap();
    }

    #[test]
    fn parked_loop_can_be_stopped() {
        let gate = Gate::new().unwrap();
        let thread = looping(&gate);
        gate.park().unwrap();
        gate.stop();
        thread.join().unwrap();
        assert_eq!((gate.park(), gate.unpark()), (Err(Ended), Err(Ended)));
    }

    #[test]
    fn loop_that_ended_on_its_own_leaves_nobody_waiting() {
        let gate = Gate::new().unwrap();
        gate.end();
        assert_eq!((gate.park(), gate.unpark()), (Err(Ended), Err(Ended)));
    }
}
