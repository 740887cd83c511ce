//! A split virtqueue whose driver may be hostile.
//!
//! `virtio-queue` knows the layout; this adds what it leaves to the device: validation when the
//! driver starts, chains that are refused as a whole when any part of them is wrong, and one
//! decision per call whether to interrupt.
//!
//! A broken ring or chain is a [`RingError`]: there is no way to answer such a driver through the
//! ring, so the transport stops the device and sets DEVICE_NEEDS_RESET (virtio 1.2, section 2.1.2).

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use super::buffers::Buffers;
use super::state::{QueuePosition, QueueRegisters};
use crate::memory::Memory;

/// What is wrong with a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("Queue {queue} was not set up before DRIVER_OK")]
    NotReady { queue: usize },
    #[error("Queue {queue} has a wrong size, a misaligned ring or a ring outside of memory")]
    Layout { queue: usize },
    #[error("Available index is further ahead than the ring is long")]
    AvailableIndex,
    #[error("Chain {head}: {fault}")]
    Chain { head: u16, fault: ChainFault },
    #[error("Ring memory cannot be accessed")]
    Access,
}

/// What is wrong with a descriptor chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    #[error("loops, or names a descriptor that does not exist")]
    Unfinished,
    #[error("has more descriptors than the queue")]
    TooLong,
    #[error("names memory that the guest does not have")]
    OutsideMemory,
    #[error("has a readable descriptor behind a writable one")]
    Order,
    #[error("leaves no room for what the device has to write")]
    NoRoom,
}

/// One request or buffer from the driver.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Names the chain when it is given back.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Where the device may write.
    pub writable: Buffers<'m>,
}

/// A queue of a running device.
pub struct VirtQueue {
    queue: Queue,
    /// Something was given back since the last decision about an interrupt.
    completed: bool,
}

impl VirtQueue {
    /// Takes the driver's registers as they are at DRIVER_OK. They cannot change afterwards.
    pub fn activate(
        index: usize,
        registers: &QueueRegisters,
        event_idx: bool,
        memory: &Memory,
    ) -> Result<Self, RingError> {
        let layout = |_| RingError::Layout { queue: index };
        if !registers.ready {
            return Err(RingError::NotReady { queue: index });
        }
        let mut queue = Queue::new(registers.max_size).map_err(layout)?;
        queue.try_set_size(registers.size).map_err(layout)?;
        queue
            .try_set_desc_table_address(GuestAddress(registers.desc_table))
            .map_err(layout)?;
        queue
            .try_set_avail_ring_address(GuestAddress(registers.avail_ring))
            .map_err(layout)?;
        queue
            .try_set_used_ring_address(GuestAddress(registers.used_ring))
            .map_err(layout)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // `virtio-queue` takes a ring at address zero for one that was never set.
        if registers.avail_ring == 0 || !queue.is_valid(memory) {
            return Err(RingError::Layout { queue: index });
        }
        Ok(Self {
            queue,
            completed: false,
        })
    }

    /// Goes on where a queue of the same registers had come to. Any position is safe: one that the ring does not
    /// bear out is an [`RingError::AvailableIndex`] later.
    pub fn continue_at(&mut self, position: QueuePosition) {
        self.queue.set_next_avail(position.next_avail);
        self.queue.set_next_used(position.next_used);
    }

    /// How far this queue has come. Between two calls of the device nothing else is to be remembered.
    pub fn position(&self) -> QueuePosition {
        QueuePosition {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// The driver's own count of the chains that it ever made available, modulo 2^16.
    pub fn available_index(&self, memory: &Memory) -> Result<u16, RingError> {
        self.queue
            .avail_idx(memory, Ordering::Acquire)
            .map(|index| index.0)
            .map_err(|_| RingError::Access)
    }

    /// Asks for a doorbell when the driver makes a chain available after the `seen` that it has, although they
    /// are left in the ring. The caller looks at the index again afterwards: the doorbell may never come for what
    /// was added meanwhile.
    pub fn rearm_beyond(&mut self, memory: &Memory, seen: u16) -> Result<(), RingError> {
        if self.queue.event_idx_enabled() {
            // Section 2.7.10: `avail_event` follows the elements of the used ring.
            const HEADER: u64 = 4;
            const ELEMENT: u64 = 8;
            let at = self.queue.used_ring() + HEADER + ELEMENT * u64::from(self.queue.size());
            memory
                .store(seen.to_le(), GuestAddress(at), Ordering::Relaxed)
                .map_err(|_| RingError::Access)?;
        }
        // Without event indices the driver rings for every chain: the device never asks it not to.
        std::sync::atomic::fence(Ordering::SeqCst);
        Ok(())
    }

    /// The next chain that the driver made available. A chain with any fault is an error, not a
    /// shorter chain: half a request must not be carried out.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, RingError> {
        let mut available = self
            .queue
            .iter(memory)
            .map_err(|_| RingError::AvailableIndex)?;
        available
            .next()
            .map(|chain| collect(chain, memory, self.queue.size()))
            .transpose()
    }

    /// Takes the last [`VirtQueue::pop`] back: the next one returns the same chain.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes of its writable part filled.
    pub fn complete(
        &mut self,
        memory: &Memory,
        head: u16,
        written: usize,
    ) -> Result<(), RingError> {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.completed = true;
        self.queue
            .add_used(memory, head, written)
            .map_err(|_| RingError::Access)
    }

    /// Asks for a doorbell when the driver adds a chain. `true` if it already has: then the
    /// doorbell may never come and the caller has to look again.
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        self.queue
            .enable_notification(memory)
            .map_err(|_| RingError::Access)
    }

    /// Whether the driver has to be interrupted for what was given back since the last call.
    pub fn take_interrupt(&mut self, memory: &Memory) -> Result<bool, RingError> {
        if !std::mem::take(&mut self.completed) {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return self
                .queue
                .needs_notification(memory)
                .map_err(|_| RingError::Access);
        }
        // Section 2.7.7.2: the used index must be visible before the flags are read. `add_used`
        // stores it with release order only.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| RingError::Access)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// Walks a chain once and checks everything about it.
fn collect<'m>(
    mut chain: DescriptorChain<&'m Memory>,
    memory: &'m Memory,
    queue_size: u16,
) -> Result<Chain<'m>, RingError> {
    let head = chain.head_index();
    let mut out = Chain {
        head,
        readable: Buffers::default(),
        writable: Buffers::default(),
    };
    let mut writable_seen = false;
    let mut count = 0;
    // The iterator ends both at the last descriptor and at a fault. After a fault, the descriptor
    // before it still promised another one.
    let mut promised = true;
    for descriptor in &mut chain {
        count += 1;
        if count > queue_size {
            return Err(RingError::Chain {
                head,
                fault: ChainFault::TooLong,
            });
        }
        promised = descriptor.has_next();
        let writable = descriptor.is_write_only();
        if writable_seen && !writable {
            return Err(RingError::Chain {
                head,
                fault: ChainFault::Order,
            });
        }
        writable_seen |= writable;
        let half = if writable {
            &mut out.writable
        } else {
            &mut out.readable
        };
        add_slices(half, memory, descriptor.addr(), descriptor.len()).ok_or(RingError::Chain {
            head,
            fault: ChainFault::OutsideMemory,
        })?;
    }
    if promised {
        return Err(RingError::Chain {
            head,
            fault: ChainFault::Unfinished,
        });
    }
    Ok(out)
}

fn add_slices<'m>(
    half: &mut Buffers<'m>,
    memory: &'m Memory,
    addr: GuestAddress,
    len: u32,
) -> Option<()> {
    let len = usize::try_from(len).ok()?;
    // Checked here because the slices of an address that wraps around are not an error.
    addr.checked_add(len as u64)?;
    for slice in memory.get_slices(addr, len, Permissions::ReadWrite).ok()? {
        half.push(slice.ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::*;

    fn fault(queue: &mut VirtQueue, memory: &Memory) -> ChainFault {
        match queue.pop(memory).unwrap_err() {
            RingError::Chain { fault, .. } => fault,
            other => panic!("{other}"),
        }
    }

    fn set_up(size: u16) -> (Memory, DriverQueue, VirtQueue) {
        let memory = memory();
        let driver = DriverQueue::new(&memory, 0, size);
        let queue = driver.activate(false);
        (memory, driver, queue)
    }

    #[test]
    fn honest_chain_is_split_into_what_is_read_and_what_is_written() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.add(&[
            (DATA, 16, false),
            (DATA + 64, 100, false),
            (DATA + 4096, 512, true),
        ]);
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (116, 512));
        assert!(queue.pop(&memory).unwrap().is_none());
        queue.complete(&memory, chain.head, 512).unwrap();
        assert_eq!(driver.used(), [(0, 512)]);
    }

    #[test]
    fn chain_that_loops_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.descriptor(0, DATA, 16, NEXT, 1);
        driver.descriptor(1, DATA, 16, NEXT, 0);
        driver.publish(0);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
    }

    #[test]
    fn chain_that_points_to_itself_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.descriptor(3, DATA, 16, NEXT, 3);
        driver.publish(3);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
    }

    #[test]
    fn chain_that_names_a_descriptor_beyond_the_table_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.descriptor(0, DATA, 16, NEXT, 8);
        driver.publish(0);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
    }

    #[test]
    fn head_beyond_the_table_is_refused() {
        for head in [8, 9, u16::MAX] {
            let (memory, mut driver, mut queue) = set_up(8);
            driver.publish(head);
            assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
        }
    }

    #[test]
    fn buffer_outside_of_memory_is_refused() {
        let places = [
            (MEMORY_BYTES, 1),
            (MEMORY_BYTES - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 3, 8),
            (0, u32::MAX),
        ];
        for (addr, len) in places {
            let (memory, mut driver, mut queue) = set_up(8);
            driver.add(&[(addr, len, false)]);
            assert_eq!(
                fault(&mut queue, &memory),
                ChainFault::OutsideMemory,
                "{addr:#x}+{len:#x}"
            );
        }
    }

    #[test]
    fn chain_of_more_than_four_gigabytes_is_refused() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let mut driver = DriverQueue::new(&memory, 0, 1024);
        let registers = QueueRegisters {
            max_size: 1024,
            ..driver.registers()
        };
        let mut queue = VirtQueue::activate(0, &registers, false, &memory).unwrap();
        driver.add(&vec![(0, 8 << 20, true); 600]);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
    }

    #[test]
    fn zero_length_buffers_are_passed_over() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.add(&[
            (DATA, 0, false),
            (DATA, 4, false),
            (u64::MAX, 0, false),
            (DATA, 0, true),
        ]);
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (4, 0));
        assert_eq!(chain.readable.slices().len(), 1);
    }

    #[test]
    fn readable_behind_writable_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.add(&[(DATA, 4, true), (DATA, 4, false)]);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Order);
    }

    #[test]
    fn indirect_table_longer_than_the_queue_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        let table = DATA + 0x1000;
        for index in 0..9 {
            let more = if index < 8 { NEXT } else { 0 };
            driver.descriptor_at(table, index, DATA, 1, more, index + 1);
        }
        driver.descriptor(0, table, 9 * 16, INDIRECT, 0);
        driver.publish(0);
        assert_eq!(fault(&mut queue, &memory), ChainFault::TooLong);
    }

    #[test]
    fn indirect_table_inside_an_indirect_table_is_refused() {
        let (memory, mut driver, mut queue) = set_up(8);
        let table = DATA + 0x1000;
        driver.descriptor_at(table, 0, DATA, 1, NEXT, 1);
        driver.descriptor_at(table, 1, table, 32, INDIRECT, 0);
        driver.descriptor(0, table, 32, INDIRECT, 0);
        driver.publish(0);
        assert_eq!(fault(&mut queue, &memory), ChainFault::Unfinished);
    }

    #[test]
    fn indirect_table_of_odd_length_or_outside_of_memory_is_refused() {
        for (addr, len) in [
            (DATA, 15),
            (DATA, 0),
            (MEMORY_BYTES, 16),
            (DATA, 0xffff_fff0),
        ] {
            let (memory, mut driver, mut queue) = set_up(8);
            driver.descriptor(0, addr, len, INDIRECT, 0);
            driver.publish(0);
            assert_eq!(
                fault(&mut queue, &memory),
                ChainFault::Unfinished,
                "{addr:#x}+{len:#x}"
            );
        }
    }

    #[test]
    fn available_index_that_jumps_past_the_ring_is_refused() {
        for index in [9, 1000, u16::MAX] {
            let (memory, mut driver, mut queue) = set_up(8);
            driver.set_avail(index);
            assert_eq!(queue.pop(&memory).unwrap_err(), RingError::AvailableIndex);
        }
    }

    #[test]
    fn available_index_may_wrap_around() {
        let (memory, mut driver, mut queue) = set_up(8);
        for _ in 0..70_000_u32 {
            driver.add(&[(DATA, 1, true)]);
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.complete(&memory, chain.head, 1).unwrap();
            assert_eq!(driver.used().len(), 1);
        }
    }

    const SIZES: [u16; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

    /// A queue that has come to `position`, with chains made available as far as `ahead` of it.
    fn ahead(queue: &mut VirtQueue, driver: &mut DriverQueue, position: u16, ahead: u16) {
        queue.continue_at(QueuePosition {
            next_avail: position,
            next_used: position,
        });
        driver.set_avail(position.wrapping_add(ahead));
    }

    fn assert_takes(queue: &mut VirtQueue, memory: &Memory, size: u16, position: u16, far: u16) {
        let what = match queue.pop(memory) {
            Ok(None) => far == 0,
            Ok(Some(_)) => far > 0 && far <= size,
            Err(error) => far > size && error == RingError::AvailableIndex,
        };
        assert!(what, "size {size}, {far} ahead of {position}");
        let taken = u16::from(far > 0 && far <= size);
        assert_eq!(queue.position().next_avail, position.wrapping_add(taken));
    }

    /// All sizes there are, from where the index wraps and from where nothing is special, all distances.
    #[test]
    fn available_index_at_every_distance_is_taken_as_far_as_the_ring_is_long() {
        for size in SIZES {
            let (memory, mut driver, mut queue) = set_up(size);
            for position in [0, 0u16.wrapping_sub(size / 2 + 1)] {
                for far in 0..=u16::MAX {
                    ahead(&mut queue, &mut driver, position, far);
                    assert_takes(&mut queue, &memory, size, position, far);
                }
            }
        }
    }

    /// All positions there are, at the distances where something changes.
    #[test]
    fn available_index_from_every_position_is_taken_as_far_as_the_ring_is_long() {
        for size in [1, 8, 256] {
            let (memory, mut driver, mut queue) = set_up(size);
            for position in 0..=u16::MAX {
                for far in [0, 1, size, size + 1] {
                    ahead(&mut queue, &mut driver, position, far);
                    assert_takes(&mut queue, &memory, size, position, far);
                }
            }
        }
    }

    /// The used index from every position, and the interrupt for every index that the driver may wait for.
    #[test]
    fn used_index_wraps_and_interrupts_once_it_passes_what_the_driver_waits_for() {
        let memory = memory();
        let driver = DriverQueue::new(&memory, 0, 4);
        let mut queue = driver.activate(true);
        for position in 0..=u16::MAX {
            queue.continue_at(QueuePosition {
                next_avail: position,
                next_used: position,
            });
            for waits_for in [position.wrapping_sub(1), position, position.wrapping_add(1)] {
                driver.set_used_event(waits_for);
                let before = queue.position().next_used;
                queue.complete(&memory, 0, 0).unwrap();
                assert_eq!(queue.position().next_used, before.wrapping_add(1));
                let interrupt = queue.take_interrupt(&memory).unwrap();
                assert_eq!(interrupt, before == waits_for, "{before} for {waits_for}");
            }
        }
        // The other way round: one position, every index that can be waited for, several chains at once.
        for waits_for in 0..=u16::MAX {
            queue.continue_at(QueuePosition {
                next_avail: 0xfffe,
                next_used: 0xfffe,
            });
            driver.set_used_event(waits_for);
            for _ in 0..3 {
                queue.complete(&memory, 0, 0).unwrap();
            }
            let passed = [0xfffe, 0xffff, 0].contains(&waits_for);
            assert_eq!(
                queue.take_interrupt(&memory).unwrap(),
                passed,
                "{waits_for}"
            );
        }
    }

    #[test]
    fn chain_taken_back_is_the_next_one_again() {
        let (memory, mut driver, mut queue) = set_up(8);
        driver.add(&[(DATA, 1, true)]);
        driver.add(&[(DATA, 2, true)]);
        assert_eq!(queue.pop(&memory).unwrap().unwrap().writable.len(), 1);
        assert_eq!(queue.pop(&memory).unwrap().unwrap().writable.len(), 2);
        queue.undo_pop();
        queue.undo_pop();
        assert_eq!(queue.pop(&memory).unwrap().unwrap().writable.len(), 1);
    }

    #[test]
    fn registers_that_make_no_queue_are_refused() {
        let memory = memory();
        let good = DriverQueue::new(&memory, 0, 8).registers();
        let bad = [
            QueueRegisters { size: 0, ..good },
            QueueRegisters { size: 7, ..good },
            QueueRegisters { size: 512, ..good },
            QueueRegisters {
                desc_table: RINGS + 8,
                ..good
            },
            QueueRegisters {
                avail_ring: RINGS + 1,
                ..good
            },
            QueueRegisters {
                used_ring: RINGS + 2,
                ..good
            },
            QueueRegisters {
                desc_table: MEMORY_BYTES,
                ..good
            },
            QueueRegisters {
                desc_table: MEMORY_BYTES - 16,
                ..good
            },
            QueueRegisters {
                avail_ring: u64::MAX - 1,
                ..good
            },
            QueueRegisters {
                avail_ring: 0,
                ..good
            },
            QueueRegisters {
                used_ring: u64::MAX - 3,
                ..good
            },
            QueueRegisters {
                max_size: 0,
                ..good
            },
        ];
        for registers in bad {
            let error = VirtQueue::activate(5, &registers, true, &memory).err();
            assert_eq!(error, Some(RingError::Layout { queue: 5 }), "{registers:?}");
        }
        let unready = QueueRegisters {
            ready: false,
            ..good
        };
        let error = VirtQueue::activate(1, &unready, true, &memory).err();
        assert_eq!(error, Some(RingError::NotReady { queue: 1 }));
    }

    #[test]
    fn driver_that_wants_no_interrupts_gets_none() {
        let (memory, mut driver, mut queue) = set_up(8);
        assert!(!queue.take_interrupt(&memory).unwrap());
        driver.add(&[(DATA, 1, true)]);
        queue.complete(&memory, 0, 0).unwrap();
        assert!(queue.take_interrupt(&memory).unwrap());
        assert!(!queue.take_interrupt(&memory).unwrap());
        driver.set_avail_flags(1);
        queue.complete(&memory, 1, 0).unwrap();
        assert!(!queue.take_interrupt(&memory).unwrap());
    }

    #[test]
    fn driver_with_event_indices_is_interrupted_once_for_what_it_waits_for() {
        let memory = memory();
        let driver = DriverQueue::new(&memory, 0, 8);
        let mut queue = driver.activate(true);
        driver.set_used_event(2);
        for head in 0..2 {
            queue.complete(&memory, head, 0).unwrap();
            assert!(!queue.take_interrupt(&memory).unwrap());
        }
        queue.complete(&memory, 2, 0).unwrap();
        queue.complete(&memory, 3, 0).unwrap();
        assert!(queue.take_interrupt(&memory).unwrap());
        assert!(!queue.take_interrupt(&memory).unwrap());
    }

    #[test]
    fn rearm_tells_of_a_chain_that_came_before_it() {
        for event_idx in [false, true] {
            let memory = memory();
            let mut driver = DriverQueue::new(&memory, 0, 8);
            let mut queue = driver.activate(event_idx);
            assert!(!queue.rearm(&memory).unwrap());
            driver.add(&[(DATA, 1, true)]);
            assert!(queue.rearm(&memory).unwrap());
        }
    }
}
