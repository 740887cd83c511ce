//! `cabana stop`: the end of the appliance with its sessions, or of what one has left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use indicatif::ProgressBar;
use serde_json::json;

use super::args::Stop;
use super::client::{Payload, call};
use super::output;
use crate::config::Paths;
use crate::exit::{Exit, Failure};
use crate::warden::{LeftoverError, end_leftovers};

/// How long an appliance may take from its lock until it answers: it may be starting, or starting again.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end: what the warden gives it before it kills, and the killing.
const END_LIMIT: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(50);

pub fn stop(stop: &Stop) -> Result<Exit, Failure> {
    let root = &stop.connection.root;
    let paths = Paths::under(root).map_err(|error| Failure::of(Exit::Usage, &error))?;
    let progress = output::spinner();
    let ended = end(root, &paths, &progress);
    progress.finish_and_clear();
    let (ran, left) = ended?;
    let answer = json!({ "applianceEnded": ran, "workersEnded": left });
    output::print(&stop.output, &answer, |_| said(ran, left))?;
    Ok(Exit::Ok)
}

fn said(ran: bool, left: usize) -> String {
    let workers = match left {
        1 => "1 worker that was left behind has ended".to_owned(),
        left => format!("{left} workers that were left behind have ended"),
    };
    match (ran, left) {
        (true, 0) => "The appliance has ended\n".to_owned(),
        (true, _) => format!("The appliance has ended, and {workers}\n"),
        (false, 0) => "Nothing runs\n".to_owned(),
        (false, _) => format!("No appliance runs; {workers}\n"),
    }
}

/// Whether an appliance ran, and how many workers were left without one. The lock says which of the two it is, at every moment.
fn end(root: &Path, paths: &Paths, progress: &ProgressBar) -> Result<(bool, usize), Failure> {
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        match end_leftovers(paths) {
            Ok(left) => return Ok((asked.is_some(), left)),
            Err(error) if error.is_locked() => {}
            Err(error) => return Err(failure(&error)),
        }
        match asked {
            Some(at) if at.elapsed() > END_LIMIT => {
                let line = format!("The appliance still ends after {} s", END_LIMIT.as_secs());
                return Err(Failure::new(Exit::Failed, line));
            }
            Some(_) => {}
            None => match call(root, Method::POST, "/stop", Payload::Nothing) {
                Ok(_) => {
                    progress.set_message("ending the sessions");
                    asked = Some(Instant::now());
                }
                Err(failure) if failure.exit != Exit::Unavailable => return Err(failure),
                Err(failure) if begun.elapsed() > ANSWER_LIMIT => return Err(failure),
                Err(_) => progress.set_message("waiting for the appliance to answer"),
            },
        }
        std::thread::sleep(PAUSE);
    }
}

fn failure(error: &LeftoverError) -> Failure {
    let exit = if error.is_permission() {
        Exit::Permission
    } else {
        Exit::Failed
    };
    Failure::of(exit, error)
}

#[cfg(test)]
mod tests {
    use super::super::args::{Connection, Output};
    use super::*;
    use crate::warden::end_leftovers;

    #[test]
    fn nothing_that_runs_is_no_failure_and_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let connection = Connection {
            root: root.path().to_owned(),
        };
        let exit = stop(&Stop {
            connection,
            output: Output::default(),
        });
        assert_eq!(exit.unwrap(), Exit::Ok);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let paths = Paths::under(root.path()).unwrap();
        assert_eq!(end_leftovers(&paths).unwrap(), 0);
    }

    #[test]
    fn line_says_what_there_was() {
        assert_eq!(said(false, 0), "Nothing runs\n");
        assert_eq!(said(true, 0), "The appliance has ended\n");
        assert!(said(false, 1).starts_with("No appliance runs; 1 worker that was"));
        assert!(said(true, 2).contains("and 2 workers that were"));
    }
}
