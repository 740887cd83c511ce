//! The guest's clock.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, Timespec};

/// A clock that is nearer than this is left alone: setting it would cost more than it mends.
const TOLERANCE: Duration = Duration::from_millis(50);
const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// Sets the clock to the host's time when it is off by more than the tolerance. 0 means that the host
/// did not say.
pub fn follow_host(unix_time_ns: u64) -> io::Result<()> {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    match correction(unix_time_ns, now) {
        Some(time) => Ok(rustix::time::clock_settime(ClockId::Realtime, time)?),
        None => Ok(()),
    }
}

fn correction(unix_time_ns: u64, now: Timespec) -> Option<Timespec> {
    let host = i64::try_from(unix_time_ns).ok().filter(|&host| host != 0)?;
    let guest =
        i128::from(now.tv_sec) * i128::from(NANOSECONDS_PER_SECOND) + i128::from(now.tv_nsec);
    let apart = (i128::from(host) - guest).unsigned_abs();
    (apart > TOLERANCE.as_nanos()).then_some(Timespec {
        tv_sec: host / NANOSECONDS_PER_SECOND,
        tv_nsec: host % NANOSECONDS_PER_SECOND,
    })
}

/// Time since the kernel started, in microseconds.
pub fn uptime_us() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(now.tv_nsec / 1000).unwrap_or(0);
    seconds * 1_000_000 + microseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timespec = Timespec {
        tv_sec: 1_000,
        tv_nsec: 900_000_000,
    };
    const NOW_NS: u64 = 1_000_900_000_000;

    #[test]
    fn clock_within_the_tolerance_is_left_alone() {
        for offset in [0, 49_000_000, 50_000_000] {
            assert_eq!(correction(NOW_NS + offset, NOW), None);
            assert_eq!(correction(NOW_NS - offset, NOW), None);
        }
        assert_eq!(correction(0, NOW), None);
    }

    #[test]
    fn clock_outside_the_tolerance_is_set_to_the_hosts() {
        let ahead = Timespec {
            tv_sec: 1_001,
            tv_nsec: 1,
        };
        assert_eq!(correction(1_001_000_000_001, NOW), Some(ahead));
        let behind = Timespec {
            tv_sec: 1_000,
            tv_nsec: 0,
        };
        assert_eq!(correction(1_000_000_000_000, NOW), Some(behind));
    }
}
