//! `cargo dev fuzz`: the targets of the crate `fuzz`, one after the other, for as long as one likes.
//!
//! A target is a unit test whose name begins with `fuzz_`. It is compiled with the counters of `-C instrument-coverage`, by which it sees
//! what an input reached. Only the crates of the workspace are: dependencies are the ones that are compiled already. Cargo knows a compiler
//! for these alone (`RUSTC_WORKSPACE_WRAPPER`), and that is this program.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;

use crate::command;
use crate::workspace::Workspace;

/// Packages that have targets.
const PACKAGES: &[&str] = &["vmm", "wire", "appliance"];
/// Says that this program is to be the compiler.
const GUIDED: &str = "CABANA_FUZZ_GUIDED";
/// Where a program with counters leaves the report that they are for otherwise.
const REPORT: &str = "LLVM_PROFILE_FILE";
const NOWHERE: &str = "/dev/null";
/// What the name of a target's test begins with.
const PREFIX: &str = "fuzz_";

#[derive(clap::Args)]
pub struct Arguments {
    /// Only targets whose name contains this
    #[arg(long, value_name = "SUBSTRING")]
    only: Option<String>,
    /// How long each target is tried
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the random numbers begin
    #[arg(long)]
    seed: Option<u64>,
    /// Add what reaches something new to the corpora in the checkout
    #[arg(long)]
    keep: bool,
    /// Only the tests of this package
    #[arg(long, value_parser = PACKAGES.to_vec())]
    package: Option<String>,
}

/// A test of a program.
struct Target {
    program: PathBuf,
    test: String,
}

/// `cargo dev fuzz`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut targets = targets(workspace, arguments)?;
    if let Some(only) = &arguments.only {
        targets.retain(|target| target.test.contains(only));
    }
    if targets.is_empty() {
        bail!("no target has such a name");
    }
    let found = workspace.target().join("fuzz");
    let mut failed = Vec::new();
    for target in &targets {
        let mut command = Command::new(&target.program);
        command
            .args(["--exact", &target.test, "--nocapture"])
            .env("CABANA_FUZZ_SECONDS", arguments.seconds.to_string())
            .env("CABANA_FUZZ_FOUND", &found)
            .env(REPORT, NOWHERE)
            .stdout(Stdio::null());
        if let Some(seed) = arguments.seed {
            command.env("CABANA_FUZZ_SEED", seed.to_string());
        }
        if arguments.keep {
            command.env("CABANA_FUZZ_KEEP", "1");
        }
        if command::shown(&mut command).is_err() {
            failed.push(target.test.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("failed, see {}: {}", found.display(), failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn targets(workspace: &Workspace, arguments: &Arguments) -> Result<Vec<Target>> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?)
        .env(GUIDED, "1")
        .env(REPORT, NOWHERE)
        // Ours is the code that runs most; with its checks of overflows and its debug assertions.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
        .stderr(Stdio::inherit());
    for package in PACKAGES {
        if arguments
            .package
            .as_deref()
            .is_none_or(|only| only == *package)
        {
            cargo.args(["--package", package]);
        }
    }
    let messages = command::output(&mut cargo)?;
    let mut targets = Vec::new();
    for message in Message::parse_stream(messages.as_bytes()) {
        if let Message::CompilerArtifact(artifact) =
            message.context("Cannot read cargo's messages")?
            && artifact.profile.test
            && let Some(program) = artifact.executable
        {
            let mut list = Command::new(&program);
            list.args(["--list", "--format", "terse"])
                .env(REPORT, NOWHERE);
            let list = command::output(&mut list)?;
            let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
            let tests = tests.filter(|test| {
                let name = test.rsplit("::").next();
                name.is_some_and(|name| name.starts_with(PREFIX))
            });
            targets.extend(tests.map(|test| Target {
                program: program.clone().into(),
                test: test.to_owned(),
            }));
        }
    }
    Ok(targets)
}

/// What this program does when cargo calls it as the compiler of the workspace's crates: calls the compiler.
pub fn compile_guided() -> Option<ExitCode> {
    std::env::var_os(GUIDED)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next()?);
    compiler
        .args(arguments)
        .args(["-C", "instrument-coverage", "--cfg", "guided"]);
    let error = compiler.exec();
    eprintln!("error: cannot start the compiler: {error}");
    Some(ExitCode::FAILURE)
}
