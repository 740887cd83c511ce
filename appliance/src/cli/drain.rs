//! `cabana drain`: no new sessions, and an end of those that are there.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::args::Drain;
use super::client::{Payload, call};
use super::output;
use crate::exit::{Exit, Failure};

/// What ending the sessions that are still in use may take when their time is up: an orderly end, and the killing.
const END_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Empty,
    /// So much is left.
    Late(u64),
    /// Somebody has cancelled it, and so much is left.
    Cancelled(u64),
}

pub fn drain(drain: &Drain) -> Result<Exit, Failure> {
    let root = &drain.connection.root;
    if drain.cancel {
        let answer = call(root, Method::DELETE, "/drain", Payload::Nothing)?;
        output::print(&drain.output, &answer, |_| {
            "Sessions are begun again\n".to_owned()
        })?;
        return Ok(Exit::Ok);
    }
    let progress = output::spinner();
    let outcome = wait(root, drain.timeout, &progress);
    progress.finish_and_clear();
    let (outcome, answer) = outcome?;
    match said(outcome) {
        Ok(line) => {
            output::print(&drain.output, &answer, |_| line)?;
            Ok(Exit::Ok)
        }
        Err(line) => {
            output::print(&drain.output, &answer, |_| String::new())?;
            Err(Failure::new(Exit::Failed, line))
        }
    }
}

fn wait(root: &Path, timeout: u64, progress: &ProgressBar) -> Result<(Outcome, Value), Failure> {
    let body = Payload::Json(json!({ "timeoutSeconds": timeout }));
    let mut answer = call(root, Method::POST, "/drain", body)?;
    let deadline = Instant::now() + Duration::from_secs(timeout) + END_LIMIT;
    loop {
        if let Some(outcome) = outcome(&answer, Instant::now() >= deadline) {
            return Ok((outcome, answer));
        }
        progress.set_message(format!("draining: {} left", count(left(&answer))));
        std::thread::sleep(PAUSE);
        answer = call(root, Method::GET, "/drain", Payload::Nothing)?;
    }
}

/// `None`: it goes on.
fn outcome(answer: &Value, late: bool) -> Option<Outcome> {
    let left = left(answer);
    match (answer["draining"].as_bool(), left) {
        (Some(true), 0) => Some(Outcome::Empty),
        (Some(true), _) => late.then_some(Outcome::Late(left)),
        (Some(false) | None, _) => Some(Outcome::Cancelled(left)),
    }
}

fn left(answer: &Value) -> u64 {
    answer["slotsInUse"].as_u64().unwrap_or_default()
}

fn count(slots: u64) -> String {
    match slots {
        1 => "1 session".to_owned(),
        slots => format!("{slots} sessions"),
    }
}

/// The line for people, or of the failure.
fn said(outcome: Outcome) -> Result<String, String> {
    match outcome {
        Outcome::Empty => Ok("No session is left, and none is begun\n".to_owned()),
        Outcome::Late(left) => Err(format!("Not drained in time: {} left", count(left))),
        Outcome::Cancelled(left) => Err(format!("The drain was cancelled: {} left", count(left))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(draining: bool, left: u64) -> Value {
        json!({ "draining": draining, "slotsInUse": left })
    }

    #[test]
    fn drain_is_over_when_nothing_is_left_or_the_time_is_up_or_it_was_cancelled() {
        assert_eq!(outcome(&answer(true, 2), false), None);
        assert_eq!(outcome(&answer(true, 0), true), Some(Outcome::Empty));
        assert_eq!(outcome(&answer(true, 2), true), Some(Outcome::Late(2)));
        let cancelled = Some(Outcome::Cancelled(0));
        assert_eq!(outcome(&answer(false, 0), false), cancelled);
    }

    #[test]
    fn failure_says_how_much_is_left() {
        said(Outcome::Empty).unwrap();
        assert!(
            said(Outcome::Late(1))
                .unwrap_err()
                .contains("1 session left")
        );
        let cancelled = said(Outcome::Cancelled(2)).unwrap_err();
        assert!(cancelled.contains("2 sessions left"), "{cancelled}");
    }
}
