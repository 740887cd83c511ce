//! What a vsock device remembers, as plain numbers. Connections are not in here: after a restore
//! both ends of each see a reset.

use serde::{Deserialize, Serialize};

use super::client::Ports;
use super::muxer::{MAX_HELD, MAX_RESETS};
use super::slots::CAPACITY;
use crate::snapshot::bounded;

/// Every connection there can be, and every reset that waits.
const MAX_UNANSWERED: usize = MAX_HELD + CAPACITY + MAX_RESETS;

/// A vsock device without its sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address.
    pub guest_cid: u64,
    /// The features the driver accepted, zero while there is none.
    pub features: u64,
    /// The port that the next connection from the host comes from. Kept, so that a guest never sees
    /// the same pair of ports for two connections in a row.
    pub next_host_port: u32,
    /// Connections that the guest has asked for and got no answer to, and resets that it has not got. Linux does not end these when it is told
    /// that all connections are gone (`vsock_for_each_connected_socket`), so each gets a reset of its own.
    #[serde(deserialize_with = "bounded::<_, _, MAX_UNANSWERED>")]
    pub unanswered: Vec<Ports>,
}

/// Host ports start here and count up: far above the ports that guests listen on.
pub const FIRST_HOST_PORT: u32 = 1 << 30;

impl VsockState {
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            features: 0,
            next_host_port: FIRST_HOST_PORT,
            unanswered: Vec::new(),
        }
    }

    /// A port for one connection from the host.
    pub fn take_host_port(&mut self) -> u32 {
        // A saved number may be any.
        let port = self.next_host_port.max(FIRST_HOST_PORT);
        self.next_host_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
        port
    }
}
