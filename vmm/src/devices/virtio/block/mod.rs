//! virtio-block: the session's disks, each a file, or a private file over a shared one.
//!
//! The guest sees disks with one queue, in the order they were configured: the read-only root image
//! and its writable scratch disk. A fork's writable disk is a copy-on-write layer (`cow`) over the
//! disk of the golden, which many forks share.
//!
//! # Threads
//! Queue work runs on the event loop and waits for the file. A slow disk delays the other devices
//! of the same guest, never a vCPU and never another guest. With a limit (`devices::rate`) the queue is left as it is
//! while the disk waits, and a timer on the loop goes on with it.
//!
//! # Trust
//! Headers, sectors, lengths and order of requests come from the guest and are checked by
//! `request` before anything is done. Read-only is enforced here, not by the guest's driver:
//! peers left it to the guest (CVE-2026-46695, CVE-2026-24834). Data moves between guest memory and
//! file without a copy, so no length from the guest becomes an allocation. The format of a disk is
//! never guessed from its bytes: it is raw. A base is never written, whatever the guest does; what a
//! guest can make this process remember about its own layer is at most one bit for each 4 KiB of disk.
//!
//! # Snapshot
//! Saved: queue positions, features, and the configuration, so that a disk of another size or kind is refused
//! under the same driver. The disk itself is saved by [`Block::flatten`], in the same pause, to a file that
//! is whole: a restored disk starts with no layer of its own over that file.
//! No request is ever in flight between two calls of the event loop.
//!
//! # Not here
//! Several queues, disk resize, zones, secure erase. Spec: virtio 1.2, section 5.2.

mod cow;
#[cfg(test)]
mod cow_tests;
mod device;
mod disk;
mod presence;
#[cfg(test)]
mod rate_tests;
mod request;
pub mod state;
#[cfg(test)]
mod tests;

pub use device::Block;
