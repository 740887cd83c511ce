//! Virtual processors: one thread each.
//!
//! The thread owns its `VcpuFd`; everybody else has a `VcpuHandle` and sends commands. No lock is held
//! while the guest runs; an exit takes at most the lock of the one device that it addresses.

pub mod cpuid;
pub mod exit;
pub(crate) mod kick;
pub(crate) mod prefault;
pub(crate) mod run;
pub(crate) mod setup;
pub mod state;
mod tsc;

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use crate::vm::{IdleThread, Machine, VmExit};
use run::{Command, Vcpu};

pub(crate) use tsc::Tsc;

/// A part of a vCPU that KVM did not give or take.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// `group` is the ioctl without its `KVM_` prefix.
    #[error("KVM refused {group} for vCPU {vcpu}")]
    Refused {
        group: &'static str,
        vcpu: u8,
        source: kvm_ioctls::Error,
    },
    #[error("vCPU {vcpu} of this host cannot have the saved value of register {index:#x}")]
    Msr { vcpu: u8, index: u32 },
    #[error(
        "vCPU {vcpu} has {found} bytes of extended registers, on this host they are {expected}"
    )]
    ExtendedSize {
        vcpu: u8,
        found: usize,
        expected: usize,
    },
}

impl RegisterError {
    fn refused(group: &'static str, vcpu: u8) -> impl Fn(kvm_ioctls::Error) -> Self + Copy {
        move |source| Self::Refused {
            group,
            vcpu,
            source,
        }
    }
}

/// The way to a vCPU thread. Dropping it ends the thread and waits for that.
pub(crate) struct VcpuHandle {
    commands: Sender<Command>,
    /// `None` only while dropping.
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    pub fn thread_name(id: u8) -> String {
        format!("vcpu{id}")
    }

    /// Runs a vCPU, paused, on `thread`.
    pub fn start(
        thread: IdleThread,
        id: u8,
        fd: VcpuFd,
        machine: Arc<Machine>,
        exits: Sender<VmExit>,
    ) -> Self {
        let (commands, receiver) = mpsc::channel();
        let vcpu = Vcpu {
            id,
            fd,
            machine,
            commands: receiver,
            exits,
        };
        Self {
            commands,
            thread: Some(thread.start(move || vcpu.run())),
        }
    }

    /// Whether there was a thread to take the command. One that has ended on its own takes none; its exit tells
    /// why.
    pub fn send(&self, command: Command) -> bool {
        let taken = self.commands.send(command).is_ok();
        if taken && let Some(thread) = &self.thread {
            kick::kick(thread);
        }
        taken
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(Command::Finish);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been printed there; the machine goes away all the same.
            let _ = thread.join();
        }
    }
}
