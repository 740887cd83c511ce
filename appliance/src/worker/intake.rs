//! How fast a guest's words are taken. Pure.
//!
//! Each line that a container prints is a message that this process reads, decodes and keeps, at its own cost and, as a service, before
//! anything else on the host. So there is a rate of it for each guest, far above what people read and programs log. What comes faster
//! waits where it was written, in the container's own `write`: nothing is lost by that, and only who floods is slowed down.

use std::time::Duration;

use tokio::time::Instant;

/// What is taken in the long run.
const BYTES_PER_SECOND: u32 = 1 << 20;
/// What may come at once, after a while in which little was said: a start that prints all it does, or a long trace.
const BURST_BYTES: u32 = 4 << 20;

/// Of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Intake {
    /// What may be taken at `at`; below zero after a chunk that was larger than what was left.
    credit: f64,
    at: Instant,
}

impl Intake {
    pub fn new(now: Instant) -> Self {
        Self {
            credit: f64::from(BURST_BYTES),
            at: now,
        }
    }

    pub fn took(&mut self, bytes: usize, now: Instant) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.credit = self.credit_at(now) - f64::from(bytes);
        self.at = now;
    }

    /// How long to wait before more is taken; `None`: not at all.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let debt = -self.credit_at(now);
        (debt > 0.0).then(|| Duration::from_secs_f64(debt / f64::from(BYTES_PER_SECOND)))
    }

    fn credit_at(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.credit + since * f64::from(BYTES_PER_SECOND)).min(f64::from(BURST_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 16 << 10;

    #[test]
    fn flood_is_taken_at_the_rate_after_one_burst() {
        let begun = Instant::now();
        let mut intake = Intake::new(begun);
        let (mut now, mut taken) = (begun, 0);
        while now < begun + Duration::from_secs(10) {
            match intake.pause(now) {
                Some(pause) => now += pause + Duration::from_micros(1),
                None => {
                    intake.took(CHUNK, now);
                    taken += CHUNK;
                }
            }
        }
        let most = (BURST_BYTES + 10 * BYTES_PER_SECOND) as usize;
        assert!(
            (most - 2 * CHUNK..=most + CHUNK).contains(&taken),
            "{taken}"
        );
    }

    #[test]
    fn who_says_little_never_waits_and_saves_up_no_more_than_a_burst() {
        let begun = Instant::now();
        let mut intake = Intake::new(begun);
        for second in 0..1000 {
            let now = begun + Duration::from_secs(second);
            assert_eq!(intake.pause(now), None);
            intake.took(CHUNK, now);
        }
        let later = begun + Duration::from_secs(100_000);
        intake.took(BURST_BYTES as usize + CHUNK, later);
        let pause = intake.pause(later).unwrap();
        assert_eq!(
            pause,
            Duration::from_millis(1000 * 16 / 1024) + Duration::from_micros(625)
        );
    }
}
