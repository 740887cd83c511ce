//! The time of a pool.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use super::session::Moment;
use super::unix_millis;

/// The clock of the host was set when it is off by more than this.
const CLOCK_SET_MS: u64 = 500;

/// The pool's time, and what it is on the wall.
pub(super) struct Clock {
    began: Instant,
    /// What it said when it began.
    head_start: Duration,
    /// Kept as it was at the beginning, so that a moment has one name, until the host's clock is set.
    began_ms: Cell<u64>,
}

impl Clock {
    /// Begins at `head_start`, so that what happened so long ago has a moment, too.
    pub fn start(head_start: Duration) -> Self {
        Self {
            began: Instant::now(),
            head_start,
            began_ms: Cell::new(unix_millis().saturating_sub(millis(head_start))),
        }
    }

    pub fn now(&self) -> Moment {
        self.head_start.saturating_add(self.began.elapsed())
    }

    /// When this moment is; now at the latest, if it is before the clock was started.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.began + moment.saturating_sub(self.head_start)
    }

    pub fn wall(&self, moment: Moment) -> u64 {
        let now_ms = unix_millis();
        let began_ms = now_ms.saturating_sub(millis(self.now()));
        if began_ms.abs_diff(self.began_ms.get()) > CLOCK_SET_MS {
            self.began_ms.set(began_ms);
        }
        self.began_ms.get().saturating_add(millis(moment))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_with_a_head_start_knows_moments_from_before_it_began() {
        let head_start = Duration::from_secs(1000);
        let clock = Clock::start(head_start);
        let wall = unix_millis();
        assert_eq!(clock.now(), head_start);
        let before = clock.wall(Duration::from_secs(400));
        assert!(wall.abs_diff(before + 600_000) < CLOCK_SET_MS, "{before}");
        assert_eq!(clock.instant(Duration::ZERO), clock.began);
        let later = clock.instant(head_start + Duration::from_secs(7));
        assert_eq!(later - clock.began, Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn head_start_that_is_longer_than_the_time_itself_does_no_harm() {
        let clock = Clock::start(Duration::from_millis(u64::MAX));
        assert_eq!(clock.instant(clock.now()), clock.began);
        clock.wall(clock.now());
    }
}
