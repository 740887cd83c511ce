//! The ring alone, beside a model of it that is written from the spec (virtio 1.2, section 2.7) and not from the code.

use fuzz::{Choices, Target};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::queue::{ChainFault, RingError, VirtQueue};
use crate::devices::virtio::state::{QueuePosition, QueueRegisters};
use crate::memory::Memory;

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 800;

const TABLE: u64 = RINGS;
const AVAIL: u64 = RINGS + 0x4000;
const USED: u64 = RINGS + 0x8000;

/// Address and length.
type Piece = (u64, u32);

/// What a chain should be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walked {
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

/// The device's side of a ring, as a model.
struct Model {
    image: Image,
    size: u16,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    /// Given back since the last decision about an interrupt.
    added: u16,
}

impl Model {
    fn head(&mut self) -> Result<Option<u16>, RingError> {
        let ahead = self.image.u16(AVAIL + 2).wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(RingError::AvailableIndex);
        }
        if ahead == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_avail % self.size);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(self.image.u16(AVAIL + 4 + 2 * slot)))
    }

    fn walk(&mut self, head: u16) -> Result<Walked, ChainFault> {
        let mut walked = Walked::default();
        let (mut table, mut entries) = (TABLE, u32::from(self.size));
        let (mut index, mut indirect) = (u32::from(head), false);
        let (mut visited, mut descriptors, mut total) = (0, 0, 0_u64);
        loop {
            // As many steps as the table has entries are a loop, or its end.
            if index >= entries || visited == entries {
                return Err(ChainFault::Unfinished);
            }
            let at = table.checked_add(16 * u64::from(index));
            let Some(descriptor) = at.and_then(|at| self.image.read::<16>(at)) else {
                return Err(ChainFault::Unfinished);
            };
            let [addr @ .., l0, l1, l2, l3, f0, f1, n0, n1] = descriptor;
            let addr = u64::from_le_bytes(addr);
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u16::from_le_bytes([f0, f1]);
            if flags & INDIRECT != 0 {
                if indirect || len % 16 != 0 || len / 16 > u32::from(u16::MAX) {
                    return Err(ChainFault::Unfinished);
                }
                (table, entries, index, visited, indirect) = (addr, len / 16, 0, 0, true);
                continue;
            }
            visited += 1;
            descriptors += 1;
            total += u64::from(len);
            if total > u64::from(u32::MAX) {
                return Err(ChainFault::Unfinished);
            }
            if descriptors > self.size {
                return Err(ChainFault::TooLong);
            }
            let writable = flags & WRITE != 0;
            if !writable && !walked.writable.is_empty() {
                return Err(ChainFault::Order);
            }
            if len > 0 && self.image.part(addr, len.into()).is_none() {
                return Err(ChainFault::OutsideMemory);
            }
            let half = if writable {
                &mut walked.writable
            } else {
                &mut walked.readable
            };
            half.push((addr, len));
            if flags & NEXT == 0 {
                return Ok(walked);
            }
            index = u16::from_le_bytes([n0, n1]).into();
        }
    }

    fn complete(&mut self, head: u16, written: u32) {
        let slot = u64::from(self.next_used % self.size);
        let mut element = [0; 8];
        element[..2].copy_from_slice(&head.to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        self.image.write(USED + 4 + 8 * slot, &element);
        self.next_used = self.next_used.wrapping_add(1);
        self.image.write(USED + 2, &self.next_used.to_le_bytes());
        self.added += 1;
    }

    fn rearm(&mut self) -> bool {
        if self.event_idx {
            let at = USED + 4 + 8 * u64::from(self.size);
            self.image.write(at, &self.next_avail.to_le_bytes());
        } else {
            self.image.write(USED, &[0, 0]);
        }
        self.image.u16(AVAIL + 2) != self.next_avail
    }

    fn interrupt(&mut self) -> bool {
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return false;
        }
        if !self.event_idx {
            return self.image.u16(AVAIL) & 1 == 0;
        }
        // The driver waits for the used index to pass this one: is it among those that were passed?
        let waits_for = self.image.u16(AVAIL + 4 + 2 * u64::from(self.size));
        (1..=added).any(|back| self.next_used.wrapping_sub(back) == waits_for)
    }
}

/// Both, side by side.
struct Ring {
    memory: Memory,
    queue: VirtQueue,
    model: Model,
}

impl Ring {
    fn new(choices: &mut Choices<'_>) -> Self {
        let memory = small_memory();
        let size = choices.pick(&[8, 1, 2, 4, 16, 128, 256]);
        let event_idx = choices.flag();
        let registers = QueueRegisters {
            max_size: 256,
            size,
            ready: true,
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
        };
        let mut queue = VirtQueue::activate(0, &registers, event_idx, &memory).unwrap();
        let positions = [0, 0xffff, 0xfff8, 0x7fff, u64::from(size)];
        let next_avail = choices.number(&positions) as u16;
        let next_used = choices.number(&positions) as u16;
        queue.continue_at(QueuePosition {
            next_avail,
            next_used,
        });
        let model = Model {
            image: Image::zero(),
            size,
            event_idx,
            next_avail,
            next_used,
            added: 0,
        };
        let mut ring = Self {
            memory,
            queue,
            model,
        };
        ring.put(AVAIL + 2, &next_avail.to_le_bytes());
        ring
    }

    /// The driver writes.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        if self.model.image.part(at, bytes.len() as u64).is_some() {
            self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
            self.model.image.write(at, bytes);
        }
    }

    fn make_available(&mut self, head: u16) {
        let index = self.model.image.u16(AVAIL + 2);
        let slot = u64::from(index % self.model.size);
        self.put(AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.put(AVAIL + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// The device takes a chain, reads all of it, writes to it and gives it back. `false` if the ring is broken.
    fn serve(&mut self, write: usize, give_back: bool) -> bool {
        let expected = self.model.head();
        let popped = self.queue.pop(&self.memory);
        let head = match expected {
            Err(error) => {
                assert_eq!(popped.unwrap_err(), error);
                return false;
            }
            Ok(None) => {
                assert!(popped.unwrap().is_none());
                return true;
            }
            Ok(Some(head)) => head,
        };
        let walked = match self.model.walk(head) {
            Err(fault) => {
                assert_eq!(popped.unwrap_err(), RingError::Chain { head, fault });
                return false;
            }
            Ok(walked) => walked,
        };
        let mut chain = popped.unwrap().unwrap();
        assert_eq!(chain.head, head);
        let len = |pieces: &[Piece]| pieces.iter().map(|piece| piece.1 as usize).sum::<usize>();
        assert_eq!(chain.readable.len(), len(&walked.readable));
        assert_eq!(chain.writable.len(), len(&walked.writable));

        let mut read = vec![0; chain.readable.len().min(0x2_0000)];
        chain.readable.copy_out(&mut read);
        let mut rest = &read[..];
        for (at, len) in walked.readable {
            let count = (len as usize).min(rest.len());
            let (part, more) = rest.split_at(count);
            rest = more;
            if count > 0 {
                assert_eq!(part, &*self.model.image.part(at, count as u64).unwrap());
            }
        }
        if !give_back {
            self.queue.undo_pop();
            self.model.next_avail = self.model.next_avail.wrapping_sub(1);
            return true;
        }
        let pattern: Vec<u8> = (0..write).map(|n| n as u8 | 1).collect();
        let written = chain.writable.copy_in(&pattern);
        let mut rest = &pattern[..written];
        for (at, len) in walked.writable {
            let (part, more) = rest.split_at((len as usize).min(rest.len()));
            rest = more;
            if !part.is_empty() {
                self.model.image.write(at, part);
            }
        }
        assert!(rest.is_empty());
        drop(chain);
        self.queue.complete(&self.memory, head, written).unwrap();
        self.model.complete(head, written as u32);
        true
    }

    fn check(&self) {
        assert_same(&Image::of(&self.memory), &self.model.image);
        let position = QueuePosition {
            next_avail: self.model.next_avail,
            next_used: self.model.next_used,
        };
        assert_eq!(self.queue.position(), position);
    }
}

fn drive(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let mut ring = Ring::new(&mut choices);
    let mut served = 0;
    while !choices.is_empty() {
        match choices.below(10) {
            0..=2 => {
                let index = choices.number(&[0, 1, 2, 3, 7, 255]) & 0xffff;
                let table = choices.pick(&[TABLE, TABLE, DATA, DATA + 0x200, 0x3_fff0]);
                let descriptor = any_descriptor(&mut choices);
                ring.put(table + 16 * index, &descriptor);
            }
            3 | 4 => {
                let head = choices.number(&[0, 1, 2, 3, 7, 8, 255]) as u16;
                ring.make_available(head);
            }
            5 => {
                // Far more often than not within the ring's length.
                let ahead = choices.number(&[0, 1, 2, ring.model.size.into()]) as u16;
                let index = ring.model.next_avail.wrapping_add(ahead);
                ring.put(AVAIL + 2, &index.to_le_bytes());
            }
            6 => {
                let at = choices.number(&PLACES);
                let bytes = choices.bytes(8);
                ring.put(at, bytes);
            }
            7 => {
                let rearmed = ring.queue.rearm(&ring.memory).unwrap();
                assert_eq!(rearmed, ring.model.rearm());
                let interrupt = ring.queue.take_interrupt(&ring.memory).unwrap();
                assert_eq!(interrupt, ring.model.interrupt());
            }
            _ => {
                let write = choices.number(&LENGTHS) as usize & 0xffff;
                let give_back = choices.byte() < 0xe0;
                let more = ring.serve(write, give_back);
                if !more {
                    ring.check();
                    return false;
                }
                served += 1;
            }
        }
    }
    ring.check();
    served > 0
}

#[test]
fn fuzz_virtqueue() {
    Target::new("virtqueue")
        .corpus(corpus("virtqueue"))
        .max_bytes(1024)
        .run(INPUTS, |input| {
            // What is read is copied once, and twice the lists of what a chain is made of.
            fuzz::allocation::within(4 << 20, || drive(input))
        });
}
