//! What host and guest say to each other, and how it is framed.
//!
//! A guest has one control stream to its host, opened by the agent on vsock port
//! [`port::CONTROL`]; frames on it carry [`HostMessage`] and [`GuestMessage`] as JSON. Request
//! bytes never travel here: each forwarded connection is its own vsock stream to
//! [`port::STREAM`], raw from the first byte, or to [`port::LOOPBACK`]. A command of an operator is a stream to
//! [`port::EXEC`], see [`exec`].
//!
//! A worker may outlive the binary that started it, so both sides must accept a peer of another
//! version: see `VERSIONING.md`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod exec;
pub mod frame;
mod hex;
pub mod message;
pub mod timing;

pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use message::{ContainerSpec, Ending, Exit, GuestMessage, HostMessage, Identity, Stream};

/// The version of the messages, sent in [`GuestMessage::Hello`]. Raised when a change is more than
/// a new optional field or a new message that the other side may ignore.
pub const VERSION: u16 = 3;

/// vsock ports, the same in every guest.
pub mod port {
    /// The guest connects here (host CID 2) once, at start, and again after a reset of the stream.
    pub const CONTROL: u32 = 1024;
    /// The agent listens here; each connection is joined to `127.0.0.1:targetPort`.
    pub const STREAM: u32 = 1025;
    /// The agent listens here, too; each connection begins with two bytes from the host, a TCP port of
    /// the container in network order. It is joined to that port of `127.0.0.1`, or of `::1`. Once the
    /// container has accepted, the agent answers with the same two bytes, and what follows is raw. A
    /// connection that is closed without them was refused. No other address can be named.
    pub const LOOPBACK: u32 = 1026;
    /// The agent listens here; each connection is one command of an operator, see [`crate::exec`].
    pub const EXEC: u32 = 1027;
}
