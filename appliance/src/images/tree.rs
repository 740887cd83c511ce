//! The file tree of an image while it is put together: inodes, names, and paths that stay inside.
//!
//! Pure data. What a layer does to the tree is in `flatten`; this file only knows how to look
//! names up, follow symlinks without ever leaving the root, and link inodes to names.

use std::collections::BTreeMap;

use super::error::{ImageError, printable};
use super::tar::Xattrs;

/// The kernel's PATH_MAX, which includes a final zero byte.
pub const PATH_LIMIT: usize = 4095;
/// The kernel's NAME_MAX, and what squashfs can store.
pub const NAME_LIMIT: usize = 255;
/// Directories below each other. A path cannot name more than 2048, but symlinked parents could
/// build deeper ones step by step, and the writer walks the tree recursively.
const DEPTH_LIMIT: usize = 1024;
/// The kernel's limit of symlinks in one lookup.
const SYMLINK_LIMIT: usize = 40;
/// Names looked at in one lookup, so that chains of long symlinks cannot cost minutes.
const STEP_LIMIT: usize = 8192;

/// Index into `Tree::inodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(u32);

impl InodeId {
    pub const ROOT: InodeId = InodeId(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with setuid, setgid and sticky; no file type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    /// Most files have none: a pointer is cheaper than an empty vector.
    pub xattrs: Option<Box<Xattrs>>,
}

impl Meta {
    /// For directories that a layer uses without naming them.
    pub fn implied() -> Self {
        Self {
            mode: 0o755,
            ..Self::default()
        }
    }

    fn xattr_bytes(&self) -> usize {
        let pairs = self.xattrs.iter().flat_map(|pairs| pairs.iter());
        pairs
            .map(|(name, value)| size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + value.len())
            .sum()
    }
}

/// Where the bytes of a file are in the spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug)]
pub enum Node {
    Directory(BTreeMap<Box<[u8]>, Dentry>),
    File(Extent),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

#[derive(Debug)]
pub struct Inode {
    pub meta: Meta,
    pub node: Node,
}

/// A name in a directory. Two names with one inode are hard links.
#[derive(Debug, Clone, Copy)]
pub struct Dentry {
    pub inode: InodeId,
    /// The last layer that brought this name or something below it.
    pub layer: u32,
}

pub struct Tree {
    inodes: Vec<Inode>,
    inode_limit: u32,
    metadata_limit: usize,
    /// Bytes taken by names, targets and attributes, with what each costs to keep.
    metadata_bytes: usize,
}

/// A path as names from the root: no empty ones, no `.`, no `..`.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, ImageError> {
    if path.len() > PATH_LIMIT {
        return Err(ImageError::unsupported(format!(
            "Path of {} bytes, at most {PATH_LIMIT} are possible: {}",
            path.len(),
            printable(path)
        )));
    }
    if path.contains(&0) {
        return Err(ImageError::corrupt(format!(
            "Path with a zero byte: {}",
            printable(path)
        )));
    }
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if names.pop().is_none() => {
                return Err(ImageError::corrupt(format!(
                    "Path leaves the image: {}",
                    printable(path)
                )));
            }
            b".." => {}
            _ if name.len() > NAME_LIMIT => {
                return Err(ImageError::unsupported(format!(
                    "Name of {} bytes, at most {NAME_LIMIT} are possible: {}",
                    name.len(),
                    printable(path)
                )));
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// What a lookup does with a missing directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Create it and mark every directory on the way as part of this layer.
    Create { layer: u32 },
    /// The lookup finds nothing.
    Stop,
}

impl Tree {
    pub fn new(inode_limit: u32, metadata_limit: usize) -> Self {
        let root = Inode {
            meta: Meta::implied(),
            node: Node::Directory(BTreeMap::new()),
        };
        Self {
            inodes: vec![root],
            inode_limit,
            metadata_limit,
            metadata_bytes: 0,
        }
    }

    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// Slots that an `InodeId` of this tree can index; includes inodes that no name leads to.
    pub fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    /// The names in a directory; none for anything else.
    pub fn children(&self, id: InodeId) -> impl Iterator<Item = (&[u8], Dentry)> {
        let names = match &self.inode(id).node {
            Node::Directory(names) => Some(names),
            _ => None,
        };
        names
            .into_iter()
            .flatten()
            .map(|(name, dentry)| (&name[..], *dentry))
    }

    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<Dentry> {
        match &self.inode(directory).node {
            Node::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    pub fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.inode(id).node, Node::Directory(_))
    }

    pub fn add(&mut self, meta: Meta, node: Node) -> Result<InodeId, ImageError> {
        let id = u32::try_from(self.inodes.len()).unwrap_or(u32::MAX);
        if id >= self.inode_limit {
            return Err(ImageError::too_large(format!(
                "The image has more than {} files",
                self.inode_limit
            )));
        }
        let target = match &node {
            Node::Symlink(target) => target.len(),
            _ => 0,
        };
        self.charge(size_of::<Inode>() + target + meta.xattr_bytes())?;
        self.inodes.push(Inode { meta, node });
        Ok(InodeId(id))
    }

    pub fn set_meta(&mut self, id: InodeId, meta: Meta) -> Result<(), ImageError> {
        self.charge(meta.xattr_bytes())?;
        self.inodes[id.index()].meta = meta;
        Ok(())
    }

    /// Gives `inode` a name, in place of whatever had it.
    pub fn link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        dentry: Dentry,
    ) -> Result<(), ImageError> {
        if let Node::Directory(names) = &mut self.inodes[directory.index()].node {
            if let Some(there) = names.get_mut(name) {
                *there = dentry;
                return Ok(());
            }
            names.insert(name.into(), dentry);
        }
        self.charge(size_of::<(Box<[u8]>, Dentry)>() + name.len())
    }

    /// What was replaced or removed stays charged: the sum only has to stop a hostile image.
    fn charge(&mut self, bytes: usize) -> Result<(), ImageError> {
        self.metadata_bytes += bytes;
        if self.metadata_bytes > self.metadata_limit {
            return Err(ImageError::too_large(format!(
                "Names, links and attributes of the image take more than {} MiB",
                self.metadata_limit >> 20
            )));
        }
        Ok(())
    }

    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) {
        if let Node::Directory(names) = &mut self.inode_mut(directory).node {
            names.remove(name);
        }
    }

    /// Finds the directory that `names` leads to, symlinks followed inside the root: an absolute
    /// target starts at the root again and `..` stops there, as if the image were the whole
    /// file system. `None` only with `Missing::Stop`.
    pub fn directory(
        &mut self,
        names: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<InodeId>, ImageError> {
        let mut stack = vec![InodeId::ROOT];
        let mut todo: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let (mut symlinks, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > STEP_LIMIT {
                return Err(lookup_error("Too many steps to resolve", names));
            }
            let here = stack.last().copied().unwrap_or(InodeId::ROOT);
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let next = match self.child(here, &name) {
                Some(dentry) => dentry.inode,
                None => match missing {
                    Missing::Stop => return Ok(None),
                    Missing::Create { .. } => self.add(Meta::implied(), new_directory())?,
                },
            };
            match &self.inode(next).node {
                Node::Directory(_) => {
                    if let Missing::Create { layer } = missing {
                        if stack.len() > DEPTH_LIMIT || name.len() > NAME_LIMIT {
                            return Err(lookup_error("Path too long or too deep:", names));
                        }
                        self.link(here, &name, Dentry { inode: next, layer })?;
                    }
                    stack.push(next);
                }
                Node::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINK_LIMIT {
                        return Err(lookup_error("Too many symlinks to resolve", names));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(target.rsplit(|&byte| byte == b'/').map(<[u8]>::to_vec));
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => return Err(lookup_error("A file is where a directory must be:", names)),
            }
        }
        Ok(stack.last().copied())
    }
}

pub fn new_directory() -> Node {
    Node::Directory(BTreeMap::new())
}

fn lookup_error(what: &str, names: &[&[u8]]) -> ImageError {
    ImageError::corrupt(format!("{what} {}", printable(&names.join(&b'/'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_clean_and_never_leave_the_root() {
        let ok: [(&[u8], &[&[u8]]); 6] = [
            (b"", &[]),
            (b"./", &[]),
            (b"/", &[]),
            (b"/etc//passwd", &[b"etc", b"passwd"]),
            (b"./a/../b/./c/", &[b"b", b"c"]),
            (b"a/\xff\xfe", &[b"a", b"\xff\xfe"]),
        ];
        for (path, names) in ok {
            assert_eq!(components(path).unwrap(), names);
        }
        for escape in [&b".."[..], b"../x", b"/..", b"a/../../x"] {
            let error = components(escape).unwrap_err();
            assert!(error.message.contains("leaves the image"), "{error}");
        }
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components(&b"a/".repeat(3000)).is_err());
    }

    #[test]
    fn symlinked_parents_are_resolved_inside_the_root() {
        let mut tree = Tree::new(1000, 1 << 20);
        let usr = tree
            .directory(&[b"usr"], Missing::Create { layer: 0 })
            .unwrap()
            .unwrap();
        for (name, target) in [
            (&b"abs"[..], &b"/usr"[..]),
            (b"rel", b"usr"),
            (b"up", b"../../../usr"),
            (b"loop", b"loop"),
        ] {
            let inode = tree
                .add(Meta::default(), Node::Symlink(target.into()))
                .unwrap();
            tree.link(InodeId::ROOT, name, Dentry { inode, layer: 0 })
                .unwrap();
        }
        for name in [&b"abs"[..], b"rel", b"up"] {
            assert_eq!(tree.directory(&[name], Missing::Stop).unwrap(), Some(usr));
        }
        assert!(tree.directory(&[b"loop"], Missing::Stop).is_err());
        assert_eq!(tree.directory(&[b"none"], Missing::Stop).unwrap(), None);
    }

    #[test]
    fn a_tree_built_deeper_through_symlinks_is_stopped() {
        let mut tree = Tree::new(100_000, 10 << 20);
        let deep: Vec<&[u8]> = vec![b"d"; 900];
        tree.directory(&deep, Missing::Create { layer: 0 }).unwrap();
        let target = b"d/".repeat(900);
        let inode = tree
            .add(Meta::default(), Node::Symlink(target.into()))
            .unwrap();
        tree.link(InodeId::ROOT, b"s", Dentry { inode, layer: 0 })
            .unwrap();
        let mut further: Vec<&[u8]> = vec![b"s"];
        further.extend(vec![&b"e"[..]; 900]);
        let error = tree
            .directory(&further, Missing::Create { layer: 0 })
            .unwrap_err();
        assert!(error.message.contains("too deep"), "{error}");
    }

    #[test]
    fn metadata_that_would_fill_the_memory_is_stopped() {
        let mut tree = Tree::new(u32::MAX, 1 << 20);
        let target = vec![b'x'; PATH_LIMIT];
        let mut added = 0usize;
        let error = loop {
            match tree.add(Meta::default(), Node::Symlink(target.as_slice().into())) {
                Ok(_) => added += 1,
                Err(error) => break error,
            }
        };
        assert!(error.message.contains("1 MiB"), "{error}");
        assert!(added * PATH_LIMIT <= 1 << 20);
    }
}
