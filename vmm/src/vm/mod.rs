//! A running microVM: started from a configuration or restored from a snapshot, ended once, for one reason.
//!
//! Threads: one per vCPU, one for all devices. Whatever ends the microVM (the guest's own wish, a fault, a
//! caller's stop, a device thread that died) is sent to one channel; the first message counts. [`Vm::wait`]
//! receives it and takes everything down.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`start`] | boots a kernel |
//! | [`restore`] | goes on where a saved microVM stopped |
//! | `idle` | threads made ahead |
//! | [`handle`] | stops, pauses and resumes from any thread |
//! | `steps` | where the time of a start or a restore went |
//! | [`save`] | writes a paused microVM to files |

pub mod handle;
mod idle;
pub mod restore;
pub mod save;
pub mod start;
mod steps;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use kvm_ioctls::VcpuFd;

pub use handle::VmHandle;
pub use restore::RestoreError;
pub use save::{SaveError, SnapshotFiles};
pub use start::StartError;
pub use steps::Steps;

use crate::devices::event_loop::EventLoop;
use crate::machine::Threads;
use crate::sandbox::ThreadClass;
use crate::vcpu::VcpuHandle;
use crate::wiring::DeviceThread;
use handle::{Phase, Running};

pub(crate) use crate::machine::Machine;
pub use idle::IdleThread;

/// How a microVM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered off in order (ACPI S5).
    PowerOff,
    /// The guest asked for a reset; a kernel panic ends so, too.
    Reset,
    /// The guest lost its way so badly that the CPU gave up.
    TripleFault,
    /// A [`VmHandle`] stopped it.
    Stopped,
    /// KVM or the device thread failed; not the guest's orderly doing.
    Failed { what: String },
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself, as it does after a kernel panic"),
            Self::TripleFault => f.write_str("the guest ended in a triple fault"),
            Self::Stopped => f.write_str("the guest was stopped"),
            Self::Failed { what } => write!(f, "the guest failed: {what}"),
        }
    }
}

/// The guest ended, so there is nothing to pause or to resume; [`Vm::wait`] tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest has ended")]
pub struct GuestEnded;

/// Ends the microVM when a thread of it panics, which would otherwise be a guest that does nothing for ever.
/// (In release builds a panic ends the process.)
pub(crate) struct EndOnPanic(pub Sender<VmExit>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current()
                .name()
                .unwrap_or("unnamed")
                .to_owned();
            // Nobody listens any more: the microVM ended for another reason.
            let _ = self.0.send(VmExit::Failed {
                what: format!("thread {name} panicked"),
            });
        }
    }
}

/// A thread that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("Cannot start the {what} thread, or confine it")]
pub struct ThreadError {
    pub what: &'static str,
    pub source: std::io::Error,
}

/// A running microVM. Dropping it stops the guest and waits for all threads.
#[derive(Debug)]
pub struct Vm {
    exits: Receiver<VmExit>,
    handle: VmHandle,
}

impl Vm {
    /// Starts a complete machine, its vCPUs paused.
    fn launch(
        machine: Machine,
        vcpus: Vec<VcpuFd>,
        threads: Threads,
        event_loop: EventLoop,
        restored: bool,
    ) -> Result<Self, ThreadError> {
        let machine = Arc::new(machine);
        let (exits, receiver) = mpsc::channel();
        let Threads {
            filters,
            first,
            devices,
        } = threads;
        let mut first = Some(first);
        let mut handles = Vec::new();
        for (id, fd) in (0..).zip(vcpus) {
            let thread = match first.take() {
                Some(thread) => thread,
                None => IdleThread::spawn(VcpuHandle::thread_name(id), filters, ThreadClass::Vcpu)
                    .map_err(|source| ThreadError {
                        what: "vCPU",
                        source,
                    })?,
            };
            let (machine, exits) = (Arc::clone(&machine), exits.clone());
            handles.push(VcpuHandle::start(thread, id, fd, machine, exits));
        }
        let running = Running {
            vcpus: handles,
            devices: DeviceThread::start(devices, event_loop, exits.clone()),
            machine,
            restored,
            phase: Phase::Paused,
        };
        Ok(Self {
            exits: receiver,
            handle: VmHandle::new(exits, running),
        })
    }

    /// What can stop, pause and save the guest while another thread waits.
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Waits until the guest ends, then takes everything down. A save that is under way is finished first.
    pub fn wait(self) -> VmExit {
        // `handle` holds a sender, so the channel cannot be closed.
        self.exits.recv().unwrap_or(VmExit::Stopped)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.handle.take_down();
    }
}
