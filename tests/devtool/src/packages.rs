//! The Debian packages that each task needs, and how they get onto the machine.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::progress::Step;
use crate::workspace::Workspace;

/// The guest kernel (objtool reads ELF through libelf) and the scratch file system.
pub const GUEST: &[&str] = &[
    "bc",
    "binutils",
    "bison",
    "e2fsprogs",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "patch",
    "xz-utils",
    "linux-source-6.12",
];
/// The lab: the emulator, and what is useful inside.
pub const LAB: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "curl",
    "util-linux",
    "xz-utils",
];
/// The image made of a real distribution.
pub const IMAGES: &[&str] = &["mmdebstrap", "umoci"];
/// What the unit tests pull images from, and the ACME server that they have certificates of.
pub const CHECK: &[&str] = &["docker-registry", "pebble"];
/// What client libraries are installed with.
pub const PYTHON: &[&str] = &["python3", "python3-venv"];
/// What the front door is measured with and beside.
pub const FRONT_DOOR: &[&str] = &["nginx-light", "wrk"];
/// What `cargo dev up` calls the appliance with.
pub const CLIENT: &[&str] = &["curl"];

/// Installs what is missing. Without root it names the one command to run.
pub fn ensure(workspace: &Workspace, groups: &[&[&str]]) -> Result<()> {
    let mut missing: Vec<&str> = groups.concat();
    missing.sort_unstable();
    missing.dedup();
    missing.retain(|package| !is_installed(package));
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "Debian packages are missing. Run:  sudo apt-get install -y --no-install-recommends {list}"
        );
    }
    let step = Step::start(format!("Installing {list}"));
    let log = workspace.logs().join("apt.log");
    let note = |line: &str| step.note(line);
    if command::output(&mut apt_install(&missing)).is_err() {
        // The package lists are absent on a fresh machine, and name versions that are gone on an old one.
        command::logged(&mut apt_get(&["update"]), &log, note)?;
        command::logged(&mut apt_install(&missing), &log, note)?;
    }
    step.done("");
    Ok(())
}

/// The version of an installed package.
pub fn version(package: &str) -> Result<String> {
    command::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))
        .with_context(|| format!("The package {package} is not installed"))
}

/// Whether Debian sorts version `left` before `right`.
pub fn is_older(left: &str, right: &str) -> Result<bool> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", left, "lt", right])
        .status()
        .context("Cannot run dpkg")?;
    Ok(status.success())
}

pub fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-q")
        .args(arguments);
    command
}

fn apt_install(packages: &[&str]) -> Command {
    let mut command = apt_get(&["install", "-y", "--no-install-recommends"]);
    command.args(packages);
    command
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
