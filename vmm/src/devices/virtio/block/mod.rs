//! virtio-block: the session's disks, each a file.
//!
//! The guest sees disks with one queue, in the order they were configured: the read-only root image
//! and its writable scratch disk.
//!
//! # Threads
//! Queue work runs on the event loop and waits for the file. A slow disk delays the other devices
//! of the same guest, never a vCPU and never another guest.
//!
//! # Trust
//! Headers, sectors, lengths and order of requests come from the guest and are checked by
//! `request` before anything is done. Read-only is enforced here, not by the guest's driver:
//! peers left it to the guest (CVE-2026-46695, CVE-2026-24834). Data moves between guest memory and
//! file without a copy, so no length from the guest becomes an allocation. The format of a disk is
//! never guessed from its bytes: it is raw.
//!
//! # Snapshot
//! Saved: [`state::BlockState`] and queue positions. Not saved: the file, which the caller has to
//! freeze in the same pause. No request is ever in flight between two calls of the event loop.
//!
//! # Not here
//! Several queues, disk resize, zones, secure erase. Spec: virtio 1.2, section 5.2.

mod device;
mod request;
pub mod state;
#[cfg(test)]
mod tests;

pub use device::Block;
