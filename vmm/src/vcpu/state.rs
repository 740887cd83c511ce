//! Everything that a vCPU knows, out of KVM and back into it.
//!
//! The order is law in both directions, and each step says what breaks otherwise. KVM checks the values: a
//! hostile state file ends in a refusal, or in a guest that does nonsense in its own memory.

use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::fam;

use super::RegisterError;
use super::tsc::Tsc;
use crate::snapshot::bounded;

/// The time stamp counter: one value for all vCPUs, so not part of any.
const MSR_TSC: u32 = 0x10;
/// When the local APIC's timer goes off, in TSC ticks. Set after the local APIC, whose mode it needs.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Extended state that only the supervisor saves. Kernels before it was listed support it all the same
/// (firecracker issue 5972).
const MSR_XSS: u32 = 0xda0;
/// The range that KVM keeps for itself; the list of a kernel may lack a part of what it has (firecracker issue
/// 5738). Later ones than these do not exist in Linux 6.12 (arch/x86/include/uapi/asm/kvm_para.h).
const KVM_MSRS: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4d0f;

/// KVM_MAX_MSR_ENTRIES: what one call takes.
const MSRS_PER_CALL: usize = 256;
/// Far more than any processor has.
const MAX_MSRS: usize = 1024;
/// `struct kvm_xsave` before it could grow, in 32-bit words.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / 4;
/// 64 KiB of extended registers; with AMX it is 11 KiB.
const MAX_XSAVE_WORDS: usize = 16 * 1024;

/// A model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    pub index: u32,
    pub value: u64,
}

/// A vCPU at rest.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    #[serde(deserialize_with = "bounded::<_, _, MAX_XSAVE_WORDS>")]
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    #[serde(deserialize_with = "bounded::<_, _, MAX_MSRS>")]
    msrs: Vec<Msr>,
    tsc_deadline: u64,
    events: kvm_vcpu_events,
}

/// What is the same for all vCPUs of a microVM: which registers there are, and how large.
pub struct Registers {
    msrs: Vec<u32>,
    xsave_words: usize,
}

impl Registers {
    /// Asks KVM. The size of the extended registers is that of all that this process may use.
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let msrs = saved_msrs(kvm.get_msr_index_list()?.as_slice());
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            msrs,
            xsave_words: bytes.div_ceil(4).max(XSAVE_WORDS),
        })
    }
}

/// What is saved where the kernel lists these.
fn saved_msrs(listed: &[u32]) -> Vec<u32> {
    let mut msrs = listed.to_vec();
    for index in std::iter::once(MSR_XSS).chain(KVM_MSRS) {
        if !msrs.contains(&index) {
            msrs.push(index);
        }
    }
    // Both are set on their own, see above.
    msrs.retain(|index| ![MSR_TSC, MSR_TSC_DEADLINE].contains(index));
    msrs
}

/// A vCPU that was read, and what all vCPUs of a microVM have in common.
pub struct Saved {
    pub state: VcpuState,
    /// At the time of the read.
    pub tsc: u64,
    pub tsc_khz: u32,
}

/// Reads a vCPU.
pub fn save(fd: &VcpuFd, id: u8, registers: &Registers) -> Result<Saved, RegisterError> {
    let refused = |group| RegisterError::refused(group, id);
    // First: it lets the local APIC act on start-up interrupts that wait, which changes what is read below.
    let mp_state = fd.get_mp_state().map_err(refused("GET_MP_STATE"))?;
    let regs = fd.get_regs().map_err(refused("GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(refused("GET_SREGS"))?;
    let xsave = get_xsave(fd, registers.xsave_words).map_err(refused("GET_XSAVE2"))?;
    let xcrs = fd.get_xcrs().map_err(refused("GET_XCRS"))?;
    let debug_regs = fd.get_debug_regs().map_err(refused("GET_DEBUGREGS"))?;
    let lapic = fd.get_lapic().map_err(refused("GET_LAPIC"))?;
    let tsc_khz = fd.get_tsc_khz().map_err(refused("GET_TSC_KHZ"))?;
    let tsc = read_msr(fd, MSR_TSC).map_err(refused("GET_MSRS"))?;
    // A kernel or a processor without the deadline timer has no such register.
    let tsc_deadline = read_msr(fd, MSR_TSC_DEADLINE).unwrap_or(0);
    let msrs = get_msrs(fd, &registers.msrs).map_err(refused("GET_MSRS"))?;
    let state = VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        tsc_deadline,
        // Last: the calls above may still move an interrupt from one place to another.
        events: fd.get_vcpu_events().map_err(refused("GET_VCPU_EVENTS"))?,
    };
    Ok(Saved {
        state,
        tsc,
        tsc_khz,
    })
}

impl VcpuState {
    /// Makes a new vCPU `id` what the saved one was. It has never run.
    pub fn restore(
        &self,
        fd: &VcpuFd,
        id: u8,
        cpuid: &CpuId,
        tsc: &Tsc,
        registers: &Registers,
    ) -> Result<(), RegisterError> {
        let refused = |group| RegisterError::refused(group, id);
        // CPUID decides which registers exist, so it comes before any of them is set, or read (since Linux 6.13),
        // and it is refused after the first KVM_RUN (since Linux 5.16).
        fd.set_cpuid2(cpuid).map_err(refused("SET_CPUID2"))?;
        tsc.restore(fd).map_err(refused("SET_TSC"))?;
        fd.set_mp_state(self.mp_state)
            .map_err(refused("SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(refused("SET_REGS"))?;
        // With the base of the local APIC, which has to be enabled before its registers are set.
        fd.set_sregs(&self.sregs).map_err(refused("SET_SREGS"))?;
        self.set_xsave(fd, id, registers.xsave_words)?;
        fd.set_xcrs(&self.xcrs).map_err(refused("SET_XCRS"))?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(refused("SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic).map_err(refused("SET_LAPIC"))?;
        self.set_msrs(fd, id, &registers.msrs)?;
        // After the local APIC, which ignores it until its timer is in that mode, and after the TSC, from which
        // KVM computes how long there is to wait.
        self.set_deadline(fd, tsc);
        // Last: the setters above may put up events of their own.
        fd.set_vcpu_events(&self.events)
            .map_err(refused("SET_VCPU_EVENTS"))
    }

    fn set_xsave(&self, fd: &VcpuFd, id: u8, words: usize) -> Result<(), RegisterError> {
        if self.xsave.len() != words {
            return Err(RegisterError::ExtendedSize {
                vcpu: id,
                found: self.xsave.len() * 4,
                expected: words * 4,
            });
        }
        let refused = RegisterError::refused("SET_XSAVE", id);
        let mut xsave = match new_xsave(words) {
            Ok(xsave) => xsave,
            Err(error) => return Err(refused(error)),
        };
        let (fixed, extra) = self.xsave.split_at(XSAVE_WORDS);
        xsave.as_mut_slice().copy_from_slice(extra);
        // SAFETY: the header of the structure may be written, all but its length, which is not touched.
        unsafe { xsave.as_mut_fam_struct() }
            .xsave
            .region
            .copy_from_slice(fixed);
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 said. `words` is that number, see `Registers::of`,
        // and nobody in this process asks for more extended state later (arch_prctl).
        unsafe { fd.set_xsave2(&xsave) }.map_err(refused)
    }

    /// `known` are those that this host saves: a file can set no other.
    fn set_msrs(&self, fd: &VcpuFd, id: u8, known: &[u32]) -> Result<(), RegisterError> {
        if let Some(msr) = self.msrs.iter().find(|msr| !known.contains(&msr.index)) {
            return Err(RegisterError::Msr {
                vcpu: id,
                index: msr.index,
            });
        }
        let mut rest = self.msrs.as_slice();
        while let Some(Msr { index, value }) = rest.first().copied() {
            let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
            // KVM stops at the first register that it does not take, and says how many it took.
            let taken = write_msrs(fd, chunk).map_err(RegisterError::refused("SET_MSRS", id))?;
            if taken == 0 {
                // One that cannot be written but has the right value already is no loss.
                if read_msr(fd, index) != Ok(value) {
                    return Err(RegisterError::Msr { vcpu: id, index });
                }
            }
            rest = &rest[taken.max(1)..];
        }
        Ok(())
    }

    /// A timer that went off while the vCPU was being paused reads as zero, and its interrupt may be on its way
    /// still: it goes off again at once, since one interrupt too many harms nobody and one too few stops the guest
    /// (firecracker, `fix_zero_tsc_deadline_msr`). KVM ignores the register while the timer is in another mode.
    fn set_deadline(&self, fd: &VcpuFd, tsc: &Tsc) {
        let value = match self.tsc_deadline {
            0 => tsc.value(),
            deadline => deadline,
        };
        let msr = Msr {
            index: MSR_TSC_DEADLINE,
            value,
        };
        // A processor without the deadline timer has no such register, and then nobody needs it.
        let _ = write_msrs(fd, &[msr]);
    }

    /// For people.
    pub fn summary(&self) -> String {
        format!(
            "rip {:#x}, cr3 {:#x}, mp_state {}, {} registers of the model",
            self.regs.rip,
            self.sregs.cr3,
            self.mp_state.mp_state,
            self.msrs.len()
        )
    }
}

fn no_memory(_: fam::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(libc::ENOMEM)
}

fn new_xsave(words: usize) -> Result<Xsave, kvm_ioctls::Error> {
    Xsave::new(words - XSAVE_WORDS).map_err(no_memory)
}

fn get_xsave(fd: &VcpuFd, words: usize) -> Result<Vec<u32>, kvm_ioctls::Error> {
    if words == XSAVE_WORDS {
        // Also what a kernel before 5.17 has.
        return Ok(fd.get_xsave()?.region.to_vec());
    }
    let mut xsave = new_xsave(words)?;
    // SAFETY: KVM writes as many bytes as KVM_CAP_XSAVE2 said. `words` is that number, see `Registers::of`, and
    // nobody in this process asks for more extended state later (arch_prctl).
    unsafe { fd.get_xsave2(&mut xsave) }?;
    let fixed = &xsave.as_fam_struct_ref().xsave.region;
    Ok([fixed.as_slice(), xsave.as_slice()].concat())
}

/// Reads all of `indices` that this vCPU has.
fn get_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
        let entries: Vec<_> = chunk.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(no_memory)?;
        // KVM stops at the first register that this vCPU does not have, and says how many it read.
        let read = fd.get_msrs(&mut msrs)?;
        found.extend(msrs.as_slice().iter().take(read).map(|entry| Msr {
            index: entry.index,
            value: entry.data,
        }));
        let missing = usize::from(read < chunk.len());
        rest = &rest[read + missing..];
    }
    Ok(found)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// Reads one register.
pub(super) fn read_msr(fd: &VcpuFd, index: u32) -> Result<u64, kvm_ioctls::Error> {
    let mut msrs = Msrs::from_entries(&[entry(index, 0)]).map_err(no_memory)?;
    match fd.get_msrs(&mut msrs)? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(kvm_ioctls::Error::new(libc::ENOENT)),
    }
}

/// Writes registers until KVM refuses one. Says how many it took.
pub(super) fn write_msrs(fd: &VcpuFd, msrs: &[Msr]) -> Result<usize, kvm_ioctls::Error> {
    let entries: Vec<_> = msrs.iter().map(|msr| entry(msr.index, msr.value)).collect();
    let msrs = Msrs::from_entries(&entries).map_err(no_memory)?;
    fd.set_msrs(&msrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecracker_5738_5972_registers_that_the_kernel_does_not_list_are_saved_all_the_same() {
        const EFER: u32 = 0xc000_0080;
        let all: Vec<u32> = std::iter::once(MSR_XSS).chain(KVM_MSRS).collect();
        for listed in [&[EFER][..], &[EFER, 0x4b56_4d01, MSR_XSS], &all] {
            let saved = saved_msrs(listed);
            for index in &all {
                let times = saved.iter().filter(|saved| *saved == index).count();
                assert_eq!(times, 1, "{index:#x} of {listed:x?}");
            }
        }
        assert!(saved_msrs(&[EFER]).contains(&EFER));
    }

    #[test]
    fn counter_and_deadline_are_never_among_the_registers_that_are_set_in_any_order() {
        let saved = saved_msrs(&[MSR_TSC, 0x174, MSR_TSC_DEADLINE]);
        assert!(!saved.contains(&MSR_TSC) && !saved.contains(&MSR_TSC_DEADLINE));
        assert!(saved.contains(&0x174));
    }
}
