//! The life of a vCPU thread: paused, running, finished.
//!
//! ```text
//!            Resume                Finish, or the guest ended
//!   Paused ──────────▶ Running ───────────────▶ Finished
//!     ▲ │                │                          ▲
//!     │ └──── Finish ────┼──────────────────────────┘
//!     └───── Pause ──────┘
//! ```
//!
//! A paused vCPU owes the guest nothing: the access that it left the guest for is complete. Only then can it
//! be saved.
//!
//! A thread starts paused, so that no guest instruction runs before every thread exists. Commands come
//! through a channel and are looked for before the first entry and after every kick: each command is followed
//! by a kick, and once the thread is [`Kickable`] none is lost.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::RegisterError;
use super::exit::{Next, dispatch};
use super::kick::Kickable;
use super::state::{self, Saved};
use crate::vm::{EndOnPanic, Machine, VmExit};

/// How many accesses of one instruction are served when a vCPU is to be paused. KVM stops a string
/// instruction after at most 1024 repetitions (`x86_emulate_insn`).
const MAX_PENDING_ACCESSES: u32 = 4096;

/// What a vCPU thread can be told.
pub enum Command {
    Resume,
    /// Answered when the vCPU is out of the guest and owes it nothing.
    Pause(Sender<()>),
    /// Answered with all that a paused vCPU knows. A vCPU that runs does not answer.
    Save(Sender<Result<Saved, RegisterError>>),
    Finish,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Finished,
}

/// What a vCPU thread owns. Fields drop in this order: the descriptor before the machine that holds its memory.
pub struct Vcpu {
    pub id: u8,
    pub fd: VcpuFd,
    pub machine: Arc<Machine>,
    pub commands: Receiver<Command>,
    pub exits: Sender<VmExit>,
}

impl Vcpu {
    /// Lives until it is told to finish or the guest has ended.
    pub fn run(self) {
        let Vcpu {
            id,
            mut fd,
            machine,
            commands,
            exits,
        } = self;
        let _guard = EndOnPanic(exits.clone());
        let mut worker = match Kickable::new(&mut fd) {
            Ok(fd) => Worker {
                id,
                fd,
                machine: &machine,
                commands: &commands,
                exits: &exits,
            },
            Err(error) => {
                let _ = exits.send(VmExit::Failed {
                    what: format!("cannot unblock the kick signal: {error}"),
                });
                return;
            }
        };
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Paused => worker.paused(),
                State::Running => worker.running(),
                State::Finished => return,
            }
        }
    }
}

struct Worker<'a> {
    id: u8,
    fd: Kickable<'a>,
    machine: &'a Machine,
    commands: &'a Receiver<Command>,
    exits: &'a Sender<VmExit>,
}

impl Worker<'_> {
    fn paused(&mut self) -> State {
        match self.commands.recv() {
            Ok(Command::Resume) => self.resume(),
            Ok(Command::Pause(done)) => {
                let _ = done.send(());
                State::Paused
            }
            Ok(Command::Save(done)) => {
                let registers = &self.machine.registers;
                // Nobody waits any more: the microVM ended.
                let _ = done.send(state::save(self.fd.fd(), self.id, registers));
                State::Paused
            }
            Ok(Command::Finish) | Err(_) => State::Finished,
        }
    }

    /// Tells the guest that it stood still, so that its watchdogs do not take that for a lockup. Before every
    /// resume and not only after a pause, since a restored guest was paused by somebody else (firecracker pull
    /// request 5494).
    fn resume(&mut self) -> State {
        match self.fd.fd().kvmclock_ctrl() {
            Ok(()) => State::Running,
            // The guest does not use kvm-clock, or not yet.
            Err(error) if error.errno() == libc::EINVAL => State::Running,
            Err(error) => self.end(VmExit::Failed {
                what: format!("KVM_KVMCLOCK_CTRL failed: {error}"),
            }),
        }
    }

    fn running(&mut self) -> State {
        // A kick that came before this thread could be kicked left no trace, but its command is there.
        if let Some(state) = self.obey() {
            return state;
        }
        loop {
            match self.enter() {
                Ok(Next::Enter) => {}
                Ok(Next::Exit(exit)) => return self.end(exit),
                Err(Interrupted) => {
                    // Cleared before the channel is read: a command that comes later brings its own kick.
                    self.fd.fd().set_kvm_immediate_exit(0);
                    if let Some(state) = self.obey() {
                        return state;
                    }
                }
            }
        }
    }

    /// Looks for commands that end the running state. One kick may stand for several of them.
    fn obey(&mut self) -> Option<State> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Pause(done)) => return Some(self.pause(&done)),
                Ok(Command::Finish) | Err(TryRecvError::Disconnected) => {
                    return Some(State::Finished);
                }
                // Dropping a wish to be saved answers it: running vCPUs are not.
                Ok(Command::Resume | Command::Save(_)) => {}
                Err(TryRecvError::Empty) => return None,
            }
        }
    }

    /// Runs the guest until its next exit, and serves that.
    fn enter(&mut self) -> Result<Next, Interrupted> {
        match self.fd.fd().run() {
            Ok(VcpuExit::InternalError) => Ok(Next::Exit(VmExit::Failed {
                what: internal_error(self.fd.fd()),
            })),
            Ok(exit) => Ok(dispatch(exit, &self.machine.buses)),
            Err(error) if error.errno() == libc::EINTR => Err(Interrupted),
            // A vCPU that waits for its first start-up interrupt may say so once it got it.
            Err(error) if error.errno() == libc::EAGAIN => Ok(Next::Enter),
            Err(error) => Ok(Next::Exit(VmExit::Failed {
                what: format!("KVM_RUN failed: {error}"),
            })),
        }
    }

    /// The vCPU is out of the guest, but the result of its last access may still be on its way in: a port
    /// read completes only at the next entry. Without this step a copy of the vCPU would lose or repeat the
    /// access (cloud-hypervisor pull request 3677).
    fn pause(&mut self, done: &Sender<()>) -> State {
        for _ in 0..MAX_PENDING_ACCESSES {
            self.fd.fd().set_kvm_immediate_exit(1);
            match self.enter() {
                Err(Interrupted) => {
                    self.fd.fd().set_kvm_immediate_exit(0);
                    let _ = done.send(());
                    return State::Paused;
                }
                Ok(Next::Enter) => {}
                Ok(Next::Exit(exit)) => return self.end(exit),
            }
        }
        self.end(VmExit::Failed {
            what: "an instruction did not come to its end".to_owned(),
        })
    }

    fn end(&self, exit: VmExit) -> State {
        // Nobody listens any more: the microVM ended for another reason.
        let _ = self.exits.send(exit);
        State::Finished
    }
}

/// `KVM_RUN` returned because of a signal or `immediate_exit`.
struct Interrupted;

/// What KVM says about an internal error.
pub fn internal_error(fd: &mut VcpuFd) -> String {
    let registers = fd.get_regs().map(|regs| regs.rip).ok();
    let run = fd.get_kvm_run();
    // SAFETY: reads the part of the union that KVM has filled, because `exit_reason` is
    // KVM_EXIT_INTERNAL_ERROR; all of it is plain numbers.
    let suberror = unsafe { run.__bindgen_anon_1.internal }.suberror;
    let kind = if suberror == KVM_INTERNAL_ERROR_EMULATION {
        " (an instruction that it cannot emulate)"
    } else {
        ""
    };
    let place = registers.map_or(String::new(), |rip| format!(" at guest address {rip:#x}"));
    format!("KVM internal error {suberror}{kind}{place}")
}
