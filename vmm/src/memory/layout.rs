//! Every guest-physical address, with its source.
//!
//! ```text
//! 0x0000_1000  GDT                          boot only
//! 0x0000_7000  boot parameters ("zero page")
//! 0x0000_8ff0  first stack pointer
//! 0x0000_9000  page tables (4 pages)        boot only
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  end of conventional memory
//! 0x000e_0000  ACPI tables                  reserved in the memory map
//! 0x000f_f000  VM generation id             reserved in the memory map
//! 0x0010_0000  usable memory: kernel (linked at 16 MiB), initramfs at the top
//! 0xc000_0000  end of low memory, start of the hole for devices
//! 0xd000_0000  virtio-mmio transports, one page each
//! 0xfec0_0000  I/O APIC, then local APIC and KVM's own pages
//! 0x1_0000_0000 the rest of the memory
//! ```

/// The segment table that the boot processor starts with.
pub const GDT: u64 = 0x1000;
/// `struct boot_params`, Documentation/arch/x86/zero-page.rst.
pub const ZERO_PAGE: u64 = 0x7000;
/// The kernel sets up its own stack at once; this one only has to be writable.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top-level page table; the next levels follow page by page.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h, terminator included.
pub const CMDLINE_MAX: usize = 2048;

/// Where conventional memory ends on a PC; above it firmware would keep its data area.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// RSDP and all tables. The kernel is told by `boot_params.acpi_rsdp_addr`; the place is the traditional one.
pub const ACPI: u64 = 0xe_0000;
/// Space for the tables, up to the generation id.
pub const ACPI_SIZE: u64 = VMGENID - ACPI;
/// The 16 bytes of the generation id, alone in a page that the guest must not use as RAM (VMGenID specification).
pub const VMGENID: u64 = 0xf_f000;
/// Where usable memory starts again above the legacy hole.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Low memory ends here; above it, up to 4 GiB, is room for devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// Memory goes on here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio transport.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Distance and size of transports: one page.
pub const VIRTIO_MMIO_SIZE: u64 = crate::devices::virtio::mmio::LEN;
/// Where the in-kernel I/O APIC answers (IOAPIC_DEFAULT_BASE_ADDRESS in arch/x86/kvm/ioapic.h).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Where local APICs answer (APIC_DEFAULT_PHYS_BASE).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM needs on Intel for real mode (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel for real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;

/// Tells the guest that its generation id has changed. On a PC the line is COM2's, which we do not have.
pub const GENERATION_GSI: u32 = 3;
/// COM1 and its interrupt, as on every PC.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's line.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt lines of the virtio devices: the I/O APIC has 24 pins, the lower ones are left to what a PC has there.
pub const VIRTIO_GSI: u32 = 5;
/// Last pin of the I/O APIC.
pub const LAST_GSI: u32 = 23;

/// ACPI sleep and reset registers, in the order of `devices::power`. Our choice; the FADT tells the guest.
pub const POWER_PORTS: u16 = 0x600;
/// One piece of guest memory: where it is for the guest, and in the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    pub start: u64,
    pub size: u64,
    pub file_offset: u64,
}

/// Splits `size` bytes of memory around the hole below 4 GiB. No empty ranges.
pub fn ram_ranges(size: u64) -> Vec<RamRange> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![RamRange {
        start: 0,
        size: low,
        file_offset: 0,
    }];
    if size > low {
        ranges.push(RamRange {
            start: HOLE_END,
            size: size - low,
            file_offset: low,
        });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range_at_zero() {
        assert_eq!(
            ram_ranges(64 << 20),
            [RamRange {
                start: 0,
                size: 64 << 20,
                file_offset: 0
            }]
        );
    }

    #[test]
    fn memory_of_exactly_the_low_limit_has_no_second_range() {
        assert_eq!(ram_ranges(HOLE_START).len(), 1);
    }

    #[test]
    fn memory_above_the_limit_continues_behind_the_hole() {
        let ranges = ram_ranges(HOLE_START + 4096);
        assert_eq!(
            ranges[1],
            RamRange {
                start: HOLE_END,
                size: 4096,
                file_offset: HOLE_START
            }
        );
    }

    #[test]
    fn last_virtio_transport_stays_below_the_interrupt_controllers() {
        let last = VIRTIO_MMIO + u64::from(LAST_GSI - VIRTIO_GSI + 1) * VIRTIO_MMIO_SIZE;
        assert!(VIRTIO_MMIO >= HOLE_START && last < u64::from(IO_APIC));
    }
}
