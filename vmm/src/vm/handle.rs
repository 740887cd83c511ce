//! Stops, pauses and resumes a microVM from any thread.
//!
//! Pausing has an order: first the vCPUs, each with its last access complete; then the device thread, which
//! therefore sees every doorbell's work in a whole state or not at all. When [`VmHandle::pause`] returns, no
//! byte of memory or disk changes any more.

use std::fmt;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use super::{GuestEnded, Machine, VmExit};
use crate::devices::lock;
use crate::vcpu::VcpuHandle;
use crate::vcpu::run::Command;
use crate::wiring::DeviceThread;

/// Acts on a microVM from any thread.
#[derive(Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
}

struct Shared {
    exits: Sender<VmExit>,
    /// `None` once it has been taken down.
    running: Mutex<Option<Running>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Paused,
}

/// The threads of a microVM and what they share.
pub(super) struct Running {
    // Order: vCPUs stop before the devices that they ring.
    pub vcpus: Vec<VcpuHandle>,
    pub devices: DeviceThread,
    pub machine: Arc<Machine>,
    /// Its memory is a private mapping of a snapshot's.
    pub restored: bool,
    pub phase: Phase,
}

impl VmHandle {
    pub(super) fn new(exits: Sender<VmExit>, running: Running) -> Self {
        Self {
            shared: Arc::new(Shared {
                exits,
                running: Mutex::new(Some(running)),
            }),
        }
    }

    /// Makes [`super::Vm::wait`] return [`VmExit::Stopped`], unless the guest has ended before. Does not wait.
    pub fn stop(&self) {
        // The microVM is gone already.
        let _ = self.shared.exits.send(VmExit::Stopped);
    }

    /// Makes guest and devices stand still. Pausing twice is as good as once. The guest's clocks go on.
    pub fn pause(&self) -> Result<(), GuestEnded> {
        self.with(Running::pause).ok_or(GuestEnded)?
    }

    /// Lets a paused guest go on. One that runs goes on as well.
    pub fn resume(&self) -> Result<(), GuestEnded> {
        self.with(Running::resume).ok_or(GuestEnded)?
    }

    /// Calls `act` unless the microVM has been taken down.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Running) -> T) -> Option<T> {
        lock(&self.shared.running).as_mut().map(act)
    }

    /// Ends all threads and waits for them.
    pub(super) fn take_down(&self) {
        // Not under the lock: threads take their time to end.
        let running = lock(&self.shared.running).take();
        drop(running);
    }
}

impl fmt::Debug for VmHandle {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("VmHandle").finish_non_exhaustive()
    }
}

impl Running {
    fn pause(&mut self) -> Result<(), GuestEnded> {
        if self.phase == Phase::Paused {
            return Ok(());
        }
        let (done, paused) = mpsc::channel();
        for vcpu in &self.vcpus {
            vcpu.send(Command::Pause(done.clone()));
        }
        drop(done);
        // A vCPU that ended drops its end of the channel unanswered.
        if paused.iter().count() != self.vcpus.len() {
            return Err(GuestEnded);
        }
        self.devices.park().map_err(|_| GuestEnded)?;
        self.phase = Phase::Paused;
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), GuestEnded> {
        if self.phase == Phase::Running {
            return Ok(());
        }
        self.devices.unpark().map_err(|_| GuestEnded)?;
        self.phase = Phase::Running;
        let taken = self.vcpus.iter().map(|vcpu| vcpu.send(Command::Resume));
        // All of them, whatever one says.
        let all = taken.fold(true, |all, taken| all & taken);
        all.then_some(()).ok_or(GuestEnded)
    }
}
