//! virtio-vsock: the only way bytes enter or leave a session.
//!
//! The guest sees a stream socket device with an address of its own; the host is address 2. The
//! host side is one Unix socket per microVM. A client writes one line and then owns a stream:
//!
//! - `CONNECT <port>\n`: joined to that port of the guest. `OK <host port>\n` when the guest
//!   accepts, closed without an answer when it refuses. Waits while no driver is up.
//! - `LISTEN <port>\n`: joined to one connection that the guest makes to that port of the host.
//!   `OK <guest port>\n` when it comes. A connection that comes first waits: see
//!   `muxer::MAX_HELD`.
//!
//! Both directions end on their own, as TCP's do.
//!
//! # Threads
//! Queue work and host sockets run on the event loop. vCPU threads only ring doorbells (ioeventfd),
//! so a slow client can never hold a vCPU. With a limit (`devices::rate`), each direction on its own waits for a timer on the
//! loop.
//!
//! # Trust
//! Every descriptor, header and length comes from the guest and may be hostile. A bad packet closes
//! its connection; a bad ring stops the device and sets DEVICE_NEEDS_RESET. Neither panics, and
//! neither is logged without a limit. Bounded: `slots::CAPACITY` clients, `credit::WINDOW` bytes
//! kept per connection, `muxer::MAX_HELD` unaccepted connections, resets that wait. Clients of the
//! host are trusted to be the appliance: the socket's directory says who may connect.
//!
//! # Snapshot
//! Saved: [`state::VsockState`] and queue positions. Not saved: connections, clients, what waits for either. A
//! restored guest is told so by an event before anything else, resets its connections, keeps its listening
//! sockets, and answers by giving the event's buffer back; until then it gets no packet. New connections from the
//! host have ports that the guest has not seen. The microVM that was saved keeps its connections.
//!
//! # Not here
//! Datagrams, sequential packets, guest-to-guest traffic. Spec: virtio 1.2, section 5.10.
//!
//! Layers, the first four pure: `packet`, `credit` and `connection`, `greeting`, `slots`;
//! then `client` (one host socket), `muxer` (all of them), `device` (the queues).

mod client;
mod connection;
mod credit;
mod device;
mod greeting;
mod muxer;
mod packet;
mod slots;
pub mod state;
#[cfg(test)]
mod tests;

pub use device::Vsock;
