//! The root image: one squashfs 4.0, zstd.
//!
//! Layout of the file, in the order the kernel's sanity checks ask for
//! (`fs/squashfs/super.c`: each table must end where the next begins):
//!
//! ```text
//! superblock | data blocks and fragments | inodes | directories | fragment table | ids | xattrs
//! ```
//!
//! # Why not `backhand`
//! Its writer (0.25) has no extended attributes, so file capabilities are lost; gives every name
//! an inode of its own, so hard links fall apart; counts all children as directory links; and
//! compresses on one thread. An image must keep the first three. Its reader is the yardstick of
//! our tests.
//!
//! # Reproducible
//! The bytes depend on the tree and the file data only: names in byte order, inode numbers in
//! tree order, no time of day, and blocks are joined in the order they were cut however many
//! threads compress them.
//!
//! # Compression
//! zstd level 3; the numbers that chose it are at `LEVEL`. Blocks of 128 KiB, squashfs's default:
//! larger ones save a little space, but a guest that reads 4 KiB decompresses a whole block.
//!
//! # Not here
//! Tail packing, directory indexes (only speed up very large directories), NFS export table.

mod data;
mod meta;
mod nodes;
#[cfg(test)]
pub mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::data::DataWriter;
use self::meta::write_table;
use self::nodes::NodeWriter;
use super::error::ImageError;
use super::spool::SpoolReader;
use super::tree::{InodeId, Node, Tree};

const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK_BYTES: u64 = 96;
const BLOCK_LOG: u16 = 17;
const BLOCK_BYTES: usize = 1 << BLOCK_LOG;
const COMPRESSION_ZSTD: u16 = 6;
/// Data of equal files is stored once. A note to readers, nothing depends on it.
const FLAG_DUPLICATES: u16 = 0x40;
const FLAG_NO_XATTRS: u16 = 0x200;
const NOT_THERE: u64 = u64::MAX;
/// A block device has whole sectors; 4 KiB suits every one.
const PADDING: u64 = 4096;

/// zstd level, chosen by building one image (Debian with python3, 11,000 files, 220 MB) at each.
/// Processor time of the whole import, and size:
///
/// | level | 1 | 3 | 6 | 9 | 12 | 15 | 19 |
/// | --- | --- | --- | --- | --- | --- | --- | --- |
/// | seconds | 1.4 | 1.7 | 3.6 | 5.0 | 14 | 30 | 84 |
/// | MB | 83.5 | 79.4 | 75.3 | 74.5 | 74.0 | 70.0 | 69.1 |
///
/// Above 3 each percent of size costs tens of percent of time, and a pool waits for its image.
/// Reading does not depend on the level.
const LEVEL: i32 = 3;

/// Writes the tree as an image into the empty file `out`; returns its length.
pub fn write(tree: &Tree, spool: &SpoolReader, out: &File) -> Result<u64, ImageError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    write_with(tree, spool, out, LEVEL, threads.min(data::MAX_THREADS))
}

fn write_with(
    tree: &Tree,
    spool: &SpoolReader,
    out: &File,
    level: i32,
    threads: usize,
) -> Result<u64, ImageError> {
    let survey = Survey::of(tree);
    let mut out = Output {
        file: out,
        position: SUPERBLOCK_BYTES,
    };
    let data = DataWriter::run(tree, &survey, spool, &mut out, level, threads)?;
    let ids = Ids::of(tree, &survey)?;
    let mut nodes = NodeWriter::new(tree, &survey, &data, &ids, level)?;
    let root = nodes.write_all()?;
    let tables = nodes.finish()?;

    let inode_table = out.append(&tables.inodes)?;
    let directory_table = out.append(&tables.directories)?;
    let fragment_table = match data.fragments.is_empty() {
        true => NOT_THERE,
        false => write_table(&data.fragment_table(), level, &mut out)?,
    };
    let id_table = write_table(&ids.table(), level, &mut out)?;
    let xattr_table = tables.xattrs.write(level, &mut out)?;
    let superblock = Superblock {
        inodes: survey.count,
        fragments: fits(data.fragments.len())?,
        ids: fits(ids.numbers.len())?,
        root,
        bytes_used: out.position,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
    };
    let bytes = out.position.next_multiple_of(PADDING);
    out.file
        .set_len(bytes)
        .and_then(|()| out.file.write_all_at(&superblock.encode(), 0))
        .map_err(|error| output_error(&error))?;
    Ok(bytes)
}

/// Counts and places, for the start of the file.
struct Superblock {
    inodes: u32,
    fragments: u32,
    ids: u16,
    root: u64,
    bytes_used: u64,
    id_table: u64,
    xattr_table: u64,
    inode_table: u64,
    directory_table: u64,
    fragment_table: u64,
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let flags = match self.xattr_table {
            NOT_THERE => FLAG_DUPLICATES | FLAG_NO_XATTRS,
            _ => FLAG_DUPLICATES,
        };
        let (major, minor) = (4u16, 0u16);
        // A time of day would make two builds of one image differ.
        let time = 0u32;
        let export_table = NOT_THERE;
        let mut block = Vec::new();
        for value in [MAGIC, self.inodes, time, 1 << BLOCK_LOG, self.fragments] {
            block.extend_from_slice(&value.to_le_bytes());
        }
        for value in [COMPRESSION_ZSTD, BLOCK_LOG, flags, self.ids, major, minor] {
            block.extend_from_slice(&value.to_le_bytes());
        }
        for value in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            export_table,
        ] {
            block.extend_from_slice(&value.to_le_bytes());
        }
        block
    }
}

/// Numbers that must be known before the first inode is written.
struct Survey {
    /// Inode number per inode, from 1 in tree order; 0 for those no name leads to.
    numbers: Vec<u32>,
    /// Link count per inode.
    links: Vec<u32>,
    /// Inodes in tree order.
    order: Vec<InodeId>,
    count: u32,
}

impl Survey {
    fn of(tree: &Tree) -> Self {
        let mut survey = Self {
            numbers: vec![0; tree.inode_slots()],
            links: vec![0; tree.inode_slots()],
            order: Vec::new(),
            count: 0,
        };
        survey.visit(InodeId::ROOT);
        survey.links[InodeId::ROOT.index()] = 2;
        let mut todo = vec![InodeId::ROOT];
        while let Some(directory) = todo.pop() {
            let below = todo.len();
            for (_, dentry) in tree.children(directory) {
                let id = dentry.inode;
                survey.links[id.index()] += 1;
                if survey.numbers[id.index()] == 0 {
                    survey.visit(id);
                }
                if tree.is_directory(id) {
                    // Its own "." and, in its parent, "..".
                    survey.links[id.index()] += 1;
                    survey.links[directory.index()] += 1;
                    todo.push(id);
                }
            }
            // The stack gives the last one first.
            todo[below..].reverse();
        }
        survey
    }

    fn visit(&mut self, id: InodeId) {
        self.count += 1;
        self.numbers[id.index()] = self.count;
        self.order.push(id);
    }

    fn number(&self, id: InodeId) -> u32 {
        self.numbers[id.index()]
    }

    fn links(&self, id: InodeId) -> u32 {
        self.links[id.index()]
    }
}

/// Users and groups share one table; inodes hold 16-bit indexes into it.
struct Ids {
    numbers: Vec<u32>,
    index: BTreeMap<u32, u16>,
}

impl Ids {
    fn of(tree: &Tree, survey: &Survey) -> Result<Self, ImageError> {
        let mut ids = Self {
            numbers: Vec::new(),
            index: BTreeMap::new(),
        };
        for &id in &survey.order {
            let meta = &tree.inode(id).meta;
            for number in [meta.uid, meta.gid] {
                if !ids.index.contains_key(&number) {
                    let next = u16::try_from(ids.numbers.len())
                        .ok()
                        // The count in the superblock has 16 bits as well.
                        .filter(|&next| next < u16::MAX)
                        .ok_or_else(|| {
                            ImageError::unsupported("The image has more than 65535 owners")
                        })?;
                    ids.index.insert(number, next);
                    ids.numbers.push(number);
                }
            }
        }
        Ok(ids)
    }

    fn index(&self, number: u32) -> u16 {
        self.index.get(&number).copied().unwrap_or(0)
    }

    fn table(&self) -> Vec<u8> {
        self.numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }
}

/// The image file, written from start to end.
struct Output<'a> {
    file: &'a File,
    position: u64,
}

impl Output<'_> {
    /// Returns where the bytes went.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, ImageError> {
        let at = self.position;
        self.file
            .write_all_at(bytes, at)
            .map_err(|error| output_error(&error))?;
        self.position += bytes.len() as u64;
        Ok(at)
    }
}

fn output_error(error: &io::Error) -> ImageError {
    ImageError::storage("write the root image", error)
}

/// For counts that the format limits.
fn fits<T: TryFrom<usize>>(count: usize) -> Result<T, ImageError> {
    T::try_from(count)
        .map_err(|_| ImageError::unsupported("The image is too large for the squashfs format"))
}

fn file_extent(tree: &Tree, id: InodeId) -> Option<super::tree::Extent> {
    match tree.inode(id).node {
        Node::File(extent) => Some(extent),
        _ => None,
    }
}
