//! The guest's clock.
//!
//! After a fork the wall clock still shows when the snapshot was made; monotonic time goes on from there and needs
//! no help. The host's wall clock is read through `/dev/ptp0` where KVM offers it (`ptp_kvm`, a
//! hypercall, good to a microsecond). The host's word for the time is the check of that and what
//! is left without it: it was true when the message was sent, and messages take a while.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::time::{ClockId, DynamicClockId, Timespec};

const HOST_CLOCK: &str = "/dev/ptp0";
/// A clock that is nearer to the host's than this is left alone: setting it would cost more than it
/// mends (every timer of the kernel is looked at again).
const TOLERANCE: Duration = Duration::from_millis(1);
/// The same for the host's word, which is less exact than that.
const TOLERANCE_OF_WORD: Duration = Duration::from_millis(20);
/// How far `/dev/ptp0` may be behind the host's word, which was sent before...
const BEHIND_WORD: Duration = Duration::from_secs(1);
/// ... and ahead of it: a busy host may have delivered the word late. A clock that is set to something
/// else is out by more: TAI, the usual choice, is 37 s ahead.
const AHEAD_OF_WORD: Duration = Duration::from_secs(10);
const NANOSECONDS_PER_SECOND: i128 = 1_000_000_000;

/// Where the host's clock can be seen, if it can. Opened ahead, since it would be opened anew in each fork.
pub fn open_host_clock() -> Option<File> {
    File::open(HOST_CLOCK).ok()
}

/// Sets the clock to the host's time, unless it is right already. `word_ns` is what the host says
/// it is, in nanoseconds since the Unix epoch.
pub fn follow_host(device: Option<&File>, word_ns: u64) -> io::Result<()> {
    let host = device.and_then(host_clock);
    let host = host.and_then(|host| host_time(i128::from(word_ns), host));
    let (time, tolerance) = match host {
        Some(host) => (host, TOLERANCE),
        None => (i128::from(word_ns), TOLERANCE_OF_WORD),
    };
    let now = nanoseconds(rustix::time::clock_gettime(ClockId::Realtime));
    if (time - now).unsigned_abs() <= tolerance.as_nanos() {
        return Ok(());
    }
    let time = timespec(time).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// The host's wall clock, where it can be seen.
fn host_clock(device: &File) -> Option<i128> {
    let time = rustix::time::clock_gettime_dynamic(DynamicClockId::Dynamic(device.as_fd())).ok()?;
    Some(nanoseconds(time))
}

/// What the host's clock shows, if that can be: see the limits above.
fn host_time(word: i128, host: i128) -> Option<i128> {
    let ahead = host - word;
    let limit = if ahead < 0 {
        BEHIND_WORD
    } else {
        AHEAD_OF_WORD
    };
    (ahead.unsigned_abs() <= limit.as_nanos()).then_some(host)
}

fn nanoseconds(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * NANOSECONDS_PER_SECOND + i128::from(time.tv_nsec)
}

fn timespec(nanoseconds: i128) -> Option<Timespec> {
    Some(Timespec {
        tv_sec: i64::try_from(nanoseconds.div_euclid(NANOSECONDS_PER_SECOND)).ok()?,
        tv_nsec: i64::try_from(nanoseconds.rem_euclid(NANOSECONDS_PER_SECOND)).ok()?,
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

    const SECOND: i128 = NANOSECONDS_PER_SECOND;
    const WORD: i128 = 1_700_000_000 * SECOND;

    #[test]
    fn host_clock_is_believed_when_it_agrees_with_a_word_that_may_be_late() {
        for offset in [0, -SECOND, SECOND, 10 * SECOND] {
            assert_eq!(host_time(WORD, WORD + offset), Some(WORD + offset));
        }
    }

    #[test]
    fn host_clock_that_shows_something_else_is_not_believed() {
        for offset in [-SECOND - 1, 10 * SECOND + 1, 37 * SECOND, -WORD] {
            assert_eq!(host_time(WORD, WORD + offset), None);
        }
    }

    #[test]
    fn time_survives_the_form_that_the_kernel_takes() {
        let time = Timespec {
            tv_sec: 1_700_000_000,
            tv_nsec: 999_999_999,
        };
        assert_eq!(timespec(nanoseconds(time)), Some(time));
        assert_eq!(timespec(i128::MAX), None);
    }
}
