//! Writes a paused microVM to files.
//!
//! The order: devices first, then vCPUs, then what KVM keeps for all of them. A device that would raise an
//! interrupt while it is saved would otherwise do so after the controllers had been read (firecracker pull
//! request 5582). The state file is written last, so that a half-written snapshot has none.

use std::fs::File;
use std::io;
use std::sync::mpsc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::VmHandle;
use super::handle::{Phase, Running};
use crate::devices::lock;
use crate::irqchip::IrqchipState;
use crate::machine::MachineError;
use crate::memory::dump::dump;
use crate::memory::working_set::WorkingSet;
use crate::memory::{MIB, Memory};
use crate::snapshot::SnapshotError;
use crate::snapshot::format::{self, HeaderFields};
use crate::snapshot::state::State;
use crate::vcpu::run::Command;
use crate::vcpu::state::Saved;
use crate::vcpu::{RegisterError, VcpuHandle};

/// Where a snapshot goes. All files are empty.
#[derive(Debug)]
pub struct SnapshotFiles {
    pub state: File,
    pub memory: File,
    /// One per disk that the guest writes to, in order. Each is filled whole, with holes for zeros.
    pub disks: Vec<File>,
}

/// Why a microVM could not be saved. It stays paused, and can be saved again to other files.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("The guest runs; pause it first")]
    Running,
    #[error("The guest has ended")]
    Ended,
    #[error("The guest writes to {expected} disks, there are files for {given}")]
    Disks { expected: usize, given: usize },
    #[error("Cannot read a vCPU")]
    Vcpu { source: RegisterError },
    #[error("Cannot read the state of the machine")]
    Kvm { source: MachineError },
    #[error("Cannot write the guest's memory to its file")]
    Memory { source: io::Error },
    #[error("Cannot write disk {index} to its file")]
    Disk { index: usize, source: io::Error },
    #[error("Cannot write the state of the guest")]
    State { source: SnapshotError },
    #[error("Cannot make the CPUID table")]
    Cpuid { source: io::Error },
    #[error("The guest was booted and not restored, so that all of its memory is its own")]
    Booted,
    #[error("Cannot find out which pages the guest has touched")]
    Pages { source: io::Error },
    #[error("Cannot write the working set")]
    WorkingSet { source: SnapshotError },
}

impl VmHandle {
    /// Writes the guest, which must be paused and stays so, to files.
    pub fn save(&self, to: &SnapshotFiles) -> Result<(), SaveError> {
        self.with_paused(|running| running.save(to))
    }

    /// Writes down which pages the guest has touched since it was restored. It must be paused, and stays so.
    /// `pagemap` is `/proc/self/pagemap` of this process.
    pub fn save_working_set(&self, pagemap: &File, to: &File) -> Result<(), SaveError> {
        self.with_paused(|running| {
            if !running.restored {
                return Err(SaveError::Booted);
            }
            let working_set = WorkingSet::record(&running.machine.memory, pagemap)
                .map_err(|source| SaveError::Pages { source })?;
            let (written, read) = working_set.pages();
            let exact = running.machine.recording.is_some();
            tracing::info!(written, read, exact, "working set recorded");
            working_set
                .write(to)
                .map_err(|source| SaveError::WorkingSet { source })
        })
    }

    fn with_paused(
        &self,
        act: impl FnOnce(&Running) -> Result<(), SaveError>,
    ) -> Result<(), SaveError> {
        let acted = self.with(|running| match running.phase {
            Phase::Paused => act(running),
            Phase::Running => Err(SaveError::Running),
        });
        acted.ok_or(SaveError::Ended)?
    }
}

impl Running {
    fn save(&self, to: &SnapshotFiles) -> Result<(), SaveError> {
        let transports = &self.machine.transports;
        let expected = transports
            .iter()
            .filter(|transport| lock(transport).with_writable_disk(|_| ()).is_some())
            .count();
        if expected != to.disks.len() {
            return Err(SaveError::Disks {
                expected,
                given: to.disks.len(),
            });
        }
        let state = self.state()?;
        dump(&self.machine.memory, &to.memory).map_err(|source| SaveError::Memory { source })?;
        let mut files = to.disks.iter().enumerate();
        for transport in transports {
            lock(transport)
                .with_writable_disk(|disk| match files.next() {
                    Some((index, file)) => disk
                        .flatten(file)
                        .map_err(|source| SaveError::Disk { index, source }),
                    None => Ok(()),
                })
                .transpose()?;
        }
        let header = HeaderFields {
            mem_mib: mem_mib(&self.machine.memory),
            vcpus: count(self.vcpus.len()),
            disks: state.disks(),
        };
        format::write(&to.state, header, &state).map_err(|source| SaveError::State { source })
    }

    fn state(&self) -> Result<State, SaveError> {
        let machine = &self.machine;
        let kvm = |source| SaveError::Kvm { source };
        let virtio = machine
            .transports
            .iter()
            .map(|transport| lock(transport).save());
        let virtio = virtio.collect();
        let serial = lock(&machine.serial).save();
        let vcpus: Vec<Saved> = self.vcpus.iter().map(save_vcpu).collect::<Result<_, _>>()?;
        // The first is the earliest, and later than all that the guest has seen.
        let (tsc, tsc_khz) = vcpus
            .first()
            .map_or((0, 0), |vcpu| (vcpu.tsc, vcpu.tsc_khz));
        let refused = |what| move |source| kvm(MachineError::Refused { what, source });
        let processor = machine.processor.table(0, count(self.vcpus.len()));
        let processor = processor.map_err(|source| SaveError::Cpuid { source })?;
        Ok(State {
            processor: processor.as_slice().to_vec(),
            tsc_khz,
            tsc,
            clock_ns: machine.fd.get_clock().map_err(refused("GET_CLOCK"))?.clock,
            vcpus: vcpus.into_iter().map(|vcpu| vcpu.state).collect(),
            irqchip: IrqchipState::save(&machine.fd).map_err(kvm)?,
            serial,
            virtio,
        })
    }
}

/// Asks the vCPU's thread, which is paused.
fn save_vcpu(vcpu: &VcpuHandle) -> Result<Saved, SaveError> {
    let (done, saved) = mpsc::channel();
    vcpu.send(Command::Save(done));
    match saved.recv() {
        Ok(saved) => saved.map_err(|source| SaveError::Vcpu { source }),
        // The thread ended.
        Err(_) => Err(SaveError::Ended),
    }
}

fn count(vcpus: usize) -> u8 {
    u8::try_from(vcpus).expect("checked when the microVM was made")
}

fn mem_mib(memory: &Memory) -> u32 {
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    u32::try_from(bytes / MIB).expect("checked when the microVM was made")
}
