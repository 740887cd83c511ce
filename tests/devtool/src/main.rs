//! `cargo dev`: everything that a contributor runs by hand, and everything that CI runs.
//!
//! It installs what is missing, builds the guest, boots the lab, runs the tests and starts the appliance. It talks to
//! `cabana` only as a user would: through the command line and HTTPS.

mod azure_sdk;
mod bench;
mod cache;
mod check;
mod children;
mod command;
mod cpio;
mod deny;
mod fuzz;
mod guest;
mod images;
mod initramfs;
mod inspect;
mod kernel;
mod lab;
mod oci;
mod packages;
mod progress;
mod python;
mod registry;
mod release;
mod schemathesis;
mod suite;
mod up;
mod worker;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The shell's convention for a program that ended by Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(
    name = "cargo dev",
    bin_name = "cargo dev",
    about = "Builds, checks and runs Cabana",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set this machine up, start the appliance with a demo pool and print how to call it
    Up(up::Arguments),
    /// Everything that CI runs: check, then all tests, those of the microVM inside the lab
    Test(suite::Arguments),
    /// Format, lints, documentation, licences and faults of crates, unit tests and dependency direction
    Check(check::Arguments),
    /// Build what the binary embeds: guest kernel, initramfs, scratch file system and the worker
    Guest,
    /// Build the binary as it is given to others: reproducible, with the list of what is in it and checksums
    Release(release::Arguments),
    /// Boot a machine with a real KVM inside QEMU and run a command in it
    Lab(lab::Arguments),
    /// Measure the promises of the README
    Bench(bench::Arguments),
    /// Try changed inputs on whatever reads what strangers wrote, for longer than the tests do
    Fuzz(fuzz::Arguments),
    /// Print what a snapshot's state file holds
    Inspect(inspect::Arguments),
    /// Measure a peer beside ours; `bench --firecracker` runs it in the lab
    #[command(hide = true)]
    BenchPeer(bench::peer::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::compile_guided() {
        return code;
    }
    let arguments = Arguments::parse();
    let workspace = Workspace::find;
    let outcome = children::watch_signals().and_then(|()| match arguments.command {
        Task::Up(arguments) => up::run(&workspace()?, &arguments),
        Task::Test(arguments) => suite::run(&workspace()?, &arguments),
        Task::Check(arguments) => {
            check::run(&workspace()?, &arguments).map(|report| suite::exit_code(&report))
        }
        Task::Guest => guest::run(&workspace()?),
        Task::Release(arguments) => release::run(&workspace()?, &arguments),
        Task::Lab(arguments) => lab::run(&workspace()?, &arguments),
        Task::Bench(arguments) => bench::run(&workspace()?, &arguments),
        Task::Fuzz(arguments) => fuzz::run(&workspace()?, &arguments),
        Task::Inspect(arguments) => inspect::run(&workspace()?, &arguments),
        // In the lab, where there is no checkout.
        Task::BenchPeer(arguments) => bench::peer::run(&arguments),
    });
    if children::interrupted() {
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
