//! `cargo dev bench`: the promises of the README, measured.
//!
//! Where this host cannot run guests, what needs one is measured in the lab. Times there are those of an emulated processor and mean
//! something only beside each other: a promise that is a time on hardware is a ratio in the lab, to a peer that runs in the same
//! lab (`--firecracker`). Without that peer the time is printed and the promise is unchecked.
//!
//! - `promises`: one function for each row.
//! - `front_door`: the front door beside nginx.
//! - `image_build`: a root image, ours and that of others.
//! - `image_pull`: from a registry to a root image, and to a pool.
//! - `runner`: runs `cabana bench` here or in the lab.
//! - `peer`: what the other one does meanwhile.

mod front_door;
mod image_build;
mod image_pull;
pub mod peer;
mod promises;
mod runner;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Cache;
use crate::guest;
use crate::workspace::Workspace;
use peer::Comparison;
use promises::PROMISES;
use runner::Runner;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only promises whose id begins with this; can be given several times
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Also writes the rows to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A Firecracker binary to measure beside ours in the lab: same kernel, same run, alternating
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
}

struct Promise {
    id: &'static str,
    measure: fn(&Bench) -> Result<Row>,
}

/// What every measurement has at hand.
struct Bench<'a> {
    runner: Runner<'a>,
    binary: &'a Path,
    firecracker: Option<&'a Path>,
    compared: OnceCell<Comparison>,
    pulled: OnceCell<Value>,
    /// Two rows are of one measurement.
    front_door: OnceCell<serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct Row {
    id: &'static str,
    value: f64,
    unit: &'static str,
    target: Option<f64>,
    /// `None`: nothing was there to check it against.
    ok: Option<bool>,
    detail: String,
    /// Printed below the table: where the time goes, and the figures beside.
    #[serde(skip)]
    notes: Vec<String>,
}

impl Row {
    /// Holds when the value is at most the target.
    fn checked(id: &'static str, value: f64, unit: &'static str, target: f64) -> Self {
        Self {
            target: Some(target),
            ok: Some(value <= target),
            ..Self::unchecked(id, value, unit)
        }
    }

    fn unchecked(id: &'static str, value: f64, unit: &'static str) -> Self {
        Self {
            id,
            value,
            unit,
            target: None,
            ok: None,
            detail: String::new(),
            notes: Vec::new(),
        }
    }

    fn with(mut self, detail: impl Into<String>, notes: Vec<String>) -> Self {
        self.detail = detail.into();
        self.notes = notes;
        self
    }

    fn line(&self) -> String {
        let holds = match self.ok {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unchecked",
        };
        let target = self
            .target
            .map_or_else(|| "-".to_owned(), |target| format!("{target:.1}"));
        format!(
            "{:<16} {:>10.2} {:<5} {target:>10}  {holds:<9} {}",
            self.id, self.value, self.unit, self.detail
        )
    }
}

/// `cargo dev bench`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(unknown) = arguments.only.iter().find(|id| {
        PROMISES
            .iter()
            .all(|promise| !promise.id.starts_with(id.as_str()))
    }) {
        let known: Vec<_> = PROMISES.iter().map(|promise| promise.id).collect();
        bail!(
            "There is no benchmark {unknown:?}; there are: {}",
            known.join(", ")
        );
    }
    let cache = Cache::open()?;
    let binary = guest::build_appliance(workspace, &cache)?;
    let bench = Bench {
        runner: Runner::new(workspace, &cache, &binary)?,
        binary: &binary,
        firecracker: arguments.firecracker.as_deref(),
        compared: OnceCell::new(),
        pulled: OnceCell::new(),
        front_door: OnceCell::new(),
    };
    let mut rows = Vec::new();
    for promise in PROMISES {
        if arguments.only.is_empty() || arguments.only.iter().any(|id| promise.id.starts_with(id)) {
            let measured = (promise.measure)(&bench);
            rows.push(measured.with_context(|| format!("Cannot measure {}", promise.id))?);
        }
    }
    print(&rows);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("Cannot write the rows as JSON")?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    Ok(if rows.iter().any(|row| row.ok == Some(false)) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(rows: &[Row]) {
    println!(
        "{:<16} {:>10} {:<5} {:>10}  {:<9} detail",
        "promise", "value", "unit", "target", "holds"
    );
    rows.iter().for_each(|row| println!("{}", row.line()));
    for row in rows.iter().filter(|row| !row.notes.is_empty()) {
        println!("\n{}", row.id);
        row.notes.iter().for_each(|note| println!("  {note}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_without_anything_to_compare_with_is_unchecked_and_does_not_fail() {
        let row = Row::unchecked("fork_agent", 12.345, "ms").with("in the lab", Vec::new());
        assert!(row.line().contains("unchecked"), "{}", row.line());
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["ok"].is_null() && json["target"].is_null(), "{json}");
        assert!(json.get("notes").is_none(), "{json}");
    }

    #[test]
    fn row_holds_up_to_its_target_and_not_beyond() {
        assert_eq!(Row::checked("cold_boot", 0.8, "ratio", 0.8).ok, Some(true));
        assert_eq!(
            Row::checked("cold_boot", 0.81, "ratio", 0.8).ok,
            Some(false)
        );
    }
}
