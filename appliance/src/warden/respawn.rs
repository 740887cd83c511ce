//! How often an appliance that dies is started again. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// More than that within [`PERIOD`] is not bad luck.
const MOST: usize = 5;
const PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Respawns {
    recent: VecDeque<Instant>,
}

impl Respawns {
    /// Whether one more is within the limit; it counts from then on.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.recent
            .retain(|at| now.saturating_duration_since(*at) < PERIOD);
        let allowed = self.recent.len() < MOST;
        if allowed {
            self.recent.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixth_start_within_a_minute_is_one_too_many() {
        let begin = Instant::now();
        let mut respawns = Respawns::default();
        let second = Duration::from_secs(1);
        let allowed: Vec<bool> = (0..7)
            .map(|at| respawns.allow(begin + at * second))
            .collect();
        assert_eq!(allowed, [true, true, true, true, true, false, false]);
        // The first one is a minute ago, the second one is not.
        assert!(respawns.allow(begin + PERIOD));
        assert!(!respawns.allow(begin + PERIOD));
    }

    #[test]
    fn appliance_that_dies_every_quarter_of_a_minute_is_always_started_again() {
        let begin = Instant::now();
        let mut respawns = Respawns::default();
        assert!((0..100).all(|at| respawns.allow(begin + at * (PERIOD / 4))));
    }
}
