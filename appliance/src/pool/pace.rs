//! How fast failed starts are tried again. Pure.

use std::time::Duration;

use super::session::Moment;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A slot that lived so long before it failed says nothing about the next one.
const PROVEN: Duration = LONGEST_PAUSE;

/// The starts of one revision that nobody waits for. Claims do not ask it.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Starts that failed since the last one that did not.
    failed: u32,
    /// How often the pause was doubled. Unlike `failed` it outlives a slot that comes up and fails
    /// soon after.
    doubled: u32,
    /// When the pause began that runs, or ran last.
    began: Moment,
    until: Moment,
    /// For jitter: pools that fail together must not try again together.
    noise: u64,
}

impl Pace {
    pub fn new(seed: u64) -> Self {
        Self {
            failed: 0,
            doubled: 0,
            began: Duration::ZERO,
            until: Duration::ZERO,
            noise: seed,
        }
    }

    /// Starts that failed in a row.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Whether one more may start, while `trying` are on their way. After a failure they go one by
    /// one, until one comes up.
    pub fn permits(&self, trying: usize, now: Moment) -> bool {
        now >= self.until && (self.failed == 0 || trying == 0)
    }

    /// When the next one may start, if the last one failed: when the pause ends, or now if it is over.
    pub fn resumes(&self, now: Moment) -> Option<Moment> {
        (self.failed > 0).then(|| self.until.max(now))
    }

    /// One came up.
    pub fn came_up(&mut self) {
        self.failed = 0;
        self.until = Duration::ZERO;
    }

    /// One that came up was of use. It may have come up long ago, so it says nothing about starts that
    /// fail now.
    pub fn was_used(&mut self) {
        if self.failed == 0 {
            self.doubled = 0;
        }
    }

    /// One that was started at `started` failed before anybody had it.
    pub fn start_failed(&mut self, started: Moment, now: Moment) {
        self.failed = self.failed.saturating_add(1);
        // Of many that were started together, only the first makes the pause longer.
        if self.failed == 1 || started > self.began {
            self.pause(now);
        }
    }

    /// One that was up since `ready_since` failed before anybody had it.
    pub fn ready_failed(&mut self, ready_since: Moment, now: Moment) {
        if now.saturating_sub(ready_since) >= PROVEN {
            self.doubled = 0;
        }
        self.start_failed(ready_since, now);
    }

    fn pause(&mut self, now: Moment) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.doubled.min(16))
            .min(LONGEST_PAUSE);
        self.doubled = self.doubled.saturating_add(1);
        self.began = now;
        self.until = now + pause.mul_f64(0.8 + 0.4 * self.random());
    }

    /// From 0 to 1. Splitmix64 (Steele, Lea, Flood 2014): good enough to spread, and repeatable.
    fn random(&mut self) -> f64 {
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.noise;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Duration::from_secs(1000);

    fn pause_of(pace: &Pace, now: Moment) -> f64 {
        (pace.resumes(now).unwrap() - now).as_secs_f64()
    }

    #[test]
    fn pause_doubles_from_one_second_to_sixty_give_or_take_a_fifth() {
        for seed in 0..50 {
            let (mut pace, mut now) = (Pace::new(seed), NOW);
            for about in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
                pace.start_failed(now, now);
                let pause = pause_of(&pace, now);
                assert!(
                    (0.8..=1.2).contains(&(pause / about)),
                    "{pause} for {about}"
                );
                assert!(!pace.permits(0, now));
                now = pace.resumes(now).unwrap();
                assert!(pace.permits(0, now) && !pace.permits(1, now));
            }
        }
    }

    #[test]
    fn starts_that_fail_together_lengthen_the_pause_once() {
        let mut pace = Pace::new(1);
        for _ in 0..5 {
            pace.start_failed(NOW - FIRST_PAUSE, NOW);
        }
        assert_eq!(pace.failed(), 5);
        assert!(pause_of(&pace, NOW) < 1.3);
    }

    #[test]
    fn start_that_succeeds_lifts_the_pause() {
        let mut pace = Pace::new(1);
        pace.start_failed(NOW, NOW);
        pace.came_up();
        assert!(pace.permits(7, NOW) && pace.failed() == 0);
    }

    #[test]
    fn containers_that_come_up_and_exit_are_made_ever_slower_until_one_is_used() {
        let mut pace = Pace::new(1);
        for _ in 0..4 {
            pace.came_up();
            pace.ready_failed(NOW, NOW);
        }
        assert!(pause_of(&pace, NOW) > 6.0);
        pace.came_up();
        pace.was_used();
        pace.ready_failed(NOW, NOW);
        assert!(pause_of(&pace, NOW) < 1.3);
    }

    #[test]
    fn slot_that_is_used_does_not_end_the_pause_of_others_that_fail() {
        let mut pace = Pace::new(1);
        pace.start_failed(NOW, NOW);
        let until = pace.resumes(NOW);
        pace.was_used();
        assert_eq!((pace.resumes(NOW), pace.failed()), (until, 1));
    }

    #[test]
    fn container_that_exits_after_a_long_wait_is_replaced_soon() {
        let mut pace = Pace::new(1);
        for ready_since in [NOW, NOW, NOW, NOW - PROVEN] {
            pace.came_up();
            pace.ready_failed(ready_since, NOW);
        }
        assert!(pause_of(&pace, NOW) < 1.3);
    }
}
