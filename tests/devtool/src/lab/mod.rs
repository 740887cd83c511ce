//! The lab: a Debian host with a real kvm-amd driver, inside QEMU's emulation of AMD SVM.
//!
//! Machines without usable hardware virtualisation run everything about the microVM in it. Boots in a few seconds, lives in memory,
//! has a way in from loopback and none out.

mod host;
mod initrd;
mod machine;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use initrd::{LabCommand, LabFile};
use machine::TimedOut;
pub use machine::{Machine, Plan, Sink};

use crate::cache::Cache;
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{guest, images, packages};

pub const DEFAULT_MEMORY_MIB: u32 = 3072;
/// What timeout(1) exits with.
const EXIT_TIMED_OUT: u8 = 124;

#[derive(clap::Args)]
pub struct Arguments {
    /// A file or folder to take along; programs go into the PATH, anything else to /
    #[arg(long = "file", value_name = "SRC[:DST]", value_parser = LabFile::parse)]
    files: Vec<LabFile>,
    /// Makes a TCP port of the lab reachable on loopback
    #[arg(long = "forward", value_name = "HOST:LAB", value_parser = Forward::parse)]
    forwards: Vec<Forward>,
    /// Stops the lab after this many seconds, with exit code 124
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Leaves the lab running after the command has ended, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Memory of the lab
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MEMORY_MIB)]
    memory: u32,
    /// Without the binary and the demo image: starts at once
    #[arg(long)]
    bare: bool,
    /// The command, for the lab's shell; without one, the shell itself on this terminal
    #[arg(last = true)]
    command: Vec<String>,
}

impl Arguments {
    fn command(&self) -> Result<LabCommand> {
        if !self.command.is_empty() {
            return Ok(LabCommand::Script(self.command.join(" ")));
        }
        let input = std::io::stdin();
        ensure!(
            input.is_terminal(),
            "Give a command after --: without a terminal there can be no shell"
        );
        let size =
            rustix::termios::tcgetwinsize(&input).context("The terminal does not tell its size")?;
        Ok(LabCommand::Shell {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }
}

/// A port of the lab that is reachable from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub host: u16,
    pub lab: u16,
}

impl Forward {
    fn parse(text: &str) -> Result<Self, String> {
        let (host, lab) = text
            .split_once(':')
            .ok_or("expected HOST:LAB, two port numbers")?;
        let port = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or(format!("{text:?} is not a port number"))
        };
        Ok(Self {
            host: port(host)?,
            lab: port(lab)?,
        })
    }
}

/// What every lab needs, made once per run of devtool.
pub struct Lab {
    host: PathBuf,
    runs: PathBuf,
}

impl Lab {
    pub fn prepare(workspace: &Workspace, cache: &Cache) -> Result<Self> {
        packages::ensure(workspace, &[packages::LAB])?;
        Ok(Self {
            host: host::ensure(workspace, cache)?,
            runs: workspace.path("target/lab"),
        })
    }

    pub fn start(&self, plan: &Plan, output: Sink, errors: Sink) -> Result<Machine> {
        Machine::start(&self.runs, &self.host, plan, output, errors)
    }
}

pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let lab = Lab::prepare(workspace, &cache)?;
    let mut files = arguments.files.clone();
    if !arguments.bare {
        files.extend(usual_files(workspace, &cache)?);
    }
    let plan = Plan {
        name: "lab".to_owned(),
        command: arguments.command()?,
        files,
        forwards: arguments.forwards.clone(),
        memory_mib: arguments.memory,
        timeout: arguments.timeout.map(Duration::from_secs),
        keep: arguments.keep,
    };
    match follow(&lab, &plan) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) if error.is::<TimedOut>() => {
            eprintln!("error: {error}");
            Ok(ExitCode::from(EXIT_TIMED_OUT))
        }
        Err(error) => Err(error),
    }
}

/// Runs the lab to its end; answers the command's exit code.
fn follow(lab: &Lab, plan: &Plan) -> Result<u8> {
    let step = Step::start("Booting the lab");
    let mut machine = lab.start(
        plan,
        Box::new(std::io::stdout()),
        Box::new(std::io::stderr()),
    )?;
    let console = machine.console_log();
    machine.wait_until_up()?;
    step.done(&format!(
        "console and logs in {}",
        console.parent().unwrap_or(&console).display()
    ));
    let code = machine.wait_for_exit()?;
    if plan.keep {
        eprintln!("The command ended with exit code {code}; the lab stays up until Ctrl-C");
    }
    machine.wait_until_off()?;
    u8::try_from(code).context("The lab reported an impossible exit code")
}

/// The binary and the demo image, built when they are not up to date.
pub fn usual_files(workspace: &Workspace, cache: &Cache) -> Result<Vec<LabFile>> {
    let binary = guest::build_appliance(workspace, cache)?;
    let demo = images::demo(workspace, cache)?;
    Ok(vec![
        LabFile {
            source: binary,
            target: "/usr/local/bin/cabana".to_owned(),
        },
        LabFile {
            source: demo,
            target: "/demo.tar".to_owned(),
        },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_takes_two_ports_and_nothing_else() {
        assert_eq!(
            Forward::parse("18443:8443"),
            Ok(Forward {
                host: 18443,
                lab: 8443
            })
        );
        for wrong in ["8443", "0:8443", "8443:", "1:2:3", "x:1", "70000:1"] {
            assert!(Forward::parse(wrong).is_err(), "{wrong} was taken");
        }
    }
}
