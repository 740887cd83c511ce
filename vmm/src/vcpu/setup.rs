//! The registers of a vCPU before its first instruction.
//!
//! Only the first vCPU starts in the kernel; the others wait for the start-up interrupt that the kernel
//! sends them, in the state that KVM gives every new vCPU.

use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::RegisterError;
use crate::boot::long_mode;

/// IA32_MISC_ENABLE with "fast strings": the kernel takes it as a sign of a sane `rep movs`.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE: enabled, write-back. The reset value means "uncached" for all memory.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// x87 control word and MXCSR after reset (Intel SDM 1, 8.1.5 and 10.2.3): all exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Prepares vCPU `id`. `entry` is where the kernel starts, on the first vCPU.
///
/// SET_CPUID2 comes first: it decides which registers exist, and is refused after the first KVM_RUN.
pub fn set_up(fd: &VcpuFd, id: u8, cpuid: &CpuId, entry: Option<u64>) -> Result<(), RegisterError> {
    let refused = |group| RegisterError::refused(group, id);
    fd.set_cpuid2(cpuid).map_err(refused("SET_CPUID2"))?;
    set_msrs(fd).map_err(refused("SET_MSRS"))?;
    fd.set_fpu(&kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    })
    .map_err(refused("SET_FPU"))?;
    if let Some(entry) = entry {
        let mut sregs = fd.get_sregs().map_err(refused("GET_SREGS"))?;
        long_mode::set_special_registers(&mut sregs);
        fd.set_sregs(&sregs).map_err(refused("SET_SREGS"))?;
        fd.set_regs(&long_mode::registers(entry))
            .map_err(refused("SET_REGS"))?;
    }
    Ok(())
}

fn set_msrs(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let wanted = [
        entry(MSR_MISC_ENABLE, FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&wanted).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    // KVM stops at the first register that it does not take and returns how many it took.
    if fd.set_msrs(&msrs)? == wanted.len() {
        Ok(())
    } else {
        Err(kvm_ioctls::Error::new(libc::EINVAL))
    }
}
