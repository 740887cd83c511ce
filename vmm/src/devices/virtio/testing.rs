//! A guest for unit tests: memory, rings that it writes itself, honest or not.
//!
//! Layout of its memory: ring pages from [`RINGS`], one [`RING_SPACING`] per queue, and everything
//! from [`DATA`] up is the test's.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::mmio::MmioTransport;
use super::queue::VirtQueue;
use super::state::QueueRegisters;
use crate::devices::bus::BusDevice;
use crate::lines::TransportLines;
use crate::memory::Memory;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

pub const MEMORY_BYTES: u64 = 16 << 20;
pub const RINGS: u64 = 0x1_0000;
pub const RING_SPACING: u64 = 0x1_0000;
pub const DATA: u64 = 0x10_0000;

const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;

/// One queue as the driver sees it.
pub struct DriverQueue {
    memory: Memory,
    base: u64,
    pub size: u16,
    /// Where the next honest chain starts.
    pub next_descriptor: u16,
    avail: u16,
    used_seen: u16,
}

/// A piece of a chain: address, length, whether the device writes it.
pub type Piece = (u64, u32, bool);

pub fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap()
}

impl DriverQueue {
    pub fn new(memory: &Memory, index: u64, size: u16) -> Self {
        let base = RINGS + index * RING_SPACING;
        Self {
            memory: memory.clone(),
            base,
            size,
            next_descriptor: 0,
            avail: 0,
            used_seen: 0,
        }
    }

    /// The registers an honest driver would write.
    pub fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            max_size: 256,
            size: self.size,
            ready: true,
            desc_table: self.base,
            avail_ring: self.base + AVAIL,
            used_ring: self.base + USED,
        }
    }

    pub fn activate(&self, event_idx: bool) -> VirtQueue {
        VirtQueue::activate(0, &self.registers(), event_idx, &self.memory).unwrap()
    }

    /// Writes one descriptor, whatever it says.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base, index, addr, len, flags, next);
    }

    /// Writes one descriptor of an indirect table.
    pub fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = table + u64::from(index) * 16;
        self.memory.write_obj(addr, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = self.base + AVAIL + 4 + u64::from(self.avail % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail(self.avail.wrapping_add(1));
    }

    pub fn set_avail(&mut self, index: u16) {
        self.avail = index;
        self.memory
            .write_obj(index, GuestAddress(self.base + AVAIL + 2))
            .unwrap();
    }

    /// Asks for no interrupts, the way without event indices.
    pub fn set_avail_flags(&self, flags: u16) {
        self.memory
            .write_obj(flags, GuestAddress(self.base + AVAIL))
            .unwrap();
    }

    /// Asks for an interrupt once the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = self.base + AVAIL + 4 + u64::from(self.size) * 2;
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// When a driver with event indices rings: the device asks for a doorbell once this index is passed.
    pub fn avail_event(&self) -> u16 {
        let at = self.base + USED + 4 + u64::from(self.size) * 8;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Adds an honest chain. Gives its head.
    pub fn add(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        for (n, &(addr, len, writable)) in pieces.iter().enumerate() {
            let index = (head + n as u16) % self.size;
            let more = if n + 1 < pieces.len() { NEXT } else { 0 };
            let write = if writable { WRITE } else { 0 };
            self.descriptor(index, addr, len, more | write, (index + 1) % self.size);
        }
        self.next_descriptor = (head + pieces.len() as u16) % self.size;
        self.publish(head);
        head
    }

    /// What the device gave back since the last call: head and length.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.base + USED + 2))
            .unwrap();
        let mut used = Vec::new();
        while self.used_seen != index {
            let at = self.base + USED + 4 + u64::from(self.used_seen % self.size) * 8;
            let id = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            used.push((id, len));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }
}

/// A transport with a driver that knows the start-up sequence.
pub struct Machine {
    pub memory: Memory,
    pub transport: MmioTransport,
    pub queues: Vec<DriverQueue>,
    pub irq: EventFd,
    pub doorbells: Vec<EventFd>,
}

/// A doorbell for each queue of `device`, and copies of them.
pub fn lines(device: &dyn VirtioDevice, irq: &EventFd) -> (TransportLines, Vec<EventFd>) {
    let event = |_| EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let doorbells: Vec<EventFd> = (0..device.queue_max_sizes().len()).map(event).collect();
    let copies = doorbells.iter().map(|event| event.try_clone().unwrap());
    let copies = copies.collect();
    let irq = irq.try_clone().unwrap();
    (TransportLines { irq, doorbells }, copies)
}

impl Machine {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::in_memory(device, memory())
    }

    pub fn in_memory(device: Box<dyn VirtioDevice>, memory: Memory) -> Self {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let sizes = device.queue_max_sizes();
        let queues = (0..)
            .zip(sizes)
            .map(|(index, &size)| DriverQueue::new(&memory, index, size))
            .collect();
        let (lines, doorbells) = lines(&*device, &irq);
        let transport = MmioTransport::new(device, memory.clone(), lines);
        Self {
            memory,
            transport,
            queues,
            irq,
            doorbells,
        }
    }

    /// A machine whose driver is up, without event indices, so that every completion interrupts.
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut machine = Self::new(device);
        machine.negotiate(1 << VIRTIO_F_VERSION_1);
        machine.set_up_queues();
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xf);
        machine
    }

    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Up to and including FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        for select in [0, 1] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(
                VIRTIO_MMIO_DRIVER_FEATURES,
                (features >> (32 * select)) as u32,
            );
        }
        self.write(VIRTIO_MMIO_STATUS, 0xb);
    }

    pub fn set_up_queues(&mut self) {
        for index in 0..self.queues.len() {
            let registers = self.queues[index].registers();
            self.set_up_queue(index as u32, &registers);
        }
    }

    pub fn set_up_queue(&mut self, index: u32, queue: &QueueRegisters) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        for (low, high, value) in [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                queue.desc_table,
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                queue.avail_ring,
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                queue.used_ring,
            ),
        ] {
            self.write(low, value as u32);
            self.write(high, (value >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, queue.ready.into());
    }

    /// Lets the device serve a queue until it asks for no more turns, as the event loop would.
    pub fn serve(&mut self, queue: usize) {
        self.transport.serve(queue);
    }

    /// How often the guest was interrupted since the last call.
    pub fn interrupts(&mut self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    pub fn needs_reset(&mut self) -> bool {
        self.read(VIRTIO_MMIO_STATUS) & 0x40 != 0
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }
}

/// Features with event indices.
pub const EVENT_IDX: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
