//! When a probe asks, and what follows from the answers. Pure.
//!
//! The rules are those of Kubernetes: the first try comes after the initial delay; a period begins with
//! a try, so the next one comes a period after the beginning of the last one, or at once when that took
//! longer; only answers in a row count. Both delays count from the moment at which the probe's turn
//! comes: for the startup probe when the target port accepts, for the liveness probe when the startup
//! probe has succeeded.

use std::time::Duration;

use tokio::time::Instant;

use super::Probe;

/// What is known after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Healthy,
    Unhealthy,
    /// Not enough answers in a row yet.
    Undecided,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Schedule {
    period: Duration,
    failures_wanted: u32,
    successes_wanted: u32,
    next: Instant,
    /// In a row.
    failures: u32,
    successes: u32,
    /// `None`: it asks as long as the slot lives.
    tries_left: Option<u32>,
}

impl Schedule {
    /// Ends with a verdict after a bounded number of tries, however the answers change.
    pub fn startup(probe: &Probe, now: Instant) -> Self {
        let new = Self::new(probe, now);
        Self {
            // With one success wanted, as everywhere, the failures alone decide.
            tries_left: Some(new.failures_wanted.saturating_mul(new.successes_wanted)),
            ..new
        }
    }

    /// `jitter` from 0 to 1 is the part of a period by which the first try comes later, so that slots
    /// that became ready together are not asked together.
    pub fn liveness(probe: &Probe, now: Instant, jitter: f64) -> Self {
        let new = Self::new(probe, now);
        Self {
            next: new.next + new.period.mul_f64(jitter.clamp(0.0, 1.0)),
            ..new
        }
    }

    fn new(probe: &Probe, now: Instant) -> Self {
        Self {
            period: Duration::from_secs(probe.period_seconds.max(1).into()),
            failures_wanted: probe.failure_threshold.max(1),
            successes_wanted: probe.success_threshold.max(1),
            next: now + Duration::from_secs(probe.initial_delay_seconds.into()),
            failures: 0,
            successes: 0,
            tries_left: None,
        }
    }

    /// When to ask next.
    pub fn next_try(&self) -> Instant {
        self.next
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// What follows from a try that lasted from `asked` to `answered`.
    pub fn on_answer(&mut self, asked: Instant, answered: Instant, healthy: bool) -> Verdict {
        self.next = (asked + self.period).max(answered);
        (self.failures, self.successes) = match healthy {
            true => (0, self.successes.saturating_add(1)),
            false => (self.failures.saturating_add(1), 0),
        };
        if let Some(left) = &mut self.tries_left {
            *left = left.saturating_sub(1);
        }
        if self.successes >= self.successes_wanted {
            Verdict::Healthy
        } else if self.failures >= self.failures_wanted || self.tries_left == Some(0) {
            Verdict::Unhealthy
        } else {
            Verdict::Undecided
        }
    }
}

#[cfg(test)]
mod tests {
    use Verdict::{Healthy, Undecided, Unhealthy};

    use super::*;
    use crate::pool::probe::Check;

    fn probe() -> Probe {
        Probe {
            check: Check::TcpSocket { port: 1 },
            initial_delay_seconds: 5,
            period_seconds: 10,
            timeout_seconds: 1,
            failure_threshold: 3,
            success_threshold: 1,
            termination_grace_seconds: None,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers at once; the verdicts.
    fn answers(schedule: &mut Schedule, answers: &[bool]) -> Vec<Verdict> {
        let answer = |healthy: &bool| {
            let now = schedule.next_try();
            schedule.on_answer(now, now, *healthy)
        };
        answers.iter().map(answer).collect()
    }

    #[test]
    fn first_try_comes_after_the_delay_and_the_next_one_a_period_after_its_beginning() {
        let now = Instant::now();
        let mut schedule = Schedule::startup(&probe(), now);
        let first = schedule.next_try();
        assert_eq!(first, now + 5 * SECOND);
        schedule.on_answer(first, first + SECOND, false);
        assert_eq!(schedule.next_try(), first + 10 * SECOND);
    }

    #[test]
    fn try_that_outlasts_its_period_is_followed_at_once_by_one_more() {
        let now = Instant::now();
        let mut schedule = Schedule::startup(&probe(), now);
        schedule.on_answer(now, now + 25 * SECOND, false);
        assert_eq!(schedule.next_try(), now + 25 * SECOND);
    }

    #[test]
    fn only_failures_in_a_row_are_too_many() {
        let mut schedule = Schedule::liveness(&probe(), Instant::now(), 0.0);
        assert_eq!(
            answers(&mut schedule, &[false, false, true, false, false, false]),
            [
                Undecided, Undecided, Healthy, Undecided, Undecided, Unhealthy
            ]
        );
        assert_eq!(schedule.failures(), 3);
    }

    #[test]
    fn startup_succeeds_with_the_first_success_and_fails_with_the_last_failure() {
        let mut schedule = Schedule::startup(&probe(), Instant::now());
        assert_eq!(
            answers(&mut schedule, &[false, false, true]),
            [Undecided, Undecided, Healthy]
        );
        let mut schedule = Schedule::startup(&probe(), Instant::now());
        assert_eq!(answers(&mut schedule, &[false; 3])[2], Unhealthy);
    }

    #[test]
    fn answers_that_change_for_ever_do_not_hold_a_start_up() {
        let demanding = Probe {
            success_threshold: 2,
            ..probe()
        };
        let mut schedule = Schedule::startup(&demanding, Instant::now());
        let verdicts = answers(&mut schedule, &[false, true, false, true, false, true]);
        assert_eq!(verdicts[..5], [Undecided; 5]);
        assert_eq!(verdicts[5], Unhealthy);
        let mut schedule = Schedule::startup(&demanding, Instant::now());
        assert_eq!(answers(&mut schedule, &[true, true]), [Undecided, Healthy]);
    }

    #[test]
    fn liveness_of_many_slots_begins_at_many_moments_within_one_period() {
        let now = Instant::now();
        let first = |jitter| Schedule::liveness(&probe(), now, jitter).next_try() - now;
        assert_eq!([first(0.0), first(0.5)], [5 * SECOND, 10 * SECOND]);
        assert!(first(1.0) <= 15 * SECOND && first(f64::MAX) <= 15 * SECOND);
    }

    #[test]
    fn zeroes_of_a_damaged_record_neither_spin_nor_fail_at_once() {
        let zero = Probe {
            initial_delay_seconds: 0,
            period_seconds: 0,
            failure_threshold: 0,
            success_threshold: 0,
            ..probe()
        };
        let now = Instant::now();
        let mut schedule = Schedule::liveness(&zero, now, 0.0);
        assert_eq!(schedule.on_answer(now, now, true), Healthy);
        assert_eq!(schedule.next_try(), now + SECOND);
    }
}
