//! Sparse files: the old GNU format and the three PAX formats (GNU tar manual, "Sparse Formats").

use super::header::number;
use super::pax::{PaxSparse, decimal};
use super::{BLOCK, TarError};

/// Chunks in one file. A real file of this many holes would take 512 MiB at least.
const CHUNK_LIMIT: usize = 1 << 16;
/// Longest decimal number in a 1.0 map, with room to spare.
const DIGITS_LIMIT: usize = 32;

/// A run of stored bytes and where it belongs in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub offset: u64,
    pub length: u64,
}

pub(super) struct Map {
    pub(super) chunks: Vec<Chunk>,
    pub(super) real_size: u64,
}

pub(super) enum MapError {
    Read(TarError),
    Malformed(String),
}

impl From<String> for MapError {
    fn from(what: String) -> Self {
        Self::Malformed(what)
    }
}

impl Map {
    /// The map and whether an extra block of it follows.
    pub(super) fn from_gnu_header(block: &[u8; 512]) -> Result<(Self, bool), String> {
        let mut map = Self {
            chunks: Vec::new(),
            real_size: gnu_number(&block[483..495])?,
        };
        map.add_gnu_chunks(&block[386..482])?;
        Ok((map, block[482] != 0))
    }

    /// Adds an extra block; returns whether another one follows.
    pub(super) fn add_gnu_block(&mut self, block: &[u8; 512]) -> Result<bool, String> {
        self.add_gnu_chunks(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn add_gnu_chunks(&mut self, records: &[u8]) -> Result<(), String> {
        for record in records.chunks_exact(24) {
            let (offset, length) = record.split_at(12);
            // An unused record; GNU tar fills the rest of the table with them.
            if length[0] == 0 {
                break;
            }
            self.push(gnu_number(offset)?, gnu_number(length)?)?;
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), String> {
        if self.chunks.len() == CHUNK_LIMIT {
            return Err(format!("sparse file with more than {CHUNK_LIMIT} chunks"));
        }
        self.chunks.push(Chunk { offset, length });
        Ok(())
    }

    /// In order, without overlap, inside the file, and exactly as long as the stored bytes.
    pub(super) fn check(&self, stored: u64) -> Result<(), String> {
        let (mut end, mut sum) = (0u64, 0u64);
        for chunk in &self.chunks {
            if chunk.offset < end {
                return Err("sparse chunks overlap or are out of order".into());
            }
            end = chunk
                .offset
                .checked_add(chunk.length)
                .filter(|&end| end <= self.real_size)
                .ok_or("a sparse chunk lies outside of its file")?;
            // Cannot overflow: the chunks do not overlap, so their sum is at most `end`.
            sum += chunk.length;
        }
        if sum == stored {
            Ok(())
        } else {
            Err(format!(
                "sparse chunks add up to {sum} bytes, {stored} are stored"
            ))
        }
    }
}

/// `next_block` reads the map that version 1.0 keeps in front of the data.
pub(super) fn from_pax(
    sparse: &PaxSparse,
    next_block: impl FnMut() -> Result<[u8; 512], TarError>,
) -> Result<Map, MapError> {
    let real_size = sparse
        .real_size
        .ok_or_else(|| "sparse file without its real size".to_owned())?;
    let numbers = match (sparse.major, sparse.minor) {
        (None, None) | (Some(0), Some(0 | 1)) => sparse.numbers.clone(),
        (Some(1), Some(0)) => numbers_from_data(next_block)?,
        _ => return Err("unknown sparse format".to_owned().into()),
    };
    if !numbers.len().is_multiple_of(2) {
        return Err("a sparse chunk has no length".to_owned().into());
    }
    let mut map = Map {
        chunks: Vec::new(),
        real_size,
    };
    for pair in numbers.chunks_exact(2) {
        map.push(pair[0], pair[1])?;
    }
    Ok(map)
}

/// A count, then that many pairs, one decimal number per line, padded to a whole block.
fn numbers_from_data(
    mut next_block: impl FnMut() -> Result<[u8; 512], TarError>,
) -> Result<Vec<u64>, MapError> {
    let mut block = next_block().map_err(MapError::Read)?;
    let mut used = 0;
    let mut next_number = || -> Result<u64, MapError> {
        let mut digits = Vec::new();
        loop {
            if used == block.len() {
                block = next_block().map_err(MapError::Read)?;
                used = 0;
            }
            let byte = block[used];
            used += 1;
            match byte {
                b'\n' => break,
                _ if digits.len() == DIGITS_LIMIT => break,
                _ => digits.push(byte),
            }
        }
        decimal(&digits).ok_or_else(|| "malformed sparse map".to_owned().into())
    };
    let count = next_number()?;
    if count > CHUNK_LIMIT as u64 {
        return Err(format!("sparse file with more than {CHUNK_LIMIT} chunks").into());
    }
    (0..count * 2).map(|_| next_number()).collect()
}

fn gnu_number(field: &[u8]) -> Result<u64, String> {
    number(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or_else(|| "malformed sparse map".to_owned())
}

const _: () = assert!(BLOCK == 512);
