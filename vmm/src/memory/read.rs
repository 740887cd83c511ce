//! Reading a file at an offset straight into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Reads `file` from `offset` on, without touching the file's own position.
///
/// Kernel and initramfs are open files that many workers inherit from one process, so they share one
/// position; a worker that moved it would pull the rug from under another one.
pub struct FileAt<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> FileAt<'a> {
    pub fn new(file: &'a File, offset: u64) -> Self {
        Self { file, offset }
    }
}

impl Read for FileAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buf, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Moves the offset of this reader alone.
impl Seek for FileAt<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(delta) => self.offset.checked_add_signed(delta),
            SeekFrom::End(delta) => self.file.metadata()?.len().checked_add_signed(delta),
        };
        self.offset = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

impl ReadVolatile for FileAt<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = libc::off_t::try_from(self.offset)
            .map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
        let guard = buf.ptr_guard_mut();
        // SAFETY: the kernel writes at most `len` bytes to the pointer.
        // - Valid: the guard stands for exactly `buf.len()` mapped, writable bytes and lives past the call.
        // - Not aliased: it is guest memory, which the host never sees through a reference.
        let read = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                guard.as_ptr().cast::<libc::c_void>(),
                buf.len(),
                offset,
            )
        };
        let Ok(read) = usize::try_from(read) else {
            return Err(VolatileMemoryError::IOError(io::Error::last_os_error()));
        };
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{create, map};

    #[test]
    fn reading_at_an_offset_leaves_the_shared_file_position_alone() {
        let memory = map(create(1).unwrap(), 1).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(0), &mut FileAt::new(&file, 3), 4)
            .unwrap();
        let mut bytes = [0; 4];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert_eq!(&bytes, b"3456");
        assert_eq!(file.stream_position().unwrap(), 10);
    }

    #[test]
    fn reading_past_the_end_of_the_file_is_an_error() {
        let memory = map(create(1).unwrap(), 1).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        assert!(
            memory
                .read_exact_volatile_from(GuestAddress(0), &mut FileAt::new(&file, 2), 4)
                .is_err()
        );
    }
}
