//! Progress of long steps: a spinner with the elapsed time on a terminal, plain lines elsewhere.
//!
//! It all goes to standard error, so that the output of a lab command stays clean.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a step that is still running says so this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// One step. Dropped before `done`, it leaves no claim that it succeeded.
pub struct Step {
    label: String,
    started: Instant,
    printed: Cell<Instant>,
    spinner: ProgressBar,
}

impl Step {
    pub fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let spinner = ProgressBar::new_spinner();
        if spinner.is_hidden() {
            eprintln!("{label} ...");
        } else if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
        {
            spinner.set_style(style);
            spinner.set_prefix(label.clone());
            spinner.enable_steady_tick(SPINNER_INTERVAL);
        }
        Self {
            label,
            started: Instant::now(),
            printed: Cell::new(Instant::now()),
            spinner,
        }
    }

    /// What the step is doing now.
    pub fn note(&self, text: &str) {
        if !self.spinner.is_hidden() {
            self.spinner.set_message(text.to_owned());
        } else if self.printed.get().elapsed() >= PLAIN_INTERVAL {
            self.printed.set(Instant::now());
            eprintln!(
                "{} ... {text} ({} s)",
                self.label,
                self.started.elapsed().as_secs()
            );
        }
    }

    pub fn done(self, result: &str) {
        self.spinner.finish_and_clear();
        let separator = if result.is_empty() { "" } else { ", " };
        eprintln!(
            "{}: {:.1} s{separator}{result}",
            self.label,
            self.started.elapsed().as_secs_f64()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
    }
}
