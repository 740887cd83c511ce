//! What a state file says: every number that a paused microVM consists of, beside its memory and disks.
//!
//! All of it may have been written by a stranger. The lists are bounded while they are decoded; what the
//! numbers mean is checked by whoever takes them over (the vCPU, the transport, the serial port, or KVM
//! itself), and [`State::check`] checks what concerns several of them.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use super::bounded;
use super::format::Header;
use crate::config::{MAX_BLOCKS, MAX_VCPUS};
use crate::devices::serial::SerialSaved;
use crate::devices::virtio::state::TransportSaved;
use crate::irqchip::IrqchipState;
use crate::vcpu::state::VcpuState;

/// Disks, vsock, rng.
const MAX_VIRTIO: usize = MAX_BLOCKS + 2;
/// Devices that every microVM has beside its disks.
const OTHER_VIRTIO: usize = 2;

/// A paused microVM.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// What the first vCPU was told of its processor. The others differ from it by their number only.
    #[serde(deserialize_with = "bounded::<_, _, KVM_MAX_CPUID_ENTRIES>")]
    pub processor: Vec<kvm_cpuid_entry2>,
    pub tsc_khz: u32,
    /// One value for all vCPUs: read one after the other, each would have a later one.
    pub tsc: u64,
    /// kvm-clock, in nanoseconds since the guest was booted. What a guest calls monotonic time.
    pub clock_ns: u64,
    #[serde(deserialize_with = "bounded::<_, _, { MAX_VCPUS as usize }>")]
    pub vcpus: Vec<VcpuState>,
    pub irqchip: IrqchipState,
    pub serial: SerialSaved,
    /// In the order of their slots: disks, vsock, rng.
    #[serde(deserialize_with = "bounded::<_, _, MAX_VIRTIO>")]
    pub virtio: Vec<TransportSaved>,
}

/// A state file that contradicts itself, or what it is to be restored with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShapeError {
    #[error("The header promises {promised} vCPUs, the state has {found}; make the golden again")]
    Vcpus { promised: u8, found: usize },
    #[error("The header promises {promised} disks, the state has {found}; make the golden again")]
    Disks { promised: u8, found: usize },
    #[error("The snapshot has {expected} disks, {given} were given")]
    Blocks { expected: u8, given: usize },
    #[error(
        "The snapshot is of a guest with {vcpus} vCPUs and {mem_mib} MiB of memory, \
         {wanted_vcpus} vCPUs and {wanted_mem_mib} MiB were asked for"
    )]
    Guest {
        vcpus: u8,
        mem_mib: u32,
        wanted_vcpus: u8,
        wanted_mem_mib: u32,
    },
}

/// Whether a snapshot is of the guest that its process has room for.
pub fn check_guest(
    header: &Header,
    wanted_vcpus: u8,
    wanted_mem_mib: u32,
) -> Result<(), ShapeError> {
    let Header { vcpus, mem_mib, .. } = *header;
    if (vcpus, mem_mib) == (wanted_vcpus, wanted_mem_mib) {
        return Ok(());
    }
    Err(ShapeError::Guest {
        vcpus,
        mem_mib,
        wanted_vcpus,
        wanted_mem_mib,
    })
}

impl State {
    /// Whether header, state and the disks at hand are of one microVM.
    pub fn check(&self, header: &Header, disks: usize) -> Result<(), ShapeError> {
        if self.vcpus.len() != usize::from(header.vcpus) {
            return Err(ShapeError::Vcpus {
                promised: header.vcpus,
                found: self.vcpus.len(),
            });
        }
        let found = self.virtio.len().saturating_sub(OTHER_VIRTIO);
        if self.virtio.len() != usize::from(header.disks) + OTHER_VIRTIO {
            return Err(ShapeError::Disks {
                promised: header.disks,
                found,
            });
        }
        if disks != usize::from(header.disks) {
            return Err(ShapeError::Blocks {
                expected: header.disks,
                given: disks,
            });
        }
        Ok(())
    }

    /// How many disks there are.
    pub fn disks(&self) -> u8 {
        u8::try_from(self.virtio.len().saturating_sub(OTHER_VIRTIO))
            .expect("there are fewer interrupt lines")
    }

    /// One line per part, for people.
    pub fn summary(&self) -> Vec<String> {
        let clock = std::time::Duration::from_nanos(self.clock_ns);
        let mut lines = vec![
            format!("processor {} CPUID entries", self.processor.len()),
            format!("tsc       {:#x} at {} kHz", self.tsc, self.tsc_khz),
            format!("clock     {clock:?} since boot"),
        ];
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            lines.push(format!("vcpu {id}    {}", vcpu.summary()));
        }
        lines.push(format!("serial    {}", self.serial.summary()));
        for (slot, device) in self.virtio.iter().enumerate() {
            lines.push(format!("virtio {slot}  {}", device.summary()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_of_another_guest_than_asked_for_is_told_by_both_shapes() {
        let header = Header {
            version: 1,
            mem_mib: 128,
            vcpus: 2,
            disks: 0,
            payload_bytes: 0,
            payload_sum: [0; 32],
        };
        assert_eq!(check_guest(&header, 2, 128), Ok(()));
        for (vcpus, mem_mib) in [(1, 128), (3, 128), (2, 127)] {
            let text = check_guest(&header, vcpus, mem_mib)
                .unwrap_err()
                .to_string();
            let wanted = format!("{vcpus} vCPUs and {mem_mib} MiB were asked for");
            assert!(
                text.contains("a guest with 2 vCPUs and 128 MiB") && text.contains(&wanted),
                "{text}"
            );
        }
    }
}
