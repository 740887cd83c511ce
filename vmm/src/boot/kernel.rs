//! Loads an uncompressed `vmlinux` into guest memory, by `linux-loader`.
//!
//! The kernel comes from our own build, yet what a damaged file claims is checked, so that it is an error
//! and not a strange guest.

use std::fs::File;

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::{FileAt, Memory, layout};

/// Why a kernel file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("Cannot load the kernel file as an uncompressed 64-bit x86 ELF file (vmlinux)")]
    Load { source: linux_loader::loader::Error },
    #[error(
        "The kernel starts at {entry:#x}, which is outside of what it loads (it ends at {end:#x})"
    )]
    Entry { entry: u64, end: u64 },
    #[error("The kernel needs guest memory up to {end:#x}, low memory ends at {memory_end:#x}")]
    TooLarge { end: u64, memory_end: u64 },
}

/// A loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where the boot processor starts.
    pub entry: u64,
    /// First byte behind the kernel, its bss included.
    pub end: u64,
}

/// Loads all segments of `file` at their physical addresses. Guest memory must be fresh: bss is not zeroed again.
pub fn load(file: &File, memory: &Memory) -> Result<Kernel, KernelError> {
    let highest_start = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = Elf::load(memory, None, &mut FileAt::new(file, 0), highest_start)
        .map_err(|source| KernelError::Load { source })?;
    let (entry, end) = (loaded.kernel_load.0, loaded.kernel_end);
    if entry >= end {
        return Err(KernelError::Entry { entry, end });
    }
    // The loader checks what it reads from the file against guest memory, not the bss behind it.
    let memory_end = low_memory_end(memory);
    if end > memory_end {
        return Err(KernelError::TooLarge { end, memory_end });
    }
    Ok(Kernel { entry, end })
}

/// The first address behind low memory.
pub fn low_memory_end(memory: &Memory) -> u64 {
    (memory.last_addr().0 + 1).min(layout::HOLE_START)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{create, map};

    /// Size of `Elf64_Ehdr` and `Elf64_Phdr` (System V ABI, ELF-64).
    const EHDR_SIZE: usize = 64;
    const PHDR_SIZE: usize = 56;
    const ET_EXEC: u16 = 2;
    const EM_X86_64: u16 = 62;

    const CODE: &[u8] = b"\xfa\xf4";

    /// An ELF file with one segment; `edit` may damage it.
    pub fn elf(edit: impl FnOnce(&mut Vec<u8>)) -> File {
        let mut bytes = vec![0; EHDR_SIZE + PHDR_SIZE];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&(EHDR_SIZE as u64).to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let segment = [
            (8, 120_u64),
            (24, 0x10_0000),
            (32, CODE.len() as u64),
            (40, 0x2000),
        ];
        bytes[EHDR_SIZE] = 1;
        for (at, value) in segment {
            bytes[EHDR_SIZE + at..EHDR_SIZE + at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(CODE);
        edit(&mut bytes);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    fn load_edited(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Kernel, KernelError> {
        load(&elf(edit), &map(create(4).unwrap(), 4).unwrap())
    }

    #[test]
    fn segment_is_loaded_at_its_physical_address() {
        let memory = map(create(4).unwrap(), 4).unwrap();
        let kernel = load(&elf(|_| {}), &memory).unwrap();
        let mut code = [0; 2];
        memory
            .read_slice(&mut code, GuestAddress(0x10_0000))
            .unwrap();
        assert_eq!(code, CODE);
        assert_eq!(
            kernel,
            Kernel {
                entry: 0x10_0000,
                end: 0x10_2000
            }
        );
    }

    #[test]
    fn cve_2022_23523_ghsa_52h2_m2cf_9jh6_damaged_file_is_refused() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 6] = [
            ("no ELF magic", |bytes| bytes[0] = 0),
            ("cut inside the header", |bytes| bytes.truncate(40)),
            ("cut inside a segment", |bytes| bytes.truncate(121)),
            ("segment whose end overflows", |bytes| {
                bytes[EHDR_SIZE + 40..EHDR_SIZE + 48].fill(0xff);
            }),
            ("segment outside memory", |bytes| bytes[EHDR_SIZE + 27] = 1),
            ("thousands of program headers", |bytes| bytes[57] = 0xff),
        ];
        for (name, damage) in damages {
            let error = load_edited(damage).expect_err(name);
            assert!(matches!(error, KernelError::Load { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn bss_outside_memory_is_refused_with_the_limit() {
        let error = load_edited(|bytes| bytes[EHDR_SIZE + 42] = 0xff).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::TooLarge {
                    memory_end: 0x40_0000,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn entry_point_behind_the_kernel_is_refused() {
        let error = load_edited(|bytes| bytes[27] = 0x20).unwrap_err();
        assert!(matches!(error, KernelError::Entry { .. }), "{error}");
    }

    #[test]
    fn entry_point_over_the_boot_parameters_is_refused() {
        let error = load_edited(|bytes| bytes[26] = 0).unwrap_err();
        assert!(matches!(error, KernelError::Load { .. }), "{error}");
    }
}
