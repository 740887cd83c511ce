//! What a microVM is made of: plain data and open files, checked once.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::net::UnixListener;

use serde::{Deserialize, Serialize};

use crate::machine::BlankMachine;
use crate::memory::layout;

/// Less does not hold the kernel and its first allocations.
pub const MIN_MEM_MIB: u32 = 48;
/// More than any host of ours has; well inside the 39 physical address bits of the smallest CPUs with KVM.
pub const MAX_MEM_MIB: u32 = 256 * 1024;
/// CONFIG_NR_CPUS of the guest kernel.
pub const MAX_VCPUS: u8 = 32;
/// One interrupt line each, two of them for vsock and rng.
pub const MAX_BLOCKS: usize = (layout::LAST_GSI - layout::VIRTIO_GSI + 1 - 2) as usize;

/// A disk. The first one is `/dev/vda`.
#[derive(Debug)]
pub struct BlockConfig {
    /// Its length is the size of the disk.
    pub file: File,
    /// What blocks that were never written read as; `file` then starts empty and sparse. Never written to. Beyond
    /// its end the disk reads as zeros.
    pub base: Option<File>,
    /// Enforced on the host: a write is refused whatever the guest was told.
    pub read_only: bool,
}

/// How much a guest may do in a second; see `devices::rate`. `None`: as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimits {
    /// Read from and written to all of its disks together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_second: Option<NonZeroU64>,
    /// Requests to all of its disks together; a discard counts as many times as it names parts of a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<NonZeroU64>,
    /// Packets on vsock with their headers, to the guest; and as many from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_bytes_per_second: Option<NonZeroU64>,
}

impl RateLimits {
    pub const NONE: Self = Self {
        disk_bytes_per_second: None,
        disk_iops: None,
        stream_bytes_per_second: None,
    };

    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// Everything [`crate::Vm::start`] needs.
#[derive(Debug)]
pub struct VmConfig {
    pub machine: BlankMachine,
    /// A file of exactly `mem_mib` MiB of zeros, see [`crate::memory::create`], for a caller who wants to look into
    /// the guest's memory. Without one, the worker alone has it, and in large pages if the host can.
    pub memory: Option<File>,
    pub mem_mib: u32,
    pub vcpus: u8,
    /// Uncompressed ELF `vmlinux`.
    pub kernel: File,
    /// Uncompressed newc archive; an empty file means none.
    pub initramfs: File,
    /// Appended to the built-in command line.
    pub cmdline: String,
    pub blocks: Vec<BlockConfig>,
    /// The host's side of all vsock streams.
    pub vsock: UnixListener,
    /// Takes the text of the serial port, at most [`crate::devices::serial::CONSOLE_LIMIT`] bytes.
    /// A regular file or memfd: a pipe that nobody reads would stop the guest.
    pub console: File,
    pub limits: RateLimits,
}

/// Why a configuration cannot make a guest.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{mem_mib} MiB of memory is outside {MIN_MEM_MIB} to {MAX_MEM_MIB}")]
    Memory { mem_mib: u32 },
    #[error("{vcpus} vCPUs is outside 1 to {MAX_VCPUS}")]
    Vcpus { vcpus: u8 },
    #[error("{count} disks are more than {MAX_BLOCKS}")]
    Blocks { count: usize },
    #[error("Disk {index} has a base and is read-only; a base is for disks that are written")]
    ReadOnlyBase { index: usize },
}

impl VmConfig {
    /// Checks the numbers. Files are checked where they are read.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&self.mem_mib) {
            return Err(ConfigError::Memory {
                mem_mib: self.mem_mib,
            });
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        check_blocks(&self.blocks)
    }
}

/// What [`crate::Vm::restore`] needs.
#[derive(Debug)]
pub struct RestoreConfig {
    pub machine: BlankMachine,
    /// Written by [`crate::VmHandle::save`], as is `memory`. Both are only read, and both may be shared by any
    /// number of guests.
    pub state: File,
    pub memory: File,
    /// As many, as large and as writable as those of the guest that was saved.
    pub blocks: Vec<BlockConfig>,
    pub vsock: UnixListener,
    pub console: File,
    /// What the guest may have, by which its process is limited. A snapshot of another guest is refused.
    pub vcpus: u8,
    pub mem_mib: u32,
    pub first_pages: FirstPages,
    pub limits: RateLimits,
}

/// What is done about the pages that a fork touches first.
#[derive(Debug)]
pub enum FirstPages {
    /// Nothing: each is mapped when it is touched.
    AsNeeded,
    /// They are made ready before the guest asks for them, one by one. The file was written by
    /// [`crate::VmHandle::save_working_set`].
    Prefetched(File),
    /// Each is mapped alone, which takes longer, so that [`crate::VmHandle::save_working_set`] finds those that
    /// were touched and no others. A kernel that cannot (before Linux 6.7) maps some beside them.
    Recorded,
}

impl RestoreConfig {
    /// Checks what does not need the state file.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        check_blocks(&self.blocks)
    }
}

fn check_blocks(blocks: &[BlockConfig]) -> Result<(), ConfigError> {
    if blocks.len() > MAX_BLOCKS {
        return Err(ConfigError::Blocks {
            count: blocks.len(),
        });
    }
    let mut blocks = blocks.iter();
    match blocks.position(|block| block.read_only && block.base.is_some()) {
        Some(index) => Err(ConfigError::ReadOnlyBase { index }),
        None => Ok(()),
    }
}
