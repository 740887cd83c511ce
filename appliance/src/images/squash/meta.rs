//! Metadata blocks: inodes, directories and tables are cut into pieces of 8 KiB, each compressed
//! and led by its length.

use std::collections::BTreeMap;

use super::{NOT_THERE, Output, fits};
use crate::images::error::ImageError;
use crate::images::tar::Xattrs;

const PIECE: usize = 8192;
/// In the length of a piece: stored as it is.
const STORED: u16 = 1 << 15;
/// Prefixes are numbers in the format.
const PREFIXES: [(&[u8], u16); 3] = [(b"user.", 0), (b"trusted.", 1), (b"security.", 2)];
pub(super) const NO_XATTRS: u32 = u32::MAX;

/// Collects a stream of metadata.
pub(super) struct MetaWriter {
    compressor: zstd::bulk::Compressor<'static>,
    done: Vec<u8>,
    piece: Vec<u8>,
}

/// Where something is in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaPosition {
    /// Start of the compressed piece, from the start of the table.
    pub(super) piece: u32,
    /// Offset in the piece once decompressed.
    pub(super) offset: u16,
}

impl MetaPosition {
    /// The format's 48-bit reference.
    pub(super) fn reference(self) -> u64 {
        (u64::from(self.piece) << 16) | u64::from(self.offset)
    }
}

impl MetaWriter {
    pub(super) fn new(level: i32) -> Result<Self, ImageError> {
        Ok(Self {
            compressor: compressor(level)?,
            done: Vec::new(),
            piece: Vec::with_capacity(PIECE),
        })
    }

    /// Where the next byte will be.
    pub(super) fn position(&self) -> Result<MetaPosition, ImageError> {
        Ok(MetaPosition {
            piece: fits(self.done.len())?,
            offset: fits(self.piece.len())?,
        })
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), ImageError> {
        while !bytes.is_empty() {
            let room = (PIECE - self.piece.len()).min(bytes.len());
            self.piece.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.piece.len() == PIECE {
                self.close_piece()?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, ImageError> {
        self.close_piece()?;
        Ok(self.done)
    }

    fn close_piece(&mut self) -> Result<(), ImageError> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let packed = self
            .compressor
            .compress(&self.piece)
            .map_err(|error| compression_error(&error))?;
        let (length, bytes) = match packed.len() < self.piece.len() {
            true => (fits::<u16>(packed.len())?, &packed),
            false => (fits::<u16>(self.piece.len())? | STORED, &self.piece),
        };
        self.done.extend_from_slice(&length.to_le_bytes());
        self.done.extend_from_slice(bytes);
        self.piece.clear();
        Ok(())
    }
}

/// A table that is looked up by index: metadata pieces, then where each of them starts. Returns
/// the place of that list, which is what the superblock names.
pub(super) fn write_table(
    bytes: &[u8],
    level: i32,
    out: &mut Output<'_>,
) -> Result<u64, ImageError> {
    let starts = write_pieces(bytes, level, out)?;
    out.append(&starts)
}

fn write_pieces(bytes: &[u8], level: i32, out: &mut Output<'_>) -> Result<Vec<u8>, ImageError> {
    let mut starts = Vec::new();
    for piece in bytes.chunks(PIECE) {
        let mut writer = MetaWriter::new(level)?;
        writer.append(piece)?;
        let at = out.append(&writer.finish()?)?;
        starts.extend_from_slice(&at.to_le_bytes());
    }
    Ok(starts)
}

/// Extended attributes: each different set is stored once and has a number.
pub(super) struct XattrTable {
    pairs: MetaWriter,
    sets: BTreeMap<Xattrs, u32>,
    /// Per set: reference, number of pairs, bytes.
    index: Vec<u8>,
}

impl XattrTable {
    pub(super) fn new(level: i32) -> Result<Self, ImageError> {
        Ok(Self {
            pairs: MetaWriter::new(level)?,
            sets: BTreeMap::new(),
            index: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, xattrs: &Xattrs) -> Result<u32, ImageError> {
        if let Some(&known) = self.sets.get(xattrs) {
            return Ok(known);
        }
        let at = self.pairs.position()?;
        let mut bytes = Vec::new();
        let mut count = 0u32;
        for (name, value) in xattrs {
            // `flatten` has kept only names with one of these prefixes.
            let Some((kind, rest)) = PREFIXES
                .iter()
                .find_map(|(prefix, kind)| Some((*kind, name.strip_prefix(*prefix)?)))
            else {
                continue;
            };
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&fits::<u16>(rest.len())?.to_le_bytes());
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(&fits::<u32>(value.len())?.to_le_bytes());
            bytes.extend_from_slice(value);
            count += 1;
        }
        self.pairs.append(&bytes)?;
        self.index.extend_from_slice(&at.reference().to_le_bytes());
        self.index.extend_from_slice(&count.to_le_bytes());
        self.index
            .extend_from_slice(&fits::<u32>(bytes.len())?.to_le_bytes());
        let number = fits(self.sets.len())?;
        self.sets.insert(xattrs.clone(), number);
        Ok(number)
    }

    /// Must be the last table: the kernel checks that its list ends where the image ends.
    pub(super) fn write(self, level: i32, out: &mut Output<'_>) -> Result<u64, ImageError> {
        if self.sets.is_empty() {
            return Ok(NOT_THERE);
        }
        let pairs = out.append(&self.pairs.finish()?)?;
        let starts = write_pieces(&self.index, level, out)?;
        let mut header = Vec::new();
        header.extend_from_slice(&pairs.to_le_bytes());
        header.extend_from_slice(&fits::<u32>(self.sets.len())?.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&starts);
        out.append(&header)
    }
}

pub(super) fn compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>, ImageError> {
    zstd::bulk::Compressor::new(level).map_err(|error| compression_error(&error))
}

pub(super) fn compression_error(error: &std::io::Error) -> ImageError {
    ImageError::worker_failed(format!("Cannot compress the root image: {error}"))
}
