//! The time of a pool.

use std::cell::Cell;

use tokio::time::Instant;

use super::session::Moment;
use super::unix_millis;

/// The clock of the host was set when it is off by more than this.
const CLOCK_SET_MS: u64 = 500;

/// The pool's time, and what it is on the wall.
pub(super) struct Clock {
    pub began: Instant,
    /// Kept as it was at the beginning, so that a moment has one name, until the host's clock is set.
    began_ms: Cell<u64>,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            began_ms: Cell::new(unix_millis()),
        }
    }

    pub fn now(&self) -> Moment {
        self.began.elapsed()
    }

    pub fn wall(&self, moment: Moment) -> u64 {
        let millis = |moment: Moment| u64::try_from(moment.as_millis()).unwrap_or(u64::MAX);
        let now_ms = unix_millis();
        let began_ms = now_ms.saturating_sub(millis(self.now()));
        if began_ms.abs_diff(self.began_ms.get()) > CLOCK_SET_MS {
            self.began_ms.set(began_ms);
        }
        self.began_ms.get().saturating_add(millis(moment))
    }
}
