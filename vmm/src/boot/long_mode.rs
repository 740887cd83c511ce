//! The state that Linux's 64-bit entry point wants: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
//!
//! Paging on with the low memory mapped one to one, flat segments 0x10 (code) and 0x18 (data), interrupts
//! off, RSI pointing to the boot parameters.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{Memory, layout};

/// Segment selectors that the boot protocol asks for.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Descriptor types (Intel SDM 3A, 3.4.5.1 and 3.5).
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TASK: u8 = 0xb;

/// Control register and EFER bits (Intel SDM 3A, 2.5 and 2.2.1).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// SSE instructions work: OSFXSR and OSXMMEXCPT.
pub const CR4_SSE: u64 = 1 << 9 | 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one.
const RFLAGS_RESERVED: u64 = 2;

/// Page table entry bits: present, writable, and "this is a large page".
const PTE_PRESENT_RW: u64 = 0x3;
const PTE_LARGE: u64 = 0x80;
const LARGE_PAGE: u64 = 2 << 20;
const TABLE_SIZE: u64 = 4096;
const ENTRIES: u64 = 512;

/// Writes segment and page tables: the first GiB, one to one.
pub fn write_tables(memory: &Memory) -> Result<(), GuestMemoryError> {
    let gdt = [
        0,
        0,
        descriptor(&code()),
        descriptor(&data()),
        descriptor(&task()),
    ];
    for (index, entry) in gdt.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    let [pml4, pdpt, pd] = [0, 1, 2].map(|level| layout::PAGE_TABLES + level * TABLE_SIZE);
    memory.write_obj(pdpt | PTE_PRESENT_RW, GuestAddress(pml4))?;
    memory.write_obj(pd | PTE_PRESENT_RW, GuestAddress(pdpt))?;
    for index in 0..ENTRIES {
        memory.write_obj(
            (index * LARGE_PAGE) | PTE_PRESENT_RW | PTE_LARGE,
            GuestAddress(pd + index * 8),
        )?;
    }
    Ok(())
}

/// Changes the special registers of a fresh vCPU to 64-bit mode with the tables above.
pub fn set_special_registers(sregs: &mut kvm_sregs) {
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    // No interrupt table: an exception before the kernel has its own is a triple fault, which the host sees.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data();
    }
    sregs.tr = task();
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// The general registers at the kernel's entry.
pub fn registers(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    }
}

fn code() -> kvm_segment {
    kvm_segment {
        l: 1,
        db: 0,
        ..flat(CODE_SELECTOR, TYPE_CODE)
    }
}

fn data() -> kvm_segment {
    flat(DATA_SELECTOR, TYPE_DATA)
}

/// Entering a guest needs a task register that looks busy; nobody uses it.
fn task() -> kvm_segment {
    kvm_segment {
        s: 0,
        db: 0,
        g: 0,
        limit: 0xffff,
        ..flat(TASK_SELECTOR, TYPE_BUSY_TASK)
    }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor table entry of a segment with base 0 (Intel SDM 3A, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access =
        u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{create, map};

    #[test]
    fn descriptors_are_those_of_the_kernel_itself() {
        // GDT_ENTRY_INIT(DESC_CODE64 / DESC_DATA64) in arch/x86: 0x00af9b..., 0x00cf93...
        assert_eq!(descriptor(&code()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn last_entry_of_the_page_tables_maps_the_end_of_the_first_gib() {
        let memory = map(create(1).unwrap(), 1).unwrap();
        write_tables(&memory).unwrap();
        let last: u64 = memory
            .read_obj(GuestAddress(layout::PAGE_TABLES + 2 * TABLE_SIZE + 511 * 8))
            .unwrap();
        assert_eq!(last, (1 << 30) - LARGE_PAGE + 0x83);
    }
}
