//! `cargo deny`: licences, doubles, sources and published faults of all crates that we build from.
//!
//! The faults are in a database that is fetched over the network. Where that cannot be reached the other checks run all the same, and a
//! line says what was not checked; who must know (a CI that runs each night) makes it a failure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cache::{Cache, Key};
use crate::command;
use crate::progress::Step;
use crate::workspace::Workspace;

const VERSION: &str = "0.20.2";
const CONFIG: &str = "tests/devtool/deny.toml";
/// `1`: the check fails where the database of faults cannot be fetched.
const REQUIRED_VARIABLE: &str = "CABANA_REQUIRE_ADVISORIES";
/// A fetch of some ten megabytes; a network that swallows packets must not hold up a check for longer.
const FETCH_SECONDS: &str = "60";
/// The database changes about daily, and a check many times a day need not ask each time.
const FRESH: Duration = Duration::from_hours(24);
/// It runs for two seconds, so it is built in the quickest way and not in its own, which optimises across all of its crates.
const QUICK_BUILD: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
];

/// Checks all; `advisories_required`, or the variable: also where there is no network.
pub fn check(workspace: &Workspace, cache: &Cache, advisories_required: bool) -> Result<()> {
    let required = advisories_required
        || std::env::var_os(REQUIRED_VARIABLE).is_some_and(|value| value == "1");
    let program = install(workspace, cache)?;
    eprintln!("== Licences, doubles and sources of crates");
    command::shown(deny(workspace, &program).args(["check", "licenses", "bans", "sources"]))?;
    eprintln!("== Published faults of crates");
    match database(workspace, cache, &program)? {
        Database::Here(note) => {
            if let Some(note) = note {
                if required {
                    bail!("{note}");
                }
                eprintln!("{note}");
            }
            // What we have is what is checked: a second fetch could hang.
            command::shown(deny(workspace, &program).args([
                "check",
                "--disable-fetch",
                "advisories",
            ]))
        }
        Database::Absent(why) if required => bail!("Published faults could not be checked: {why}"),
        Database::Absent(why) => {
            eprintln!(
                "NOT CHECKED: the database of published faults cannot be fetched ({why}). `cargo dev check --advisories`, or {REQUIRED_VARIABLE}=1, \
                 makes this a failure"
            );
            Ok(())
        }
    }
}

enum Database {
    /// With a note if it is not of today.
    Here(Option<String>),
    Absent(String),
}

fn deny(workspace: &Workspace, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(workspace.path(""))
        .arg("--locked")
        .arg("--config")
        .arg(workspace.path(CONFIG));
    command
}

/// Built from its published source: the packages of it that there are are too old to read our lock file.
fn install(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let key = Key::new("cargo-deny 1").text("version", VERSION);
    let entry = cache.entry("cargo-deny", key, |folder| {
        let step = Step::start(format!("Building cargo-deny {VERSION} (once)"));
        // Within the entry that is being made, so that nothing is left of a build that was killed.
        let objects = folder.join("objects");
        let mut cargo = workspace.cargo();
        // Away from the checkout, whose `.cargo/config.toml` is about what we ship.
        cargo.current_dir(folder).envs(QUICK_BUILD);
        cargo
            .args(["install", "--locked", "--version", VERSION, "--root"])
            .arg(folder)
            .arg("--target-dir")
            .arg(&objects)
            .arg("cargo-deny");
        command::logged(
            &mut cargo,
            &workspace.logs().join("cargo-deny.log"),
            |line| {
                step.note(line.trim());
            },
        )?;
        fs::remove_dir_all(&objects).context("Cannot remove the objects of cargo-deny")?;
        step.done("");
        Ok(())
    })?;
    Ok(entry.join("bin/cargo-deny"))
}

/// The database as it is on this machine, fetched if it is not of today.
fn database(workspace: &Workspace, cache: &Cache, program: &Path) -> Result<Database> {
    // cargo-deny keeps the database in cargo's own folder, and does not say when it was fetched.
    let stamp = cache.path("advisories-fetched");
    let age = age(&stamp);
    if age.is_some_and(|age| age < FRESH) {
        return Ok(Database::Here(None));
    }
    let deny = deny(workspace, program);
    let mut fetch = Command::new("timeout");
    fetch.arg(FETCH_SECONDS).arg(deny.get_program());
    fetch.args(deny.get_args()).args(["fetch", "db"]);
    fetch.current_dir(workspace.path(""));
    let why = match command::output(&mut fetch) {
        Ok(_) => {
            File::create(&stamp).with_context(|| format!("Cannot write {}", stamp.display()))?;
            return Ok(Database::Here(None));
        }
        Err(error) => cause(&format!("{error:#}")),
    };
    Ok(match age {
        Some(age) => Database::Here(Some(format!(
            "The database of published faults is {} hours old, and cannot be fetched anew ({why})",
            age.as_secs() / 3600
        ))),
        None => Database::Absent(why),
    })
}

fn age(stamp: &Path) -> Option<Duration> {
    let fetched = fs::metadata(stamp).ok()?.modified().ok()?;
    Some(
        SystemTime::now()
            .duration_since(fetched)
            .unwrap_or_default(),
    )
}

/// The last line of a chain of causes, which is the first cause.
fn cause(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("no reason was given").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_the_last_line_that_says_something() {
        let text = "timeout failed: failed to fetch\n\nCaused by:\n   0: handshake\n   1: Could not resolve host\n\n";
        assert_eq!(cause(text), "1: Could not resolve host");
        assert_eq!(cause(""), "no reason was given");
    }

    #[test]
    fn database_without_a_stamp_was_never_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = folder.path().join("fetched");
        assert_eq!(age(&stamp), None);
        File::create(&stamp).unwrap();
        assert!(age(&stamp).unwrap() < FRESH);
    }
}
