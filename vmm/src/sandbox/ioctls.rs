//! The numbers of KVM's calls. `kvm-ioctls` keeps its own to itself; a wrong one here ends the first worker that makes the call.

use std::ffi::c_uint;

use kvm_bindings as kvm;
use kvm_bindings::KVMIO;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

#[expect(
    clippy::cast_possible_truncation,
    reason = "a number of 32 bits by its definition"
)]
const fn number(direction: c_uint, index: c_uint, bytes: usize) -> u32 {
    ioctl_expr(direction, KVMIO, index, bytes as c_uint) as u32
}

const fn plain(index: c_uint) -> u32 {
    number(_IOC_NONE, index, 0)
}

const fn read<T>(index: c_uint) -> u32 {
    number(_IOC_READ, index, size_of::<T>())
}

const fn write<T>(index: c_uint) -> u32 {
    number(_IOC_WRITE, index, size_of::<T>())
}

const fn both<T>(index: c_uint) -> u32 {
    number(_IOC_READ | _IOC_WRITE, index, size_of::<T>())
}

// Of the VM.
pub const CHECK_EXTENSION: u32 = plain(0x03);
pub const CREATE_VCPU: u32 = plain(0x41);
pub const SET_USER_MEMORY_REGION: u32 = write::<kvm::kvm_userspace_memory_region>(0x46);
pub const IRQ_LINE: u32 = write::<kvm::kvm_irq_level>(0x61);
pub const GET_IRQCHIP: u32 = both::<kvm::kvm_irqchip>(0x62);
pub const SET_IRQCHIP: u32 = read::<kvm::kvm_irqchip>(0x63);
pub const SET_CLOCK: u32 = write::<kvm::kvm_clock_data>(0x7b);
pub const GET_CLOCK: u32 = read::<kvm::kvm_clock_data>(0x7c);

// Of a vCPU.
pub const RUN: u32 = plain(0x80);
pub const GET_REGS: u32 = read::<kvm::kvm_regs>(0x81);
pub const SET_REGS: u32 = write::<kvm::kvm_regs>(0x82);
pub const GET_SREGS: u32 = read::<kvm::kvm_sregs>(0x83);
pub const SET_SREGS: u32 = write::<kvm::kvm_sregs>(0x84);
pub const GET_MSRS: u32 = both::<kvm::kvm_msrs>(0x88);
pub const SET_MSRS: u32 = write::<kvm::kvm_msrs>(0x89);
pub const SET_FPU: u32 = write::<kvm::kvm_fpu>(0x8d);
pub const GET_LAPIC: u32 = read::<kvm::kvm_lapic_state>(0x8e);
pub const SET_LAPIC: u32 = write::<kvm::kvm_lapic_state>(0x8f);
pub const SET_CPUID2: u32 = write::<kvm::kvm_cpuid2>(0x90);
pub const GET_MP_STATE: u32 = read::<kvm::kvm_mp_state>(0x98);
pub const SET_MP_STATE: u32 = write::<kvm::kvm_mp_state>(0x99);
pub const GET_VCPU_EVENTS: u32 = read::<kvm::kvm_vcpu_events>(0x9f);
pub const SET_VCPU_EVENTS: u32 = write::<kvm::kvm_vcpu_events>(0xa0);
pub const GET_DEBUGREGS: u32 = read::<kvm::kvm_debugregs>(0xa1);
pub const SET_DEBUGREGS: u32 = write::<kvm::kvm_debugregs>(0xa2);
pub const SET_TSC_KHZ: u32 = plain(0xa2);
pub const GET_TSC_KHZ: u32 = plain(0xa3);
pub const GET_XSAVE: u32 = read::<kvm::kvm_xsave>(0xa4);
pub const SET_XSAVE: u32 = write::<kvm::kvm_xsave>(0xa5);
pub const GET_XCRS: u32 = read::<kvm::kvm_xcrs>(0xa6);
pub const SET_XCRS: u32 = write::<kvm::kvm_xcrs>(0xa7);
pub const KVMCLOCK_CTRL: u32 = plain(0xad);
pub const GET_XSAVE2: u32 = read::<kvm::kvm_xsave>(0xcf);
pub const SET_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe1);
pub const GET_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe2);
pub const HAS_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe3);
pub const PRE_FAULT_MEMORY: u32 = both::<kvm::kvm_pre_fault_memory>(0xd5);
