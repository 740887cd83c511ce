//! Where the time of a start went.

use std::time::{Duration, Instant};

/// A stopwatch whose laps have names. Together they are all of the time since its start.
#[derive(Debug)]
pub struct Steps {
    last: Instant,
    laps: Vec<(String, Duration)>,
}

impl Steps {
    pub fn since(start: Instant) -> Self {
        Self {
            last: start,
            laps: Vec::new(),
        }
    }

    /// Ends the lap that runs.
    pub fn lap(&mut self, name: &str) {
        self.lap_of(name, Vec::new());
    }

    /// Ends the lap that runs, of which `parts` are known; what they leave over goes by `name`.
    pub fn lap_of(&mut self, name: &str, parts: Vec<(String, Duration)>) {
        let now = Instant::now();
        let known: Duration = parts.iter().map(|(_, time)| *time).sum();
        let left = (now - self.last).saturating_sub(known);
        self.laps.push((name.to_owned(), left));
        self.laps.extend(parts);
        self.last = now;
    }

    pub fn into_laps(self) -> Vec<(String, Duration)> {
        self.laps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_and_their_parts_are_all_of_the_time() {
        let start = Instant::now();
        let mut steps = Steps::since(start);
        steps.lap("first");
        std::thread::sleep(Duration::from_millis(5));
        let part = Duration::from_millis(3);
        steps.lap_of("second", vec![("inner".to_owned(), part)]);
        let end = steps.last;
        let laps = steps.into_laps();
        let names: Vec<_> = laps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["first", "second", "inner"]);
        let sum: Duration = laps.iter().map(|(_, time)| *time).sum();
        assert_eq!(sum, end - start);
    }
}
