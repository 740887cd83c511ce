//! A tar reader for archives that a stranger wrote.
//!
//! The `tar` crate is not used for reading: it keeps extension headers of any size in memory, and
//! it splits PAX records at newlines, so a file capability whose bytes contain 0x0a is an error.
//! This reader knows ustar, GNU (long names, sparse, base-256 numbers) and PAX (records by
//! length, sparse 0.0, 0.1 and 1.0, `SCHILY.xattr.`).
//!
//! # Trust
//! Every byte may be hostile. Extension headers, sparse maps and names have limits that are
//! checked before memory is taken; nothing here panics, seeks backwards or opens anything.
//!
//! # Ambiguity
//! Two readers that disagree about where a header starts can be made to see different files. So
//! the PAX size wins over the header (POSIX), header-only types have no data whatever their size
//! field says (as Go's archive/tar, which wrote most layers), and a bad checksum is an error.
//!
//! # Not here
//! Global PAX headers are skipped, as Docker and containerd do. Multi-volume archives.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

use self::header::Header;
use self::pax::Extensions;
pub use self::sparse::Chunk;

pub const BLOCK: u64 = 512;
/// Longest extension header (GNU long name, PAX records). Go's reader has the same limit.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Extension headers in front of one entry.
const EXTENSIONS_PER_ENTRY: usize = 8;

/// Name and value, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("Cannot read the archive")]
    Read(#[source] io::Error),
    #[error("at byte {offset}: {what}")]
    Malformed { offset: u64, what: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Target of a hard link or symlink.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    /// Major and minor of a device.
    pub device: (u32, u32),
    pub xattrs: Xattrs,
    /// Length of the file, holes included. 0 for everything that is not a file.
    pub size: u64,
    /// Where the stored bytes belong; `None` when the file has no holes.
    pub chunks: Option<Vec<Chunk>>,
    /// First stored byte, from the start of the archive.
    pub data_offset: u64,
    /// Stored bytes.
    pub stored: u64,
}

/// How to get past data nobody wants.
pub trait Skip: Read + Sized {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

pub struct TarReader<R> {
    source: R,
    /// Bytes taken from `source`.
    offset: u64,
    /// Stored bytes of the current entry that are not read yet.
    remaining: u64,
    /// Zero bytes after them, up to the next block.
    padding: u64,
}

impl<R: Skip> TarReader<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            offset: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// The next entry, or `None` at the end. Unread data of the previous entry is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        for _ in 0..=EXTENSIONS_PER_ENTRY {
            self.skip_rest()?;
            let at = self.offset;
            let Some(block) = self.header_block()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(malformed(at, "the archive ends after an extension header"))
                };
            };
            let header = Header::parse(&block).map_err(|what| malformed(at, what))?;
            match header.kind {
                b'x' => {
                    let data = self.extension(at, header.size)?;
                    extensions
                        .add_pax(&data)
                        .map_err(|what| malformed(at, what))?;
                }
                b'g' => {
                    self.extension(at, header.size)?;
                }
                b'L' => extensions.long_name = Some(self.long_name(at, header.size)?),
                b'K' => extensions.long_link = Some(self.long_name(at, header.size)?),
                // A volume label: a note, not a file.
                b'V' => self.start_data(at, header.size)?,
                _ => return self.entry(at, &block, &header, extensions).map(Some),
            }
        }
        Err(malformed(
            self.offset,
            "too many extension headers before one entry",
        ))
    }

    /// Reads stored bytes of the current entry; 0 at their end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = usize::try_from(self.remaining).map_or(buffer.len(), |r| r.min(buffer.len()));
        if want == 0 {
            return Ok(0);
        }
        let count = loop {
            match self.source.read(&mut buffer[..want]) {
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        };
        self.remaining -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }

    pub fn into_inner(self) -> R {
        self.source
    }

    fn entry(
        &mut self,
        at: u64,
        block: &[u8; 512],
        header: &Header,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let bad = |what: String| malformed(at, what);
        let kind = header.entry_kind().map_err(bad)?;
        let mut entry = header.entry(kind).map_err(bad)?;
        let stored = match kind {
            _ if header.is_header_only() => 0,
            _ => extensions.size.unwrap_or(header.size),
        };
        self.start_data(at, stored)?;
        let map = match header.kind {
            b'S' => Some(self.old_gnu_sparse(at, block)?),
            _ => None,
        };
        let pax_sparse = extensions.apply(&mut entry).map_err(bad)?;
        let map = match (map, pax_sparse) {
            (Some(map), None) => Some(map),
            (None, Some(sparse)) if kind == EntryKind::File => Some(
                sparse::from_pax(&sparse, || self.map_block()).map_err(|error| match error {
                    sparse::MapError::Read(error) => error,
                    sparse::MapError::Malformed(what) => malformed(at, what),
                })?,
            ),
            (None, _) => None,
            (Some(_), Some(_)) => return Err(malformed(at, "two sparse maps for one file")),
        };
        if kind == EntryKind::File {
            entry.stored = self.remaining;
            entry.size = match &map {
                None => self.remaining,
                Some(map) => {
                    map.check(self.remaining).map_err(bad)?;
                    map.real_size
                }
            };
            entry.chunks = map.map(|map| map.chunks);
        }
        entry.data_offset = self.offset;
        Ok(entry)
    }

    /// The extra headers of an old GNU sparse file follow its header and are not part of its size.
    fn old_gnu_sparse(&mut self, at: u64, block: &[u8; 512]) -> Result<sparse::Map, TarError> {
        let (mut map, mut more) =
            sparse::Map::from_gnu_header(block).map_err(|what| malformed(at, what))?;
        while more {
            let mut extra = [0; 512];
            self.fill(&mut extra)?;
            more = map
                .add_gnu_block(&extra)
                .map_err(|what| malformed(at, what))?;
        }
        Ok(map)
    }

    /// One block of the sparse map that PAX 1.0 keeps at the start of the data.
    fn map_block(&mut self) -> Result<[u8; 512], TarError> {
        let mut block = [0; 512];
        self.remaining = self
            .remaining
            .checked_sub(BLOCK)
            .ok_or_else(|| malformed(self.offset, "the sparse map does not fit in the entry"))?;
        self.fill(&mut block)?;
        Ok(block)
    }

    /// A header, or `None` at the end of the archive: two zero blocks, or just no more bytes
    /// (old writers leave the trailer out).
    fn header_block(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let mut block = [0; 512];
        if !self.fill_or_end(&mut block)? {
            return Ok(None);
        }
        if block != [0; 512] {
            return Ok(Some(block));
        }
        let at = self.offset;
        if !self.fill_or_end(&mut block)? || block == [0; 512] {
            return Ok(None);
        }
        Err(malformed(at, "a header follows a single zero block"))
    }

    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_LIMIT {
            return Err(malformed(
                at,
                format!("extension header of {size} bytes, at most {EXTENSION_LIMIT} are allowed"),
            ));
        }
        self.start_data(at, size)?;
        let mut data = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read_data(&mut buffer)? {
                0 => return Ok(data),
                count => data.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn long_name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(at, size)?;
        if let Some(end) = name.iter().position(|&byte| byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn start_data(&mut self, at: u64, size: u64) -> Result<(), TarError> {
        // 2^62 bytes leave room for every sum below and above.
        if size > 1 << 62 {
            return Err(malformed(at, format!("impossible size {size}")));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.remaining + self.padding;
        if rest > 0 {
            self.source.skip(rest).map_err(TarError::Read)?;
            self.offset += rest;
        }
        self.remaining = 0;
        self.padding = 0;
        Ok(())
    }

    fn fill(&mut self, block: &mut [u8; 512]) -> Result<(), TarError> {
        if self.fill_or_end(block)? {
            Ok(())
        } else {
            Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    fn fill_or_end(&mut self, block: &mut [u8; 512]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        self.offset += BLOCK;
        Ok(true)
    }
}

fn malformed(offset: u64, what: impl Into<String>) -> TarError {
    TarError::Malformed {
        offset,
        what: what.into(),
    }
}
