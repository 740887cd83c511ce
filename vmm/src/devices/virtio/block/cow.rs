//! A disk of which only the changes are its own.
//!
//! The base is shared by all disks made of it and never written. The file starts empty and gets every block
//! that the guest writes, at the block's own place, so that it needs no format of its own: which blocks it
//! has is remembered by this process alone, and ends with it. The disk lives as long as its microVM.
//!
//! A block goes over to the file as a whole. Where a request covers a part of one, the rest is copied from
//! the base first; the guest's file systems have the same grain, so this is rare. A block counts as
//! present only once all of it is in the file: after a write that failed half way, such a block still
//! reads as it did before.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::disk;
use super::presence::Presence;
use super::request::Range;
use crate::devices::virtio::buffers::Buffers;
use crate::sparse;

/// The grain of ext4 and of what host file systems allocate.
const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = 4096;

#[derive(Debug)]
pub struct Cow {
    file: File,
    base: File,
    /// From here on the base reads as zero.
    base_bytes: u64,
    /// The last block may be cut short by it.
    disk_bytes: u64,
    presence: Presence,
}

impl Cow {
    /// A disk of `disk_bytes` bytes, as many as `file` is long.
    pub fn new(file: File, base: File, disk_bytes: u64) -> io::Result<Self> {
        // Not the metadata: a block device has no length there.
        let base_bytes = (&base).seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            base,
            base_bytes,
            disk_bytes,
            presence: Presence::new(disk_bytes.div_ceil(BLOCK)),
        })
    }

    pub fn read(&self, offset: u64, mut to: Buffers<'_>) -> io::Result<()> {
        let mut at = offset;
        while !to.is_empty() {
            let end = at + to.len() as u64;
            let (there, run) = self.presence.run(at / BLOCK..end.div_ceil(BLOCK));
            let run_end = end.min(run.end * BLOCK);
            let rest = split_off(&mut to, run_end - at);
            if there {
                disk::read(&self.file, at, to)?;
            } else {
                self.read_base(at, to)?;
            }
            at = run_end;
            to = rest;
        }
        Ok(())
    }

    fn read_base(&self, offset: u64, mut to: Buffers<'_>) -> io::Result<()> {
        let mut beyond = split_off(&mut to, self.base_bytes.saturating_sub(offset));
        disk::read(&self.base, offset, to)?;
        while !beyond.is_empty() {
            beyond.copy_in(&[0; BLOCK_BYTES]);
        }
        Ok(())
    }

    pub fn write(&mut self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        let range = Range {
            offset,
            len: from.len() as u64,
        };
        self.copy_edges(range)?;
        disk::write(&self.file, offset, from)?;
        self.presence.insert(blocks_of(range));
        Ok(())
    }

    pub fn zero(&mut self, range: Range) -> io::Result<()> {
        self.copy_edges(range)?;
        disk::punch(&self.file, range)?;
        self.presence.insert(blocks_of(range));
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub fn flatten(&self, to: &File) -> io::Result<()> {
        sparse::clear(to, self.disk_bytes)?;
        let blocks = self.disk_bytes.div_ceil(BLOCK);
        let mut at = 0;
        while at < blocks {
            let (there, run) = self.presence.run(at..blocks);
            let bytes = run.start * BLOCK..self.disk_bytes.min(run.end * BLOCK);
            let from = if there { &self.file } else { &self.base };
            sparse::copy(from, to, bytes)?;
            at = run.end;
        }
        Ok(())
    }

    /// Copies the blocks at the ends of `range` that it covers in part. There are at most two.
    fn copy_edges(&mut self, range: Range) -> io::Result<()> {
        let end = range.offset + range.len;
        let blocks = blocks_of(range);
        if blocks.is_empty() {
            return Ok(());
        }
        for block in [blocks.start, blocks.end - 1] {
            let start = block * BLOCK;
            let covered = range.offset <= start && end >= self.disk_bytes.min(start + BLOCK);
            if !covered && !self.presence.contains(block) {
                self.copy_block(block)?;
            }
        }
        Ok(())
    }

    fn copy_block(&mut self, block: u64) -> io::Result<()> {
        let start = block * BLOCK;
        let mut bytes = [0; BLOCK_BYTES];
        // Else the file would become longer than the disk.
        let len = prefix(BLOCK_BYTES, self.disk_bytes - start);
        let from_base = prefix(len, self.base_bytes.saturating_sub(start));
        self.base.read_exact_at(&mut bytes[..from_base], start)?;
        self.file.write_all_at(&bytes[..len], start)?;
        self.presence.insert(block..block + 1);
        Ok(())
    }
}

/// The blocks that a range touches.
fn blocks_of(range: Range) -> std::ops::Range<u64> {
    let start = range.offset / BLOCK;
    if range.len == 0 {
        return start..start;
    }
    start..(range.offset + range.len).div_ceil(BLOCK)
}

/// `len`, or `limit` if that is less.
fn prefix(len: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(len, |limit| len.min(limit))
}

/// Leaves the first `at` bytes in `buffers` and gives the rest.
fn split_off<'m>(buffers: &mut Buffers<'m>, at: u64) -> Buffers<'m> {
    // More than memory can hold is more than there is.
    buffers.split_off(usize::try_from(at).unwrap_or(usize::MAX))
}
