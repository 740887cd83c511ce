//! The appliance's log, line by line, while it is being written.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Everything that a process has written so far.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    written: Mutex<Written>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    /// Reads until the last writer has closed its end.
    pub fn follow(from: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let own = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                own.written()
                    .lines
                    .push(String::from_utf8_lossy(&line).into_owned());
                own.0.changed.notify_all();
            }
            own.written().ended = true;
            own.0.changed.notify_all();
        });
        log
    }

    /// How many lines there are. Later waits can start from here.
    pub fn position(&self) -> usize {
        self.written().lines.len()
    }

    pub fn since(&self, position: usize) -> Vec<String> {
        self.written()
            .lines
            .get(position..)
            .unwrap_or_default()
            .to_vec()
    }

    /// Waits for the first line from `position` on that fits. `Err`: there will be none, or not in time.
    pub fn wait_for(
        &self,
        position: usize,
        limit: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        let mut next = position;
        let mut written = self.written();
        loop {
            if let Some(line) = written
                .lines
                .get(next..)
                .unwrap_or_default()
                .iter()
                .find(|line| fits(line))
            {
                return Ok(line.clone());
            }
            next = written.lines.len().max(position);
            if written.ended {
                return Err("the appliance has ended without saying it".to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the appliance did not say it within {limit:?}"));
            }
            written = self
                .0
                .changed
                .wait_timeout(written, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
