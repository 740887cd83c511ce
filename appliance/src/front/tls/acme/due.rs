//! When the ACME server is asked next. No input, no output: moments in, a moment out.

use jiff::{SignedDuration, Timestamp};

use super::super::facts::Facts;

/// At two thirds of its life a certificate is exchanged; so a third is left for what may go wrong.
const RENEW_AT: (i32, i32) = (2, 3);
/// Hosts that were set up together do not ask together: a thirtieth of the life later at most, three days of ninety.
const SPREAD: i32 = 30;
/// Let's Encrypt takes five failures an hour for a name. With this there are three: after 0, 5 and 15 minutes.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// Who has mended what was wrong does not wait longer than this.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(6);
/// Doublings after which the pause is the longest in any case.
const MOST_DOUBLINGS: u32 = 16;

/// The last attempts that failed, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    pub count: u32,
    pub last: Timestamp,
}

/// What the decision is made of.
pub struct Standing<'a> {
    /// The certificate that is had, if it is what the configuration wants.
    pub held: Option<&'a Facts>,
    pub failures: Option<Failures>,
    /// When this process was last given one. A server that dates back far must not be asked all the time.
    pub issued: Option<Timestamp>,
    /// From 0 to 1, another one on each host.
    pub jitter: f64,
}

/// `None`: at once.
pub fn next_attempt(standing: &Standing<'_>) -> Option<Timestamp> {
    let wanted = standing.held.map(|held| renewal(held, standing.jitter));
    let allowed = standing
        .failures
        .map(|failures| later(failures.last, pause(failures.count, standing.jitter)));
    let rest = standing.issued.map(|issued| later(issued, FIRST_PAUSE));
    wanted.max(allowed).max(rest)
}

fn renewal(held: &Facts, jitter: f64) -> Timestamp {
    let life = held.life();
    let spread = (life / SPREAD).mul_f64(jitter.clamp(0.0, 1.0));
    later(held.not_before, life / RENEW_AT.1 * RENEW_AT.0 + spread)
}

/// Doubles, from three to five quarters of what it says.
fn pause(failures: u32, jitter: f64) -> SignedDuration {
    let doublings = failures.saturating_sub(1).min(MOST_DOUBLINGS);
    let pause = (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE);
    pause.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

fn later(moment: Timestamp, by: SignedDuration) -> Timestamp {
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::tests::{moment, some};
    use super::*;

    fn next(held: Option<&Facts>, failures: Option<(u32, &str)>, jitter: f64) -> Option<String> {
        let failures = failures.map(|(count, last)| Failures {
            count,
            last: moment(last),
        });
        let standing = Standing {
            held,
            failures,
            issued: None,
            jitter,
        };
        next_attempt(&standing).map(|at| at.to_string())
    }

    #[test]
    fn certificate_is_asked_for_at_once_and_renewed_at_two_thirds_of_its_life() {
        assert_eq!(next(None, None, 0.5), None);
        let (_, facts) = some(&["a"], "2026-01-01T00:00:00Z", 90);
        let at = |jitter| next(Some(&facts), None, jitter).unwrap();
        assert_eq!(at(0.0), "2026-03-02T00:00:00Z");
        assert_eq!(at(1.0), "2026-03-05T00:00:00Z");
    }

    #[test]
    fn failures_are_followed_by_longer_and_longer_pauses() {
        let last = "2026-01-01T00:00:00Z";
        let after = |count| next(None, Some((count, last)), 0.5).unwrap();
        assert_eq!(after(1), "2026-01-01T00:05:00Z");
        assert_eq!(after(2), "2026-01-01T00:10:00Z");
        assert_eq!(after(5), "2026-01-01T01:20:00Z");
        for many in [8, 100, u32::MAX] {
            assert_eq!(after(many), "2026-01-01T06:00:00Z");
        }
        assert_eq!(
            next(None, Some((1, last)), 0.0).unwrap(),
            "2026-01-01T00:03:45Z"
        );
        assert_eq!(
            next(None, Some((1, last)), 1.0).unwrap(),
            "2026-01-01T00:06:15Z"
        );
    }

    #[test]
    fn certificate_that_was_old_when_it_was_issued_is_not_asked_for_all_the_time() {
        let (_, facts) = some(&["a"], "2026-01-01T00:00:00Z", 90);
        let standing = Standing {
            held: Some(&facts),
            failures: None,
            issued: Some(moment("2026-03-30T00:00:00Z")),
            jitter: 0.0,
        };
        let next = next_attempt(&standing).unwrap();
        assert_eq!(next, moment("2026-03-30T00:05:00Z"));
    }

    /// An operator may have asked early, in vain: what is had is still good.
    #[test]
    fn failure_long_before_the_renewal_does_not_bring_it_forward() {
        let (_, facts) = some(&["a"], "2026-01-01T00:00:00Z", 90);
        let early = next(Some(&facts), Some((1, "2026-01-02T00:00:00Z")), 0.0);
        assert_eq!(early.unwrap(), "2026-03-02T00:00:00Z");
        let late = next(Some(&facts), Some((1, "2026-03-04T00:00:00Z")), 0.5);
        assert_eq!(late.unwrap(), "2026-03-04T00:05:00Z");
    }
}
