//! Guest memory: one file, mapped shared, split around the hole below 4 GiB.
//!
//! The file is given by the caller and can outlive the process, so that a snapshot can be taken from it.
//! The host reaches guest memory only through `vm-memory`'s volatile accesses: the guest may change any
//! byte at any time, so no Rust reference into it may ever exist.

pub mod layout;
mod read;

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub use read::FileAt;

/// The guest's memory as every part of this crate sees it. Cloning shares the mapping.
pub type Memory = GuestMemoryMmap<()>;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// Why guest memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("Cannot read the size of the memory file")]
    Stat { source: io::Error },
    #[error("The memory file holds {found} bytes, the guest needs {expected}")]
    Length { found: u64, expected: u64 },
    #[error("Cannot map {size} bytes of the memory file")]
    Map { size: u64, source: io::Error },
    #[error("Guest memory ranges do not fit together: {what}")]
    Layout { what: String },
}

/// Makes a memory file of `mem_mib` MiB. Its size is sealed: whoever else holds it cannot truncate it
/// and so kill the worker with SIGBUS.
pub fn create(mem_mib: u32) -> io::Result<File> {
    let name = "cabana-guest";
    let sealable = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, sealable | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know NOEXEC_SEAL.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, sealable)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, u64::from(mem_mib) * MIB)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

/// Maps the whole of `file` as the memory of a guest.
pub fn map(file: File, mem_mib: u32) -> Result<Memory, MemoryError> {
    let expected = u64::from(mem_mib) * MIB;
    let found = file
        .metadata()
        .map_err(|source| MemoryError::Stat { source })?
        .len();
    if found != expected {
        return Err(MemoryError::Length { found, expected });
    }
    let file = Arc::new(file);
    let mut regions = Vec::new();
    for range in layout::ram_ranges(expected) {
        let size = usize::try_from(range.size).expect("the target is 64-bit");
        let offset = FileOffset::from_arc(Arc::clone(&file), range.file_offset);
        let region = GuestRegionMmap::from_range(GuestAddress(range.start), size, Some(offset))
            .map_err(|error| MemoryError::Map {
                size: range.size,
                source: io::Error::other(error),
            })?;
        regions.push(region);
    }
    Memory::from_regions(regions).map_err(|error| MemoryError::Layout {
        what: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    #[test]
    fn what_is_written_to_guest_memory_is_in_the_file() {
        let file = create(2).unwrap();
        let memory = map(file.try_clone().unwrap(), 2).unwrap();
        memory
            .write_obj(0x1234_5678_u32, GuestAddress(0x1000))
            .unwrap();
        let mut bytes = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0x1000).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
    }

    #[test]
    fn memory_file_of_another_size_is_refused() {
        let error = map(create(2).unwrap(), 3).unwrap_err();
        assert!(
            matches!(
                error,
                MemoryError::Length {
                    found: 0x20_0000,
                    expected: 0x30_0000
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn memory_file_cannot_be_truncated_by_another_holder() {
        assert!(create(1).unwrap().set_len(4096).is_err());
    }

    #[test]
    fn memory_above_three_gib_continues_at_four() {
        let memory = map(create(3072 + 1).unwrap(), 3072 + 1).unwrap();
        assert!(memory.address_in_range(GuestAddress(layout::HOLE_END)));
        assert!(!memory.address_in_range(GuestAddress(layout::HOLE_START)));
        assert_eq!(memory.last_addr().0, layout::HOLE_END + MIB - 1);
    }
}
