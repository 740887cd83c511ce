//! A clock that goes when the test says so.

use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{Alarm, Limiter, Rate};
use crate::devices::lock;

/// For constants.
pub const fn nz(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

/// One clock, and the bells of the limiters that it was asked for.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

struct State {
    now: Duration,
    bells: Vec<Bell>,
    times_set: usize,
}

struct Bell {
    event: EventFd,
    due: Option<Duration>,
}

struct SimulatedAlarm {
    clock: Clock,
    number: usize,
    event: EventFd,
}

impl Clock {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Duration::ZERO,
            bells: Vec::new(),
            times_set: 0,
        })))
    }

    pub fn limiter(&self, rate: Rate) -> Limiter {
        let [limiter] = self.limiters(rate);
        limiter
    }

    /// Which are limited together.
    pub fn limiters<const N: usize>(&self, rate: Rate) -> [Limiter; N] {
        let alarms = (0..N).map(|_| Box::new(self.alarm()) as Box<dyn Alarm>);
        Limiter::over(rate, alarms).try_into().ok().unwrap()
    }

    fn alarm(&self) -> SimulatedAlarm {
        let mut state = lock(&self.0);
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        state.bells.push(Bell {
            event: event.try_clone().unwrap(),
            due: None,
        });
        SimulatedAlarm {
            clock: self.clone(),
            number: state.bells.len() - 1,
            event,
        }
    }

    pub fn now(&self) -> Duration {
        lock(&self.0).now
    }

    /// When the next bell rings.
    pub fn due(&self) -> Option<Duration> {
        lock(&self.0).bells.iter().filter_map(|bell| bell.due).min()
    }

    pub fn times_set(&self) -> usize {
        lock(&self.0).times_set
    }

    pub fn advance_to(&self, now: Duration) {
        let mut state = lock(&self.0);
        assert!(now >= state.now);
        state.now = now;
        for bell in &mut state.bells {
            if bell.due.is_some_and(|due| due <= now) {
                bell.due = None;
                bell.event.write(1).unwrap();
            }
        }
    }
}

impl Alarm for SimulatedAlarm {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn ring_at(&self, at: Duration) {
        let mut state = lock(&self.clock.0);
        state.times_set += 1;
        state.bells[self.number].due = Some(at);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the borrow must not outlive the open descriptor. `event` owns it, and the result borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}
