//! What a layer does to the tree below it: OCI image-spec, "layer.md".
//!
//! - A whiteout `.wh.x` removes `x` of lower layers. An opaque marker `.wh..wh..opq` removes
//!   everything that lower layers put into its directory. Neither touches what its own layer
//!   brings, whichever comes first in the archive.
//! - A whiteout is known by its name alone: some tools ship it as a hard link or with data.
//! - A directory over a directory keeps the names below and takes the new metadata. Anything else
//!   replaces what was there, a directory with all it held.
//! - A hard link points to an inode of this layer or a lower one and has no metadata of its own.
//! - Parents that no layer names are made `0755 root:root`.
//!
//! # Trust
//! Paths and link targets come from strangers. They are resolved inside the tree only (`tree`),
//! and this module has no way to reach a real file.
//!
//! # Not here
//! Attributes that squashfs cannot hold or that would act on the guest's own overlay are dropped
//! and reported: see `Keep`.

use std::collections::BTreeMap;

use super::Limits;
use super::error::{ImageError, printable};
use super::tar::{Entry, EntryKind, Xattrs};
use super::tree::{
    Dentry, Extent, InodeId, Meta, Missing, Node, PATH_LIMIT, Tree, components, new_directory,
};

const WHITEOUT: &[u8] = b".wh.";
/// Opaque marker and AUFS housekeeping; no real file may be called so.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Linux has no permissions of symlinks: every file system that an image could be unpacked to shows these, whatever the layer says.
const SYMLINK_MODE: u16 = 0o777;
/// The kernel's XATTR_SIZE_MAX.
const XATTR_VALUE_LIMIT: usize = 65536;
/// What a squashfs device number holds: 12 bits and 20 bits.
const MAJOR_LIMIT: u32 = 0xfff;
const MINOR_LIMIT: u32 = 0xf_ffff;

/// Puts layers on top of each other.
pub struct Flattener {
    tree: Tree,
    path_limit: usize,
    layer: u32,
    dropped: BTreeMap<String, Dropped>,
}

/// An attribute that was left out.
struct Dropped {
    files: u64,
    first: String,
    why: &'static str,
}

/// What becomes of an extended attribute.
enum Keep {
    Yes,
    /// A label of the host that built the image. It means nothing here, so nobody is told.
    Silently,
    No(&'static str),
}

impl Flattener {
    pub fn new(limits: &Limits) -> Self {
        Self {
            tree: Tree::new(limits.files, limits.metadata_bytes),
            path_limit: limits.path_bytes,
            layer: 0,
            dropped: BTreeMap::new(),
        }
    }

    /// Call before the entries of each layer.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Applies one entry. `extent` is where the data of a file was put.
    pub fn apply(&mut self, entry: Entry, extent: Extent) -> Result<(), ImageError> {
        let names = components(&entry.path)?;
        let length = names.join(&b'/').len();
        if length > self.path_limit {
            return Err(ImageError::too_large(format!(
                "Path of {length} bytes, at most {} are allowed: {}",
                self.path_limit,
                printable(&entry.path)
            )));
        }
        let Some((name, parents)) = names.split_last() else {
            return self.set_root(&entry);
        };
        if parents.iter().any(|parent| parent.starts_with(RESERVED)) || is_housekeeping(name) {
            return Ok(());
        }
        if let Some(parent) = parents.iter().find(|name| name.starts_with(WHITEOUT)) {
            return Err(ImageError::corrupt(format!(
                "A directory has the name of a whiteout, {}: {}",
                printable(parent),
                printable(&entry.path)
            )));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.white_out(parents, name, hidden);
        }
        let layer = self.layer;
        let directory = self
            .tree
            .directory(parents, Missing::Create { layer })?
            .ok_or_else(|| ImageError::corrupt("A parent directory is missing"))?;
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(directory, name, &entry);
        }
        self.put(directory, name, &entry, extent)
    }

    /// The finished tree and what was left out of it, one line each.
    pub fn finish(self) -> (Tree, Vec<String>) {
        let warnings = self
            .dropped
            .into_iter()
            .map(|(name, dropped)| {
                format!(
                    "Extended attribute {name} of {} file(s) left out, {}; first: {}",
                    dropped.files, dropped.why, dropped.first
                )
            })
            .collect();
        (self.tree, warnings)
    }

    fn set_root(&mut self, entry: &Entry) -> Result<(), ImageError> {
        if entry.kind != EntryKind::Directory {
            return Err(ImageError::corrupt("The root of the image is no directory"));
        }
        let meta = self.meta(entry)?;
        self.tree.set_meta(InodeId::ROOT, meta)
    }

    fn put(
        &mut self,
        directory: InodeId,
        name: &[u8],
        entry: &Entry,
        extent: Extent,
    ) -> Result<(), ImageError> {
        let mut meta = self.meta(entry)?;
        if entry.kind == EntryKind::Symlink {
            meta.mode = SYMLINK_MODE;
        }
        let layer = self.layer;
        let there = self.tree.child(directory, name);
        if let (Some(there), EntryKind::Directory) = (there, entry.kind)
            && self.tree.is_directory(there.inode)
        {
            let inode = there.inode;
            self.tree.set_meta(inode, meta)?;
            return self.tree.link(directory, name, Dentry { inode, layer });
        }
        let inode = self.tree.add(meta, node(entry, extent)?)?;
        self.tree.link(directory, name, Dentry { inode, layer })
    }

    fn hard_link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), ImageError> {
        let broken = |what: &str| {
            ImageError::corrupt(format!(
                "Hard link {} to {}: {what}",
                printable(&entry.path),
                printable(&entry.link)
            ))
        };
        let target = components(&entry.link)?;
        let Some((last, parents)) = target.split_last() else {
            return Err(broken("the target is a directory"));
        };
        // The last name is not followed: a hard link to a symlink is a second name of the symlink.
        let inode = self
            .tree
            .directory(parents, Missing::Stop)?
            .and_then(|parent| self.tree.child(parent, last))
            .map(|dentry| dentry.inode)
            .ok_or_else(|| broken("the target does not exist"))?;
        if self.tree.is_directory(inode) {
            return Err(broken("the target is a directory"));
        }
        let layer = self.layer;
        self.tree.link(directory, name, Dentry { inode, layer })
    }

    fn white_out(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), ImageError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ImageError::corrupt(format!(
                "Whiteout of nothing: {}",
                printable(name)
            )));
        }
        let Some(directory) = self.tree.directory(parents, Missing::Stop)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.prune(directory);
            return Ok(());
        }
        match self.tree.child(directory, hidden) {
            Some(dentry) if dentry.layer == self.layer => self.prune(dentry.inode),
            Some(_) => self.tree.unlink(directory, hidden),
            None => {}
        }
        Ok(())
    }

    /// Removes what lower layers put below `directory` and keeps what this layer brought.
    fn prune(&mut self, directory: InodeId) {
        let mut todo = vec![directory];
        while let Some(id) = todo.pop() {
            let layer = self.layer;
            if let Node::Directory(names) = &mut self.tree.inode_mut(id).node {
                names.retain(|_, dentry| dentry.layer == layer);
                todo.extend(names.values().map(|dentry| dentry.inode));
            }
        }
    }

    fn meta(&mut self, entry: &Entry) -> Result<Meta, ImageError> {
        let xattrs = self.xattrs(entry)?;
        Ok(Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            // Squashfs holds the years 1970 to 2106.
            mtime: u32::try_from(entry.mtime.max(0)).unwrap_or(u32::MAX),
            xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
        })
    }

    fn xattrs(&mut self, entry: &Entry) -> Result<Xattrs, ImageError> {
        let mut kept = Xattrs::new();
        for (name, value) in &entry.xattrs {
            match fate(name) {
                Keep::Yes => {}
                Keep::Silently => continue,
                Keep::No(why) => {
                    self.drop_xattr(name, &entry.path, why);
                    continue;
                }
            }
            if name.len() > super::tree::NAME_LIMIT || value.len() > XATTR_VALUE_LIMIT {
                return Err(ImageError::unsupported(format!(
                    "Extended attribute {} of {} is longer than Linux allows",
                    printable(name),
                    printable(&entry.path)
                )));
            }
            kept.push((name.clone(), value.clone()));
        }
        Ok(kept)
    }

    fn drop_xattr(&mut self, name: &[u8], path: &[u8], why: &'static str) {
        /// Different names worth a warning of their own.
        const NAMES: usize = 10;
        let mut name = printable(name);
        if self.dropped.len() >= NAMES && !self.dropped.contains_key(&name) {
            name = "(others)".into();
        }
        let dropped = self.dropped.entry(name).or_insert_with(|| Dropped {
            files: 0,
            first: printable(path),
            why,
        });
        dropped.files += 1;
    }
}

fn fate(name: &[u8]) -> Keep {
    if name == b"security.selinux" {
        return Keep::Silently;
    }
    // The root image is the lower layer of an overlay in the guest, which would obey these.
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Keep::No("it would act on the guest's own overlay");
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    match known.iter().any(|prefix| {
        name.strip_prefix(*prefix)
            .is_some_and(|rest| !rest.is_empty())
    }) {
        true => Keep::Yes,
        false => Keep::No("squashfs holds only user., trusted. and security."),
    }
}

/// AUFS left such names in old Docker layers. They are no files and, but for the opaque marker,
/// mean nothing.
fn is_housekeeping(name: &[u8]) -> bool {
    name.starts_with(RESERVED) && name != OPAQUE
}

fn node(entry: &Entry, extent: Extent) -> Result<Node, ImageError> {
    let (major, minor) = entry.device;
    Ok(match entry.kind {
        EntryKind::File => Node::File(extent),
        EntryKind::Directory => new_directory(),
        EntryKind::Fifo => Node::Fifo,
        EntryKind::Symlink => {
            if entry.link.is_empty() || entry.link.len() > PATH_LIMIT || entry.link.contains(&0) {
                return Err(ImageError::corrupt(format!(
                    "Symlink with an impossible target: {}",
                    printable(&entry.path)
                )));
            }
            Node::Symlink(entry.link.as_slice().into())
        }
        EntryKind::CharDevice | EntryKind::BlockDevice
            if major > MAJOR_LIMIT || minor > MINOR_LIMIT =>
        {
            return Err(ImageError::unsupported(format!(
                "Device number {major}:{minor} does not fit in 12 and 20 bits: {}",
                printable(&entry.path)
            )));
        }
        EntryKind::CharDevice => Node::CharDevice { major, minor },
        EntryKind::BlockDevice => Node::BlockDevice { major, minor },
        EntryKind::HardLink => {
            return Err(ImageError::corrupt("A hard link has no inode of its own"));
        }
    })
}
