//! The boot parameters ("zero page") and the memory map in them.
//!
//! Source of every offset: Documentation/arch/x86/zero-page.rst and boot.rst of Linux 6.12.

use vm_memory::{Bytes, GuestAddress};

use super::initrd::Initrd;
use crate::memory::{Memory, layout};

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

/// Protocol 2.15, the first with everything used here.
const PROTOCOL: u16 = 0x020f;
/// "Undefined" loader; the kernel wants any value but zero.
const LOADER_UNDEFINED: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Start, size and type of one entry of the memory map.
type E820Entry = (u64, u64, u32);

/// The memory map of a guest with `mem_size` bytes.
fn memory_map(mem_size: u64) -> Vec<E820Entry> {
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, E820_RAM),
        (
            layout::LOW_MEMORY_END,
            layout::HIGH_MEMORY - layout::LOW_MEMORY_END,
            E820_RESERVED,
        ),
    ];
    for range in layout::ram_ranges(mem_size) {
        let start = range.start.max(layout::HIGH_MEMORY);
        map.push((start, range.start + range.size - start, E820_RAM));
    }
    map
}

/// Writes the zero page.
pub fn write(
    memory: &Memory,
    mem_size: u64,
    cmdline: &str,
    initrd: Option<Initrd>,
) -> Result<(), vm_memory::GuestMemoryError> {
    let page = zero_page(mem_size, cmdline.len(), initrd);
    memory.write_slice(&page, GuestAddress(layout::ZERO_PAGE))
}

fn zero_page(mem_size: u64, cmdline_len: usize, initrd: Option<Initrd>) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(ACPI_RSDP_ADDR, &layout::ACPI.to_le_bytes());
    put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
    put(HEADER, b"HdrS");
    put(VERSION, &PROTOCOL.to_le_bytes());
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    let cmdline_address = u32::try_from(layout::CMDLINE).expect("a constant below 4 GiB");
    put(CMD_LINE_PTR, &cmdline_address.to_le_bytes());
    let cmdline_len = u32::try_from(cmdline_len).expect("checked against CMDLINE_MAX");
    put(CMDLINE_SIZE, &cmdline_len.to_le_bytes());
    if let Some(initrd) = initrd {
        put(RAMDISK_IMAGE, &initrd.address.to_le_bytes());
        put(RAMDISK_SIZE, &initrd.size.to_le_bytes());
    }
    let map = memory_map(mem_size);
    put(
        E820_ENTRIES,
        &[u8::try_from(map.len()).expect("at most four entries")],
    );
    for (index, (start, size, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_SIZE;
        put(at, &start.to_le_bytes());
        put(at + 8, &size.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_reserves_tables_and_generation_id() {
        let map = memory_map(64 << 20);
        let covers = |entry: &&E820Entry, at: u64| (entry.0..entry.0 + entry.1).contains(&at);
        for at in [layout::ACPI, layout::VMGENID, layout::VMGENID + 15] {
            assert_eq!(
                map.iter().find(|entry| covers(entry, at)).unwrap().2,
                E820_RESERVED
            );
        }
    }

    #[test]
    fn memory_map_gives_all_of_the_rest_and_no_more() {
        let usable = |size| {
            memory_map(size)
                .iter()
                .filter(|entry| entry.2 == E820_RAM)
                .map(|entry| entry.1)
                .sum::<u64>()
        };
        let legacy = layout::HIGH_MEMORY - layout::LOW_MEMORY_END;
        assert_eq!(usable(64 << 20), (64 << 20) - legacy);
        assert_eq!(usable(5 << 30), (5 << 30) - legacy);
    }

    #[test]
    fn sentinel_that_tells_the_kernel_of_a_sloppy_loader_is_zero() {
        assert_eq!(zero_page(64 << 20, 10, None)[0x1ef], 0);
    }
}
