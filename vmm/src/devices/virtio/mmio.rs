//! The virtio-mmio transport, version 2: the registers through which a driver finds a device,
//! agrees on features, places its queues and starts.
//!
//! The guest sees one page of registers per device, named in its ACPI tables, and one interrupt.
//!
//! # Threads
//! vCPU threads read and write registers under the transport's lock. Queue work happens on the
//! event loop, see the `runner` module; doorbells reach it as ioeventfds without passing here.
//!
//! # Trust
//! Any register, any width, any value, in any order. The status field moves one step at a time and
//! only forward; a register is writable only in the step where the spec has the driver write it.
//! In particular the place and size of a queue are fixed at DRIVER_OK (a peer re-read them later:
//! CVE-2026-5747). A wrong access changes nothing and is logged a few times.
//!
//! # Snapshot
//! Saved: [`super::state::TransportSaved`], which is the registers, interrupt status, DEVICE_NEEDS_RESET, queue positions, and
//! what the device remembers. Not saved: eventfds, so after a restore each doorbell is rung once and a pending
//! interrupt raised once more: both may have been under way. A file that describes another device than the one
//! at hand is refused by name, and one that no driver can have brought about as well.
//!
//! # Not here
//! Legacy registers, shared memory regions, queue reset. Spec: virtio 1.2, sections 4.2.2, 2.1, 3.1.

mod saved;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::queue::{RingError, VirtQueue};
use super::runner::Runner;
use super::state::{QueueRegisters, TransportState};
use super::{COMMON_FEATURES, VirtioDevice};
use crate::devices::bus::BusDevice;
use crate::devices::event_loop::EventLoop;
use crate::devices::limited::LogBudget;
use crate::devices::lock;
use crate::lines::TransportLines;
use crate::memory::Memory;

pub use saved::TransportError;

/// How many bytes of guest-physical address space a transport takes.
pub const LEN: u64 = 0x1000;
/// Where in that range a doorbell is: what an ioeventfd has to match, with the queue's number as data.
pub const DOORBELL_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the modern interface.
const VERSION: u32 = 2;
/// No vendor was registered for this device; zero is what the spec's examples use.
const VENDOR: u32 = 0;
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// What the length of a shared memory region reads as when the region does not exist.
const NO_REGION: u32 = u32::MAX;

/// One virtio device on the memory-mapped bus.
pub struct MmioTransport {
    runner: Arc<Runner>,
    name: &'static str,
    device_type: u32,
    offered: u64,
    state: TransportState,
    log: LogBudget,
}

impl MmioTransport {
    /// `lines` has a doorbell for each queue of the device.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        lines: TransportLines,
    ) -> Self {
        Self {
            name: device.name(),
            device_type: device.device_type(),
            offered: device.features() | COMMON_FEATURES,
            state: TransportState::new(device.queue_max_sizes()),
            runner: Arc::new(Runner::new(device, memory, lines)),
            log: LogBudget::new(),
        }
    }

    /// Puts the device's queue work on the event loop.
    pub fn attach(transport: &Arc<Mutex<Self>>, event_loop: &mut EventLoop) -> io::Result<()> {
        let runner = Arc::clone(&lock(transport).runner);
        event_loop.add(|watcher| runner.watch(watcher))
    }

    fn read_register(&self, register: u32) -> u32 {
        let selected = self.state.selected();
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.state.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => selected.map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => selected.map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.runner.interrupt_status(),
            VIRTIO_MMIO_STATUS => self.status(),
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            // Write-only, reserved, and CONFIG_GENERATION of a configuration that never changes.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.state.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.state.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.state.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.runner.ring(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => self.runner.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_SHM_SEL => {}
            _ => self.write_queue_register(register, value),
        }
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.runner.needs_reset() {
            NEEDS_RESET
        } else {
            0
        };
        self.state.status | needs_reset
    }

    fn write_features(&mut self, value: u32) {
        if self.state.status != ACKNOWLEDGE | DRIVER {
            return self.refuse("features outside of negotiation", value);
        }
        let (mask, shift) = match self.state.driver_features_select {
            0 => (0xffff_ffff_0000_0000, 0),
            1 => (0x0000_0000_ffff_ffff, 32),
            // No features up there are offered, so zero is the only right value.
            _ => return,
        };
        let kept = self.state.driver_features & mask;
        self.state.driver_features = kept | u64::from(value) << shift;
    }

    /// Section 3.1.1: each step sets one more bit, in this order. Zero resets at any time.
    fn write_status(&mut self, value: u32) {
        // The driver writes back what it read, so DEVICE_NEEDS_RESET may be set; it means nothing.
        let value = value & !NEEDS_RESET;
        let status = self.state.status;
        if value == 0 {
            return self.reset();
        }
        if value & status != status {
            return self.refuse("status that takes a step back", value);
        }
        match value & !status {
            0 => {}
            ACKNOWLEDGE if status == 0 => self.state.status = value,
            DRIVER if status == ACKNOWLEDGE => self.state.status = value,
            FEATURES_OK if status == ACKNOWLEDGE | DRIVER => {
                // Not set means "not with these features"; the driver reads it back.
                if self.features_acceptable() {
                    self.state.status = value;
                }
            }
            DRIVER_OK if status == ACKNOWLEDGE | DRIVER | FEATURES_OK => {
                self.state.status = value;
                self.activate();
            }
            // The driver gives up, from any state.
            FAILED => self.state.status = value,
            _ => self.refuse("status out of order", value),
        }
    }

    fn features_acceptable(&self) -> bool {
        let features = self.state.driver_features;
        features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let features = self.state.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues: Result<Vec<VirtQueue>, RingError> = (self.state.queues.iter().enumerate())
            .map(|(index, queue)| {
                VirtQueue::activate(index, queue, event_idx, self.runner.memory())
            })
            .collect();
        match queues {
            Ok(queues) => self.runner.activate(queues, features),
            Err(error) => self.runner.fail(error),
        }
    }

    fn reset(&mut self) {
        self.runner.reset();
        let max_sizes: Vec<u16> = self
            .state
            .queues
            .iter()
            .map(|queue| queue.max_size)
            .collect();
        self.state = TransportState::new(&max_sizes);
    }

    fn write_queue_register(&mut self, register: u32, value: u32) {
        // Section 4.2.3.2: queues are set up between FEATURES_OK and DRIVER_OK, and while one is
        // ready only QueueReady itself may be written.
        let set_up = self.state.status == ACKNOWLEDGE | DRIVER | FEATURES_OK;
        let accepted = match self.state.selected_mut() {
            Some(queue) if set_up => write_queue(queue, register, value),
            _ => false,
        };
        if !accepted {
            self.refuse("register that is not writable now", register);
        }
    }

    fn refuse(&mut self, what: &str, value: u32) {
        if self.log.take(self.name) {
            tracing::debug!(device = self.name, value, "guest wrote a {what}");
        }
    }
}

/// Writes one register of a queue that is being set up. `false` if that is not possible now.
fn write_queue(queue: &mut QueueRegisters, register: u32, value: u32) -> bool {
    if register == VIRTIO_MMIO_QUEUE_READY {
        queue.ready = value == 1;
        return value <= 1;
    }
    if queue.ready {
        return false;
    }
    match register {
        // A size that makes no sense becomes zero, which DRIVER_OK refuses.
        VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
        _ => return false,
    }
    true
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "takes one half of the feature bits"
)]
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & 0xffff_ffff_0000_0000 | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & 0x0000_0000_ffff_ffff | u64::from(value) << 32;
}

/// The register that an access means: registers are 32 bits wide and are accessed as a whole.
fn register(offset: u64, width: usize) -> Option<u32> {
    let aligned = offset.is_multiple_of(4) && width == 4;
    u32::try_from(offset).ok().filter(|_| aligned)
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.runner.read_config(offset, data);
        } else if let Some(register) = register(offset, data.len()) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a writable configuration field.
        if offset < CONFIG
            && let Some(register) = register(offset, data.len())
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
    }
}

#[cfg(test)]
impl MmioTransport {
    pub fn serve(&self, queue: usize) {
        self.runner.serve(queue);
    }

    /// As [`MmioTransport::attach`], for a test that keeps the transport to itself.
    pub fn attach_alone(&self, event_loop: &mut EventLoop) {
        event_loop
            .add(|watcher| self.runner.watch(watcher))
            .unwrap();
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::devices::virtio::testing::*;
    use crate::devices::virtio::{Rings, Work, copy_config};

    const V1: u64 = 1 << VIRTIO_F_VERSION_1;
    const OWN_FEATURE: u64 = 1 << 3;
    const CONFIG_BYTES: [u8; 6] = [1, 2, 3, 4, 5, 6];

    /// Gives every chain back and counts them.
    #[derive(Clone, Default)]
    struct Echo(Arc<Mutex<Seen>>);

    #[derive(Default)]
    struct Seen {
        chains: usize,
        activated: Option<u64>,
        resets: usize,
    }

    impl VirtioDevice for Echo {
        fn name(&self) -> &'static str {
            "echo"
        }
        fn device_type(&self) -> u32 {
            42
        }
        fn queue_max_sizes(&self) -> &'static [u16] {
            &[16, 8]
        }
        fn features(&self) -> u64 {
            OWN_FEATURE
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            copy_config(&CONFIG_BYTES, offset, data);
        }
        fn activate(&mut self, features: u64) {
            lock(&self.0).activated = Some(features);
        }
        fn reset(&mut self) {
            lock(&self.0).resets += 1;
        }
        fn queue_ready(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
            while let Some(chain) = rings.queues[queue].pop(rings.memory)? {
                rings.queues[queue].complete(rings.memory, chain.head, 0)?;
                lock(&self.0).chains += 1;
            }
            Ok(Work::Done)
        }
    }

    fn started() -> (Machine, Echo) {
        let echo = Echo::default();
        (Machine::started(Box::new(echo.clone())), echo)
    }

    fn new() -> (Machine, Echo) {
        let echo = Echo::default();
        (Machine::new(Box::new(echo.clone())), echo)
    }

    #[test]
    fn identity_registers_say_what_the_device_is() {
        let (mut machine, _) = new();
        assert_eq!(
            machine.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(),
            *b"virt"
        );
        assert_eq!(machine.read(VIRTIO_MMIO_VERSION), 2);
        assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_ID), 42);
    }

    #[test]
    fn driver_that_follows_the_order_starts_the_device_once() {
        let (mut machine, echo) = started();
        assert_eq!(lock(&echo.0).activated.take(), Some(V1));
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(lock(&echo.0).activated, None);
    }

    #[test]
    fn firecracker_5818_steps_out_of_order_change_nothing() {
        for first in 1..=0xff {
            let (mut machine, echo) = new();
            machine.write(VIRTIO_MMIO_STATUS, first);
            let expected = if first == 1 || first & !0x40 == 1 || first & !0x40 == 0x80 {
                first & !0x40
            } else {
                0
            };
            assert_eq!(
                machine.read(VIRTIO_MMIO_STATUS),
                expected,
                "first {first:#x}"
            );
            assert_eq!(lock(&echo.0).activated, None);
        }
    }

    #[test]
    fn status_never_takes_a_step_back_but_to_zero() {
        let (mut machine, _) = started();
        for value in [1, 3, 7, 0xb, 0x40 | 0xb] {
            machine.write(VIRTIO_MMIO_STATUS, value);
            assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xf);
        }
        machine.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn features_that_were_not_offered_are_not_accepted() {
        for features in [V1 | 1, V1 | 1 << 63, OWN_FEATURE, 0] {
            let (mut machine, _) = new();
            machine.negotiate(features);
            assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 3, "{features:#x}");
        }
        let (mut machine, _) = new();
        machine.negotiate(V1 | OWN_FEATURE);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xb);
    }

    #[test]
    fn features_are_offered_in_halves_and_nothing_beyond() {
        let (mut machine, _) = new();
        let mut halves = [0, 1, 2, u32::MAX].map(|select| {
            machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            machine.read(VIRTIO_MMIO_DEVICE_FEATURES)
        });
        assert_eq!(halves[0], 1 << VIRTIO_RING_F_EVENT_IDX | OWN_FEATURE as u32);
        halves[0] = 0;
        assert_eq!(halves, [0, 1, 0, 0]);
    }

    #[test]
    fn features_written_after_they_were_agreed_do_not_count() {
        let (mut machine, echo) = new();
        machine.negotiate(V1);
        machine.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        machine.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
        machine.set_up_queues();
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(lock(&echo.0).activated, Some(V1));
    }

    #[test]
    fn queue_registers_before_features_are_agreed_are_not_taken() {
        let (mut machine, _) = new();
        machine.set_up_queues();
        assert_eq!(machine.transport.state.queues[0], QueueRegisters::new(16));
    }

    #[test]
    fn cve_2026_5747_queue_registers_after_the_start_are_not_taken() {
        let (mut machine, _) = started();
        let before = machine.transport.state.queues.clone();
        for queue in 0..3 {
            machine.write(VIRTIO_MMIO_QUEUE_SEL, queue);
            for register in (0x30..0xfc).step_by(4).filter(|&register| {
                register != VIRTIO_MMIO_STATUS && register != VIRTIO_MMIO_QUEUE_SEL
            }) {
                for value in [0, 1, 3, u32::MAX] {
                    machine.write(register, value);
                }
            }
        }
        assert_eq!(machine.transport.state.queues, before);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xf);
    }

    #[test]
    fn ready_queue_can_be_changed_only_after_it_was_taken_back() {
        let (mut machine, _) = new();
        machine.negotiate(V1);
        machine.set_up_queues();
        machine.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        machine.write(VIRTIO_MMIO_QUEUE_NUM, 4);
        assert_eq!(machine.transport.state.queues[0].size, 16);
        machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
        machine.write(VIRTIO_MMIO_QUEUE_NUM, 4);
        assert_eq!(machine.transport.state.queues[0].size, 4);
    }

    #[test]
    fn queue_that_does_not_exist_reads_as_none() {
        let (mut machine, _) = new();
        for select in [2, 3, u32::MAX] {
            machine.write(VIRTIO_MMIO_QUEUE_SEL, select);
            assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
            assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
        }
        machine.write(VIRTIO_MMIO_QUEUE_SEL, 1);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
    }

    #[test]
    fn start_without_queues_asks_for_a_reset_and_runs_nothing() {
        let (mut machine, echo) = new();
        machine.negotiate(V1);
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert!(machine.needs_reset());
        assert_eq!(
            machine.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        assert_eq!(lock(&echo.0).activated, None);
        machine.serve(0);
        machine.write(VIRTIO_MMIO_STATUS, 0);
        assert!(!machine.needs_reset());
    }

    #[test]
    fn mvm_1861_queue_sizes_that_divide_by_zero_elsewhere_ask_for_a_reset() {
        for size in [0, 3, 17, 32, 0x1_0000, u32::MAX] {
            let (mut machine, echo) = new();
            machine.negotiate(V1);
            machine.write(VIRTIO_MMIO_QUEUE_SEL, 0);
            machine.write(VIRTIO_MMIO_QUEUE_NUM, size);
            machine.write(VIRTIO_MMIO_QUEUE_DESC_LOW, RINGS as u32);
            machine.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, RINGS as u32 + 0x4000);
            machine.write(VIRTIO_MMIO_QUEUE_USED_LOW, RINGS as u32 + 0x8000);
            machine.write(VIRTIO_MMIO_QUEUE_READY, 1);
            let second = machine.queues[1].registers();
            machine.set_up_queue(1, &second);
            machine.write(VIRTIO_MMIO_STATUS, 0xf);
            assert!(machine.needs_reset(), "size {size}");
            assert_eq!(lock(&echo.0).activated, None);
        }
    }

    #[test]
    fn several_chains_in_one_turn_are_one_interrupt() {
        let (mut machine, echo) = started();
        machine.interrupts();
        for _ in 0..5 {
            machine.queues[0].add(&[(DATA, 4, true)]);
        }
        machine.serve(0);
        assert_eq!(lock(&echo.0).chains, 5);
        assert_eq!(machine.interrupts(), 1);
        assert_eq!(
            machine.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_VRING
        );
        machine.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    #[test]
    fn broken_ring_stops_the_device_until_it_is_reset() {
        let (mut machine, echo) = started();
        machine.queues[0].set_avail(1000);
        machine.serve(0);
        assert!(machine.needs_reset());
        assert_eq!(lock(&echo.0).resets, 1);

        // Nothing is served any more, the other queue included.
        machine.queues[1].add(&[(DATA, 4, true)]);
        machine.serve(1);
        assert_eq!(lock(&echo.0).chains, 0);

        machine.queues[0].set_avail(0);
        machine.negotiate(V1);
        machine.set_up_queues();
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xf);
        machine.serve(1);
        assert_eq!(lock(&echo.0).chains, 1);
    }

    #[test]
    fn cve_2026_45782_reset_with_requests_waiting_leaves_them_untouched() {
        let (mut machine, echo) = started();
        machine.queues[0].add(&[(DATA, 4, true)]);
        machine.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        machine.interrupts();
        // The doorbell was rung before the reset and is heard after it.
        machine.serve(0);
        assert_eq!(machine.queues[0].used(), []);
        assert_eq!(machine.interrupts(), 0);
        let seen = lock(&echo.0);
        assert_eq!((seen.chains, seen.resets), (0, 1));
    }

    /// In the middle of a request until it is let go on.
    struct Slow {
        begun: mpsc::Sender<()>,
        go_on: mpsc::Receiver<()>,
    }

    impl VirtioDevice for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }
        fn device_type(&self) -> u32 {
            42
        }
        fn queue_max_sizes(&self) -> &'static [u16] {
            &[16]
        }
        fn features(&self) -> u64 {
            0
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            copy_config(&[], offset, data);
        }
        fn activate(&mut self, _features: u64) {}
        fn reset(&mut self) {}
        fn queue_ready(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
            if let Some(mut chain) = rings.queues[queue].pop(rings.memory)? {
                self.begun.send(()).unwrap();
                self.go_on.recv().unwrap();
                let written = chain.writable.copy_in(&[9; 4]);
                rings.queues[queue].complete(rings.memory, chain.head, written)?;
            }
            Ok(Work::Done)
        }
    }

    #[test]
    fn cve_2026_45782_reset_waits_for_the_request_in_progress() {
        let (begun, has_begun) = mpsc::channel();
        let (let_go, go_on) = mpsc::channel();
        let mut machine = Machine::started(Box::new(Slow { begun, go_on }));
        machine.queues[0].add(&[(DATA, 4, true)]);
        let runner = Arc::clone(&machine.transport.runner);
        let request = std::thread::spawn(move || runner.serve(0));
        has_begun.recv().unwrap();
        let (done, is_done) = mpsc::channel();
        let reset = std::thread::spawn(move || {
            machine.write(VIRTIO_MMIO_STATUS, 0);
            // What the request was to fill is filled, and from here on it is the driver's alone.
            done.send(machine.get(DATA, 4)).unwrap();
        });
        let early = is_done.recv_timeout(std::time::Duration::from_millis(50));
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        let_go.send(()).unwrap();
        assert_eq!(is_done.recv().unwrap(), [9; 4]);
        reset.join().unwrap();
        request.join().unwrap();
    }

    #[test]
    fn cloud_hypervisor_mmio_configuration_reads_with_any_width_at_any_offset() {
        let (mut machine, _) = new();
        for width in 0..=16 {
            for offset in 0..12 {
                let mut data = vec![0xaa; width];
                machine.transport.read(0x100 + offset as u64, &mut data);
                let expected: Vec<u8> = (offset..offset + width)
                    .map(|at| *CONFIG_BYTES.get(at).unwrap_or(&0))
                    .collect();
                assert_eq!(data, expected);
            }
        }
        let mut data = [0xaa; 8];
        machine.transport.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn cloud_hypervisor_mmio_registers_read_as_zero_with_the_wrong_width() {
        let (mut machine, _) = new();
        for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4), (0xfe, 4)] {
            let mut data = vec![0xaa; width];
            machine.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width]);
        }
    }

    proptest::proptest! {
        /// CVE-2026-5747 and its kind: any access in any state.
        #[test]
        fn no_sequence_of_accesses_panics(
            start: bool,
            accesses in proptest::collection::vec(
                (0..0x110_u64, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..9), 0..3_u8), 0..80
            )
        ) {
            let (mut machine, _) = if start { started() } else { new() };
            for (offset, data, kind) in accesses {
                match kind {
                    0 => machine.transport.read(offset, &mut data.clone()),
                    1 => machine.transport.write(offset, &data),
                    _ => {
                        // Registers that exist, with small values: these get further.
                        let value = data.first().copied().unwrap_or(0);
                        machine.write(offset as u32 & !3, value.into());
                    }
                }
                machine.serve(0);
                machine.serve(1);
            }
        }
    }

    #[test]
    fn event_loop_serves_a_queue_whose_doorbell_is_rung() {
        let echo = Echo::default();
        let mut machine = Machine::new(Box::new(echo.clone()));
        machine.negotiate(EVENT_IDX);
        machine.set_up_queues();
        let (memory, mut queues, irq) = (machine.memory, machine.queues, machine.irq);
        let doorbells = machine.doorbells;
        let transport = Arc::new(Mutex::new(machine.transport));
        let mut event_loop = EventLoop::new().unwrap();
        let gate = event_loop.gate();
        MmioTransport::attach(&transport, &mut event_loop).unwrap();
        let thread = std::thread::spawn(move || event_loop.run());

        // Filled before DRIVER_OK: no doorbell is needed.
        queues[0].add(&[(DATA, 4, true)]);
        lock(&transport).write(VIRTIO_MMIO_STATUS.into(), &0xf_u32.to_le_bytes());
        wait_for(&irq);
        assert_eq!(queues[0].used().len(), 1);

        queues[1].add(&[(DATA, 4, true)]);
        doorbells[1].write(1).unwrap();
        wait_for(&irq);
        assert_eq!(queues[1].used().len(), 1);

        gate.stop();
        thread.join().unwrap().unwrap();
        drop(memory);
    }

    /// Waits for an interrupt, with a deadline that only a broken loop reaches.
    fn wait_for(irq: &vmm_sys_util::eventfd::EventFd) {
        use std::os::fd::AsRawFd;
        let mut poll = [libc::pollfd {
            fd: irq.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }];
        // SAFETY: the kernel reads and writes one `pollfd`, which lives across the call.
        let ready = unsafe { libc::poll(poll.as_mut_ptr(), 1, 10_000) };
        assert_eq!(ready, 1, "no interrupt within 10 s");
        irq.read().unwrap();
    }
}
