//! What keeps a worker alive: the warden that started it and the appliance that orders it about. Pure.
//!
//! A worker without a guest is of no use to anybody but its own warden. One with a guest holds the state of a session, so it
//! outlives both for a while: another appliance may come and adopt it.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Lifelines {
    warden: bool,
    appliance: bool,
    /// How long it lives without either; absent without a guest.
    orphan_limit: Option<Duration>,
    /// When the last one was lost, while there is none.
    lost_at: Option<Instant>,
}

impl Lifelines {
    pub fn new() -> Self {
        Self {
            warden: true,
            appliance: false,
            orphan_limit: None,
            lost_at: None,
        }
    }

    pub fn has_warden(&self) -> bool {
        self.warden
    }

    /// From now on there is a guest.
    pub fn outlive(&mut self, orphan_limit: Duration) {
        self.orphan_limit = Some(orphan_limit);
    }

    pub fn lose_warden(&mut self, now: Instant) {
        self.warden = false;
        self.update(now);
    }

    pub fn set_appliance(&mut self, there: bool, now: Instant) {
        self.appliance = there;
        self.update(now);
    }

    fn update(&mut self, now: Instant) {
        if self.warden || self.appliance {
            self.lost_at = None;
        } else {
            self.lost_at.get_or_insert(now);
        }
    }

    /// How long it may still live if nothing changes; `None` is for ever.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        match self.orphan_limit {
            None if self.warden => None,
            None => Some(Duration::ZERO),
            Some(limit) => {
                let lost_at = self.lost_at?;
                Some(limit.saturating_sub(now.saturating_duration_since(lost_at)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn spare_ends_with_its_warden_even_while_an_appliance_is_there() {
        let now = Instant::now();
        let mut lifelines = Lifelines::new();
        lifelines.set_appliance(true, now);
        assert_eq!(lifelines.left(now), None);
        lifelines.lose_warden(now);
        assert_eq!(lifelines.left(now), Some(Duration::ZERO));
    }

    #[test]
    fn guest_without_warden_lives_as_long_as_an_appliance_holds_it() {
        let now = Instant::now();
        let mut lifelines = Lifelines::new();
        lifelines.outlive(LIMIT);
        lifelines.set_appliance(true, now);
        lifelines.lose_warden(now);
        assert_eq!(lifelines.left(now + 100 * LIMIT), None);
    }

    #[test]
    fn orphan_limit_counts_from_the_moment_when_the_last_one_was_lost() {
        let begin = Instant::now();
        let mut lifelines = Lifelines::new();
        lifelines.outlive(LIMIT);
        lifelines.set_appliance(true, begin);
        lifelines.lose_warden(begin);
        let lost = begin + 5 * SECOND;
        lifelines.set_appliance(false, lost);
        assert_eq!(lifelines.left(lost), Some(LIMIT));
        assert_eq!(lifelines.left(lost + SECOND), Some(9 * SECOND));
        // Said again, it is no new loss.
        lifelines.set_appliance(false, lost + SECOND);
        assert_eq!(lifelines.left(lost + SECOND), Some(9 * SECOND));
        assert_eq!(lifelines.left(lost + 2 * LIMIT), Some(Duration::ZERO));
    }

    #[test]
    fn appliance_that_comes_back_stops_the_clock_and_the_next_loss_begins_it_anew() {
        let begin = Instant::now();
        let mut lifelines = Lifelines::new();
        lifelines.outlive(LIMIT);
        lifelines.lose_warden(begin);
        let adopted = begin + 9 * SECOND;
        lifelines.set_appliance(true, adopted);
        assert_eq!(lifelines.left(adopted + LIMIT), None);
        let lost = adopted + 2 * LIMIT;
        lifelines.set_appliance(false, lost);
        assert_eq!(lifelines.left(lost), Some(LIMIT));
    }
}
