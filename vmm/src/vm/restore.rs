//! Goes on where a saved microVM stopped.
//!
//! | order | otherwise |
//! | --- | --- |
//! | devices before vCPUs | a vCPU could run into a device that is not there |
//! | vCPUs, local APICs among them, before the I/O APIC | what the I/O APIC passes on would be forgotten |
//! | interrupts that are due raised after both, by a call that is complete when it returns | one raised earlier is forgotten, one raised by an event comes when the guest runs already |
//! | a new generation id and its interrupt before any vCPU runs | the guest would use random numbers of its siblings |
//! | the clock last | the guest would be told of time that it did not have |
//!
//! What a file can say that KVM would not refuse by itself is checked here and by the parts that take it over.

use std::fs::File;
use std::io;
use std::ops::Range;

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{VcpuFd, VmFd};

use super::start::{GenerationError, install_kick, write_generation};
use super::steps::{Steps, Stopwatch};
use super::{Machine, ThreadError, Vm};
use crate::config::{ConfigError, FirstPages, RestoreConfig};
use crate::devices::lock;
use crate::devices::virtio::mmio::TransportError;
use crate::devices::virtio::state::TransportSaved;
use crate::machine::{Assembled, MachineError};
use crate::memory::one_by_one::OneByOne;
use crate::memory::working_set::WorkingSet;
use crate::memory::{self, Memory, MemoryError, layout};
use crate::snapshot::SnapshotError;
use crate::snapshot::format;
use crate::snapshot::state::{ShapeError, State, check_guest};
use crate::vcpu::prefault::{can_prefault, prefault};
use crate::vcpu::{RegisterError, Tsc, cpuid};
use crate::wiring::{self, Wired, WiringError};

/// Why a saved microVM could not be brought back. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("The configuration cannot make a guest")]
    Config { source: ConfigError },
    #[error("Cannot read the snapshot")]
    State { source: SnapshotError },
    #[error("The snapshot is not one of this guest")]
    Shape { source: ShapeError },
    #[error(
        "The snapshot was taken on another processor: leaf {leaf:#x} differs; make the golden again"
    )]
    Processor { leaf: u32 },
    #[error(
        "The snapshot was taken at {saved} kHz, this host runs at {here} kHz and cannot scale; make the golden again"
    )]
    Frequency { saved: u32, here: u32 },
    #[error("Cannot map the snapshot's memory")]
    Memory { source: MemoryError },
    #[error("Cannot use the working set")]
    WorkingSet { source: SnapshotError },
    #[error("Cannot get the working set into memory")]
    Prefetch { source: io::Error },
    #[error("Cannot connect the devices")]
    Devices { source: WiringError },
    #[error("Cannot restore device {slot} ({name})")]
    Device {
        slot: usize,
        name: &'static str,
        source: TransportError,
    },
    #[error("Cannot restore the machine")]
    Kvm { source: MachineError },
    #[error("Cannot make the CPUID table")]
    Cpuid { source: io::Error },
    #[error("Cannot restore a vCPU")]
    Vcpu { source: RegisterError },
    #[error("The kernel gives no random bytes for the generation id")]
    Random { source: io::Error },
    #[error("Cannot write the generation id to guest memory")]
    Generation { source: vm_memory::GuestMemoryError },
    #[error("Cannot run the guest")]
    Thread { source: ThreadError },
}

impl Vm {
    /// Brings a saved guest back. It runs when this returns.
    pub fn restore(config: RestoreConfig) -> Result<(Self, Steps), RestoreError> {
        let mut watch = Stopwatch::start();
        config
            .check()
            .map_err(|source| RestoreError::Config { source })?;
        install_kick().map_err(|source| RestoreError::Thread { source })?;
        let RestoreConfig {
            machine: mut blank,
            state,
            memory,
            blocks,
            vsock,
            console,
            vcpus,
            mem_mib,
            first_pages,
            limits,
        } = config;
        let (header, mut state) =
            format::read::<State>(&state).map_err(|source| RestoreError::State { source })?;
        check_guest(&header, vcpus, mem_mib)
            .and_then(|()| state.check(&header, blocks.len()))
            .map_err(|source| RestoreError::Shape { source })?;
        watch.done("state");

        let memory = memory::map_private(memory, header.mem_mib)
            .map_err(|source| RestoreError::Memory { source })?;
        let recording = match first_pages {
            FirstPages::Recorded => record(&memory),
            FirstPages::AsNeeded | FirstPages::Prefetched(_) => None,
        };
        watch.done("memory");
        let mut touched = Vec::new();
        if let FirstPages::Prefetched(file) = first_pages {
            touched = prefetch(&file, &memory, &blank.fd, header.mem_mib)?;
            watch.done("working set");
        }

        let devices = wiring::Devices {
            blocks,
            vsock,
            console,
            serial: Some(&state.serial),
            limits,
        };
        let (wired, event_loop) = wiring::connect(&mut blank, &memory, devices)
            .map_err(|source| RestoreError::Devices { source })?;
        restore_devices(&wired, std::mem::take(&mut state.virtio))?;
        watch.done("devices");

        let kvm = |source| RestoreError::Kvm { source };
        let Assembled {
            mut machine,
            vcpus,
            threads,
        } = Machine::assemble(blank, wired, memory, vcpus).map_err(kvm)?;
        machine.recording = recording;
        watch.done("vcpus made");
        restore_vcpus(&machine, &vcpus, &state)?;
        watch.done("vcpus restored");
        if let (Some(first), false) = (vcpus.first(), touched.is_empty()) {
            prefault(first, &touched);
            watch.done("pages mapped");
        }

        state.irqchip.restore(&machine.fd).map_err(kvm)?;
        write_generation(&machine.memory).map_err(|error| match error {
            GenerationError::Random { source } => RestoreError::Random { source },
            GenerationError::Write { source } => RestoreError::Generation { source },
        })?;
        raise_interrupts(&machine).map_err(kvm)?;
        watch.done("interrupts");

        set_clock(&machine, state.clock_ns).map_err(kvm)?;
        let vm = Self::launch(machine, vcpus, threads, event_loop, true)
            .map_err(|source| RestoreError::Thread { source })?;
        // A guest that ended already is one that was restored: `wait` tells.
        let _ = vm.handle().resume();
        watch.done("threads");
        Ok((vm, watch.steps))
    }
}

/// Has the kernel map what is touched and nothing else, if it can.
fn record(memory: &Memory) -> Option<OneByOne> {
    let kept = OneByOne::keep(memory);
    if let Err(error) = &kept {
        tracing::warn!(%error, "this kernel cannot map pages one by one: some that no fork needs will be recorded too");
    }
    kept.ok()
}

/// Makes the working set ready on the host's side. Gives what shall be mapped for the guest once it has a vCPU.
fn prefetch(
    file: &File,
    memory: &Memory,
    vm: &VmFd,
    mem_mib: u32,
) -> Result<Vec<Range<u64>>, RestoreError> {
    let working_set =
        WorkingSet::read(file, mem_mib).map_err(|source| RestoreError::WorkingSet { source })?;
    working_set
        .prefetch(memory)
        .map_err(|source| RestoreError::Prefetch { source })?;
    Ok(match can_prefault(vm) {
        true => working_set.guest_ranges(),
        false => Vec::new(),
    })
}

/// Gives each device its state. The two lists are equally long, see [`State::check`].
fn restore_devices(wired: &Wired, saved: Vec<TransportSaved>) -> Result<(), RestoreError> {
    for (slot, (transport, saved)) in wired.transports.iter().zip(saved).enumerate() {
        let mut transport = lock(transport);
        let name = transport.name();
        transport
            .restore(saved)
            .map_err(|source| RestoreError::Device { slot, name, source })?;
    }
    Ok(())
}

fn restore_vcpus(machine: &Machine, vcpus: &[VcpuFd], state: &State) -> Result<(), RestoreError> {
    let count = u8::try_from(vcpus.len()).expect("bounded in the state file");
    let table = |id| {
        let table = machine.processor.table(id, count);
        table.map_err(|source| RestoreError::Cpuid { source })
    };
    // The table is this host's, never the file's, which could otherwise give a guest what it must not have.
    if let Some(leaf) = cpuid::first_difference(&state.processor, table(0)?.as_slice()) {
        return Err(RestoreError::Processor { leaf });
    }
    let Some(first) = vcpus.first() else {
        return Ok(());
    };
    let refused = |group| {
        move |source| RestoreError::Vcpu {
            source: RegisterError::Refused {
                group,
                vcpu: 0,
                source,
            },
        }
    };
    let here = first.get_tsc_khz().map_err(refused("GET_TSC_KHZ"))?;
    if here != state.tsc_khz {
        // The host measures its own frequency at every boot and finds it a little different. KVM takes what is
        // near enough, and anything where the processor can scale.
        let scaled = vcpus
            .iter()
            .try_for_each(|fd| fd.set_tsc_khz(state.tsc_khz));
        scaled.map_err(|_| RestoreError::Frequency {
            saved: state.tsc_khz,
            here,
        })?;
    }
    let tsc = Tsc::starting_at(state.tsc, first).map_err(refused("GET_TSC"))?;
    for ((id, fd), saved) in (0..).zip(vcpus).zip(&state.vcpus) {
        saved
            .restore(fd, id, &table(id)?, &tsc, &machine.registers)
            .map_err(|source| RestoreError::Vcpu { source })?;
    }
    Ok(())
}

/// Raises what the guest has not acknowledged, since it may have been on its way when the guest was saved, and
/// tells it that its generation id is new.
fn raise_interrupts(machine: &Machine) -> Result<(), MachineError> {
    if lock(&machine.serial).interrupt_pending() {
        machine.pulse(layout::SERIAL_GSI)?;
    }
    for (number, transport) in machine.transports.iter().enumerate() {
        if lock(transport).interrupt_pending() {
            machine.pulse(wiring::slot(number).gsi())?;
        }
    }
    machine.pulse(layout::GENERATION_GSI)
}

/// Lets kvm-clock go on from where it stood. Without the flag for real time, which would let it jump by the time
/// since the save.
fn set_clock(machine: &Machine, clock_ns: u64) -> Result<(), MachineError> {
    let clock = kvm_clock_data {
        clock: clock_ns,
        ..Default::default()
    };
    machine
        .fd
        .set_clock(&clock)
        .map_err(|source| MachineError::Refused {
            what: "SET_CLOCK",
            source,
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::PAGE;

    #[test]
    fn memory_that_cannot_be_mapped_one_by_one_is_recorded_with_pages_too_many() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let memory = memory::map_private(file, 1).unwrap();
        // Memory that somebody has registered is not registered twice.
        let first = OneByOne::keep(&memory);
        assert!(first.is_err() || record(&memory).is_none());
        drop(first);
        memory.read_obj::<u8>(GuestAddress(40 * PAGE)).unwrap();
        memory.write_obj(1_u8, GuestAddress(90 * PAGE)).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let set = WorkingSet::record(&memory, &pagemap).unwrap();
        let (written, read) = set.pages();
        assert!(written == 1 && read >= 1, "{set:?}");
    }
}
