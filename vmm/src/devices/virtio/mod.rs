//! virtio 1.2 devices over the memory-mapped transport.
//!
//! [`mmio::MmioTransport`] is what the guest's registers reach. It owns one [`VirtioDevice`], which
//! sees neither registers nor interrupts: it is handed its queues when something happened and
//! moves bytes between chains and host files.
//!
//! ```text
//! vCPU threads ── bus ──▶ MmioTransport: registers, status order
//!        │ ioeventfd            │ activate, reset, config
//!        ▼                      ▼
//! event loop ──────────▶ Runner: rings + VirtioDevice ──▶ one interrupt per call
//! ```

pub mod block;
mod buffers;
#[cfg(test)]
mod fuzz;
mod iovec;
pub mod mmio;
#[cfg(test)]
mod published_tests;
pub mod queue;
#[cfg(test)]
mod restore_tests;
pub mod rng;
mod runner;
pub mod state;
#[cfg(test)]
mod testing;
pub mod vsock;

use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::event_loop::{Ready, Watcher};
use crate::memory::Memory;
use block::Block;
use queue::{RingError, VirtQueue};
use state::DeviceState;

/// What every device offers: the modern interface, and interrupts only when the driver waits.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The queues of a running device and the memory they are in.
pub struct Rings<'a> {
    pub memory: &'a Memory,
    pub queues: &'a mut [VirtQueue],
}

/// Whether a device has more to do than one call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Done,
    /// Call `queue_ready` for this queue after the other devices had their turn.
    Again {
        queue: usize,
    },
}

/// A device behind a virtio transport.
///
/// ```text
/// inactive ── activate ──▶ active ── ring error ──▶ inactive, until the guest resets it
///     ▲                      │
///     └──────── reset ◀──────┘
/// ```
///
/// Calls never overlap. `queue_ready` and `host_ready` come from the event loop and must be
/// bounded; the others come from a vCPU thread and must be short.
pub trait VirtioDevice: Send {
    /// The device's name in log lines.
    fn name(&self) -> &'static str;
    /// The device type of virtio 1.2, section 5.
    fn device_type(&self) -> u32;
    /// The largest size of each queue. Powers of two.
    fn queue_max_sizes(&self) -> &'static [u16];
    /// The features that are the device's own; the transport adds the common ones.
    fn features(&self) -> u64;
    /// Reads the device's configuration. Bytes past its end stay zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Watches host descriptors. Called once, before the event loop runs.
    fn watch(&mut self, watcher: Watcher) -> io::Result<()> {
        let _ = watcher;
        Ok(())
    }
    /// The driver is up and accepted `features`.
    fn activate(&mut self, features: u64);
    /// The driver is gone; forget what it said.
    fn reset(&mut self);
    /// What the device has to remember beside rings and configuration. Called between two turns of the event loop.
    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }
    /// Remembers it. Called before anything else, and followed by `activate` if a driver was up then. `None` if
    /// the state is not of such a device, or cannot be.
    fn restore(&mut self, state: DeviceState) -> Option<()> {
        (state == DeviceState::Nothing).then_some(())
    }
    /// Tells a restored guest what it has to know before anything else, without waiting for the event loop. Called
    /// after `activate`, before the guest goes on.
    fn welcome(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let _ = rings;
        Ok(())
    }
    /// The disk in this device, if it is one that the guest writes to.
    fn writable_disk(&self) -> Option<&Block> {
        None
    }
    /// The driver rang the doorbell of `queue`, or the device asked to be called again.
    fn queue_ready(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError>;
    /// Something happened to a descriptor from [`VirtioDevice::watch`]. `rings` is `None` while no
    /// driver is up.
    fn host_ready(
        &mut self,
        token: u32,
        ready: Ready,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Work, RingError> {
        let _ = (token, ready, rings);
        Ok(Work::Done)
    }
}

/// Copies the part of `config` that starts at `offset`; what lies beyond its end reads as zero.
fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if let Some(tail) = config.get(start..) {
        let len = tail.len().min(data.len());
        data[..len].copy_from_slice(&tail[..len]);
    }
}
