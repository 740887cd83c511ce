//! Maps memory into the guest's second-level page tables before the guest asks for it (Linux 6.11 and later).
//!
//! Populating the worker's own page table spares a copy and a fault on the host; the guest's first access still
//! leaves the guest, once per page. With this it does not.

use std::ops::Range;

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::{errno, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Whether [`prefault`] does anything.
pub fn can_prefault(vm: &VmFd) -> bool {
    vm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) > 0
}

/// Maps `ranges` of guest-physical memory as far as KVM can. All vCPUs share what one of them has mapped. It only
/// saves time, so what cannot be mapped is left to the guest's own accesses.
pub fn prefault(fd: &VcpuFd, ranges: &[Range<u64>]) {
    for range in ranges {
        if let Err(error) = map(fd, range) {
            tracing::debug!(%error, start = range.start, "memory cannot be mapped ahead");
            return;
        }
    }
}

fn map(fd: &VcpuFd, range: &Range<u64>) -> Result<(), kvm_ioctls::Error> {
    let mut request = kvm_pre_fault_memory {
        gpa: range.start,
        size: range.end - range.start,
        ..Default::default()
    };
    while request.size > 0 {
        // SAFETY: the kernel reads the structure and writes back what is left to do; nothing else refers to it.
        // Guest memory is not written: at most the host's own page tables are filled.
        if unsafe { ioctl_with_mut_ref(fd, KVM_PRE_FAULT_MEMORY(), &mut request) } != 0 {
            let error = errno::Error::last();
            if ![libc::EINTR, libc::EAGAIN].contains(&error.errno()) {
                return Err(error);
            }
        }
    }
    Ok(())
}
