//! What the guest finds besides CPUs and memory: ports, registers, virtio devices.
//!
//! vCPU threads reach devices through a [`bus::Bus`]; everything that takes time or touches a host
//! file happens on one more thread per microVM, the [`event_loop::EventLoop`].

pub mod bus;
pub mod event_loop;
pub mod gate;
mod limited;
pub mod power;
pub(crate) mod rate;
pub mod serial;
pub mod virtio;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a device. A thread that panicked while it held the lock left registers that are still
/// plain numbers, so the others may go on; the process ends on a panic in release builds anyway.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
