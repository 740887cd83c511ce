//! Places the initramfs at the top of low memory.

use std::fs::File;
use std::io;

use vm_memory::{Bytes, GuestAddress};

use super::kernel::low_memory_end;
use crate::memory::{FileAt, Memory};

const PAGE: u64 = 4096;

/// Why an initramfs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    #[error("Cannot read the size of the initramfs file")]
    Stat { source: io::Error },
    #[error(
        "The initramfs of {size} bytes does not fit between the kernel, which ends at {kernel_end:#x}, and {memory_end:#x}"
    )]
    TooLarge {
        size: u64,
        kernel_end: u64,
        memory_end: u64,
    },
    #[error("Cannot read the initramfs of {size} bytes into guest memory")]
    Load {
        size: u64,
        source: vm_memory::GuestMemoryError,
    },
}

/// Where the initramfs is in guest memory. Below 4 GiB, so that 32 bits hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    pub address: u32,
    pub size: u32,
}

/// Loads `file` as high as possible above `kernel_end`. An empty file means: none.
pub fn load(file: &File, memory: &Memory, kernel_end: u64) -> Result<Option<Initrd>, InitrdError> {
    let size = file
        .metadata()
        .map_err(|source| InitrdError::Stat { source })?
        .len();
    if size == 0 {
        return Ok(None);
    }
    let memory_end = low_memory_end(memory);
    let too_large = InitrdError::TooLarge {
        size,
        kernel_end,
        memory_end,
    };
    // The kernel gives memory back page by page, so the initramfs starts on a page of its own.
    let Some(address) = memory_end
        .checked_sub(size)
        .map(|address| address & !(PAGE - 1))
    else {
        return Err(too_large);
    };
    if address < kernel_end {
        return Err(too_large);
    }
    let (Ok(address), Ok(size32)) = (u32::try_from(address), u32::try_from(size)) else {
        return Err(too_large);
    };
    memory
        .read_exact_volatile_from(
            GuestAddress(address.into()),
            &mut FileAt::new(file, 0),
            size32 as usize,
        )
        .map_err(|source| InitrdError::Load { size, source })?;
    Ok(Some(Initrd {
        address,
        size: size32,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{create, map};

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn initramfs_ends_at_the_top_of_memory_and_starts_on_a_page() {
        let memory = map(create(4).unwrap(), 4).unwrap();
        let initrd = load(&file(5000), &memory, 0x20_0000).unwrap();
        assert_eq!(
            initrd,
            Some(Initrd {
                address: 0x3f_e000,
                size: 5000
            })
        );
    }

    #[test]
    fn empty_file_means_no_initramfs() {
        let memory = map(create(4).unwrap(), 4).unwrap();
        assert_eq!(load(&file(0), &memory, 0x20_0000).unwrap(), None);
    }

    #[test]
    fn initramfs_that_would_overwrite_the_kernel_is_refused() {
        let memory = map(create(4).unwrap(), 4).unwrap();
        let error = load(&file(0x20_0001), &memory, 0x20_0000).unwrap_err();
        assert!(matches!(error, InitrdError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn initramfs_larger_than_memory_is_refused() {
        let memory = map(create(4).unwrap(), 4).unwrap();
        let error = load(&file(0x100_0000), &memory, 0x20_0000).unwrap_err();
        assert!(matches!(error, InitrdError::TooLarge { .. }), "{error}");
    }
}
