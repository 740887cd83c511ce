//! What a microVM is made of: plain data and open files, checked once.

use std::fs::File;
use std::os::unix::net::UnixListener;

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
    pub file: File,
    /// Enforced on the host: a write is refused whatever the guest was told.
    pub read_only: bool,
}

/// Everything [`crate::Vm::start`] needs.
#[derive(Debug)]
pub struct VmConfig {
    /// Open `/dev/kvm`.
    pub kvm: File,
    /// A file of exactly `mem_mib` MiB of zeros, see [`crate::memory::create`].
    pub memory: File,
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
        if self.blocks.len() > MAX_BLOCKS {
            return Err(ConfigError::Blocks {
                count: self.blocks.len(),
            });
        }
        Ok(())
    }
}
