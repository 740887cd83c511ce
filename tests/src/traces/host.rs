//! What the kernel holds for processes: sockets, mounts, memory, microVMs.
//!
//! The program of the tests itself does not count: it holds connections and pipes as it pleases.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

/// What files of ours in memory, shared or not, are called.
const PREFIX: &str = "cabana";
/// Listening, in `/proc/net/tcp` (include/net/tcp_states.h).
const LISTEN: &str = "0A";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Page cache, and slabs that can be freed (Documentation/admin-guide/sysctl/vm.rst).
const DROP_ALL: &str = "3";

type Lines = BTreeSet<String>;

/// How much memory the host has left, in KiB, when nothing of it is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What new processes could have, by the kernel's own estimate.
    pub available: u64,
    /// The kernel's small objects that it cannot free.
    pub slab: u64,
}

impl Memory {
    /// Empties the caches first, as far as that is allowed: what is cached depends on what was read, and is none
    /// of anybody's memory.
    #[track_caller]
    pub fn now() -> Self {
        let _ = fs::write(DROP_CACHES, DROP_ALL);
        let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("/proc/meminfo has no {name}"))
        };
        Self {
            available: field("MemAvailable:"),
            slab: field("SUnreclaim:"),
        }
    }
}

/// Where the descriptors of a process lead.
pub fn open_files(pid: u32) -> impl Iterator<Item = PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = open.into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok())
}

/// Processes of ours that have ended and that nobody has waited for.
pub fn zombies(lines: &mut Lines) {
    for (pid, name) in process::zombies() {
        if name.starts_with(PREFIX) {
            lines.insert(format!("zombie {pid} {name}"));
        }
    }
}

/// What lives as long as some process has it open: files in memory, microVMs, files without a name.
pub fn held(lines: &mut Lines, whole: bool, roots: &[PathBuf]) {
    let own = std::process::id();
    for pid in process::ids().filter(|pid| *pid != own) {
        for target in open_files(pid) {
            let text = target.to_string_lossy();
            let memory = text.strip_prefix("/memfd:");
            let ours = memory.is_some_and(|name| whole || name.starts_with(PREFIX));
            // The program that it executes is in memory, too, and is found with the process.
            if ours || text == "anon_inode:kvm-vm" || is_below(&target, roots) {
                lines.insert(format!("open {text} by process {pid}"));
            }
        }
    }
}

/// Unix sockets, those that nobody has accepted yet among them.
pub fn unix_sockets(lines: &mut Lines, whole: bool, roots: &[PathBuf]) {
    let own = own_sockets();
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // Num RefCount Protocol Flags Type St Inode Path
    for row in table.lines().skip(1) {
        let mut fields = row.split_whitespace().skip(6);
        let Some(inode) = fields.next().filter(|inode| !own.contains(*inode)) else {
            continue;
        };
        let path = fields.next();
        if whole || path.is_some_and(|path| is_below(Path::new(path), roots)) {
            let path = path.unwrap_or("without a name");
            lines.insert(format!("socket unix {inode} {path}"));
        }
    }
}

/// TCP sockets that somebody holds. Those that wait for a closed connection's last packets belong to nobody.
pub fn tcp_sockets(lines: &mut Lines, whole: bool, ports: &[u16]) {
    let own = own_sockets();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        // sl local_address rem_address st queues timer retransmits uid timeout inode ...
        for row in text.lines().skip(1) {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let [_, local, remote, state, _, _, _, _, _, inode, ..] = fields[..] else {
                continue;
            };
            let known = [local, remote].into_iter().filter_map(port_of);
            let ours = whole || known.into_iter().any(|port| ports.contains(&port));
            if ours && inode != "0" && !own.contains(inode) {
                let what = if state == LISTEN {
                    "listening"
                } else {
                    "connected"
                };
                let port = port_of(local).unwrap_or_default();
                lines.insert(format!("socket {table} {inode} {what} port {port}"));
            }
        }
    }
}

pub fn mounts(lines: &mut Lines, whole: bool, roots: &[PathBuf]) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for row in table.lines() {
        // ID parent device root mount-point options ... - type source ...
        let mut fields = row.split_whitespace();
        let (Some(id), Some(point)) = (fields.next(), fields.nth(3)) else {
            continue;
        };
        if whole || is_below(Path::new(point), roots) {
            let kind = fields.skip_while(|field| *field != "-").nth(1);
            let kind = kind.unwrap_or_default();
            lines.insert(format!("mount {id} {kind} at {point}"));
        }
    }
}

pub fn shared_memory(lines: &mut Lines, whole: bool) {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if whole || name.starts_with(PREFIX) {
            lines.insert(format!("shared memory {}", entry.path().display()));
        }
    }
}

/// A microVM counts as a user of its module, and so does who has `/dev/kvm` open, whoever holds either.
pub fn kvm_users(lines: &mut Lines) {
    for module in ["kvm_amd", "kvm_intel"] {
        if let Ok(count) = fs::read_to_string(format!("/sys/module/{module}/refcnt")) {
            lines.insert(format!("kvm {} users of {module}", count.trim()));
        }
    }
}

fn own_sockets() -> HashSet<String> {
    let inode = |target: PathBuf| {
        let text = target.to_string_lossy();
        let inode = text.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    };
    open_files(std::process::id()).filter_map(inode).collect()
}

/// `0100007F:20FB`
fn port_of(address: &str) -> Option<u16> {
    u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
}

fn is_below(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}
