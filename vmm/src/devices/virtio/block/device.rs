//! Carries block requests out on a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::disk::Disk;
use super::request::{
    ID_BYTES, MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, Parsed, QUEUE_SIZE,
    Refusal, Request, SECTOR, parse,
};
use super::state::BlockState;
use crate::config::BlockConfig;
use crate::devices::event_loop::{Ready, Watcher};
use crate::devices::limited::LogBudget;
use crate::devices::rate::{self, Limiter};
use crate::devices::virtio::queue::RingError;
use crate::devices::virtio::{Rings, VirtioDevice, Work, copy_config};

/// Requests served before other devices get their turn.
const REQUESTS_PER_CALL: usize = 32;
/// No further request is begun when so many bytes have been moved.
const BYTES_PER_CALL: u64 = 16 << 20;

/// The token of the limiter's alarm.
const ALARM: u32 = 0;

/// Bytes of `struct virtio_blk_config` up to the last field that is offered.
const CONFIG_BYTES: usize = 60;

/// A disk backed by a file, or by a file and what it was forked from.
pub struct Block {
    disk: Disk,
    state: BlockState,
    log: LogBudget,
    /// How much may be done in a second.
    limiter: Option<Limiter>,
}

impl Block {
    /// The disk has as many whole sectors as its file has now. Read-only, no request changes the file,
    /// whatever the guest's driver believes.
    pub fn new(config: BlockConfig) -> io::Result<Self> {
        let BlockConfig {
            file,
            base,
            read_only,
        } = config;
        if read_only && base.is_some() {
            // Nothing could ever be different from the base.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Not the metadata: a block device has no length there.
        let bytes = (&file).seek(SeekFrom::End(0))?;
        let capacity = bytes / SECTOR;
        Ok(Self {
            disk: Disk::new(file, base, capacity * SECTOR)?,
            state: BlockState {
                capacity,
                read_only,
                features: 0,
            },
            log: LogBudget::new(),
            limiter: None,
        })
    }

    /// The same disk, which does no more in a second than it may.
    pub fn limited(mut self, limiter: Option<Limiter>) -> Self {
        self.limiter = limiter;
        self
    }

    /// Writes what the disk holds now, and nothing else, to a file, with holes for zeros. The guest is paused,
    /// so that no request comes in between.
    pub fn flatten(&self, to: &File) -> io::Result<()> {
        self.disk.flatten(to)
    }

    fn serve(&mut self, parsed: Option<Parsed<'_>>) -> usize {
        // Without a status byte there is nothing to write, which the zero length tells.
        let Some(mut parsed) = parsed else {
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
            Request::Read { offset, to } => self.disk.read(offset, to),
            Request::Write { offset, from } => self.disk.write(offset, from).map(|()| 0),
            // The guest asks that its data outlive a power cut.
            Request::Flush => self.disk.sync().map(|()| 0),
            Request::Identify { mut to } => Ok(to.copy_in(&self.id())),
            Request::Zero { ranges } => {
                let mut ranges = ranges.into_iter();
                ranges
                    .try_for_each(|range| self.disk.zero(range))
                    .map(|()| 0)
            }
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
        put(8, &MAX_SEGMENT_BYTES.to_le_bytes());
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
        let common = 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX;
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

    fn watch(&mut self, watcher: Watcher) -> io::Result<()> {
        match &self.limiter {
            Some(limiter) => limiter.watch(&watcher, ALARM),
            None => Ok(()),
        }
    }

    fn activate(&mut self, features: u64) {
        self.state.features = features;
    }

    fn reset(&mut self) {
        self.state.features = 0;
    }

    fn writable_disk(&self) -> Option<&Block> {
        (!self.state.read_only).then_some(self)
    }

    fn queue_ready(&mut self, _queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        let Rings { memory, queues } = rings;
        let queue = &mut queues[0];
        let mut moved = 0;
        for _ in 0..REQUESTS_PER_CALL {
            if moved >= BYTES_PER_CALL {
                break;
            }
            match queue.pop(memory)? {
                Some(chain) => {
                    let head = chain.head;
                    let parsed = parse(chain, &self.state);
                    let cost = Parsed::cost(parsed.as_ref());
                    if !rate::may(&mut self.limiter, || cost) {
                        queue.undo_pop();
                        return Ok(Work::Done);
                    }
                    let written = self.serve(parsed);
                    moved += cost.bytes;
                    queue.complete(memory, head, written)?;
                }
                None if queue.rearm(memory)? => {}
                None => return Ok(Work::Done),
            }
        }
        Ok(Work::Again { queue: 0 })
    }

    /// The only descriptor that is watched is the limiter's alarm.
    fn host_ready(
        &mut self,
        _token: u32,
        _ready: Ready,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Work, RingError> {
        if let Some(limiter) = &mut self.limiter {
            limiter.rang();
        }
        rings.map_or(Ok(Work::Done), |rings| self.queue_ready(0, rings))
    }
}
