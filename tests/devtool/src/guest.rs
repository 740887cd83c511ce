//! Builds what a guest is made of, and the binary that embeds it and the worker.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::workspace::Workspace;
use crate::{command, initramfs, kernel, packages, worker};

/// See the root's `Cargo.toml`.
const AGENT_PROFILE: &str = "agent";

/// `cargo dev guest`
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let cache = Cache::open()?;
    for path in build(workspace, &cache)? {
        let size = fs::metadata(&path)
            .with_context(|| format!("Cannot read {}", path.display()))?
            .len();
        println!("{:>8} KiB  {}", size.div_ceil(1024), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that the binary embeds: kernel, initramfs and scratch file system in `target/guest`, compressed for the binary and plain
/// for tests, and the worker.
pub fn build(workspace: &Workspace, cache: &Cache) -> Result<Vec<PathBuf>> {
    packages::ensure(workspace, &[packages::GUEST])?;
    let kernel = kernel::ensure(workspace, cache)?;
    let scratch = initramfs::ensure_scratch(workspace, cache)?;
    command::shown(workspace.cargo().args([
        "build",
        "--quiet",
        "--profile",
        AGENT_PROFILE,
        "--package",
        "agent",
    ]))?;
    let agent = workspace.program(AGENT_PROFILE, "agent");
    let initramfs = initramfs::ensure(workspace, cache, &agent)?;
    let folder = workspace.guest();
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let mut placed = Vec::new();
    for (from, names) in [
        (
            kernel,
            ["vmlinux", "vmlinux.zst", "System.map", "config"].as_slice(),
        ),
        (initramfs, &["initramfs.cpio", "initramfs.cpio.zst"]),
        (scratch, &["scratch.ext4", "scratch.ext4.zst"]),
    ] {
        for name in names {
            let target = folder.join(name);
            cache::place(&from.join(name), &target)?;
            placed.push(target);
        }
    }
    placed.push(worker::build(workspace, cache)?);
    Ok(placed)
}

/// The release binary with guest and worker inside.
pub fn build_appliance(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    build(workspace, cache)?;
    command::shown(workspace.cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "appliance",
    ]))?;
    Ok(workspace.release_program("cabana"))
}
