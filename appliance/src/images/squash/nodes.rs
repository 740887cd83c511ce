//! Inodes and directory listings.
//!
//! A listing names its inodes by their place, so every inode is written before the listing that
//! names it, and a directory's own inode after its listing. The root comes last.

use super::data::Data;
use super::meta::{MetaPosition, MetaWriter, NO_XATTRS, XattrTable};
use super::{Ids, Survey, fits};
use crate::images::error::ImageError;
use crate::images::tree::{Inode, InodeId, Meta, Node, Tree};

const NO_FRAGMENT: u32 = u32::MAX;
/// Entries under one header of a listing.
const RUN_LIMIT: usize = 256;
/// The size of a listing counts "." and ".." as 3 bytes that are not there.
const LISTING_EXTRA: usize = 3;
/// Extended inode types are the basic ones and 7.
const EXTENDED: u16 = 7;

const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
const BLOCK_DEVICE: u16 = 4;
const CHAR_DEVICE: u16 = 5;
const FIFO: u16 = 6;

pub(super) struct NodeWriter<'a> {
    tree: &'a Tree,
    survey: &'a Survey,
    data: &'a Data,
    ids: &'a Ids,
    inodes: MetaWriter,
    directories: MetaWriter,
    xattrs: XattrTable,
    /// Where each inode has been written.
    places: Vec<Option<MetaPosition>>,
}

pub(super) struct Tables {
    pub(super) inodes: Vec<u8>,
    pub(super) directories: Vec<u8>,
    pub(super) xattrs: XattrTable,
}

/// A directory whose children are being written.
struct Frame {
    id: InodeId,
    parent: u32,
    children: Vec<InodeId>,
}

impl<'a> NodeWriter<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        survey: &'a Survey,
        data: &'a Data,
        ids: &'a Ids,
        level: i32,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            tree,
            survey,
            data,
            ids,
            inodes: MetaWriter::new(level)?,
            directories: MetaWriter::new(level)?,
            xattrs: XattrTable::new(level)?,
            places: vec![None; tree.inode_slots()],
        })
    }

    /// Writes everything below the root and the root; returns the root's reference. Depth first
    /// with a stack of its own: how deep a stranger's tree is must not matter.
    pub(super) fn write_all(&mut self) -> Result<u64, ImageError> {
        // The root has no parent; mksquashfs writes this number, and the kernel never looks.
        let mut stack = vec![self.frame(InodeId::ROOT, self.survey.count + 1)];
        while let Some(frame) = stack.last_mut() {
            let here = frame.id;
            match frame.children.pop() {
                Some(child) if self.tree.is_directory(child) => {
                    let frame = self.frame(child, self.survey.number(here));
                    stack.push(frame);
                }
                // A hard link's inode may be there already.
                Some(child) if self.places[child.index()].is_some() => {}
                Some(child) => self.leaf(child)?,
                None => {
                    let parent = frame.parent;
                    self.directory(here, parent)?;
                    stack.pop();
                }
            }
        }
        self.place(InodeId::ROOT).map(MetaPosition::reference)
    }

    pub(super) fn finish(self) -> Result<Tables, ImageError> {
        Ok(Tables {
            inodes: self.inodes.finish()?,
            directories: self.directories.finish()?,
            xattrs: self.xattrs,
        })
    }

    fn frame(&self, id: InodeId, parent: u32) -> Frame {
        let mut children: Vec<_> = self.tree.children(id).map(|(_, d)| d.inode).collect();
        children.reverse();
        Frame {
            id,
            parent,
            children,
        }
    }

    fn place(&self, id: InodeId) -> Result<MetaPosition, ImageError> {
        self.places[id.index()]
            .ok_or_else(|| ImageError::worker_failed("An inode was used before it was written"))
    }

    fn directory(&mut self, id: InodeId, parent: u32) -> Result<(), ImageError> {
        let at = self.directories.position()?;
        let listing = self.listing(id)?;
        self.directories.append(&listing)?;
        let size = listing.len() + LISTING_EXTRA;
        let meta = &self.tree.inode(id).meta;
        let xattrs = self.xattrs(meta)?;
        let links = self.survey.links(id);
        let mut body = Vec::new();
        let kind = match u16::try_from(size) {
            Ok(size) if xattrs == NO_XATTRS => {
                put32(&mut body, at.piece);
                put32(&mut body, links);
                put16(&mut body, size);
                put16(&mut body, at.offset);
                put32(&mut body, parent);
                DIRECTORY
            }
            _ => {
                put32(&mut body, links);
                put32(&mut body, fits(size)?);
                put32(&mut body, at.piece);
                put32(&mut body, parent);
                // No index.
                put16(&mut body, 0);
                put16(&mut body, at.offset);
                put32(&mut body, xattrs);
                DIRECTORY + EXTENDED
            }
        };
        self.inode(id, kind, &body)
    }

    /// Names in byte order, in runs that share a header: same metadata piece, near numbers.
    fn listing(&self, id: InodeId) -> Result<Vec<u8>, ImageError> {
        let mut listing = Vec::new();
        let mut run = Vec::new();
        let mut run_length = 0usize;
        // Piece and number that the open run's header names.
        let mut base: Option<(u32, u32)> = None;
        for (name, dentry) in self.tree.children(id) {
            let place = self.place(dentry.inode)?;
            let number = self.survey.number(dentry.inode);
            let near = |from: u32| i16::try_from(i64::from(number) - i64::from(from)).ok();
            let distance = match base {
                Some((piece, from)) if piece == place.piece && run_length < RUN_LIMIT => near(from),
                _ => None,
            };
            let distance = match distance {
                Some(distance) => distance,
                None => {
                    close_run(&mut listing, &mut run, run_length, base)?;
                    run_length = 0;
                    base = Some((place.piece, number));
                    0
                }
            };
            put16(&mut run, place.offset);
            run.extend_from_slice(&distance.to_le_bytes());
            put16(&mut run, basic_kind(&self.tree.inode(dentry.inode).node));
            put16(&mut run, fits::<u16>(name.len())?.saturating_sub(1));
            run.extend_from_slice(name);
            run_length += 1;
        }
        close_run(&mut listing, &mut run, run_length, base)?;
        Ok(listing)
    }

    fn leaf(&mut self, id: InodeId) -> Result<(), ImageError> {
        let Inode { meta, node } = self.tree.inode(id);
        let xattrs = self.xattrs(meta)?;
        if let Node::File(_) = node {
            return self.file(id, xattrs);
        }
        let mut kind = basic_kind(node);
        let mut body = Vec::new();
        put32(&mut body, self.survey.links(id));
        match node {
            Node::Symlink(target) => {
                put32(&mut body, fits(target.len())?);
                body.extend_from_slice(target);
            }
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                // The kernel's `new_encode_dev`.
                put32(
                    &mut body,
                    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
                );
            }
            Node::Fifo | Node::File(_) | Node::Directory(_) => {}
        }
        if xattrs != NO_XATTRS {
            kind += EXTENDED;
            put32(&mut body, xattrs);
        }
        self.inode(id, kind, &body)
    }

    fn file(&mut self, id: InodeId, xattrs: u32) -> Result<(), ImageError> {
        let data = self
            .data
            .file(id)
            .ok_or_else(|| ImageError::worker_failed("A file has no data"))?;
        let (fragment, offset) = data.fragment.unwrap_or((NO_FRAGMENT, 0));
        let links = self.survey.links(id);
        let start = data.start.unwrap_or(0);
        let basic = match (u32::try_from(start), u32::try_from(data.length)) {
            (Ok(start), Ok(length)) if links == 1 && xattrs == NO_XATTRS && data.sparse == 0 => {
                Some((start, length))
            }
            _ => None,
        };
        let mut body = Vec::new();
        let kind = match basic {
            Some((start, length)) => {
                put32(&mut body, start);
                put32(&mut body, fragment);
                put32(&mut body, offset);
                put32(&mut body, length);
                FILE
            }
            None => {
                put64(&mut body, start);
                put64(&mut body, data.length);
                // The kernel derives st_blocks from it and wants at least a byte left.
                put64(&mut body, data.sparse.min(data.length.saturating_sub(1)));
                put32(&mut body, links);
                put32(&mut body, fragment);
                put32(&mut body, offset);
                put32(&mut body, xattrs);
                FILE + EXTENDED
            }
        };
        for &size in &data.blocks {
            put32(&mut body, size);
        }
        self.inode(id, kind, &body)
    }

    fn inode(&mut self, id: InodeId, kind: u16, body: &[u8]) -> Result<(), ImageError> {
        let meta = &self.tree.inode(id).meta;
        let mut bytes = Vec::with_capacity(16 + body.len());
        put16(&mut bytes, kind);
        put16(&mut bytes, meta.mode);
        put16(&mut bytes, self.ids.index(meta.uid));
        put16(&mut bytes, self.ids.index(meta.gid));
        put32(&mut bytes, meta.mtime);
        put32(&mut bytes, self.survey.number(id));
        bytes.extend_from_slice(body);
        self.places[id.index()] = Some(self.inodes.position()?);
        self.inodes.append(&bytes)
    }

    fn xattrs(&mut self, meta: &Meta) -> Result<u32, ImageError> {
        match &meta.xattrs {
            Some(xattrs) => self.xattrs.add(xattrs),
            None => Ok(NO_XATTRS),
        }
    }
}

fn close_run(
    listing: &mut Vec<u8>,
    run: &mut Vec<u8>,
    length: usize,
    base: Option<(u32, u32)>,
) -> Result<(), ImageError> {
    if let (Some((piece, number)), 1..) = (base, length) {
        put32(listing, fits::<u32>(length)? - 1);
        put32(listing, piece);
        put32(listing, number);
        listing.append(run);
    }
    Ok(())
}

/// Listings name the basic type even when the inode is an extended one.
fn basic_kind(node: &Node) -> u16 {
    match node {
        Node::Directory(_) => DIRECTORY,
        Node::File(_) => FILE,
        Node::Symlink(_) => SYMLINK,
        Node::BlockDevice { .. } => BLOCK_DEVICE,
        Node::CharDevice { .. } => CHAR_DEVICE,
        Node::Fifo => FIFO,
    }
}

fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}
