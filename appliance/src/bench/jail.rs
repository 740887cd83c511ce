//! What confinement costs a start.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::figures::{Sample, Series};
use crate::warden::starts::{self, Start, Starts, StartsError};

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub count: u32,
    pub parallel: u32,
}

/// What came out.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    starts: Starts,
}

/// `uid`: who the workers become.
pub fn run(plan: Plan, folder: &Path, uid: u32) -> Result<Report, StartsError> {
    let starts = starts::measure(folder, uid, plan.count, plan.parallel)?;
    Ok(Report { plan, starts })
}

fn median(starts: &[Start], time: impl Fn(&Start) -> Duration) -> f64 {
    let mut series = Series::default();
    for start in starts {
        series.push(Sample {
            total: time(start),
            ..Sample::default()
        });
    }
    series.median().unwrap_or_default()
}

impl Report {
    /// Name, median of the warden's part, median of the whole, and all at once, each in milliseconds.
    fn rows(&self) -> [(&'static str, f64, f64, f64); 2] {
        let row = |name, starts: &[Start], at_once: Duration| {
            let started = median(starts, |start| start.started);
            let ended = median(starts, |start| start.ended);
            (name, started, ended, at_once.as_secs_f64() * 1000.0)
        };
        let Starts {
            confined,
            free,
            confined_at_once,
            free_at_once,
        } = &self.starts;
        [
            row("confined", confined, *confined_at_once),
            row("unconfined", free, *free_at_once),
        ]
    }

    pub fn json(&self) -> Value {
        let row = |(name, started, ended, at_once): (&str, f64, f64, f64)| json!({"name": name, "wardenMs": started, "wholeMs": ended, "atOnceMs": at_once});
        let Plan { count, parallel } = self.plan;
        json!({"count": count, "parallel": parallel, "starts": self.rows().map(row)})
    }

    pub fn text(&self) -> String {
        let Plan { count, parallel } = self.plan;
        let mut text = format!(
            "Start of a worker until it would make its machine, and its end: {count} of each, medians\n"
        );
        for (name, started, ended, at_once) in self.rows() {
            let _ = writeln!(
                text,
                "{name:<12}warden {started:>7.3} ms   whole {ended:>7.3} ms   {parallel} at once {at_once:>8.1} ms"
            );
        }
        text
    }
}
