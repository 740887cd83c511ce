//! Writes a kernel's returns as the kernel itself would write them on this processor.
//!
//! A kernel that is built with return thunks (`CONFIG_MITIGATION_RETHUNK`) ends each function with a jump to one thunk, and its section
//! `.return_sites` lists all of these jumps. When it has found out what its processor needs, it goes through the list, tens of
//! thousands of places, and makes each a jump to another thunk or an ordinary return: decoded, changed and serialised one by one, a
//! twelfth of a boot. The host knows the processor too, and has to do it only once for all guests.
//!
//! It is a guess. Our kernel (`kernel-config/patches/`) compares each place with what it wants before it does anything; a wrong guess
//! is undone and costs time, never protection. A kernel without that patch does not have the symbol `return_was_guessed` and is left alone: it
//! would leave a place alone that it does not know.

use std::arch::x86_64::__cpuid;
use std::ops::Range;

/// A function of the patched kernel. `cargo dev guest` keeps its name in the file, as those of the thunks.
const PATCHED: &str = "return_was_guessed";
/// Where every return jumps before it is patched.
const UNPATCHED_THUNK: &str = "__x86_return_thunk";
const SITES: &str = ".return_sites";

/// `jmp rel32` and its length.
const JUMP: u8 = 0xe9;
const JUMP_LENGTH: usize = 5;
/// `ret`, filled up with `int3`.
const PLAIN_RETURN: [u8; JUMP_LENGTH] = [0xc3, 0xcc, 0xcc, 0xcc, 0xcc];
/// What follows the first instruction of a static call's trampoline (`tramp_ud` of arch/x86/kernel/static_call.c). The kernel has to see these
/// in their first form.
const TRAMPOLINE: [u8; 3] = [0x0f, 0xb9, 0xcc];

/// `Elf64_Ehdr`, `Elf64_Phdr`, `Elf64_Shdr` and `Elf64_Sym` (System V ABI, ELF-64).
const PHDR_SIZE: u64 = 56;
const SHDR_SIZE: u64 = 64;
const SYM_SIZE: usize = 24;
const PT_LOAD: u64 = 1;

/// What returns become on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Jumps to the thunk of this name.
    Thunk(&'static str),
    /// Ordinary ones.
    Plain,
}

impl Returns {
    /// What `cpu_select_mitigations` of Linux 6.12 will choose in a guest on this processor, if nothing on its command line says
    /// otherwise.
    pub fn of_this_processor() -> Self {
        #[allow(unused_unsafe, reason = "it is safe to call since Rust 1.94 only")]
        // SAFETY: every x86-64 processor has the instruction.
        let leaf = |number| unsafe { __cpuid(number) };
        let vendor = leaf(0);
        let basic = leaf(1);
        let highest = leaf(0x8000_0000).eax;
        let extended = |number| (number <= highest).then(|| leaf(number));
        let amd = [
            (0x6874_7541, 0x6974_6e65, 0x444d_4163), // AuthenticAMD
            (0x6f67_7948, 0x6e65_476e, 0x656e_6975), // HygonGenuine
        ];
        if !amd.contains(&(vendor.ebx, vendor.edx, vendor.ecx)) {
            return Self::Plain;
        }
        let barrier = extended(0x8000_0008).is_some_and(|leaf| leaf.ebx & IBPB != 0);
        Self::of_amd(family(basic.eax), barrier && basic.ecx & HYPERVISOR == 0)
    }

    /// Of a family, on whose first two generations a barrier also clears what they predict of returns.
    fn of_amd(family: u32, barrier: bool) -> Self {
        match family {
            0x17 | 0x18 if barrier => Self::Thunk("retbleed_return_thunk"),
            0x17 | 0x18 => Self::Thunk("srso_return_thunk"),
            0x19 => Self::Thunk("srso_alias_return_thunk"),
            _ => Self::Plain,
        }
    }
}

/// EBX of leaf 0x80000008: indirect branch prediction barrier.
const IBPB: u32 = 1 << 12;
/// ECX of leaf 1. A host that is a guest itself does not promise more of the barrier than it was promised.
const HYPERVISOR: u32 = 1 << 31;

/// Family of leaf 1: the base family, and what is added to its highest value.
fn family(eax: u32) -> u32 {
    let base = eax >> 8 & 0xf;
    if base == 0xf {
        base + (eax >> 20 & 0xff)
    } else {
        base
    }
}

/// Writes the returns of a `vmlinux` ahead and tells how many. None in a file that is no such kernel; what is wrong with it is for the
/// loader to say.
pub fn write_ahead(image: &mut [u8], returns: Returns) -> usize {
    let Some(plan) = Plan::read(image, returns) else {
        return 0;
    };
    plan.sites
        .clone()
        .step_by(4)
        .filter(|site| plan.write(image, *site).is_some())
        .count()
}

/// Where everything is in one file.
struct Plan {
    segments: Vec<Segment>,
    /// The list, in the file and where it is when the kernel runs: its entries are relative to themselves.
    sites: Range<usize>,
    sites_address: u64,
    unpatched: u64,
    /// Address of the thunk, or `None` for ordinary returns.
    thunk: Option<u64>,
}

struct Segment {
    address: u64,
    size: u64,
    offset: u64,
}

struct Section {
    kind: u32,
    name: u32,
    address: u64,
    bytes: Range<usize>,
    link: u32,
}

impl Plan {
    fn read(image: &[u8], returns: Returns) -> Option<Self> {
        if image.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let sections = sections(image)?;
        let names = sections.get(usize::from(u16_at(image, 62)?))?.bytes.clone();
        let sites = sections
            .iter()
            .find(|section| text(image, &names, section.name) == Some(SITES.as_bytes()))?;
        let symbol = |name| symbol(image, &sections, name);
        symbol(PATCHED)?;
        let thunk = match returns {
            Returns::Plain => None,
            Returns::Thunk(name) => Some(symbol(name)?),
        };
        Some(Self {
            segments: segments(image)?,
            sites: sites.bytes.clone(),
            sites_address: sites.address,
            unpatched: symbol(UNPATCHED_THUNK)?,
            thunk,
        })
    }

    /// Writes the return that the entry of the list at `site` stands for.
    fn write(&self, image: &mut [u8], site: usize) -> Option<()> {
        let entry = self.sites_address + (site - self.sites.start) as u64;
        let address = entry.wrapping_add_signed(i64::from(i32_at(image, site)?));
        let at = self.in_file(address)?;
        let next = address.wrapping_add(JUMP_LENGTH as u64);
        let (jump, behind) = image
            .get(at..at + JUMP_LENGTH + TRAMPOLINE.len())?
            .split_at(JUMP_LENGTH);
        let target = next.wrapping_add_signed(i64::from(i32_at(jump, 1)?));
        if jump.first() != Some(&JUMP) || target != self.unpatched || behind == TRAMPOLINE {
            return None;
        }
        let new = match self.thunk {
            None => PLAIN_RETURN,
            Some(thunk) => {
                let distance = i32::try_from(thunk.wrapping_sub(next).cast_signed()).ok()?;
                let [a, b, c, d] = distance.to_le_bytes();
                [JUMP, a, b, c, d]
            }
        };
        image.get_mut(at..at + JUMP_LENGTH)?.copy_from_slice(&new);
        Some(())
    }

    fn in_file(&self, address: u64) -> Option<usize> {
        let segment = self
            .segments
            .iter()
            .find(|segment| address.wrapping_sub(segment.address) < segment.size)?;
        usize::try_from(segment.offset.checked_add(address - segment.address)?).ok()
    }
}

fn segments(image: &[u8]) -> Option<Vec<Segment>> {
    let (table, count) = (u64_at(image, 32)?, u16_at(image, 56)?);
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let at = usize::try_from(table.checked_add(index * PHDR_SIZE)?).ok()?;
        if u64::from(u32_at(image, at)?) == PT_LOAD {
            segments.push(Segment {
                offset: u64_at(image, at.checked_add(8)?)?,
                address: u64_at(image, at.checked_add(16)?)?,
                size: u64_at(image, at.checked_add(32)?)?,
            });
        }
    }
    Some(segments)
}

fn sections(image: &[u8]) -> Option<Vec<Section>> {
    let (table, count) = (u64_at(image, 40)?, u16_at(image, 60)?);
    let mut sections = Vec::new();
    for index in 0..u64::from(count) {
        let at = usize::try_from(table.checked_add(index * SHDR_SIZE)?).ok()?;
        let field = |offset| u64_at(image, at.checked_add(offset)?);
        let start = usize::try_from(field(24)?).ok()?;
        let end = start.checked_add(usize::try_from(field(32)?).ok()?)?;
        sections.push(Section {
            name: u32_at(image, at)?,
            kind: u32_at(image, at.checked_add(4)?)?,
            address: field(16)?,
            // A section without bytes (bss) may lie beyond the end: nothing is read of it.
            bytes: start..end,
            link: u32_at(image, at.checked_add(40)?)?,
        });
    }
    Some(sections)
}

/// The address of a symbol.
fn symbol(image: &[u8], sections: &[Section], name: &str) -> Option<u64> {
    const SHT_SYMTAB: u32 = 2;
    let table = sections.iter().find(|section| section.kind == SHT_SYMTAB)?;
    let names = &sections.get(usize::try_from(table.link).ok()?)?.bytes;
    let entry = image
        .get(table.bytes.clone())?
        .chunks_exact(SYM_SIZE)
        .find(|entry| {
            u32_at(entry, 0).and_then(|at| text(image, names, at)) == Some(name.as_bytes())
        })?;
    u64_at(entry, 8)
}

/// A name in a table of names, up to its NUL.
fn text<'a>(image: &'a [u8], names: &Range<usize>, at: u32) -> Option<&'a [u8]> {
    let names = image.get(names.clone())?.get(usize::try_from(at).ok()?..)?;
    names.split(|byte| *byte == 0).next()
}

fn bytes_at<const N: usize>(image: &[u8], at: usize) -> Option<[u8; N]> {
    image.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    bytes_at(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    bytes_at(image, at).map(u32::from_le_bytes)
}

fn i32_at(image: &[u8], at: usize) -> Option<i32> {
    bytes_at(image, at).map(i32::from_le_bytes)
}

fn u64_at(image: &[u8], at: usize) -> Option<u64> {
    bytes_at(image, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[path = "returns_tests.rs"]
mod tests;
