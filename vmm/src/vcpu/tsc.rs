//! The time stamp counter of a restored microVM: it goes on where the saved one stood, and is the same on every
//! vCPU.
//!
//! KVM gives each vCPU an offset to the host's counter. Since Linux 5.16 the offset can be set as such, which
//! makes all vCPUs agree to the tick. Writing the counter itself is what older kernels have: KVM then guesses
//! from the time between writes that the vCPUs were meant to agree, and before Linux 6.7 it also took a counter
//! near to zero for a wish to keep the one that the vCPU was born with (`kvm_synchronize_tsc`).

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::state::{Msr, read_msr, write_msrs};

const MSR_TSC: u32 = 0x10;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// How the vCPUs of one microVM get their counter.
pub struct Tsc {
    value: u64,
    offset: Option<u64>,
}

impl Tsc {
    /// Decides on the first vCPU, for all. From now on the counter runs, on vCPUs that get it later as well.
    pub fn starting_at(value: u64, first: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let offset = if has_offset(first) {
            // The counter runs between the two reads. Offsets wrap around, as the counter does.
            let ahead = value.wrapping_sub(read_msr(first, MSR_TSC)?);
            Some(offset(first)?.wrapping_add(ahead))
        } else {
            None
        };
        Ok(Self { value, offset })
    }

    /// Where the counter stood.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// Sets the counter of one vCPU.
    pub fn restore(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        if let Some(offset) = self.offset {
            return set_offset(fd, offset);
        }
        let msr = Msr {
            index: MSR_TSC,
            value: self.value,
        };
        match write_msrs(fd, &[msr])? {
            1 => Ok(()),
            _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
        }
    }
}

/// The attribute "offset"; `value` is where the kernel finds or puts it.
fn attribute(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
    }
}

fn has_offset(fd: &VcpuFd) -> bool {
    let attribute = attribute(std::ptr::null());
    // SAFETY: the kernel reads the structure, which lives past the call; it does not look at `addr`.
    unsafe { ioctl_with_ref(fd, KVM_HAS_DEVICE_ATTR(), &attribute) == 0 }
}

fn offset(fd: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut value = 0_u64;
    let attribute = attribute(&raw mut value);
    // SAFETY: the kernel reads the structure and writes eight bytes to `value`; both live past the call, and no
    // reference to `value` is in use meanwhile.
    match unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(value),
        _ => Err(errno::Error::last()),
    }
}

fn set_offset(fd: &VcpuFd, value: u64) -> Result<(), kvm_ioctls::Error> {
    let attribute = attribute(&raw const value);
    // SAFETY: the kernel reads the structure and the eight bytes of `value`; both live past the call.
    match unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}
