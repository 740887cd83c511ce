//! Guest memory, split around the hole below 4 GiB.
//!
//! A guest that boots has memory of its own ([`own`]), or a file that it maps shared ([`map`]). A fork maps the file of a golden
//! privately ([`map_private`]): pages that are only read are shared by all forks, a page that is written
//! becomes the fork's own. [`dump`](dump::dump) makes such a file of a paused guest, and a [`working_set`]
//! says which of its pages a fork will want first.
//!
//! The host reaches guest memory only through `vm-memory`'s volatile accesses: the guest may change any
//! byte at any time, so no Rust reference into it may ever exist.

pub mod dump;
pub mod layout;
pub mod one_by_one;
mod read;
pub mod working_set;

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::Advice;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

pub use read::FileAt;

/// The guest's memory as every part of this crate sees it. Cloning shares the mapping.
pub type Memory = GuestMemoryMmap<()>;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a page, the grain in which memory is shared.
pub const PAGE: u64 = 4096;

/// Why guest memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("Cannot read the size of the memory file")]
    Stat { source: io::Error },
    #[error("The memory file holds {found} bytes, the guest needs {expected}")]
    Length { found: u64, expected: u64 },
    #[error("Cannot map {size} bytes of guest memory")]
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

/// Memory that is in no file. A guest that boots touches most pages of its kernel for the first time, each of
/// which costs an exit and a fault; a large page (Documentation/admin-guide/mm/transhuge.rst) is one for 512.
pub fn own(mem_mib: u32) -> Result<Memory, MemoryError> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let memory = map_ranges(None, mem_mib, flags)?;
    for region in memory.iter() {
        // A kernel without large pages has none to give.
        let _ = advise(region, Advice::LinuxHugepage);
    }
    Ok(memory)
}

/// Maps the whole of `file` as the memory of a guest. The file has every write.
pub fn map(file: File, mem_mib: u32) -> Result<Memory, MemoryError> {
    // NORESERVE: a guest needs what it touches, not what it may.
    map_with(file, mem_mib, libc::MAP_SHARED | libc::MAP_NORESERVE)
}

/// Maps the whole of `file`, which may be open for reading only, as the memory of a fork. Nothing that the
/// guest writes reaches the file.
///
/// The kernel reads no further than asked ([`Advice::Random`]): a fork touches pages all over its memory, and
/// reading ahead at each of them would read most of the file.
pub fn map_private(file: File, mem_mib: u32) -> Result<Memory, MemoryError> {
    let memory = map_with(file, mem_mib, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    for region in memory.iter() {
        advise(region, Advice::Random).map_err(|source| MemoryError::Map {
            size: region.len(),
            source,
        })?;
    }
    Ok(memory)
}

/// Tells the kernel how far to read ahead in a region's file, or how large its pages may be.
fn advise(region: &GuestRegionMmap<()>, advice: Advice) -> io::Result<()> {
    // SAFETY: such advice changes no byte and no permission of the mapping, which is alive: `region` owns it.
    let advised = unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), advice) };
    Ok(advised?)
}

fn map_with(file: File, mem_mib: u32, flags: i32) -> Result<Memory, MemoryError> {
    let expected = u64::from(mem_mib) * MIB;
    let found = file
        .metadata()
        .map_err(|source| MemoryError::Stat { source })?
        .len();
    if found != expected {
        return Err(MemoryError::Length { found, expected });
    }
    map_ranges(Some(&Arc::new(file)), mem_mib, flags)
}

fn map_ranges(file: Option<&Arc<File>>, mem_mib: u32, flags: i32) -> Result<Memory, MemoryError> {
    let mut regions = Vec::new();
    for range in layout::ram_ranges(u64::from(mem_mib) * MIB) {
        let size = usize::try_from(range.size).expect("the target is 64-bit");
        let offset = file.map(|file| FileOffset::from_arc(Arc::clone(file), range.file_offset));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapping =
            MmapRegion::build(offset, size, access, flags).map_err(|error| MemoryError::Map {
                size: range.size,
                source: io::Error::other(error),
            })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or_else(|| {
            MemoryError::Layout {
                what: format!("{:#x} is beyond all addresses", range.start),
            }
        })?;
        regions.push(region);
    }
    Memory::from_regions(regions).map_err(|error| MemoryError::Layout {
        what: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_of_its_own_is_zero_and_as_large_as_asked_for() {
        let memory = own(3 * 1024 + 2).unwrap();
        let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        assert_eq!(bytes, (3 * 1024 + 2) * MIB);
        assert_eq!(memory.num_regions(), 2, "it goes on above the hole");
        let last = GuestAddress(layout::HOLE_END + 2 * MIB - 4);
        assert_eq!(memory.read_obj::<u32>(last).unwrap(), 0);
        memory.write_obj(7_u32, last).unwrap();
        assert_eq!(memory.read_obj::<u32>(last).unwrap(), 7);
    }

    #[test]
    fn what_is_written_to_guest_memory_is_in_the_file() {
        let file = create(2).unwrap();
        let memory = map(file.try_clone().unwrap(), 2).unwrap();
        memory
            .write_obj(0x1234_5678_u32, GuestAddress(0x1000))
            .unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0x1000).unwrap();
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
    #[test]
    fn private_memory_reads_the_file_and_keeps_its_writes_to_itself() {
        let golden = tempfile::NamedTempFile::new().unwrap();
        golden.as_file().set_len(2 * MIB).unwrap();
        golden.as_file().write_all_at(b"golden", MIB).unwrap();
        let open = || map_private(File::open(golden.path()).unwrap(), 2).unwrap();
        let [first, second] = [open(), open()];
        first.write_slice(b"FIRST!", GuestAddress(MIB)).unwrap();
        first.write_obj(1_u8, GuestAddress(0)).unwrap();
        let read = |memory: &Memory, address| {
            let mut bytes = [0; 6];
            memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            bytes
        };
        assert_eq!(&read(&first, MIB), b"FIRST!");
        assert_eq!(&read(&second, MIB), b"golden");
        assert_eq!(read(&second, 0), [0; 6]);
        let mut bytes = [0; 6];
        golden.as_file().read_exact_at(&mut bytes, MIB).unwrap();
        assert_eq!(&bytes, b"golden");
    }

    #[test]
    fn private_memory_of_another_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        let error = map_private(file, 2).unwrap_err();
        assert!(matches!(error, MemoryError::Length { .. }), "{error}");
    }
}
