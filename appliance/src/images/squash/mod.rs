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
//! See `Shape`. A guest that reads 4 KiB decompresses a whole block, so larger blocks are no gain as such.
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
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use self::data::DataWriter;
use self::meta::write_table;
use self::nodes::NodeWriter;
use super::error::ImageError;
use super::spool::SpoolReader;
use super::tree::{InodeId, Node, Tree};

const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK_BYTES: u64 = 96;
const COMPRESSION_ZSTD: u16 = 6;
/// Data of equal files is stored once. A note to readers, nothing depends on it.
const FLAG_DUPLICATES: u16 = 0x40;
const FLAG_NO_XATTRS: u16 = 0x200;
const NOT_THERE: u64 = u64::MAX;
/// A block device has whole sectors; 4 KiB suits every one.
const PADDING: u64 = 4096;

/// How file data is cut and packed. Images are made with the default; the others are there to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Of zstd.
    pub level: i32,
    /// File data is not compressed at all; names and attributes are.
    pub is_stored: bool,
    /// Blocks have two to the power of this bytes. The format allows 12 to 20.
    pub block_log: u16,
}

impl Default for Shape {
    /// Chosen by `cabana bench image`; the figures are in `decisions/root-image-compression.md`.
    fn default() -> Self {
        Self {
            level: 3,
            is_stored: false,
            block_log: 17,
        }
    }
}

/// `zstd3/128K`, `stored/1024K`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = 1 << (self.block_log - 10);
        match self.is_stored {
            true => write!(f, "stored/{kib}K"),
            false => write!(f, "zstd{}/{kib}K", self.level),
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (packing, block) = text.split_once('/')?;
            let block: u32 = block.strip_suffix('K')?.parse().ok()?;
            let is_possible = block.is_power_of_two() && (4..=1024).contains(&block);
            let level = match packing.strip_prefix("zstd") {
                Some(level) => level
                    .parse()
                    .ok()
                    .filter(|level| (1..=22).contains(level))?,
                None if packing == "stored" => Self::default().level,
                None => return None,
            };
            is_possible.then_some(Self {
                level,
                is_stored: packing == "stored",
                block_log: u16::try_from(block.ilog2() + 10).ok()?,
            })
        };
        parse().ok_or_else(|| "zstd1/4K to zstd22/1024K, or stored/4K to stored/1024K".to_owned())
    }
}

impl Shape {
    fn block_bytes(self) -> usize {
        1 << self.block_log
    }
}

/// Writes the tree as an image into the empty file `out`; returns its length.
pub fn write(
    tree: &Tree,
    spool: &SpoolReader,
    out: &File,
    shape: Shape,
) -> Result<u64, ImageError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    write_with(tree, spool, out, shape, threads.min(data::MAX_THREADS))
}

fn write_with(
    tree: &Tree,
    spool: &SpoolReader,
    out: &File,
    shape: Shape,
    threads: usize,
) -> Result<u64, ImageError> {
    let level = shape.level;
    let survey = Survey::of(tree);
    let mut out = Output {
        file: out,
        position: SUPERBLOCK_BYTES,
    };
    let data = DataWriter::run(tree, &survey, spool, &mut out, shape, threads)?;
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
        block_log: shape.block_log,
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
    block_log: u16,
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
        for value in [
            MAGIC,
            self.inodes,
            time,
            1 << self.block_log,
            self.fragments,
        ] {
            block.extend_from_slice(&value.to_le_bytes());
        }
        for value in [
            COMPRESSION_ZSTD,
            self.block_log,
            flags,
            self.ids,
            major,
            minor,
        ] {
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
