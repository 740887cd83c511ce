//! What a transport remembers, as plain numbers: everything here can be written to a file and read
//! back, and nothing of it is a host handle.

use serde::{Deserialize, Serialize};

use super::vsock::state::VsockState;
use crate::snapshot::bounded;

/// No device of ours has more.
const MAX_QUEUES: usize = 8;
/// The longest configuration of a device of ours.
pub const CONFIG_BYTES: usize = 64;

/// The registers of one queue, as the driver wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl QueueRegisters {
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        }
    }
}

/// The registers of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device status field, without DEVICE_NEEDS_RESET.
    pub status: u32,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    #[serde(deserialize_with = "bounded::<_, _, MAX_QUEUES>")]
    pub queues: Vec<QueueRegisters>,
}

/// How far a device has come in one of its rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    pub next_avail: u16,
    pub next_used: u16,
}

/// What a device has to remember beside its rings and its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    Nothing,
    Vsock(VsockState),
}

/// A transport at rest, with its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportSaved {
    pub device_type: u32,
    /// The features and the configuration that the driver has read, so that the device cannot become another one
    /// under it: a disk of another size, or one that takes no writes any more.
    pub offered: u64,
    #[serde(deserialize_with = "bounded::<_, _, CONFIG_BYTES>")]
    pub config: Vec<u8>,
    pub registers: TransportState,
    pub interrupt_status: u32,
    pub needs_reset: bool,
    /// Empty while no driver is up.
    #[serde(deserialize_with = "bounded::<_, _, MAX_QUEUES>")]
    pub positions: Vec<QueuePosition>,
    pub device: DeviceState,
}

impl TransportSaved {
    /// For people.
    pub fn summary(&self) -> String {
        let positions: Vec<String> = self
            .positions
            .iter()
            .map(|queue| format!("{}/{}", queue.next_avail, queue.next_used))
            .collect();
        format!(
            "type {}, status {:#x}, features {:#x}, interrupts {:#x}, queues {}{}",
            self.device_type,
            self.registers.status,
            self.registers.driver_features,
            self.interrupt_status,
            if positions.is_empty() {
                "down".to_owned()
            } else {
                positions.join(" ")
            },
            if self.needs_reset {
                ", needs reset"
            } else {
                ""
            },
        )
    }
}

impl TransportState {
    /// The state after a reset.
    pub fn new(queue_max_sizes: &[u16]) -> Self {
        Self {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queue_max_sizes
                .iter()
                .map(|&max_size| QueueRegisters::new(max_size))
                .collect(),
        }
    }

    /// The registers of the selected queue, if the device has it.
    pub fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    pub fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues
            .get_mut(usize::try_from(self.queue_select).ok()?)
    }
}
