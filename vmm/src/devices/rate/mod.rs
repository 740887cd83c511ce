//! How much a device may do in a second.
//!
//! A device that has a [`Limiter`] asks it before each piece of work. If it is told to wait, it leaves its queue as it
//! is and returns; the limiter's alarm, one of the descriptors on the event loop, has it called again. Nothing polls,
//! and the guest's processors do not wait: only its request does.
//!
//! The bucket holds what comes in a second ([`BURST`]), so a guest that was quiet may do a second's worth at once. A
//! reset of the device by its driver brings no token back. A restored guest begins with full buckets: they are the
//! process's, and no part of a snapshot.

mod alarm;
mod bucket;
#[cfg(test)]
pub mod testing;

use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use alarm::{Alarm, Timer};
pub use bucket::TokenBucket;

use super::lock;
use crate::devices::event_loop::{Interest, Watcher};

/// What a full bucket holds: as much as comes in this time.
pub const BURST: Duration = Duration::from_secs(1);
/// No wait is shorter, so that a limited guest wakes its device thread a hundred times a second at most. Far less than
/// [`BURST`], so that no token is lost meanwhile.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// What a piece of work takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub bytes: u64,
    pub operations: u64,
}

impl Cost {
    pub fn bytes(bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            operations: 0,
        }
    }
}

/// Bytes and operations in a second. `None`: as many as can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    pub bytes: Option<NonZeroU64>,
    pub operations: Option<NonZeroU64>,
}

/// The buckets of one or of several devices.
#[derive(Debug)]
struct Buckets {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Buckets {
    fn full(rate: Rate, now: Duration) -> Self {
        const { assert!(BURST.as_secs() == 1 && BURST.subsec_nanos() == 0) };
        let full = |rate: NonZeroU64| TokenBucket::full(rate, rate, now);
        Self {
            bytes: rate.bytes.map(full),
            operations: rate.operations.map(full),
        }
    }

    /// All of it or nothing.
    fn take(&mut self, now: Duration, cost: Cost) -> Result<(), Duration> {
        if let Some(operations) = &mut self.operations {
            operations.take(now, cost.operations)?;
        }
        let Some(bytes) = &mut self.bytes else {
            return Ok(());
        };
        bytes.take(now, cost.bytes).inspect_err(|_| {
            if let Some(operations) = &mut self.operations {
                operations.give_back(cost.operations);
            }
        })
    }

    fn spend(&mut self, cost: Cost) {
        for (bucket, tokens) in [
            (&mut self.bytes, cost.bytes),
            (&mut self.operations, cost.operations),
        ] {
            if let Some(bucket) = bucket {
                bucket.spend(tokens);
            }
        }
    }
}

/// One device's hold on its buckets, and what has it called again.
pub struct Limiter {
    /// Devices that are limited together share them. All of them are on one thread, so nobody waits for the lock.
    buckets: Arc<Mutex<Buckets>>,
    alarm: Box<dyn Alarm>,
    /// The device was told to wait until then, and the alarm is set.
    waiting: Option<Duration>,
}

impl Limiter {
    /// For `devices` that are limited together, one each.
    pub fn shared(rate: Rate, devices: usize) -> io::Result<Vec<Self>> {
        // Those that share buckets have the same time.
        let begun = Instant::now();
        let alarms: Vec<Timer> = (0..devices)
            .map(|_| Timer::new(begun))
            .collect::<io::Result<_>>()?;
        let alarms = alarms.into_iter().map(|timer| Box::new(timer) as _);
        Ok(Self::over(rate, alarms))
    }

    fn over(rate: Rate, alarms: impl Iterator<Item = Box<dyn Alarm>>) -> Vec<Self> {
        let mut shared = None;
        let limiter = |alarm: Box<dyn Alarm>| {
            let full = || Arc::new(Mutex::new(Buckets::full(rate, alarm.now())));
            let buckets = Arc::clone(shared.get_or_insert_with(full));
            Self {
                buckets,
                alarm,
                waiting: None,
            }
        };
        alarms.map(limiter).collect()
    }

    /// Has the alarm reported as `token`, for which the device calls [`Limiter::rang`].
    pub fn watch(&self, watcher: &Watcher, token: u32) -> io::Result<()> {
        watcher.watch(self.alarm.fd(), token, Interest::Readable)
    }

    /// Whether the device may do this now. If not, it is called again when it may.
    #[must_use]
    pub fn take(&mut self, cost: Cost) -> bool {
        let now = self.alarm.now();
        // However often the guest rings its doorbell meanwhile.
        if self.waiting.is_some_and(|until| now < until) {
            return false;
        }
        self.waiting = None;
        match lock(&self.buckets).take(now, cost) {
            Ok(()) => true,
            Err(then) => {
                let until = then.max(now.saturating_add(SHORTEST_WAIT));
                self.alarm.ring_at(until);
                self.waiting = Some(until);
                false
            }
        }
    }

    /// Counts what is only known when it is done. The device has asked for nothing before ([`Cost::default`]).
    pub fn spend(&self, cost: Cost) {
        lock(&self.buckets).spend(cost);
    }

    /// The alarm rang.
    pub fn rang(&mut self) {
        self.waiting = None;
    }
}

/// As [`Limiter::take`], for a device that may have no limit.
#[must_use]
pub fn may(limiter: &mut Option<Limiter>, cost: impl FnOnce() -> Cost) -> bool {
    match limiter {
        None => true,
        Some(limiter) => limiter.take(cost()),
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Clock, nz};
    use super::*;

    const BOTH: Rate = Rate {
        bytes: Some(nz(1000)),
        operations: Some(nz(10)),
    };

    fn cost(bytes: u64, operations: u64) -> Cost {
        Cost { bytes, operations }
    }

    #[test]
    fn work_waits_for_the_bucket_that_is_emptier_and_takes_from_none_meanwhile() {
        let clock = Clock::new();
        let mut limiter = clock.limiter(BOTH);
        assert!(limiter.take(cost(600, 1)));
        assert!(!limiter.take(cost(600, 9)));
        assert_eq!(clock.due(), Some(Duration::from_millis(200)));
        clock.advance_to(Duration::from_millis(200));
        limiter.rang();
        // The nine operations that were not granted are still there.
        assert!(limiter.take(cost(600, 9)));
        assert!(!limiter.take(cost(1, 3)));
        assert_eq!(clock.due(), Some(Duration::from_millis(400)));
    }

    #[test]
    fn alarm_is_set_once_however_often_the_guest_asks() {
        let clock = Clock::new();
        let mut limiter = clock.limiter(BOTH);
        assert!(limiter.take(cost(1000, 0)));
        for _ in 0..1000 {
            assert!(!limiter.take(cost(500, 0)));
        }
        assert_eq!(clock.times_set(), 1);
    }

    #[test]
    fn wait_is_never_shorter_than_the_shortest() {
        let clock = Clock::new();
        let fast = Rate {
            bytes: Some(nz(1 << 30)),
            operations: None,
        };
        let mut limiter = clock.limiter(fast);
        assert!(limiter.take(cost(1 << 30, 1)));
        assert!(!limiter.take(cost(1, 1)));
        assert_eq!(clock.due(), Some(SHORTEST_WAIT));
    }

    #[test]
    fn devices_that_are_limited_together_use_up_the_same_tokens() {
        let clock = Clock::new();
        let [mut one, mut other] = clock.limiters(BOTH);
        assert!(one.take(cost(700, 1)));
        assert!(!other.take(cost(700, 1)));
        assert!(one.take(cost(300, 1)));
        assert!(!one.take(cost(1, 1)));
    }

    #[test]
    fn debt_is_paid_before_anything_is_granted() {
        let clock = Clock::new();
        let mut limiter = clock.limiter(BOTH);
        assert!(limiter.take(Cost::default()));
        limiter.spend(cost(3000, 0));
        assert!(!limiter.take(Cost::default()));
        assert_eq!(clock.due(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn device_without_a_limit_does_not_even_reckon_what_its_work_takes() {
        assert!(may(&mut None, || unreachable!()));
    }
}
