//! One microVM: memory, boot, devices, vCPUs. No HTTP, no async.
//!
//! [`Vm::start`] turns a [`VmConfig`], which is plain data and open files, into a running guest;
//! [`VmHandle::save`] turns a paused one into files and [`Vm::restore`] these into a running guest;
//! [`Vm::wait`] tells how it ended. Nothing is opened by path. See README.md for the threat model, the
//! boot sequence and the restore sequence.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`memory`] | the guest's memory, and every address in it |
//! | [`boot`] | kernel, initramfs, command line, ACPI tables, 64-bit entry |
//! | [`vcpu`] | one thread per processor: its state, its exits, its CPUID |
//! | [`devices`] | what the guest finds on its buses |
//! | [`snapshot`] | the state file of a saved guest |
//! | [`sandbox`] | what each thread may ask of the kernel |
//! | [`vm`] | puts them together |
//! | [`mod@probe`] | whether this host can run guests at all |

pub mod boot;
pub mod config;
pub mod devices;
mod irqchip;
mod lines;
mod machine;
pub mod memory;
pub mod probe;
pub mod sandbox;
pub mod snapshot;
mod sparse;
pub mod vcpu;
pub mod vm;
mod wiring;

pub use config::{BlockConfig, ConfigError, FirstPages, RateLimits, RestoreConfig, VmConfig};
pub use machine::{BlankMachine, MachineError};
pub use probe::{ProbeError, ProbeReport, cpu_description, probe};
pub use sandbox::Filters;
pub use vm::{
    GuestEnded, IdleThread, RestoreError, SaveError, SnapshotFiles, StartError, Steps, Vm, VmExit,
    VmHandle,
};
