//! Virtual processors: one thread each.
//!
//! The thread owns its `VcpuFd`; everybody else has a `VcpuHandle` and sends commands. No lock is held
//! while the guest runs; an exit takes at most the lock of the one device that it addresses.

pub mod cpuid;
pub mod exit;
pub(crate) mod kick;
pub(crate) mod run;
pub(crate) mod setup;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use crate::vm::{Machine, VmExit};
use run::{Command, Vcpu};

/// The way to a vCPU thread. Dropping it ends the thread and waits for that.
pub(crate) struct VcpuHandle {
    commands: Sender<Command>,
    /// `None` only while dropping.
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Starts a paused vCPU thread.
    pub fn spawn(
        id: u8,
        fd: VcpuFd,
        machine: Arc<Machine>,
        exits: Sender<VmExit>,
    ) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let vcpu = Vcpu {
            fd,
            machine,
            commands: receiver,
            exits,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || vcpu.run())?;
        Ok(Self {
            commands,
            thread: Some(thread),
        })
    }

    /// A thread that has ended on its own takes no commands; its exit tells why.
    pub fn send(&self, command: Command) {
        if self.commands.send(command).is_ok()
            && let Some(thread) = &self.thread
        {
            kick::kick(thread);
        }
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
