//! Everything that is in guest memory before the first instruction: kernel, initramfs, command line, boot
//! parameters, ACPI tables, and the segment and page tables that 64-bit entry needs.

pub mod acpi;
pub mod cmdline;
#[cfg(test)]
mod fuzz;
pub mod initrd;
pub mod kernel;
pub mod long_mode;
pub mod params;
pub mod returns;
