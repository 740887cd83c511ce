//! One microVM: memory, boot, devices, vCPUs. No HTTP, no async.
//!
//! [`Vm::start`] turns a [`VmConfig`], which is plain data and open files, into a running guest;
//! [`Vm::wait`] tells how it ended. Nothing is opened by path. See README.md for the threat model and
//! the boot sequence.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`memory`] | the guest's memory, and every address in it |
//! | [`boot`] | kernel, initramfs, command line, ACPI tables, 64-bit entry |
//! | [`vcpu`] | one thread per processor: its state, its exits, its CPUID |
//! | [`devices`] | what the guest finds on its buses |
//! | [`vm`] | puts them together |
//! | [`mod@probe`] | whether this host can run guests at all |

pub mod boot;
pub mod config;
pub mod devices;
mod machine;
pub mod memory;
pub mod probe;
pub mod vcpu;
pub mod vm;
mod wiring;

pub use config::{BlockConfig, ConfigError, VmConfig};
pub use probe::{ProbeError, ProbeReport, probe};
pub use vm::{GuestEnded, StartError, Vm, VmExit, VmHandle};
