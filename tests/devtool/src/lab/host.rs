//! The lab's own kernel: Debian's, with the real kvm-amd driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{Cache, Key};
use crate::command;
use crate::packages;
use crate::progress::Step;
use crate::workspace::Workspace;

/// The package family; the newest member is taken.
const FAMILY: &str = r"^linux-image-6\.12\..*-cloud-amd64$";
/// In loading order: the network card and KVM; and disks of memory, for the tests that load them. Their home in the package is below
/// `/lib/modules/<version>/kernel`.
const MODULES: &[&str] = &[
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "virt/lib/irqbypass",
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-amd",
    "drivers/block/brd",
];
/// Which package was taken last, so that a warm cache needs no package lists.
const CHOICE: &str = "lab-host.package";

/// A folder with `vmlinuz` and the modules, decompressed.
pub fn ensure(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    let package = choose(workspace, cache)?;
    let key = Key::new("2")
        .text("package", &package)
        .text("modules", &MODULES.concat());
    cache.entry("lab-host", key, |folder| {
        let step = Step::start(format!("Fetching {package}"));
        fetch(workspace, &package, folder)?;
        step.done("");
        Ok(())
    })
}

fn choose(workspace: &Workspace, cache: &Cache) -> Result<String> {
    let remembered = cache.path(CHOICE);
    if let Ok(package) = fs::read_to_string(&remembered) {
        return Ok(package);
    }
    let mut newest = search()?;
    if newest.is_none() {
        command::logged(
            &mut packages::apt_get(&["update"]),
            &workspace.logs().join("apt.log"),
            |_| {},
        )
        .context("Debian's package lists are absent; run  sudo apt-get update")?;
        newest = search()?;
    }
    let package = newest.context("Debian's archive offers no linux-image-6.12 for the cloud: is this Debian 12 with its security archive?")?;
    fs::write(&remembered, &package)
        .with_context(|| format!("Cannot write {}", remembered.display()))?;
    Ok(package)
}

fn search() -> Result<Option<String>> {
    let list = command::output(Command::new("apt-cache").args(["search", "--names-only", FAMILY]))?;
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    // `linux-image-6.12.117+deb12-cloud-amd64`: only the point release differs.
    Ok(names
        .max_by_key(|name| point_release(name))
        .map(str::to_owned))
}

fn point_release(package: &str) -> u32 {
    let digits = package.split('.').nth(2).unwrap_or_default();
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    digits
        .get(..end)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

fn fetch(workspace: &Workspace, package: &str, folder: &Path) -> Result<()> {
    let log = workspace.logs().join("lab-host.log");
    let unpacked = folder.join("unpacked");
    fs::create_dir(&unpacked).with_context(|| format!("Cannot create {}", unpacked.display()))?;
    let mut download = packages::apt_get(&["download", package]);
    command::logged(download.current_dir(&unpacked), &log, |_| {})?;
    let archive = only(&unpacked, |name| name.ends_with(".deb"))?;
    command::logged(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&unpacked),
        &log,
        |_| {},
    )?;
    let kernel = only(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    fs::rename(&kernel, folder.join("vmlinuz"))
        .with_context(|| format!("Cannot move {}", kernel.display()))?;
    let modules = only(&unpacked.join("lib/modules"), |_| true)?.join("kernel");
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let compressed = folder.join(format!("{name}.ko.xz"));
        let source = modules.join(format!("{module}.ko.xz"));
        fs::rename(&source, &compressed)
            .with_context(|| format!("{package} holds no {}", source.display()))?;
        command::logged(Command::new("xz").arg("-d").arg(&compressed), &log, |_| {})?;
    }
    fs::remove_dir_all(&unpacked).with_context(|| format!("Cannot remove {}", unpacked.display()))
}

/// The one member of `folder` whose name fits.
fn only(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| fits(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .with_context(|| format!("{} does not hold what it should", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_chosen_by_number_and_not_by_text() {
        assert!(
            point_release("linux-image-6.12.100+deb12-cloud-amd64")
                > point_release("linux-image-6.12.9+deb12-cloud-amd64")
        );
    }
}
