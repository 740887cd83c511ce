//! What many measurements of one thing amount to.

use std::time::Duration;

use serde_json::{Value, json};

/// One measurement, and where its time went, in order.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub total: Duration,
    /// Of the total, until the agent's first word.
    pub answered: Option<Duration>,
    pub steps: Vec<(String, Duration)>,
}

/// Measurements of the same thing.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<Sample>);

impl Series {
    pub fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    /// `p` between 0 and 1, in milliseconds, by the nearest rank. `None` of nothing.
    pub fn percentile(&self, p: f64) -> Option<f64> {
        let mut sorted = self.values();
        sorted.sort_by(f64::total_cmp);
        // At most as many as were measured, and none of them negative.
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into a few hundred measurements"
        )]
        let rank = (p * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }

    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.values();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        if sorted.len() % 2 == 1 {
            Some(upper)
        } else {
            Some(f64::midpoint(sorted[middle - 1], upper))
        }
    }

    /// In the order in which they were measured, in milliseconds.
    fn values(&self) -> Vec<f64> {
        self.0.iter().map(|sample| millis(sample.total)).collect()
    }

    /// Until the agent's first word, where each measurement has noted it.
    pub fn answered(&self) -> Option<Self> {
        let first_word = |sample: &Sample| {
            Some(Sample {
                total: sample.answered?,
                ..Sample::default()
            })
        };
        let samples: Option<Vec<Sample>> = self.0.iter().map(first_word).collect();
        samples.filter(|samples| !samples.is_empty()).map(Self)
    }

    /// The mean of each step in milliseconds. Means, because they add up to the mean of the whole. A step that
    /// only some measurements have (a spare that was not there) counts as nothing in the others.
    pub fn breakdown(&self) -> Vec<(&str, f64)> {
        let mut steps: Vec<(&str, f64)> = Vec::new();
        for (name, time) in self.0.iter().flat_map(|sample| &sample.steps) {
            let share = self.mean_of(millis(*time));
            match steps.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += share,
                None => steps.push((name, share)),
            }
        }
        steps
    }

    /// How much of the time the steps explain, between 0 and 1.
    pub fn covered(&self) -> f64 {
        let whole: f64 = self.values().iter().map(|value| self.mean_of(*value)).sum();
        let explained: f64 = self.breakdown().iter().map(|(_, mean)| mean).sum();
        if whole > 0.0 { explained / whole } else { 0.0 }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a few hundred measurements at most"
    )]
    fn mean_of(&self, value: f64) -> f64 {
        value / self.0.len() as f64
    }

    pub fn json(&self) -> Value {
        let steps: Vec<Value> = self
            .breakdown()
            .into_iter()
            .map(|(step, mean)| json!({ "step": step, "mean": mean }))
            .collect();
        json!({
            "count": self.0.len(),
            "median": self.median(),
            "p50": self.percentile(0.5),
            "p99": self.percentile(0.99),
            "values": self.values(),
            "answered": self.answered().map(|answered| json!({
                "median": answered.median(),
                "p99": answered.percentile(0.99),
                "values": answered.values(),
            })),
            "steps": steps,
            "covered": self.covered(),
        })
    }

    /// One line, and one for each step.
    pub fn text(&self, what: &str) -> String {
        let (Some(median), Some(last)) = (self.median(), self.percentile(0.99)) else {
            return String::new();
        };
        let count = self.0.len();
        let mut text = format!("{median:9.1} ms  p99 {last:.1} ms  {what}, median of {count}\n");
        if let Some(answered) = self.answered()
            && let (Some(median), Some(last)) = (answered.median(), answered.percentile(0.99))
        {
            text += &format!(
                "{median:9.1} ms  p99 {last:.1} ms    of which until the agent's first word\n"
            );
        }
        for (step, mean) in self.breakdown() {
            text += &format!("{mean:13.2} ms  {step}\n");
        }
        if !self.breakdown().is_empty() {
            text += &format!(
                "{:13.1} %   of the time is in these steps\n",
                self.covered() * 100.0
            );
        }
        text
    }
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(totals: &[u64]) -> Series {
        Series(
            totals
                .iter()
                .map(|total| Sample {
                    total: Duration::from_millis(*total),
                    ..Sample::default()
                })
                .collect(),
        )
    }

    #[test]
    fn median_of_none_one_odd_and_even() {
        assert_eq!(series(&[]).median(), None);
        assert_eq!(series(&[3]).median(), Some(3.0));
        assert_eq!(series(&[9, 1, 2]).median(), Some(2.0));
        assert_eq!(series(&[9, 4, 1, 2]).median(), Some(3.0));
    }

    #[test]
    fn first_words_are_a_series_of_their_own_when_all_have_been_noted() {
        let mut series = Series::default();
        assert!(series.answered().is_none());
        for (total, answered) in [(30, 20), (50, 30), (40, 24)] {
            series.push(Sample {
                total: Duration::from_millis(total),
                answered: Some(Duration::from_millis(answered)),
                steps: Vec::new(),
            });
        }
        assert_eq!(series.answered().unwrap().median(), Some(24.0));
        assert_eq!(series.json()["answered"]["values"][1], 30.0);
        let text = series.text("fork");
        assert!(text.contains("24.0 ms  p99 30.0 ms    of which"), "{text}");
        series.push(Sample::default());
        assert!(series.answered().is_none());
        assert!(series.json()["answered"].is_null());
    }

    #[test]
    fn percentile_is_a_value_that_was_measured() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(series(&hundred).percentile(0.5), Some(50.0));
        assert_eq!(series(&hundred).percentile(0.99), Some(99.0));
        assert_eq!(series(&[7, 5]).percentile(0.99), Some(7.0));
        assert_eq!(series(&[7]).percentile(0.0), Some(7.0));
        assert_eq!(series(&[]).percentile(0.5), None);
    }

    #[test]
    fn steps_add_up_to_what_they_explain_even_when_one_is_missing() {
        let step = |name: &str, millis| (name.to_owned(), Duration::from_millis(millis));
        let mut series = Series::default();
        series.push(Sample {
            total: Duration::from_millis(10),
            answered: None,
            steps: vec![step("map", 4), step("run", 6)],
        });
        series.push(Sample {
            total: Duration::from_millis(30),
            answered: None,
            steps: vec![step("spawn", 20), step("map", 2), step("run", 6)],
        });
        let close = |left: f64, right: f64| (left - right).abs() < 1e-9;
        let steps = series.breakdown();
        let names: Vec<&str> = steps.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["map", "run", "spawn"]);
        assert!(
            close(steps[0].1, 3.0) && close(steps[2].1, 10.0),
            "{steps:?}"
        );
        assert!(close(series.covered(), 38.0 / 40.0), "{}", series.covered());
    }
}
