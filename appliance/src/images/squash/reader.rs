//! For tests: reads an image back from the format's description, not from our writer.
//!
//! `backhand` cannot read link counts, inode numbers and extended attributes; this reader shows
//! them. It panics on anything odd, and checks the table order that the kernel insists on.

use std::collections::BTreeMap;

const PIECE: usize = 8192;

struct Image<'a> {
    bytes: &'a [u8],
    ids: Vec<u32>,
    fragments: Vec<(u64, u32)>,
    xattr_start: u64,
    /// Reference and count per set.
    xattr_sets: Vec<(u64, u32)>,
}

/// A name and what it is.
pub struct Line {
    pub path: String,
    /// One of `d f l b c p`.
    pub letter: &'static str,
    /// Permissions and owner: `0755 0:0`.
    pub access: String,
    pub mtime: u32,
    pub inode: u32,
    pub links: u32,
    /// Content, target or device number, and extended attributes.
    pub details: String,
}

/// Every name, in byte order.
pub fn read_lines(bytes: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    let image = Image::open(bytes);
    let root = u64_at(bytes, 32);
    image.walk("", root, &mut lines);
    lines.sort_by(|one, other| one.path.cmp(&other.path));
    let numbers: BTreeMap<u32, ()> = lines.iter().map(|line| (line.inode, ())).collect();
    assert_eq!(numbers.len(), u32_at(bytes, 4) as usize, "inode count");
    lines
}

/// One line per name: `path type mode uid:gid mtime links=N #inode details {xattrs}`.
pub fn read_image(bytes: &[u8]) -> String {
    let text = |line: Line| {
        let Line {
            path,
            letter,
            access,
            mtime,
            inode,
            links,
            details,
        } = line;
        let mut text = format!("{path} {letter} {access} t={mtime} links={links} #{inode}");
        if !details.is_empty() {
            text.push_str(&format!(" {details}"));
        }
        text.push('\n');
        text
    };
    read_lines(bytes).into_iter().map(text).collect()
}

impl<'a> Image<'a> {
    fn open(bytes: &'a [u8]) -> Self {
        assert_eq!(&bytes[..4], b"hsqs");
        assert_eq!(1 << u16_at(bytes, 22), u32_at(bytes, 12));
        assert!(bytes.len().is_multiple_of(4096));
        let mut image = Self {
            bytes,
            ids: Vec::new(),
            fragments: Vec::new(),
            xattr_start: 0,
            xattr_sets: Vec::new(),
        };
        image.check_order();
        let fragments = u32_at(bytes, 16) as usize;
        if fragments > 0 {
            let table = image.table(u64_at(bytes, 80), fragments, 16);
            image.fragments = table
                .chunks(16)
                .map(|entry| (u64_at(entry, 0), u32_at(entry, 8)))
                .collect();
        }
        let table = image.table(u64_at(bytes, 48), u16_at(bytes, 26) as usize, 4);
        image.ids = table.chunks(4).map(|entry| u32_at(entry, 0)).collect();
        let xattrs = u64_at(bytes, 56);
        if xattrs != u64::MAX {
            let at = usize::try_from(xattrs).unwrap();
            image.xattr_start = u64_at(bytes, at);
            let table = image.table(xattrs + 16, u32_at(bytes, at + 8) as usize, 16);
            image.xattr_sets = table
                .chunks(16)
                .map(|entry| (u64_at(entry, 0), u32_at(entry, 8)))
                .collect();
        }
        image
    }

    /// `squashfs_fill_super` and the table readers refuse images where a table does not end
    /// exactly where the next begins.
    fn check_order(&self) {
        let count = |entries: usize, size: usize| (entries * size).div_ceil(PIECE) * 8;
        let used = u64_at(self.bytes, 40);
        let [ids, xattrs, inodes, directories, fragments] =
            [48, 56, 64, 72, 80].map(|at| u64_at(self.bytes, at));
        let mut next = used;
        if xattrs != u64::MAX {
            let at = usize::try_from(xattrs).unwrap();
            let list = 16 + count(u32_at(self.bytes, at + 8) as usize, 16);
            assert_eq!(xattrs + list as u64, next, "xattr list ends the image");
            next = u64_at(self.bytes, at);
        }
        let list = count(u16_at(self.bytes, 26) as usize, 4);
        assert_eq!(ids + list as u64, next, "id list ends at the xattrs");
        next = u64_at(self.bytes, usize::try_from(ids).unwrap());
        let number = u32_at(self.bytes, 16) as usize;
        if number > 0 {
            let list = count(number, 16);
            assert!(fragments + list as u64 <= next, "fragment list before ids");
            next = u64_at(self.bytes, usize::try_from(fragments).unwrap());
        }
        assert!(directories <= next && inodes < directories);
    }

    fn table(&self, list: u64, entries: usize, size: usize) -> Vec<u8> {
        let pieces = (entries * size).div_ceil(PIECE);
        let mut table = Vec::new();
        for piece in 0..pieces {
            let at = usize::try_from(list).unwrap() + piece * 8;
            table.extend_from_slice(&self.piece(u64_at(self.bytes, at)).0);
        }
        assert_eq!(table.len(), entries * size);
        table
    }

    /// A metadata piece and where the next one starts.
    fn piece(&self, at: u64) -> (Vec<u8>, u64) {
        let at = usize::try_from(at).unwrap();
        let header = u16_at(self.bytes, at);
        let length = usize::from(header & 0x7fff);
        let data = &self.bytes[at + 2..at + 2 + length];
        let next = (at + 2 + length) as u64;
        match header & 0x8000 {
            0 => (zstd::bulk::decompress(data, PIECE).unwrap(), next),
            _ => (data.to_vec(), next),
        }
    }

    /// `length` bytes of metadata from a reference into the table at `table`.
    fn metadata(&self, table: u64, reference: u64, length: usize) -> Vec<u8> {
        let offset = usize::try_from(reference & 0xffff).unwrap();
        assert!(offset < PIECE);
        let mut at = table + (reference >> 16);
        let mut bytes = Vec::new();
        while bytes.len() < offset + length {
            let (piece, next) = self.piece(at);
            bytes.extend_from_slice(&piece);
            at = next;
        }
        bytes[offset..offset + length].to_vec()
    }

    fn inode(&self, reference: u64, length: usize) -> Vec<u8> {
        self.metadata(u64_at(self.bytes, 64), reference, length)
    }

    fn walk(&self, path: &str, reference: u64, lines: &mut Vec<Line>) {
        let head = self.inode(reference, 16);
        let kind = u16_at(&head, 0);
        let number = u32_at(&head, 12);
        let owner = |at| self.ids[usize::from(u16_at(&head, at))];
        let (links, xattrs, details) = match kind {
            1 | 8 => self.directory(path, kind, reference, lines),
            2 | 9 => self.file(kind, reference),
            _ => self.other(kind, reference),
        };
        let letter = ["d", "f", "l", "b", "c", "p"][usize::from((kind - 1) % 7)];
        let parts = [details, self.xattrs(xattrs)];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let path = if path.is_empty() { "/" } else { path };
        lines.push(Line {
            path: path.to_owned(),
            letter,
            access: format!("{:04o} {}:{}", u16_at(&head, 2), owner(4), owner(6)),
            mtime: u32_at(&head, 8),
            inode: number,
            links,
            details: parts.join(" "),
        });
    }

    fn directory(
        &self,
        path: &str,
        kind: u16,
        reference: u64,
        lines: &mut Vec<Line>,
    ) -> (u32, u32, String) {
        let (size, piece, offset, links, xattrs) = if kind == 1 {
            let body = self.inode(reference, 32);
            (
                u32::from(u16_at(&body, 24)),
                u32_at(&body, 16),
                u16_at(&body, 26),
                u32_at(&body, 20),
                u32::MAX,
            )
        } else {
            let body = self.inode(reference, 40);
            (
                u32_at(&body, 20),
                u32_at(&body, 24),
                u16_at(&body, 34),
                u32_at(&body, 16),
                u32_at(&body, 36),
            )
        };
        let place = (u64::from(piece) << 16) | u64::from(offset);
        let table = u64_at(self.bytes, 72);
        let listing = match size - 3 {
            0 => Vec::new(),
            size => self.metadata(table, place, size as usize),
        };
        let mut at = 0;
        let mut previous = Vec::new();
        while at < listing.len() {
            let count = u32_at(&listing, at) as usize + 1;
            assert!(count <= 256);
            let piece = u64::from(u32_at(&listing, at + 4));
            let base = u32_at(&listing, at + 8);
            at += 12;
            for _ in 0..count {
                let offset = u64::from(u16_at(&listing, at));
                let distance = u16_at(&listing, at + 2).cast_signed();
                let length = usize::from(u16_at(&listing, at + 6)) + 1;
                let name = listing[at + 8..at + 8 + length].to_vec();
                at += 8 + length;
                assert!(previous < name, "names in byte order, each once");
                let child = (piece << 16) | offset;
                let number = u32_at(&self.inode(child, 16), 12);
                assert_eq!(base.checked_add_signed(distance.into()), Some(number));
                self.walk(&format!("{path}/{}", name.escape_ascii()), child, lines);
                previous = name;
            }
        }
        (links, xattrs, String::new())
    }

    fn file(&self, kind: u16, reference: u64) -> (u32, u32, String) {
        let (start, size, fragment, offset, links, xattrs, head) = if kind == 2 {
            let body = self.inode(reference, 32);
            (
                u64::from(u32_at(&body, 16)),
                u64::from(u32_at(&body, 28)),
                u32_at(&body, 20),
                u32_at(&body, 24),
                1,
                u32::MAX,
                32,
            )
        } else {
            let body = self.inode(reference, 56);
            (
                u64_at(&body, 16),
                u64_at(&body, 24),
                u32_at(&body, 44),
                u32_at(&body, 48),
                u32_at(&body, 40),
                u32_at(&body, 52),
                56,
            )
        };
        let size = usize::try_from(size).unwrap();
        let block = u32_at(self.bytes, 12) as usize;
        let mut data = Vec::new();
        let mut holes = 0;
        if fragment == u32::MAX {
            let count = size.div_ceil(block);
            let sizes = self.inode(reference, head + 4 * count);
            let mut at = start;
            for index in 0..count {
                let stored = u32_at(&sizes, head + 4 * index);
                let length = block.min(size - data.len());
                if stored == 0 {
                    holes += 1;
                    data.resize(data.len() + length, 0);
                } else {
                    data.extend(self.block(at, stored));
                    at += u64::from(stored & !(1 << 24));
                }
            }
        } else {
            let (at, stored) = self.fragments[fragment as usize];
            let offset = offset as usize;
            data.extend_from_slice(&self.block(at, stored)[offset..offset + size]);
        }
        assert_eq!(data.len(), size);
        let text = match data.len() {
            0..=40 => format!("\"{}\"", data.escape_ascii()),
            length => format!(
                "{length} bytes {}",
                &crate::images::testing::sha256(&data)[..8]
            ),
        };
        let text = match holes {
            0 => text,
            _ => format!("{text} holes={holes}"),
        };
        (links, xattrs, text)
    }

    fn block(&self, at: u64, stored: u32) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        let length = (stored & !(1 << 24)) as usize;
        let data = &self.bytes[at..at + length];
        match stored & (1 << 24) {
            0 => zstd::bulk::decompress(data, u32_at(self.bytes, 12) as usize).unwrap(),
            _ => data.to_vec(),
        }
    }

    fn other(&self, kind: u16, reference: u64) -> (u32, u32, String) {
        let links = u32_at(&self.inode(reference, 20), 16);
        let (details, end) = match (kind - 1) % 7 + 1 {
            3 => {
                let length = u32_at(&self.inode(reference, 24), 20) as usize;
                let target = self.inode(reference, 24 + length)[24..].to_vec();
                (format!("-> {}", target.escape_ascii()), 24 + length)
            }
            4 | 5 => {
                let number = u32_at(&self.inode(reference, 24), 20);
                let major = (number >> 8) & 0xfff;
                let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
                (format!("{major}:{minor}"), 24)
            }
            _ => (String::new(), 20),
        };
        let xattrs = match kind {
            8.. => u32_at(&self.inode(reference, end + 4), end),
            _ => u32::MAX,
        };
        (links, xattrs, details)
    }

    fn xattrs(&self, set: u32) -> String {
        if set == u32::MAX {
            return String::new();
        }
        let (reference, count) = self.xattr_sets[set as usize];
        let read = |from: usize, length: usize| -> Vec<u8> {
            self.metadata(self.xattr_start, reference, from + length)[from..].to_vec()
        };
        let mut at = 0;
        let mut pairs = Vec::new();
        for _ in 0..count {
            let head = read(at, 4);
            let prefix = ["user.", "trusted.", "security."][usize::from(u16_at(&head, 0))];
            let length = usize::from(u16_at(&head, 2));
            let name = read(at + 4, length);
            let size = u32_at(&read(at + 4 + length, 4), 0) as usize;
            let value = read(at + 8 + length, size);
            at += 8 + length + size;
            let value = match size {
                0..=40 => value.escape_ascii().to_string(),
                _ => format!("{size} bytes"),
            };
            pairs.push(format!("{prefix}{}={value}", name.escape_ascii()));
        }
        format!("{{{}}}", pairs.join(", "))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
