//! A transport out of the machine and back into it.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::MmioTransport;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::queue::{RingError, VirtQueue};
use crate::devices::virtio::state::{TransportSaved, TransportState};

/// Every bit of the interrupt status.
const INTERRUPTS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

/// Why a device cannot go on where a saved one stopped.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("The snapshot has a device of another kind here (virtio type {found}, not {expected})")]
    Kind { found: u32, expected: u32 },
    #[error("The device offers other features than the saved one ({here:#x}, not {saved:#x})")]
    Features { here: u64, saved: u64 },
    #[error("The device has another {what} than the saved one")]
    Config { what: &'static str },
    #[error("The saved {what} cannot be; make the golden again")]
    Impossible { what: &'static str },
    #[error("The saved queues cannot be used")]
    Queues { source: RingError },
}

impl MmioTransport {
    /// The device's name in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Everything about the device but its host handles. The event loop is parked, and no vCPU runs.
    pub fn save(&self) -> TransportSaved {
        let (device, positions) = self.runner.save();
        TransportSaved {
            device_type: self.device_type,
            offered: self.offered,
            config: self.runner.config(),
            registers: self.state.clone(),
            interrupt_status: self.runner.interrupt_status(),
            needs_reset: self.runner.needs_reset(),
            positions,
            device,
        }
    }

    /// Makes a new device what a saved one was. Guest memory is that of the same moment.
    pub fn restore(&mut self, saved: TransportSaved) -> Result<(), TransportError> {
        self.check(&saved)?;
        let TransportSaved {
            registers,
            positions,
            ..
        } = saved;
        let features = registers.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = None;
        if !positions.is_empty() {
            let mut running = Vec::new();
            for ((index, queue), position) in registers.queues.iter().enumerate().zip(positions) {
                let memory = self.runner.memory();
                let mut queue = VirtQueue::activate(index, queue, event_idx, memory)
                    .map_err(|source| TransportError::Queues { source })?;
                queue.continue_at(position);
                running.push(queue);
            }
            queues = Some(running);
        }
        let (status, needs_reset) = (saved.interrupt_status, saved.needs_reset);
        self.runner
            .restore(saved.device, queues, features, status, needs_reset)
            .ok_or(TransportError::Impossible {
                what: "state of the device",
            })?;
        self.state = registers;
        Ok(())
    }

    /// Whether `saved` is a state that a driver can have brought this very device into.
    fn check(&self, saved: &TransportSaved) -> Result<(), TransportError> {
        if saved.device_type != self.device_type {
            return Err(TransportError::Kind {
                found: saved.device_type,
                expected: self.device_type,
            });
        }
        if saved.offered != self.offered {
            return Err(TransportError::Features {
                here: self.offered,
                saved: saved.offered,
            });
        }
        if saved.config != self.runner.config() {
            return Err(TransportError::Config {
                what: "size or configuration",
            });
        }
        let registers = &saved.registers;
        let max_sizes = |state: &TransportState| -> Vec<u16> {
            state.queues.iter().map(|queue| queue.max_size).collect()
        };
        if max_sizes(registers) != max_sizes(&self.state) {
            return Err(TransportError::Config {
                what: "set of queues",
            });
        }
        let possible = |holds: bool, what| {
            if holds {
                Ok(())
            } else {
                Err(TransportError::Impossible { what })
            }
        };
        let up = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let steps = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, up & !DRIVER_OK, up];
        let running = !saved.positions.is_empty();
        possible(
            steps.contains(&(registers.status & !FAILED)),
            "device status",
        )?;
        possible(registers.driver_features & !self.offered == 0, "features")?;
        possible(
            saved.interrupt_status & !INTERRUPTS == 0,
            "interrupt status",
        )?;
        possible(
            !running || saved.positions.len() == registers.queues.len(),
            "number of queues",
        )?;
        // A device that stopped because of a broken ring has the status of one that runs.
        let started = registers.status & up == up;
        possible(
            started == (running || saved.needs_reset),
            "start of the driver",
        )?;
        possible(!(running && saved.needs_reset), "wish to be reset")
    }

    /// Whether the driver has not acknowledged an interrupt yet.
    pub fn interrupt_pending(&self) -> bool {
        self.runner.interrupt_status() != 0
    }

    /// Calls `with` if this is a disk that the guest writes to. The event loop is parked.
    pub fn with_writable_disk<T>(&self, with: impl FnOnce(&Block) -> T) -> Option<T> {
        self.runner.with_writable_disk(with)
    }
}
