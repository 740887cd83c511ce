//! What a block device remembers, as plain numbers: no host handle is in here.

/// A block device without its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockState {
    /// In sectors of 512 bytes, fixed when the device is made.
    pub capacity: u64,
    /// Enforced on the host whatever the driver accepted.
    pub read_only: bool,
    /// The features the driver accepted, zero while there is none.
    pub features: u64,
}
