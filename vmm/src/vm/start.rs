//! Boots a kernel: everything into memory, devices on their buses, vCPUs at their first instruction.

use std::fs::File;
use std::io;

use kvm_ioctls::VcpuFd;
use rustix::rand::GetRandomFlags;
use vm_memory::{Bytes, GuestAddress};

use super::steps::{Steps, Stopwatch};
use super::{Machine, ThreadError, Vm};
use crate::boot::{acpi, cmdline, initrd, kernel, long_mode, params};
use crate::config::{ConfigError, VmConfig};
use crate::machine::{Assembled, MachineError};
use crate::memory::{self, Memory, MemoryError, layout};
use crate::vcpu::{RegisterError, kick, setup};
use crate::wiring::{self, WiringError};

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
    Cpuid { source: io::Error },
    #[error("Cannot set up the vCPUs")]
    SetUpVcpu { source: RegisterError },
    #[error("Cannot run the guest")]
    Thread { source: ThreadError },
}

impl Vm {
    /// Starts the guest. It runs when this returns; the steps end where it begins to.
    pub fn start(config: VmConfig) -> Result<(Self, Steps), StartError> {
        let mut watch = Stopwatch::start();
        config
            .check()
            .map_err(|source| StartError::Config { source })?;
        install_kick().map_err(|source| StartError::Thread { source })?;
        let VmConfig {
            machine: mut blank,
            memory,
            mem_mib,
            vcpus,
            kernel,
            initramfs,
            cmdline,
            blocks,
            vsock,
            console,
            limits,
        } = config;
        let memory = match memory {
            Some(file) => memory::map(file, mem_mib),
            None => memory::own(mem_mib),
        };
        let memory = memory.map_err(|source| StartError::Memory { source })?;
        watch.done("memory");
        let devices = wiring::Devices {
            blocks,
            vsock,
            console,
            serial: None,
            limits,
        };
        let (wired, event_loop) = wiring::connect(&mut blank, &memory, devices)
            .map_err(|source| StartError::Devices { source })?;
        watch.done("devices");
        let entry = load(&memory, mem_mib, &kernel, &initramfs, &cmdline)?;
        watch.done("load");
        let slots: Vec<_> = (0..wired.transports.len()).map(wiring::slot).collect();
        acpi::write(&memory, vcpus, &slots).map_err(|source| StartError::Acpi { source })?;
        write_generation(&memory).map_err(|error| match error {
            GenerationError::Random { source } => StartError::Random { source },
            GenerationError::Write { source } => StartError::Write {
                what: "the generation id",
                source,
            },
        })?;
        let Assembled {
            machine,
            vcpus,
            threads,
        } = Machine::assemble(blank, wired, memory, vcpus)
            .map_err(|source| StartError::Kvm { source })?;
        set_up_vcpus(&machine, &vcpus, entry)?;
        watch.done("vcpus");
        let vm = Self::launch(machine, vcpus, threads, event_loop, false)
            .map_err(|source| StartError::Thread { source })?;
        watch.done("threads");
        // A guest that ended already is one that was started: `wait` tells.
        let _ = vm.handle().resume();
        Ok((vm, watch.steps))
    }
}

pub(super) fn install_kick() -> Result<(), ThreadError> {
    kick::install().map_err(|source| ThreadError {
        what: "vCPU",
        source,
    })
}

/// Why a guest has no generation id of its own.
pub(super) enum GenerationError {
    Random { source: io::Error },
    Write { source: vm_memory::GuestMemoryError },
}

/// Gives the guest a generation id that no other guest has.
pub(super) fn write_generation(memory: &Memory) -> Result<(), GenerationError> {
    let mut generation = [0; 16];
    let random = |source: io::Error| GenerationError::Random { source };
    // The kernel does not stop half way in so few bytes.
    let got = rustix::rand::getrandom(&mut generation, GetRandomFlags::empty())
        .map_err(|source| random(source.into()))?;
    if got != generation.len() {
        return Err(random(io::ErrorKind::UnexpectedEof.into()));
    }
    memory
        .write_slice(&generation, GuestAddress(layout::VMGENID))
        .map_err(|source| GenerationError::Write { source })
}

/// Fills guest memory with all that the kernel needs. Returns its entry point.
fn load(
    memory: &Memory,
    mem_mib: u32,
    kernel: &File,
    initramfs: &File,
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

/// Sets up all vCPUs before any of them runs, so that an error leaves nothing to take down.
fn set_up_vcpus(machine: &Machine, vcpus: &[VcpuFd], entry: u64) -> Result<(), StartError> {
    let count = u8::try_from(vcpus.len()).expect("checked with the configuration");
    for (id, fd) in (0..).zip(vcpus) {
        let cpuid = machine.processor.table(id, count);
        let cpuid = cpuid.map_err(|source| StartError::Cpuid { source })?;
        setup::set_up(fd, id, &cpuid, (id == 0).then_some(entry))
            .map_err(|source| StartError::SetUpVcpu { source })?;
    }
    Ok(())
}
