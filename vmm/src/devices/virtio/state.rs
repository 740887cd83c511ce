//! What a transport remembers, as plain numbers: everything here can be written to a file and read
//! back, and nothing of it is a host handle.

/// The registers of one queue, as the driver wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportState {
    /// The device status field, without DEVICE_NEEDS_RESET.
    pub status: u32,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub queues: Vec<QueueRegisters>,
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
