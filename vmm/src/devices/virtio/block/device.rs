//! Carries block requests out on a file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::request::{
    ID_BYTES, MAX_RANGE_SECTORS, MAX_RANGES, Range, Refusal, Request, SECTOR, parse,
};
use super::state::BlockState;
use crate::devices::limited::LogBudget;
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::iovec;
use crate::devices::virtio::queue::{Chain, RingError};
use crate::devices::virtio::{Rings, VirtioDevice, Work, copy_config};

const QUEUE_SIZE: u16 = 256;
/// Pieces of one request: the queue's length without header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Requests served before other devices get their turn.
const REQUESTS_PER_CALL: usize = 32;

/// Bytes of `struct virtio_blk_config` up to the last field that is offered.
const CONFIG_BYTES: usize = 60;

/// A disk backed by a file.
pub struct Block {
    file: File,
    state: BlockState,
    log: LogBudget,
}

impl Block {
    /// The disk has as many whole sectors as the file has now. With `read_only` no request changes
    /// the file, whatever the guest's driver believes.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        // Not the metadata: a block device has no length there.
        let bytes = (&file).seek(SeekFrom::End(0))?;
        let state = BlockState {
            capacity: bytes / SECTOR,
            read_only,
            features: 0,
        };
        Ok(Self {
            file,
            state,
            log: LogBudget::new(),
        })
    }

    fn serve(&mut self, chain: Chain<'_>) -> usize {
        // Without a status byte there is nothing to write, which the zero length tells.
        let Some(mut parsed) = parse(chain, &self.state) else {
            return 0;
        };
        let outcome = match parsed.request {
            Ok(request) => self.carry_out(request),
            Err(Refusal::Error) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        let (status, written) = outcome;
        written + parsed.status.copy_in(&status.to_le_bytes()[..1])
    }

    /// Gives the status and how many bytes of the guest's buffers were filled.
    fn carry_out(&mut self, request: Request<'_>) -> (u32, usize) {
        let result = match request {
            Request::Read { offset, to } => read(&self.file, offset, to),
            Request::Write { offset, from } => write(&self.file, offset, from).map(|()| 0),
            // The guest asks that its data outlive a power cut; metadata such as times need not.
            Request::Flush => self.file.sync_data().map(|()| 0),
            Request::Identify { mut to } => Ok(to.copy_in(&self.id())),
            Request::Zero { ranges } => zero(&self.file, &ranges).map(|()| 0),
        };
        match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(error) => {
                if self.log.take(self.name()) {
                    tracing::warn!(%error, "disk request failed on the host");
                }
                (VIRTIO_BLK_S_IOERR, 0)
            }
        }
    }

    /// A name for the guest's `/sys/block/*/serial`. Says nothing about the host.
    fn id(&self) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        let name: &[u8] = if self.state.read_only {
            b"cabana-ro"
        } else {
            b"cabana-rw"
        };
        id[..name.len()].copy_from_slice(name);
        id
    }

    /// `struct virtio_blk_config`, section 5.2.4. Fields of features that are not offered are zero.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.state.capacity.to_le_bytes());
        put(12, &MAX_SEGMENTS.to_le_bytes());
        if !self.state.read_only {
            let ranges = u32::try_from(MAX_RANGES).unwrap_or(1).to_le_bytes();
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &ranges);
            put(44, &1_u32.to_le_bytes());
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &ranges);
            put(56, &[1]);
        }
        config
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_BLK_F_SEG_MAX;
        if self.state.read_only {
            common | 1 << VIRTIO_BLK_F_RO
        } else {
            common
                | 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_DISCARD
                | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.state.features = features;
    }

    fn reset(&mut self) {
        self.state.features = 0;
    }

    fn queue_ready(&mut self, _queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        let Rings { memory, queues } = rings;
        let queue = &mut queues[0];
        for _ in 0..REQUESTS_PER_CALL {
            match queue.pop(memory)? {
                Some(chain) => {
                    let head = chain.head;
                    let written = self.serve(chain);
                    queue.complete(memory, head, written)?;
                }
                None if queue.rearm(memory)? => {}
                None => return Ok(Work::Done),
            }
        }
        Ok(Work::Again { queue: 0 })
    }
}

/// Fills `to` from the file. A file that became shorter than the disk is an error.
fn read(file: &File, mut offset: u64, mut to: Buffers<'_>) -> io::Result<usize> {
    let total = to.len();
    while !to.is_empty() {
        match iovec::read_at(file, to.slices(), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                to.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

fn write(file: &File, mut offset: u64, mut from: Buffers<'_>) -> io::Result<()> {
    while !from.is_empty() {
        match iovec::write_at(file, from.slices(), offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                from.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes ranges read as zero and gives their blocks back to the host. A file system that cannot
/// says so, and the guest then writes zeros itself.
fn zero(file: &File, ranges: &[Range]) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for range in ranges.iter().filter(|range| range.len > 0) {
        loop {
            match fallocate(file, flags, range.offset, range.len) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
