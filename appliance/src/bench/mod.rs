//! `cabana bench`: what this host takes to start guests, and what they cost.
//!
//! It runs as the appliance process does, over the same warden and workers, so what is measured is
//! what a session waits for: folder, disk, process, guest.
//!
//! - `cold_boot`, `fork`, `memory`: what is measured. `distinct`: what is made sure of, with more forks than a test has time for.
//! - `shapes`: root images, and how they are cut and packed.
//! - `run`: one launch, timed step by step. `golden`: a golden of its own. `image`: what the guests run.
//! - `figures`: medians, percentiles and breakdowns; pure.

mod cold_boot;
pub mod distinct;
mod figures;
pub mod fork;
mod golden;
pub mod image;
pub mod jail;
mod memory;
mod run;
pub mod shapes;

use std::io::Write as _;

use serde::{Deserialize, Serialize};

use crate::config::Paths;
use crate::worker::WorkerHost;

/// What to measure, as the command line asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub measure: Measure,
    pub json: bool,
}

/// See [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Measure {
    /// Boot this many guests one after the other.
    ColdBoot {
        count: u32,
    },
    Fork(fork::Plan),
    /// Look at the memory of so many idle forks.
    Memory {
        forks: Vec<u32>,
    },
    Distinct(distinct::Plan),
    Shapes(shapes::Plan),
}

/// Measures and prints.
pub async fn run(workers: &WorkerHost, paths: &Paths, plan: Plan) -> anyhow::Result<()> {
    let mut verdict = Ok(());
    let (json, text) = match plan.measure {
        Measure::ColdBoot { count } => {
            let report = cold_boot::measure(workers, count).await?;
            (report.json(), report.text())
        }
        Measure::Fork(plan) => {
            let report = fork::measure(workers, paths, plan).await?;
            (report.json(), report.text())
        }
        Measure::Memory { forks } => {
            let report = memory::measure(workers, paths, forks).await?;
            (report.json(), report.text())
        }
        Measure::Distinct(plan) => {
            let report = distinct::measure(workers, paths, plan).await?;
            verdict = report.check();
            (report.json(), report.text())
        }
        Measure::Shapes(plan) => {
            let report = shapes::measure(workers, plan).await?;
            (report.json(), report.text())
        }
    };
    let printed = match plan.json {
        true => format!("{json}\n"),
        false => text,
    };
    // Somebody who has read enough is no failure.
    let _ = std::io::stdout().write_all(printed.as_bytes());
    verdict
}
