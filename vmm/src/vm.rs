//! A running microVM: started from a configuration, ended once, for one reason.
//!
//! Threads: one per vCPU, one for all devices. Whatever ends the microVM (the guest's own wish, a fault, a
//! caller's stop, a device thread that died) is sent to one channel; the first message counts. [`Vm::wait`]
//! receives it and takes everything down.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use rustix::rand::GetRandomFlags;

use crate::boot::{acpi, cmdline, initrd, kernel, long_mode, params};
use crate::config::{ConfigError, VmConfig};
use crate::machine::{self, MachineError};
use crate::memory::{self, Memory, MemoryError};
use crate::vcpu::run::Command;
use crate::vcpu::setup::SetupError;
use crate::vcpu::{VcpuHandle, cpuid, kick, setup};
use crate::wiring::{self, DeviceThread, WiringError};

pub(crate) use crate::machine::Machine;

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

/// Why a microVM could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("The configuration cannot make a guest")]
    Config { source: ConfigError },
    #[error("Cannot use /dev/kvm")]
    Kvm { source: MachineError },
    #[error("Cannot prepare guest memory")]
    Memory { source: MemoryError },
    #[error("Cannot load the guest kernel")]
    Kernel { source: kernel::KernelError },
    #[error("Cannot load the initramfs")]
    Initrd { source: initrd::InitrdError },
    #[error("Cannot use the kernel command line")]
    Cmdline { source: cmdline::CmdlineError },
    #[error("Cannot write the ACPI tables")]
    Acpi { source: acpi::AcpiError },
    #[error("Cannot write {what} to guest memory")]
    Write {
        what: &'static str,
        source: vm_memory::GuestMemoryError,
    },
    #[error("The kernel gives no random bytes")]
    Random { source: io::Error },
    #[error("Cannot connect the devices")]
    Devices { source: WiringError },
    #[error("Cannot make the CPUID table")]
    Cpuid { what: String },
    #[error("Cannot create vCPU {vcpu}")]
    CreateVcpu { vcpu: u8, source: kvm_ioctls::Error },
    #[error("Cannot set up the vCPUs")]
    SetUpVcpu { source: SetupError },
    #[error("Cannot start the {what} thread")]
    Thread {
        what: &'static str,
        source: io::Error,
    },
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

/// A running microVM. Dropping it stops the guest and waits for all threads.
pub struct Vm {
    // Order: vCPUs stop before the devices that they ring.
    vcpus: Vec<VcpuHandle>,
    devices: DeviceThread,
    exits: Receiver<VmExit>,
    handle: VmHandle,
}

/// Stops a microVM from any thread.
#[derive(Clone, Debug)]
pub struct VmHandle {
    exits: Sender<VmExit>,
}

impl VmHandle {
    /// Makes [`Vm::wait`] return [`VmExit::Stopped`], unless the guest has ended before. Does not wait.
    pub fn stop(&self) {
        // The microVM is gone already.
        let _ = self.exits.send(VmExit::Stopped);
    }
}

impl Vm {
    /// Starts the guest.
    pub fn start(config: VmConfig) -> Result<Self, StartError> {
        config
            .check()
            .map_err(|source| StartError::Config { source })?;
        kick::install().map_err(|source| StartError::Thread {
            what: "vCPU",
            source,
        })?;
        let kvm = machine::open(&config.kvm).map_err(|source| StartError::Kvm { source })?;
        let fd = machine::create(&kvm).map_err(|source| StartError::Kvm { source })?;
        let VmConfig {
            memory,
            mem_mib,
            vcpus,
            kernel,
            initramfs,
            cmdline,
            blocks,
            vsock,
            console,
            ..
        } = config;
        let memory =
            memory::map(memory, mem_mib).map_err(|source| StartError::Memory { source })?;
        let (exits, receiver) = mpsc::channel();

        let devices = wiring::Devices {
            blocks,
            vsock,
            console,
        };
        let (buses, slots, event_loop) = wiring::connect(&fd, &memory, devices)
            .map_err(|source| StartError::Devices { source })?;
        let entry = load(&memory, mem_mib, &kernel, &initramfs, &cmdline)?;
        write_acpi(&memory, vcpus, &slots)?;
        let machine =
            Arc::new(Machine::new(fd, buses, memory).map_err(|source| StartError::Kvm { source })?);

        let mut handles = Vec::new();
        for (id, fd) in create_vcpus(&kvm, &machine, vcpus, entry)? {
            let handle = VcpuHandle::spawn(id, fd, Arc::clone(&machine), exits.clone()).map_err(
                |source| StartError::Thread {
                    what: "vCPU",
                    source,
                },
            )?;
            handles.push(handle);
        }
        let devices = DeviceThread::spawn(event_loop, exits.clone()).map_err(|source| {
            StartError::Thread {
                what: "device",
                source,
            }
        })?;
        let vm = Self {
            vcpus: handles,
            devices,
            exits: receiver,
            handle: VmHandle { exits },
        };
        vm.resume();
        Ok(vm)
    }

    /// What can stop the guest while another thread waits.
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Takes all vCPUs out of the guest, each with its last access completed. Devices go on with the requests
    /// that they have.
    pub fn pause(&self) -> Result<(), GuestEnded> {
        let (done, paused) = mpsc::channel();
        for vcpu in &self.vcpus {
            vcpu.send(Command::Pause(done.clone()));
        }
        drop(done);
        // A vCPU that ended drops its end of the channel unanswered.
        if paused.iter().count() == self.vcpus.len() {
            Ok(())
        } else {
            Err(GuestEnded)
        }
    }

    /// Lets paused vCPUs run again.
    pub fn resume(&self) {
        for vcpu in &self.vcpus {
            vcpu.send(Command::Resume);
        }
    }

    /// Waits until the guest ends, then takes everything down.
    pub fn wait(self) -> VmExit {
        let Self {
            vcpus,
            devices,
            exits,
            handle,
        } = self;
        // `handle` holds a sender, so the channel cannot be closed.
        let exit = exits.recv().unwrap_or(VmExit::Stopped);
        drop(vcpus);
        drop(devices);
        drop(handle);
        exit
    }
}

/// Fills guest memory with all that the kernel needs. Returns its entry point.
fn load(
    memory: &Memory,
    mem_mib: u32,
    kernel: &std::fs::File,
    initramfs: &std::fs::File,
    extra: &str,
) -> Result<u64, StartError> {
    let write = |what| move |source| StartError::Write { what, source };
    let line = cmdline::build(extra).map_err(|source| StartError::Cmdline { source })?;
    let kernel = kernel::load(kernel, memory).map_err(|source| StartError::Kernel { source })?;
    let initrd = initrd::load(initramfs, memory, kernel.end)
        .map_err(|source| StartError::Initrd { source })?;
    cmdline::write(&line, memory).map_err(write("the command line"))?;
    params::write(memory, u64::from(mem_mib) * memory::MIB, &line, initrd)
        .map_err(write("the boot parameters"))?;
    long_mode::write_tables(memory).map_err(write("the page tables"))?;
    Ok(kernel.entry)
}

fn write_acpi(memory: &Memory, vcpus: u8, slots: &[acpi::VirtioSlot]) -> Result<(), StartError> {
    let mut generation = [0; 16];
    rustix::rand::getrandom(&mut generation, GetRandomFlags::empty()).map_err(|source| {
        StartError::Random {
            source: source.into(),
        }
    })?;
    acpi::write(memory, vcpus, slots, generation).map_err(|source| StartError::Acpi { source })
}

/// Creates and sets up all vCPUs before any thread exists, so that an error leaves nothing to take down.
fn create_vcpus(
    kvm: &kvm_ioctls::Kvm,
    machine: &Machine,
    count: u8,
    entry: u64,
) -> Result<Vec<(u8, kvm_ioctls::VcpuFd)>, StartError> {
    let refused = |source| StartError::Kvm {
        source: MachineError::Refused {
            what: "GET_SUPPORTED_CPUID",
            source,
        },
    };
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused)?;
    let tsc_deadline = kvm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..count {
        let fd = machine
            .fd
            .create_vcpu(id.into())
            .map_err(|source| StartError::CreateVcpu { vcpu: id, source })?;
        let cpuid =
            cpuid::for_vcpu(supported.as_slice(), id, count, tsc_deadline).map_err(|error| {
                StartError::Cpuid {
                    what: format!("{error:?}"),
                }
            })?;
        setup::set_up(&fd, id, &cpuid, (id == 0).then_some(entry))
            .map_err(|source| StartError::SetUpVcpu { source })?;
        vcpus.push((id, fd));
    }
    Ok(vcpus)
}
