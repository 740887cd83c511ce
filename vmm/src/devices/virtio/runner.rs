//! Runs one virtio device: hands it its rings on the event loop, interrupts once per call, stops it
//! when a ring is broken.
//!
//! Two threads meet here. The event loop does queue work under the runner's lock. A vCPU thread
//! takes the same lock to activate, to reset and for configuration reads, so a reset waits for the
//! request in progress and nothing touches guest memory once it is done (a peer freed the buffers
//! of a request in flight: CVE-2026-45782). Interrupt status is outside of the lock, because the
//! guest's interrupt handler reads it while the device works.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use super::block::Block;
use super::queue::{RingError, VirtQueue};
use super::state::{CONFIG_BYTES, DeviceState, QueuePosition};
use super::{Rings, VirtioDevice, Work};
use crate::devices::event_loop::{Handler, Ready, Watcher};
use crate::devices::limited::LogBudget;
use crate::devices::lock;
use crate::lines::TransportLines;
use crate::memory::Memory;

/// Tokens below this are queue numbers; a device's own tokens count from here.
const FIRST_HOST_TOKEN: u32 = 64;

/// What transport and event loop share.
pub struct Runner {
    core: Mutex<Core>,
    memory: Memory,
    irq: EventFd,
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    doorbells: Vec<EventFd>,
}

struct Core {
    device: Box<dyn VirtioDevice>,
    /// `None` while no driver is up.
    queues: Option<Vec<VirtQueue>>,
    log: LogBudget,
}

impl Core {
    fn stop(&mut self) {
        if self.queues.take().is_some() {
            self.device.reset();
        }
    }
}

impl Runner {
    pub fn new(device: Box<dyn VirtioDevice>, memory: Memory, lines: TransportLines) -> Self {
        Self {
            core: Mutex::new(Core {
                device,
                queues: None,
                log: LogBudget::new(),
            }),
            memory,
            irq: lines.irq,
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            doorbells: lines.doorbells,
        }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    pub fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        lock(&self.core).device.read_config(offset, data);
    }

    /// Wakes the event loop up for a queue, as an ioeventfd would. Unknown queues are ignored.
    pub fn ring(&self, queue: usize) {
        if let Some(doorbell) = self.doorbells.get(queue) {
            // A full counter means that the doorbell was rung already.
            let _ = doorbell.write(1);
        }
    }

    /// Starts the device. From here on only the event loop touches `queues`.
    pub fn activate(&self, queues: Vec<VirtQueue>, features: u64) {
        let mut core = lock(&self.core);
        core.device.activate(features);
        core.queues = Some(queues);
        drop(core);
        // The driver may have filled queues before DRIVER_OK, and the device may have been waiting
        // for the driver: let it look at each queue once.
        (0..self.doorbells.len()).for_each(|queue| self.ring(queue));
    }

    /// The configuration as the driver reads it.
    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        self.read_config(0, &mut config);
        config
    }

    /// What the device remembers, and how far it has come in its rings. The event loop is parked.
    pub fn save(&self) -> (DeviceState, Vec<QueuePosition>) {
        let core = lock(&self.core);
        let queues = core.queues.iter().flatten();
        (
            core.device.save(),
            queues.map(VirtQueue::position).collect(),
        )
    }

    /// Makes a new device what a saved one was. Nothing of it is on the event loop yet. Interrupts that are due are
    /// not on their way yet: see [`Runner::interrupt_status`].
    pub fn restore(
        &self,
        device: DeviceState,
        queues: Option<Vec<VirtQueue>>,
        features: u64,
        interrupt_status: u32,
        needs_reset: bool,
    ) -> Option<()> {
        lock(&self.core).device.restore(device)?;
        if let Some(queues) = queues {
            self.activate(queues, features);
        }
        self.interrupt_status
            .store(interrupt_status, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.welcome();
        Some(())
    }

    /// Lets the device tell a restored guest what it has to know first.
    fn welcome(&self) {
        let mut guard = lock(&self.core);
        let core = &mut *guard;
        let told = match rings(&self.memory, &mut core.queues) {
            Some(mut rings) => core.device.welcome(&mut rings),
            None => return,
        };
        match told.and_then(|()| self.interrupt_due(core)) {
            // Whoever restores raises it, when the interrupt controllers are there to take it.
            Ok(true) => {
                self.interrupt_status
                    .fetch_or(VIRTIO_MMIO_INT_VRING, Ordering::SeqCst);
            }
            Ok(false) => {}
            Err(error) => self.fail_locked(core, error),
        }
    }

    /// Calls `with` if this is a disk that the guest writes to. The event loop is parked.
    pub fn with_writable_disk<T>(&self, with: impl FnOnce(&Block) -> T) -> Option<T> {
        lock(&self.core).device.writable_disk().map(with)
    }

    /// Stops the device. When this returns, it touches neither guest memory nor the interrupt.
    pub fn reset(&self) {
        let mut core = lock(&self.core);
        core.stop();
        self.needs_reset.store(false, Ordering::SeqCst);
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    /// Refuses to go on with this driver until it resets the device.
    pub fn fail(&self, error: RingError) {
        self.fail_locked(&mut lock(&self.core), error);
    }

    fn fail_locked(&self, core: &mut Core, error: RingError) {
        core.stop();
        let device = core.device.name();
        if core.log.take(device) {
            tracing::warn!(device, %error, "device stopped until the guest resets it");
        }
        self.needs_reset.store(true, Ordering::SeqCst);
        self.interrupt(VIRTIO_MMIO_INT_CONFIG);
    }

    fn interrupt(&self, bits: u32) {
        self.interrupt_status.fetch_or(bits, Ordering::SeqCst);
        // A full counter means that the interrupt is pending already.
        let _ = self.irq.write(1);
    }

    fn handle(&self, token: u32, ready: Ready) {
        let mut guard = lock(&self.core);
        let core = &mut *guard;
        let result = match token.checked_sub(FIRST_HOST_TOKEN) {
            Some(token) => {
                let mut rings = rings(&self.memory, &mut core.queues);
                core.device.host_ready(token, ready, rings.as_mut())
            }
            None => self.serve_queue(core, token as usize),
        };
        match result.and_then(|work| Ok((work, self.interrupt_due(core)?))) {
            Ok((work, interrupt)) => {
                if interrupt {
                    self.interrupt(VIRTIO_MMIO_INT_VRING);
                }
                if let Work::Again { queue } = work {
                    self.ring(queue);
                }
            }
            Err(error) => self.fail_locked(core, error),
        }
    }

    fn serve_queue(&self, core: &mut Core, queue: usize) -> Result<Work, RingError> {
        // A late doorbell of a driver that is gone finds no rings.
        match rings(&self.memory, &mut core.queues) {
            Some(mut rings) => core.device.queue_ready(queue, &mut rings),
            None => Ok(Work::Done),
        }
    }

    /// Whether any queue wants the driver to look, after a call that may have served several.
    fn interrupt_due(&self, core: &mut Core) -> Result<bool, RingError> {
        let mut due = false;
        for queue in core.queues.iter_mut().flatten() {
            due |= queue.take_interrupt(&self.memory)?;
        }
        Ok(due)
    }

    /// Watches the doorbells and whatever the device has on the host.
    pub fn watch(self: &Arc<Self>, watcher: Watcher) -> io::Result<Box<dyn Handler>> {
        for (token, doorbell) in (0..).zip(&self.doorbells) {
            watcher.watch_event(doorbell, token)?;
        }
        lock(&self.core)
            .device
            .watch(watcher.shifted(FIRST_HOST_TOKEN))?;
        Ok(Box::new(OnLoop(Arc::clone(self))))
    }
}

fn rings<'a>(memory: &'a Memory, queues: &'a mut Option<Vec<VirtQueue>>) -> Option<Rings<'a>> {
    queues.as_mut().map(|queues| Rings { memory, queues })
}

struct OnLoop(Arc<Runner>);

impl Handler for OnLoop {
    fn ready(&mut self, token: u32, events: Ready) {
        self.0.handle(token, events);
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]
impl Runner {
    /// What the event loop does for a rung doorbell, and for the turns that the device asks for.
    pub fn serve(&self, queue: usize) {
        self.doorbells
            .iter()
            .for_each(|doorbell| drop(doorbell.read()));
        let mut rung = vec![queue];
        while let Some(queue) = rung.pop() {
            self.handle(queue as u32, Ready::default());
            rung.extend((0..self.doorbells.len()).filter(|&n| self.doorbells[n].read().is_ok()));
        }
    }
}
