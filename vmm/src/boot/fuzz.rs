//! What is put into guest memory before a guest runs, for every guest that can be asked for and for kernels that are damaged: see the crate
//! `fuzz`.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use ::fuzz::{Choices, Target};
use vm_memory::{Bytes, GuestAddress};

use super::acpi::{self, VirtioSlot};
use super::{cmdline, initrd, kernel, params};
use crate::config::{MAX_BLOCKS, MAX_VCPUS, MIN_MEM_MIB};
use crate::memory::{MIB, Memory, create, layout, map};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 250;

/// What the boot parameters say of memory: start, size and type of each part (zero-page.rst of Linux).
fn e820(memory: &Memory) -> BTreeMap<u64, (u64, u32)> {
    let page = |at: u64| GuestAddress(layout::ZERO_PAGE + at);
    let count: u8 = memory.read_obj(page(0x1e8)).unwrap();
    let entry = |index: u8| {
        let at = 0x2d0 + 20 * u64::from(index);
        let start: u64 = memory.read_obj(page(at)).unwrap();
        let size: u64 = memory.read_obj(page(at + 8)).unwrap();
        (start, (size, memory.read_obj(page(at + 16)).unwrap()))
    };
    (0..count).map(entry).collect()
}

fn assert_map_is_of(memory: &Memory, mem_mib: u32) {
    let mut end = 0;
    let mut ram = 0;
    for (start, (size, kind)) in e820(memory) {
        assert!(start >= end && size > 0, "{start:#x}");
        end = start + size;
        if kind == 1 {
            ram += size;
            // The guest has what it is told it has.
            for at in [start, end - 1] {
                assert!(memory.read_obj::<u8>(GuestAddress(at)).is_ok(), "{at:#x}");
            }
        }
    }
    assert!(ram <= u64::from(mem_mib) * MIB && ram >= u64::from(mem_mib - 1) * MIB);
}

fn assert_tables_hold(memory: &Memory) {
    let u64_at = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let xsdt = u64_at(layout::ACPI + 24);
    let table = |at: u64| {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        assert!(at > layout::ACPI && at + u64::from(len) <= layout::ACPI + layout::ACPI_SIZE);
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "the table at {at:#x}");
        bytes
    };
    for entry in table(xsdt)[36..].chunks(8) {
        table(u64::from_le_bytes(entry.try_into().unwrap()));
    }
}

/// Loads a kernel that may be anything, an initramfs and all that is said of them. `true` if it could start.
fn boot(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let mem_mib = match choices.below(4) {
        0 => 3072 + u32::from(choices.u16()) % 3000,
        _ => MIN_MEM_MIB + u32::from(choices.byte()),
    };
    let vcpus = 1 + choices.byte() % MAX_VCPUS;
    let slots = 2 + choices.below(MAX_BLOCKS + 1);
    let mem_size = u64::from(mem_mib) * MIB;
    let initramfs = match choices.byte() {
        0..=0x3f => 0,
        // Around what just fits: seldom, since it is read whole.
        0xff if mem_mib < 64 => mem_size - 2 * MIB + u64::from(choices.u16()) * 32,
        0xc0.. => mem_size + u64::from(choices.u32()),
        _ => u64::from(choices.u16()),
    };
    let length = choices.below(2200);
    let printable = choices.byte() < 0xe0;
    let mut line = String::from_utf8_lossy(choices.bytes(length)).into_owned();
    if printable {
        line.retain(|c| c == ' ' || c.is_ascii_graphic());
    }
    let memory = map(create(mem_mib).unwrap(), mem_mib).unwrap();

    let slots: Vec<_> = (0..slots)
        .map(|index| VirtioSlot {
            index: u8::try_from(index).unwrap(),
        })
        .collect();
    acpi::write(&memory, vcpus, &slots).unwrap();
    assert_tables_hold(&memory);

    let Ok(line) = cmdline::build(&line) else {
        return false;
    };
    assert!(line.len() < layout::CMDLINE_MAX && line.is_ascii());
    cmdline::write(&line, &memory).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(initramfs).unwrap();
    let end = layout::HIGH_MEMORY + 0x2000;
    let Ok(initrd) = initrd::load(&file, &memory, end) else {
        assert!(initramfs > mem_size.min(layout::HOLE_START) - end - 4096);
        return false;
    };
    if let Some(initrd) = &initrd {
        assert!(u64::from(initrd.address) >= end && u64::from(initrd.size) == initramfs);
    }
    params::write(&memory, mem_size, &line, initrd).unwrap();
    assert_map_is_of(&memory, mem_mib);
    true
}

#[test]
fn fuzz_boot_parameters() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/boot_parameters");
    Target::new("boot_parameters")
        .corpus(corpus)
        .run(INPUTS, boot);
}

#[test]
fn fuzz_kernel_image() {
    let mut good = Vec::new();
    kernel::tests::elf(|bytes| good.clone_from(bytes));
    Target::new("kernel_image")
        .seeds([good])
        .max_bytes(1024)
        .run(INPUTS, |bytes| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let memory = map(create(4).unwrap(), 4).unwrap();
            let loaded = ::fuzz::allocation::within(1 << 20, || kernel::load(&file, &memory));
            let Ok(kernel) = loaded else { return false };
            assert!(kernel.entry >= layout::HIGH_MEMORY && kernel.entry < kernel.end);
            assert!(kernel.end <= 4 * MIB);
            true
        });
}
