//! Builds the worker, which the binary has inside.
//!
//! It is the same in every build of the appliance, those of its tests among them: a worker that is not optimised could not be
//! measured, and two of them would take twice as long to build.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache, Key};
use crate::command;
use crate::kernel::compress;
use crate::workspace::Workspace;

const PROGRAM: &str = "cabana-worker";
/// See the root's `Cargo.toml`.
const PROFILE: &str = "worker";

/// `cabana-worker.zst` in `target/worker`.
pub fn build(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    command::shown(workspace.cargo().args([
        "build",
        "--quiet",
        "--profile",
        PROFILE,
        "--package",
        "worker",
    ]))?;
    let program = workspace.program(PROFILE, PROGRAM);
    let key = Key::new("worker 1").file("program", &program)?;
    let packed = format!("{PROGRAM}.zst");
    let entry = cache.entry("worker", key, |folder| {
        compress(&program, &folder.join(&packed))
    })?;
    let folder = workspace.worker();
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let target = folder.join(&packed);
    cache::place(&entry.join(&packed), &target)?;
    Ok(target)
}
