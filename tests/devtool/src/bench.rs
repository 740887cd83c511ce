//! `cargo dev bench`: the promises of the README, measured.
//!
//! Where this host cannot run guests, what needs one is measured in the lab. Times there are those of an emulated processor and mean
//! something only beside each other, so the promise for hardware has a figure of its own for the lab.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Cache;
use crate::lab::{self, Lab, LabCommand, LabFile, Plan};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, guest, packages, up};

/// Every promise that has a benchmark yet, in the order of the README.
const PROMISES: &[Promise] = &[
    Promise {
        id: "cold_boot",
        measure: cold_boot,
    },
    Promise {
        id: "binary_size",
        measure: binary_size,
    },
];
/// The promise: binary, kernel and initramfs included.
const LARGEST_BINARY_MIB: f64 = 32.0;
/// The promise for hardware, and what is aimed at on the lab's emulated processor.
const COLD_BOOT_MS: f64 = 100.0;
const COLD_BOOT_LAB_MS: f64 = 3000.0;
const COLD_BOOTS: &str = "10";
const LAB_LIMIT: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub struct Arguments {
    /// Only this promise; can be given several times
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Also writes the rows to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

struct Promise {
    id: &'static str,
    measure: fn(&Bench) -> Result<Row>,
}

/// What every measurement has at hand.
struct Bench<'a> {
    workspace: &'a Workspace,
    cache: &'a Cache,
    binary: &'a Path,
}

#[derive(Serialize)]
struct Row {
    id: &'static str,
    value: f64,
    unit: &'static str,
    target: f64,
    ok: bool,
    detail: String,
}

/// `cargo dev bench`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if let Some(unknown) = arguments
        .only
        .iter()
        .find(|id| PROMISES.iter().all(|promise| promise.id != **id))
    {
        let known: Vec<_> = PROMISES.iter().map(|promise| promise.id).collect();
        bail!(
            "There is no benchmark {unknown:?}; there are: {}",
            known.join(", ")
        );
    }
    let cache = Cache::open()?;
    let binary = guest::build_appliance(workspace, &cache)?;
    let bench = Bench {
        workspace,
        cache: &cache,
        binary: &binary,
    };
    let mut rows = Vec::new();
    for promise in PROMISES {
        if arguments.only.is_empty() || arguments.only.iter().any(|id| id == promise.id) {
            rows.push(
                (promise.measure)(&bench)
                    .with_context(|| format!("Cannot measure {}", promise.id))?,
            );
        }
    }
    println!(
        "{:<14} {:>10} {:<5} {:>10}  {:<6} detail",
        "promise", "value", "unit", "target", "holds"
    );
    for row in &rows {
        let holds = if row.ok { "yes" } else { "no" };
        println!(
            "{:<14} {:>10.1} {:<5} {:>10.1}  {holds:<6} {}",
            row.id, row.value, row.unit, row.target, row.detail
        );
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("Cannot write the rows as JSON")?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    Ok(if rows.iter().all(|row| row.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn binary_size(bench: &Bench) -> Result<Row> {
    let bytes = std::fs::metadata(bench.binary)
        .context("Cannot read the binary")?
        .len();
    // Exact: a file of 2^53 bytes is not among those that we build.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the size of a file that fits on a disk"
    )]
    let value = bytes as f64 / f64::from(1 << 20);
    Ok(Row {
        id: "binary_size",
        value,
        unit: "MiB",
        target: LARGEST_BINARY_MIB,
        ok: value <= LARGEST_BINARY_MIB,
        detail: "the release binary, kernel and initramfs included".to_owned(),
    })
}

/// The binary measures itself: a shell that looked for the end would take the guest's processor time.
fn cold_boot(bench: &Bench) -> Result<Row> {
    let arguments = ["bench", "cold-boot", "--count", COLD_BOOTS, "--json"];
    let here = up::why_not_here(bench.binary)?.is_none();
    let step = Step::start("Measuring cold boots");
    let output = if here {
        command::output(
            Command::new(bench.binary)
                .args(arguments)
                .env("CABANA_LOG", "warn"),
        )?
    } else {
        in_lab(
            bench,
            &format!("CABANA_LOG=warn cabana {}", arguments.join(" ")),
        )?
    };
    step.done("");
    let line = output
        .lines()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("cabana printed no result but {output:?}"))?;
    let result: Value =
        serde_json::from_str(line).context("cabana printed something that is not JSON")?;
    let value = result["median"]
        .as_f64()
        .context("cabana printed no median")?;
    let target = if here { COLD_BOOT_MS } else { COLD_BOOT_LAB_MS };
    let place = if here {
        "on this host"
    } else {
        "in the lab, on an emulated processor"
    };
    Ok(Row {
        id: "cold_boot",
        value,
        unit: "ms",
        target,
        ok: value <= target,
        detail: format!("process start to agent ready, median of {COLD_BOOTS}, {place}"),
    })
}

/// Runs `command` in a lab of its own; answers what it printed.
fn in_lab(bench: &Bench, command: &str) -> Result<String> {
    packages::ensure(bench.workspace, &[packages::LAB])?;
    let plan = Plan {
        name: "bench".to_owned(),
        command: LabCommand::Script(command.to_owned()),
        files: vec![LabFile {
            source: bench.binary.to_owned(),
            target: "/usr/local/bin/cabana".to_owned(),
        }],
        forwards: Vec::new(),
        memory_mib: lab::DEFAULT_MEMORY_MIB,
        timeout: Some(LAB_LIMIT),
        keep: false,
    };
    let printed = Collector::default();
    let lab = Lab::prepare(bench.workspace, bench.cache)?;
    let mut machine = lab.start(
        &plan,
        Box::new(printed.clone()),
        Box::new(std::io::stderr()),
    )?;
    machine.wait_until_up()?;
    let code = machine.wait_for_exit()?;
    machine.wait_until_off()?;
    let printed = printed.0.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&printed).into_owned();
    if code != 0 {
        bail!("{command} ended with exit code {code}: {}", text.trim());
    }
    Ok(text)
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
