//! A token bucket: so much in a second, and as much at once as the bucket holds. Pure: no clock, no timer.
//!
//! All arithmetic is exact. What is missing from a full bucket is counted in tokens × nanoseconds, in which a bucket
//! that gets `rate` tokens a second gets `rate` in each nanosecond, so that no rounding can add up.

use std::num::NonZeroU64;
use std::time::Duration;

/// In one second.
const NANOS: u128 = 1_000_000_000;

/// Tokens that are taken, and come back with time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// Tokens that come back in a second.
    rate: NonZeroU64,
    /// Tokens of a full bucket.
    burst: NonZeroU64,
    /// Tokens × nanoseconds that are missing from a full bucket. More than the bucket holds: it is in debt.
    missing: u128,
    /// When `missing` was right. Never goes back.
    at: Duration,
}

impl TokenBucket {
    /// A full one. Times are those since any moment, the same for all calls.
    pub fn full(rate: NonZeroU64, burst: NonZeroU64, now: Duration) -> Self {
        Self {
            rate,
            burst,
            missing: 0,
            at: now,
        }
    }

    /// Takes tokens, or says from when on they are there. More than the bucket holds are there when it is full: it is
    /// in debt then, and nothing is granted until that is paid. Nothing (`0`) is granted unless there is a debt.
    pub fn take(&mut self, now: Duration, tokens: u64) -> Result<(), Duration> {
        self.refill(now);
        let held = u128::from(self.burst.get()) * NANOS;
        let wanted = u128::from(tokens.min(self.burst.get())) * NANOS;
        match (self.missing + wanted).checked_sub(held) {
            None | Some(0) => {
                self.spend(tokens);
                Ok(())
            }
            Some(lacking) => {
                let wait = lacking.div_ceil(self.rate.get().into());
                let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
                Err(self.at.saturating_add(wait))
            }
        }
    }

    /// Counts what was done without asking, and may bring the bucket into debt.
    pub fn spend(&mut self, tokens: u64) {
        self.missing = self.missing.saturating_add(u128::from(tokens) * NANOS);
    }

    /// Takes a grant back.
    pub fn give_back(&mut self, tokens: u64) {
        self.missing = self.missing.saturating_sub(u128::from(tokens) * NANOS);
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        let come = passed.saturating_mul(self.rate.get().into());
        self.missing = self.missing.saturating_sub(come);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nz(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    const fn ns(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    #[test]
    fn full_bucket_grants_its_burst_at_once_and_no_token_more() {
        let mut bucket = TokenBucket::full(nz(10), nz(100), ns(0));
        assert_eq!(bucket.take(ns(0), 60), Ok(()));
        assert_eq!(bucket.take(ns(0), 40), Ok(()));
        assert_eq!(bucket.take(ns(0), 1), Err(Duration::from_millis(100)));
        assert_eq!(
            bucket.take(ns(99_999_999), 1),
            Err(Duration::from_millis(100))
        );
        assert_eq!(bucket.take(Duration::from_millis(100), 1), Ok(()));
    }

    #[test]
    fn bucket_does_not_fill_beyond_its_burst() {
        let mut bucket = TokenBucket::full(nz(10), nz(5), ns(0));
        let later = Duration::from_secs(1_000_000);
        assert_eq!(bucket.take(later, 5), Ok(()));
        assert!(bucket.take(later, 1).is_err());
    }

    #[test]
    fn more_than_the_burst_is_granted_by_a_full_bucket_and_paid_for_afterwards() {
        let mut bucket = TokenBucket::full(nz(10), nz(10), ns(0));
        assert_eq!(bucket.take(ns(0), 1), Ok(()));
        assert_eq!(bucket.take(ns(0), 50), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(Duration::from_millis(100), 50), Ok(()));
        // 40 of them are a debt.
        assert_eq!(
            bucket.take(Duration::from_millis(100), 0),
            Err(Duration::from_millis(4_100))
        );
        assert_eq!(bucket.take(Duration::from_millis(4_100), 0), Ok(()));
        assert_eq!(
            bucket.take(Duration::from_millis(4_100), 1),
            Err(Duration::from_millis(4_200))
        );
    }

    #[test]
    fn grant_that_is_taken_back_is_there_again() {
        let mut bucket = TokenBucket::full(nz(1), nz(10), ns(0));
        assert_eq!(bucket.take(ns(0), 10), Ok(()));
        bucket.give_back(4);
        assert_eq!(bucket.take(ns(0), 4), Ok(()));
        bucket.give_back(u64::MAX);
        assert_eq!(bucket.take(ns(0), 10), Ok(()));
        assert!(bucket.take(ns(0), 1).is_err());
    }

    #[test]
    fn clock_that_goes_back_gives_nothing_and_takes_nothing() {
        let mut bucket = TokenBucket::full(nz(1_000), nz(10), Duration::from_secs(5));
        assert_eq!(bucket.take(Duration::from_secs(5), 10), Ok(()));
        let due = Duration::from_secs(5) + Duration::from_millis(1);
        assert_eq!(bucket.take(Duration::from_secs(1), 1), Err(due));
        assert_eq!(bucket.take(due, 1), Ok(()));
    }

    /// Every bucket of 1 to 6 tokens, at 1 to 6 tokens a second, and every sequence of three requests of 0 to 7 tokens with 0 to 3 half
    /// seconds in between, against a count in twelfths of tokens and a model that knows nothing of nanoseconds.
    #[test]
    fn small_buckets_are_what_a_plain_count_says_in_every_case() {
        const HALF: Duration = Duration::from_millis(500);
        let mut cases = 0;
        for (rate, burst) in (1..=6).flat_map(|rate| (1..=6).map(move |burst| (rate, burst))) {
            for sequence in 0..(8_u64 * 4).pow(3) {
                let mut bucket = TokenBucket::full(nz(rate), nz(burst), ns(0));
                // Half tokens, because a half second brings these.
                let (mut balance, mut now, mut rest) = (2 * i128::from(burst), ns(0), sequence);
                for _ in 0..3 {
                    let (tokens, halves) = (rest % 8, rest / 8 % 4);
                    rest /= 32;
                    now += HALF * u32::try_from(halves).unwrap();
                    balance = (balance + i128::from(halves * rate)).min(2 * i128::from(burst));
                    let granted = balance >= 2 * i128::from(tokens.min(burst));
                    assert_eq!(
                        bucket.take(now, tokens).is_ok(),
                        granted,
                        "{rate} {burst} {sequence}"
                    );
                    if granted {
                        balance -= 2 * i128::from(tokens);
                    }
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 36 * 32_768 * 3);
    }

    proptest! {
        /// What the bucket is for: whatever is asked for and when, in no stretch of time more is granted than the burst (or the one request
        /// that is larger) and what the rate brings meanwhile.
        #[test]
        fn no_stretch_of_time_gets_more_than_rate_and_burst(
            rate in 1..1_u64 << 40, burst in 1..1_u64 << 40,
            steps in prop::collection::vec((0..3_000_000_000_u64, 0..1_u64 << 41), 1..40),
        ) {
            let mut bucket = TokenBucket::full(nz(rate), nz(burst), ns(0));
            let mut now = ns(0);
            let mut granted: Vec<(Duration, u64)> = Vec::new();
            for (pause, tokens) in steps {
                now += ns(pause);
                if bucket.take(now, tokens).is_ok() {
                    granted.push((now, tokens));
                }
            }
            for first in 0..granted.len() {
                let mut sum = 0_u128;
                for (at, tokens) in &granted[first..] {
                    // A request that is granted from a bucket that is not in debt may bring it there.
                    let before = sum;
                    sum += u128::from(*tokens);
                    let passed = (*at - granted[first].0).as_nanos();
                    let most = u128::from(burst) * NANOS + passed * u128::from(rate);
                    prop_assert!(before * NANOS + u128::from(*tokens.min(&burst)) * NANOS <= most);
                }
            }
        }

        #[test]
        fn moment_that_is_named_is_the_first_at_which_it_is_granted(
            rate in 1..u64::MAX, burst in 1..u64::MAX, spent: u64, tokens: u64, at in 0..u64::from(u32::MAX),
        ) {
            let mut bucket = TokenBucket::full(nz(rate), nz(burst), ns(at));
            bucket.spend(spent);
            if let Err(then) = bucket.clone().take(ns(at), tokens) {
                prop_assert!(then > ns(at));
                // Beyond this a moment cannot be named.
                if then < ns(u64::MAX) {
                    prop_assert!(bucket.clone().take(then - ns(1), tokens).is_err());
                    prop_assert_eq!(bucket.take(then, tokens), Ok(()));
                }
            }
        }

        #[test]
        fn no_number_makes_the_arithmetic_fail(
            rate in 1..=u64::MAX, burst in 1..=u64::MAX,
            steps in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u64>(), 0..3_u8), 0..20),
        ) {
            let mut bucket = TokenBucket::full(nz(rate), nz(burst), Duration::ZERO);
            for (seconds, nanos, tokens, what) in steps {
                match what {
                    0 => drop(bucket.take(Duration::new(seconds, nanos % 1_000_000_000), tokens)),
                    1 => bucket.spend(tokens),
                    _ => bucket.give_back(tokens),
                }
            }
            prop_assert_eq!(TokenBucket::full(nz(rate), nz(burst), Duration::ZERO).take(Duration::MAX, u64::MAX), Ok(()));
        }
    }
}
