//! virtio-rng: the host's random numbers.
//!
//! The guest sees an entropy device with one queue and no configuration. Every buffer comes back
//! filled.
//!
//! # Threads
//! Queue work runs on the event loop. The host's generator never blocks once the host is up.
//!
//! # Trust
//! Lengths come from the guest. A request gets at most [`MAX_REQUEST`] bytes, so that a chain of
//! overlapping descriptors cannot make the host produce gigabytes (a peer's fault, Firecracker
//! issue 5762); getting less than asked for is what the spec allows. Nothing is allocated per
//! request, and a chain that gives nothing to write to comes back empty.
//!
//! # Snapshot
//! Nothing of its own: queue positions are the transport's. A copy of a guest needs new numbers
//! before it needs this device; its kernel hears of that by the generation id, and the agent sees to it.
//!
//! # Not here
//! Leaking-detection features. Spec: virtio 1.2, section 5.4.

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::buffers::Buffers;
use super::queue::RingError;
use super::{Rings, VirtioDevice, Work, copy_config};

/// The most bytes that one request gets.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Linux asks for 64 bytes at a time and keeps one request in the queue.
const QUEUE_SIZES: &[u16] = &[64];
/// Requests served before other devices get their turn.
const REQUESTS_PER_CALL: usize = 16;
/// Bytes taken from the host at a time.
const CHUNK: usize = 4096;

/// The entropy device. It keeps nothing between requests.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    pub fn new() -> Self {
        Self
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&[], offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn queue_ready(&mut self, _queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        let Rings { memory, queues } = rings;
        let queue = &mut queues[0];
        for _ in 0..REQUESTS_PER_CALL {
            match queue.pop(memory)? {
                Some(chain) => queue.complete(memory, chain.head, fill(chain.writable))?,
                None if queue.rearm(memory)? => {}
                None => return Ok(Work::Done),
            }
        }
        Ok(Work::Again { queue: 0 })
    }
}

/// Fills what the guest gave, up to the limit. Says how much it filled.
fn fill(mut target: Buffers<'_>) -> usize {
    let total = target.len().min(MAX_REQUEST);
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < total {
        let want = CHUNK.min(total - done);
        // An interrupted or refused call leaves the rest unfilled, which the length tells.
        match getrandom(&mut chunk[..want], GetRandomFlags::empty()) {
            Ok(got) => done += target.copy_in(&chunk[..got]),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::*;

    #[test]
    fn every_buffer_comes_back_filled_with_other_numbers() {
        let mut machine = Machine::started(Box::new(Rng::new()));
        machine.queues[0].add(&[(DATA, 32, true)]);
        machine.queues[0].add(&[(DATA + 100, 16, true), (DATA + 200, 16, true)]);
        machine.serve(0);
        assert_eq!(machine.queues[0].used(), [(0, 32), (1, 32)]);
        let first = machine.get(DATA, 32);
        let second = [machine.get(DATA + 100, 16), machine.get(DATA + 200, 16)].concat();
        assert_ne!(first, second);
        assert_ne!(first, [0; 32]);
        assert_eq!(machine.get(DATA + 32, 8), [0; 8]);
    }

    #[test]
    fn firecracker_5762_overlapping_descriptors_get_no_more_than_the_limit() {
        let mut machine = Machine::started(Box::new(Rng::new()));
        machine.queues[0].add(&[(DATA, 8 << 20, true); 60]);
        machine.serve(0);
        assert_eq!(machine.queues[0].used(), [(0, 64 * 1024)]);
        let after = machine.get(DATA + MAX_REQUEST as u64, 4096);
        assert_eq!(after, [0; 4096]);
    }

    #[test]
    fn request_that_gives_nothing_to_write_to_comes_back_empty() {
        let mut machine = Machine::started(Box::new(Rng::new()));
        machine.put(DATA, &[7; 16]);
        machine.queues[0].add(&[(DATA, 16, false)]);
        machine.queues[0].add(&[(DATA, 0, true)]);
        machine.serve(0);
        assert_eq!(machine.queues[0].used(), [(0, 0), (1, 0)]);
        assert_eq!(machine.get(DATA, 16), [7; 16]);
    }

    #[test]
    fn full_queue_is_served_in_several_turns() {
        let mut machine = Machine::started(Box::new(Rng::new()));
        for n in 0..64 {
            machine.queues[0].add(&[(DATA + n * 64, 64, true)]);
        }
        machine.interrupts();
        machine.serve(0);
        assert_eq!(machine.queues[0].used().len(), 64);
        assert_eq!(machine.interrupts(), 4);
    }
}
