//! A host whose service manager is systemd: a Debian system in a folder, with namespaces of its own, below a cgroup of its own.
//!
//! The network is the one of the tests. Of the devices it has those that a program expects, and `/dev/kvm`; the kernel's settings
//! are read-only, so that nothing outside of the folder becomes another one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::appliance::new_root;
use crate::artifacts;
use crate::cli::Ran;

/// systemd on an emulated processor takes a few seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// The kernel frees a cgroup by and by.
const REMOVE_LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
/// The whole host, below the tests' own hierarchy.
const CGROUP: &str = "/sys/fs/cgroup/service-host";
const UNIT: &str = include_str!("../../appliance/cabana.service");
/// What runs first in the namespaces. It alone goes into the cgroup: systemd passes controllers on to what is below, and a cgroup that
/// does may hold no process, the one outside that waits for it included. `basic.target` is everything that a service may depend on.
const ENTER: &str = "set -e
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 0 > /sys/fs/cgroup/service-host/cgroup.procs
umount /sys/fs/cgroup
mount -t tmpfs tmpfs /run
exec env -i container=tests PATH=/usr/sbin:/usr/bin unshare --cgroup sh -c \
  'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec /lib/systemd/systemd --unit=basic.target --show-status=0'
";
/// The archive has what every system has; this is the one that the service is about.
const KVM: &str = "dev/kvm c 10 232";

/// Gone with all its processes when dropped.
pub struct ServiceHost {
    root: TempDir,
    /// The process that has made the namespaces.
    entered: Option<Child>,
    /// systemd, as the tests see it.
    init: u32,
}

impl ServiceHost {
    /// Boots it, with the binary and its unit installed and this configuration.
    pub fn boot(config: &str) -> Self {
        let root = new_root();
        sh(&format!("mount -t tmpfs tmpfs {}", root.path().display()));
        let mut host = Self {
            root,
            entered: None,
            init: 0,
        };
        let folder = host.root.path();
        let archive = artifacts::systemd_root();
        sh(&format!(
            "tar -C {} -xf {}",
            folder.display(),
            archive.display()
        ));
        install(folder, config);
        sh(&format!(
            "mkdir {CGROUP}; for c in cpu memory pids; do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done"
        ));
        let mut command = Command::new("chroot");
        command
            .arg(folder)
            .args([
                "unshare",
                "--pid",
                "--mount",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "/enter.sh"])
            .stdin(Stdio::null());
        let entered = command.spawn().expect("there is a chroot command");
        let pid = entered.id();
        host.entered = Some(entered);
        host.init = wait_for("that systemd runs", || child_of(pid));
        wait_for("that systemd takes commands", || {
            let ran = host.run(&["systemctl", "is-active", "basic.target"]);
            (ran.code == Some(0)).then_some(())
        });
        host
    }

    /// A file of that host. `/proc`, `/sys` and `/run` are not among them.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// The cgroup of a service of that host.
    pub fn cgroup(service: &str) -> PathBuf {
        Path::new(CGROUP).join("system.slice").join(service)
    }

    /// Runs a command there, as root.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-p", "-r"])
            .args(["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin"])
            .args(arguments);
        Ran::of(&mut command)
    }

    /// Runs a command that must succeed; answers what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{ran:#?}\n{}", self.journal());
        ran.stdout
    }

    /// What the service has logged.
    pub fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "-u", "cabana"])
            .stdout
    }
}

impl Drop for ServiceHost {
    fn drop(&mut self) {
        // The kernel kills everything in the pid namespace with its first process, which dies with this one.
        if let Some(mut entered) = self.entered.take() {
            let _ = entered.kill();
            let _ = entered.wait();
        }
        let begun = Instant::now();
        while !remove_cgroup(Path::new(CGROUP)) && begun.elapsed() < REMOVE_LIMIT {
            thread::sleep(PAUSE);
        }
        sh(&format!("umount {}", self.root.path().display()));
    }
}

fn install(folder: &Path, config: &str) {
    let put = |path: &str, content: &str| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("it lies in a folder"))
            .and_then(|()| fs::write(&path, content))
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    };
    put("enter.sh", ENTER);
    put("etc/cabana/cabana.toml", config);
    put("etc/systemd/system/cabana.service", UNIT);
    install_binary(folder);
    sh(&format!("cd {} && mknod {KVM}", folder.display()));
}

/// Puts the binary there as a package manager does, also while the one before it runs.
pub fn install_binary(folder: &Path) {
    let target = folder.join("usr/local/bin/cabana");
    let new = target.with_extension("new");
    fs::copy(artifacts::cabana(), &new)
        .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, &target))
        .unwrap_or_else(|e| panic!("cannot install {}: {e}", target.display()));
}

#[track_caller]
fn sh(script: &str) {
    let ran = Ran::of(Command::new("sh").args(["-ec", script]));
    assert_eq!(ran.code, Some(0), "{ran:#?}");
}

fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < BOOT_LIMIT, "waited in vain {what}");
        thread::sleep(PAUSE);
    }
}

/// From the leaves upwards. `false`: something is still in it.
fn remove_cgroup(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
}
