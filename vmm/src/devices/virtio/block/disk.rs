//! What is behind a block device: a file, or a file over another one.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::cow::Cow;
use super::request::Range;
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::iovec;
use crate::sparse;

/// Callers stay within the disk.
#[derive(Debug)]
pub enum Disk {
    /// Every byte is in the file.
    Whole { file: File, bytes: u64 },
    /// What was never written is in another file.
    Cow(Cow),
}

impl Disk {
    /// `file` is `bytes` long or a little longer.
    pub fn new(file: File, base: Option<File>, bytes: u64) -> io::Result<Self> {
        Ok(match base {
            Some(base) => Self::Cow(Cow::new(file, base, bytes)?),
            None => Self::Whole { file, bytes },
        })
    }

    /// Fills all of `to`. Gives its length.
    pub fn read(&self, offset: u64, to: Buffers<'_>) -> io::Result<usize> {
        let total = to.len();
        match self {
            Self::Whole { file, .. } => read(file, offset, to)?,
            Self::Cow(cow) => cow.read(offset, to)?,
        }
        Ok(total)
    }

    pub fn write(&mut self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        match self {
            Self::Whole { file, .. } => write(file, offset, from),
            Self::Cow(cow) => cow.write(offset, from),
        }
    }

    /// Makes a range read as zero and gives its blocks back to the host. A file system that cannot
    /// says so, and the guest then writes zeros itself.
    pub fn zero(&mut self, range: Range) -> io::Result<()> {
        match self {
            Self::Whole { file, .. } => punch(file, range),
            Self::Cow(cow) => cow.zero(range),
        }
    }

    /// Makes writes outlive a power cut; metadata such as times need not.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Self::Whole { file, .. } => file.sync_data(),
            Self::Cow(cow) => cow.sync(),
        }
    }

    /// Writes what the disk holds, and nothing else, to a file, with holes for zeros.
    pub fn flatten(&self, to: &File) -> io::Result<()> {
        match self {
            Self::Whole { file, bytes } => {
                sparse::clear(to, *bytes)?;
                sparse::copy(file, to, 0..*bytes)
            }
            Self::Cow(cow) => cow.flatten(to),
        }
    }
}

/// Fills `to` from the file. A file that became shorter than the disk is an error.
pub fn read(file: &File, mut offset: u64, mut to: Buffers<'_>) -> io::Result<()> {
    while !to.is_empty() {
        match iovec::read_at(file, to.slices(), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                to.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn write(file: &File, mut offset: u64, mut from: Buffers<'_>) -> io::Result<()> {
    while !from.is_empty() {
        match iovec::write_at(file, from.slices(), offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                from.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn punch(file: &File, range: Range) -> io::Result<()> {
    if range.len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match fallocate(file, flags, range.offset, range.len) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}
