//! `cargo dev inspect`: what a snapshot's state file holds, by the binary's own command.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::cache::Cache;
use crate::workspace::Workspace;
use crate::{command, guest};

#[derive(clap::Args)]
pub struct Arguments {
    /// `state` of a golden, like `/var/lib/cabana/golden/KEY/state`
    file: PathBuf,
}

/// `cargo dev inspect`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let binary = guest::build_appliance(workspace, &Cache::open()?)?;
    let mut inspect = Command::new(binary);
    command::shown(inspect.args(["golden", "inspect"]).arg(&arguments.file))?;
    Ok(ExitCode::SUCCESS)
}
