//! Where the time of a start or a restore went.

use std::time::{Duration, Instant};

/// Steps in order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps(pub Vec<(&'static str, Duration)>);

/// Measures steps.
pub(super) struct Stopwatch {
    last: Instant,
    pub steps: Steps,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self {
            last: Instant::now(),
            steps: Steps(Vec::new()),
        }
    }

    /// Ends the step that runs.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.0.push((step, now - self.last));
        self.last = now;
    }
}
