//! A peer beside ours: the same kernel, the same lab, taking turns.
//!
//! The peer is a Firecracker binary that whoever measures brings along. It is driven through its API socket by this very program, which
//! runs in the lab for it (`cargo dev bench-peer`, hidden): a shell would take the guests' processor time.
//!
//! What is compared:
//! - boot: from the start of the peer's process to the first byte of its guest's first process; ours from the launch of a worker without
//!   a spare to the first word of its agent, which is the first process there. When ours is renewed (its disks mounted, its container
//!   prepared, its identity its own), for which there is nothing to compare at the peer, is printed beside it.
//! - restore: from the start of the peer's process over loading and resuming to the first byte of its guest; ours from the launch of a
//!   fork to the agent's first word. Neither guest has an identity of its own by then; how long ours takes to get one is printed beside.
//!   With workers made ahead, as the service has them, and without.
//!
//! The peer gets the benefit of the doubt: no jail, no seccomp filters, no devices but a serial port, nothing in the guest but a loop.

mod api;
mod guest;
mod machine;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::runner::{Runner, figure, json_lines};
use crate::command;
use crate::lab::LabFile;
use crate::progress::Step;
use machine::Peer;

/// Where the lab has what is compared.
const LAB_PROGRAM: &str = "/usr/local/bin/bench-peer";
const LAB_PEER: &str = "/peer/firecracker";
const LAB_KERNEL: &str = "/peer/vmlinux";
const ROUNDS: u32 = 4;
/// In each round.
const BOOTS: u32 = 2;
const RESTORES: u32 = 3;

/// Flags of the hidden command that runs in the lab.
#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    firecracker: PathBuf,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long, default_value_t = ROUNDS)]
    rounds: u32,
}

/// Times in milliseconds, in the order in which they were measured.
#[derive(Debug)]
pub struct Comparison {
    peer_boot: Vec<f64>,
    peer_restore: Vec<f64>,
    boot: Vec<f64>,
    boot_renewed: Vec<f64>,
    fork: Vec<f64>,
    fork_renewed: Vec<f64>,
    fork_without_spare: Vec<f64>,
}

impl Comparison {
    /// Runs both in a lab of their own.
    pub fn measure(runner: &Runner, firecracker: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("Cannot find this program")?;
        let files = [
            (program, LAB_PROGRAM),
            (firecracker.to_owned(), LAB_PEER),
            (runner.workspace().guest().join("vmlinux"), LAB_KERNEL),
        ];
        let files = files.map(|(source, target)| LabFile {
            source,
            target: target.to_owned(),
        });
        let step = Step::start("Measuring the peer and ours, taking turns");
        let script = format!(
            "export CABANA_LOG=warn\n{LAB_PROGRAM} bench-peer --firecracker {LAB_PEER} --kernel {LAB_KERNEL}\n"
        );
        let output = runner.in_lab(&script, &files)?;
        step.done("");
        let result = json_lines(&output).pop();
        Self::read(&result.with_context(|| format!("The lab printed no result but {output:?}"))?)
    }

    fn read(result: &Value) -> Result<Self> {
        let series = |name: &str| {
            let values = result[name].as_array().map(Vec::as_slice);
            let values: Vec<f64> = values
                .unwrap_or_default()
                .iter()
                .filter_map(Value::as_f64)
                .collect();
            (!values.is_empty())
                .then_some(values)
                .with_context(|| format!("There are no times of {name} in {result}"))
        };
        Ok(Self {
            peer_boot: series("peerBoot")?,
            peer_restore: series("peerRestore")?,
            boot: series("boot")?,
            boot_renewed: series("bootRenewed")?,
            fork: series("fork")?,
            fork_renewed: series("forkRenewed")?,
            fork_without_spare: series("forkWithoutSpare")?,
        })
    }

    pub fn boot_ratio(&self) -> Result<f64> {
        ratio(&self.boot, &self.peer_boot)
    }

    pub fn fork_ratio(&self) -> Result<f64> {
        ratio(&self.fork, &self.peer_restore)
    }

    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = [
            ("peer, process start to guest init", &self.peer_boot),
            ("ours, process start to agent's answer", &self.boot),
            ("ours, process start to agent renewed", &self.boot_renewed),
            (
                "peer, process start, load, resume to guest output",
                &self.peer_restore,
            ),
            ("ours, fork to the agent's first word", &self.fork),
            ("ours, fork to agent renewed", &self.fork_renewed),
            (
                "ours, process start, fork to the agent's first word",
                &self.fork_without_spare,
            ),
        ]
        .into_iter()
        .filter_map(|(what, times)| {
            let (least, most) = (percentile(times, 0.0)?, percentile(times, 1.0)?);
            let median = median(times)?;
            let count = times.len();
            Some(format!(
                "{what}: median of {count} {median:.0} ms, {least:.0} to {most:.0} ms"
            ))
        })
        .collect();
        let ratios = [
            (
                "a boot until it is renewed",
                &self.boot_renewed,
                &self.peer_boot,
            ),
            (
                "a fork until it is renewed",
                &self.fork_renewed,
                &self.peer_restore,
            ),
            (
                "a fork that has to wait for its process",
                &self.fork_without_spare,
                &self.peer_restore,
            ),
        ];
        for (what, times, peer) in ratios {
            if let Ok(ratio) = ratio(times, peer) {
                notes.push(format!("{what} is {ratio:.2} of the peer's"));
            }
        }
        notes
    }
}

/// `bench-peer`, in the lab: measures, and prints one JSON object.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("Cannot make a folder")?;
    let peer = Peer::new(&arguments.firecracker, &arguments.kernel, folder.path())?;
    peer.save().context("The peer could not save a snapshot")?;
    let mut series = [const { Vec::new() }; 7];
    let [
        peer_boot,
        peer_restore,
        boot,
        boot_renewed,
        fork,
        fork_renewed,
        fork_without_spare,
    ] = &mut series;
    for _ in 0..arguments.rounds {
        for _ in 0..BOOTS {
            peer_boot.push(millis(peer.boot()?));
        }
        let booted = ours(&["cold-boot", "--count", "2", "--spares", "0"])?;
        boot.extend(values(&booted, "/values")?);
        boot_renewed.extend(values(&booted, "/renewed/values")?);
        for _ in 0..RESTORES {
            peer_restore.push(millis(peer.restore()?));
        }
        // One at a time needs no more, and each run waits until they are made.
        let forked = ours(&["fork", "--count", "3", "--parallel", "1", "--spares", "2"])?;
        fork.extend(values(&forked, "/agent/single/answered/values")?);
        fork_renewed.extend(values(&forked, "/agent/single/values")?);
        let forked = ours(&["fork", "--count", "2", "--parallel", "1", "--spares", "0"])?;
        fork_without_spare.extend(values(&forked, "/agent/single/answered/values")?);
    }
    let result = json!({
        "peerBoot": peer_boot,
        "peerRestore": peer_restore,
        "boot": boot,
        "bootRenewed": boot_renewed,
        "fork": fork,
        "forkRenewed": fork_renewed,
        "forkWithoutSpare": fork_without_spare,
    });
    println!("{result}");
    Ok(ExitCode::SUCCESS)
}

fn ours(arguments: &[&str]) -> Result<Value> {
    let mut bench = Command::new("cabana");
    let output = command::output(bench.arg("bench").args(arguments).arg("--json"))?;
    let result = json_lines(&output).pop();
    result.with_context(|| format!("cabana printed no result but {output:?}"))
}

fn values(result: &Value, pointer: &str) -> Result<Vec<f64>> {
    let count = result.pointer(pointer).and_then(Value::as_array);
    let count = count.with_context(|| format!("cabana printed no {pointer} but {result}"))?;
    (0..count.len())
        .map(|number| figure(result, &format!("{pointer}/{number}")))
        .collect()
}

fn ratio(ours: &[f64], theirs: &[f64]) -> Result<f64> {
    let medians = median(ours).zip(median(theirs));
    let (ours, theirs) = medians.context("There is nothing to compare")?;
    Ok(ours / theirs)
}

fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// By the nearest rank; 0 is the least.
fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a few measurements"
    )]
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison() -> Comparison {
        let result = json!({
            "peerBoot": [200.0, 100.0, 300.0],
            "peerRestore": [50.0],
            "boot": [150.0, 90.0],
            "bootRenewed": [160.0],
            "fork": [20.0, 30.0, 25.0],
            "forkRenewed": [30.0],
            "forkWithoutSpare": [40.0],
        });
        Comparison::read(&result).unwrap()
    }

    #[test]
    fn ratios_are_those_of_the_medians() {
        let comparison = comparison();
        assert!((comparison.boot_ratio().unwrap() - 0.45).abs() < 1e-9);
        assert!((comparison.fork_ratio().unwrap() - 0.5).abs() < 1e-9);
        let notes = comparison.notes().join("\n");
        assert!(
            notes.contains("median of 3 200 ms, 100 to 300 ms"),
            "{notes}"
        );
        assert!(notes.contains("renewed is 0.60 of the peer's"), "{notes}");
        assert!(notes.contains("process is 0.80 of the peer's"), "{notes}");
    }

    #[test]
    fn series_without_a_time_is_an_error_that_names_it() {
        let error = Comparison::read(&json!({ "peerBoot": [1.0] })).unwrap_err();
        assert!(error.to_string().contains("peerRestore"), "{error}");
    }
}
