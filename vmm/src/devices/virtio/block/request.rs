//! What a driver asks a block device for: parsed and checked, not yet done. Pure.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::state::BlockState;
use crate::devices::rate::Cost;
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::queue::Chain;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// The unit of every address, whatever the block size is.
pub const SECTOR: u64 = 512;
/// Segments of one discard or write-zeroes request.
pub const MAX_RANGES: usize = 16;
/// Sectors of one such segment: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Bytes of one segment of a read or a write: what the driver is told, and Linux keeps to.
pub const MAX_SEGMENT_BYTES: u32 = 64 << 10;
/// Segments of one request: the queue's length without header and status.
pub const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes that one request moves at most, 16 MiB less a little: all of these segments. Without it a chain of descriptors
/// that overlap would have the device thread move 4 GiB before anybody else gets a turn.
pub const MAX_REQUEST_BYTES: usize = MAX_SEGMENTS as usize * MAX_SEGMENT_BYTES as usize;
/// Bytes that a device identifier has.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Bytes of a header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a discard or write-zeroes segment: sector, count, flags.
const RANGE: usize = 16;

/// A request that is within its rights.
#[derive(Debug)]
pub enum Request<'m> {
    Read {
        offset: u64,
        to: Buffers<'m>,
    },
    Write {
        offset: u64,
        from: Buffers<'m>,
    },
    Flush,
    Identify {
        to: Buffers<'m>,
    },
    /// Discard and write-zeroes alike: both read as zero afterwards.
    Zero {
        ranges: Vec<Range>,
    },
}

/// A part of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Malformed, out of bounds, or a write to a read-only disk.
    Error,
    /// Well-formed, but nothing this device does.
    Unsupported,
}

/// A request and the byte for its outcome.
pub struct Parsed<'m> {
    pub request: Result<Request<'m>, Refusal>,
    pub status: Buffers<'m>,
}

impl Parsed<'_> {
    /// What it takes to carry the request out. One that is refused is an operation all the same: it was looked at.
    pub fn cost(parsed: Option<&Self>) -> Cost {
        let (bytes, operations) = match parsed.map(|parsed| &parsed.request) {
            Some(Ok(Request::Read { to: buffers, .. } | Request::Write { from: buffers, .. })) => {
                (buffers.len(), 1)
            }
            // Each is a call to the host of its own.
            Some(Ok(Request::Zero { ranges })) => (0, ranges.len() as u64),
            Some(Ok(Request::Flush | Request::Identify { .. }) | Err(_)) | None => (0, 1),
        };
        Cost {
            operations,
            ..Cost::bytes(bytes)
        }
    }
}

/// Takes a chain apart. `None` if it has no byte for the outcome, so that nobody could be told.
pub fn parse<'m>(chain: Chain<'m>, state: &BlockState) -> Option<Parsed<'m>> {
    let Chain {
        mut readable,
        mut writable,
        ..
    } = chain;
    let status = writable.split_off(writable.len().checked_sub(1)?);
    let request = match readable.take::<HEADER>() {
        Some(header) => parse_request(header, readable, writable, state),
        None => Err(Refusal::Error),
    };
    Some(Parsed { request, status })
}

fn parse_request<'m>(
    header: [u8; HEADER],
    readable: Buffers<'m>,
    writable: Buffers<'m>,
    state: &BlockState,
) -> Result<Request<'m>, Refusal> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    match kind {
        VIRTIO_BLK_T_IN => {
            let Range { offset, .. } = transfer(sector, writable.len(), state)?;
            Ok(Request::Read {
                offset,
                to: writable,
            })
        }
        VIRTIO_BLK_T_OUT => {
            check_writable(state)?;
            let Range { offset, .. } = transfer(sector, readable.len(), state)?;
            Ok(Request::Write {
                offset,
                from: readable,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if writable.len() < ID_BYTES => Err(Refusal::Error),
        VIRTIO_BLK_T_GET_ID => Ok(Request::Identify { to: writable }),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            check_writable(state)?;
            let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
            Ok(Request::Zero {
                ranges: parse_ranges(readable, zeroes, state)?,
            })
        }
        _ => Err(Refusal::Unsupported),
    }
}

fn check_writable(state: &BlockState) -> Result<(), Refusal> {
    if state.read_only {
        Err(Refusal::Error)
    } else {
        Ok(())
    }
}

/// As [`span`], of bytes that are moved.
fn transfer(sector: u64, len: usize, state: &BlockState) -> Result<Range, Refusal> {
    if len > MAX_REQUEST_BYTES {
        return Err(Refusal::Error);
    }
    span(sector, len, state)
}

/// Checks that `len` bytes from `sector` are whole sectors of this disk.
fn span(sector: u64, len: usize, state: &BlockState) -> Result<Range, Refusal> {
    let len = len as u64;
    if !len.is_multiple_of(SECTOR) {
        return Err(Refusal::Error);
    }
    match sector.checked_add(len / SECTOR) {
        // The capacity comes from a file's length, so that sectors within it fit in bytes.
        Some(end) if end <= state.capacity => Ok(Range {
            offset: sector * SECTOR,
            len,
        }),
        _ => Err(Refusal::Error),
    }
}

fn parse_ranges(
    mut readable: Buffers<'_>,
    zeroes: bool,
    state: &BlockState,
) -> Result<Vec<Range>, Refusal> {
    let count = readable.len() / RANGE;
    if count == 0 || count > MAX_RANGES || !readable.len().is_multiple_of(RANGE) {
        return Err(Refusal::Error);
    }
    let mut ranges = Vec::with_capacity(count);
    while let Some(bytes) = readable.take::<RANGE>() {
        ranges.push(parse_range(bytes, zeroes, state)?);
    }
    Ok(ranges)
}

fn parse_range(bytes: [u8; RANGE], zeroes: bool, state: &BlockState) -> Result<Range, Refusal> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([c0, c1, c2, c3]);
    // "Unmap" is a permission that only write-zeroes has; other bits are reserved (section 5.2.6.2).
    let allowed = if zeroes {
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    } else {
        0
    };
    if u32::from_le_bytes(flags) & !allowed != 0 {
        return Err(Refusal::Unsupported);
    }
    if count > MAX_RANGE_SECTORS {
        return Err(Refusal::Error);
    }
    let bytes = usize::try_from(u64::from(count) * SECTOR).map_err(|_| Refusal::Error)?;
    span(sector, bytes, state)
}
