//! `getrandom` without a system call: the kernel's generator continued in the process, from the vDSO.
//!
//! A static program has no dynamic linker that would find the function, so it is looked up here.
//!
//! The state between two calls lives in this process's memory and is copied with it when its guest is forked, so it is the
//! one place of the kernel's random numbers that only a changed generation makes new (Linux, `lib/vdso/getrandom.c`).

use std::ffi::{CStr, c_void};
use std::io;
use std::ptr::null_mut;

use crate::random::LENGTH;

/// vgetrandom_alloc's answer (Linux, `include/uapi/linux/random.h`, `struct vgetrandom_opaque_params`).
#[repr(C)]
#[derive(Default)]
struct Parameters {
    size_of_opaque_state: u32,
    mmap_prot: u32,
    mmap_flags: u32,
    reserved: [u32; 13],
}

/// `ssize_t __vdso_getrandom(void *buffer, size_t len, unsigned int flags, void *opaque_state, size_t opaque_len)`
type GetRandom = unsafe extern "C" fn(*mut c_void, usize, u32, *mut c_void, usize) -> isize;

/// The function and a state of its own.
pub struct Random {
    function: GetRandom,
    state: *mut c_void,
    state_bytes: usize,
}

// SAFETY: the state is private memory that only this value uses, and nothing in it belongs to a thread.
unsafe impl Send for Random {}

impl Random {
    /// An error of the kind `Unsupported` where the kernel has none (before Linux 6.11).
    pub fn new() -> io::Result<Self> {
        let function = find(c"__vdso_getrandom").ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the vDSO's symbol of this name has this type in every kernel that has it.
        let function = unsafe { std::mem::transmute::<*const c_void, GetRandom>(function) };
        let mut parameters = Parameters::default();
        let parameters_at = (&raw mut parameters).cast();
        // SAFETY: with this length the function only fills the parameters, which are of the right size.
        let answer = unsafe { function(null_mut(), 0, 0, parameters_at, usize::MAX) };
        if answer != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let state_bytes = parameters.size_of_opaque_state as usize;
        let protection = parameters.mmap_prot.cast_signed();
        let flags = parameters.mmap_flags.cast_signed();
        // SAFETY: a new mapping at no given address touches no memory that there is.
        let state = unsafe { libc::mmap(null_mut(), state_bytes, protection, flags, -1, 0) };
        if state == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            function,
            state,
            state_bytes,
        })
    }

    pub fn bytes(&mut self) -> io::Result<[u8; LENGTH]> {
        let mut bytes = [0_u8; LENGTH];
        let buffer = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer has that length, and the state was made as the function asked.
        let count = unsafe { (self.function)(buffer, LENGTH, 0, self.state, self.state_bytes) };
        match usize::try_from(count) {
            Ok(LENGTH) => Ok(bytes),
            Ok(short) => Err(io::Error::other(format!("only {short} bytes"))),
            Err(_) => Err(io::Error::from_raw_os_error(
                i32::try_from(-count).unwrap_or(libc::EIO),
            )),
        }
    }
}

/// Looks a function of the vDSO up (Linux, `tools/testing/selftests/vDSO/parse_vdso.c`).
fn find(name: &CStr) -> Option<*const c_void> {
    // SAFETY: reads a number that the kernel gave this process.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let base = usize::try_from(base).ok().filter(|base| *base != 0)?;
    let image = Image { base };
    let header: libc::Elf64_Ehdr = image.read(0);
    let mut load = None;
    let mut dynamic = None;
    for number in 0..usize::from(header.e_phnum) {
        let at = usize::try_from(header.e_phoff).ok()? + number * size_of::<libc::Elf64_Phdr>();
        let segment: libc::Elf64_Phdr = image.read(at);
        match segment.p_type {
            libc::PT_LOAD if load.is_none() => load = Some((segment.p_offset, segment.p_vaddr)),
            libc::PT_DYNAMIC => dynamic = Some(segment.p_offset),
            _ => {}
        }
    }
    let (offset, address) = load?;
    // What is to be added to an address of the file to get one of this process, less the base.
    let slide = usize::try_from(offset)
        .ok()?
        .wrapping_sub(usize::try_from(address).ok()?);
    let tables = Tables::read(image, usize::try_from(dynamic?).ok()?, slide)?;
    (0..tables.count).find_map(|number| {
        let at = tables.symbols + number * size_of::<libc::Elf64_Sym>();
        let symbol: libc::Elf64_Sym = image.read(at);
        let is_defined = symbol.st_shndx != 0;
        let text = image.text(tables.names + symbol.st_name as usize);
        let value = usize::try_from(symbol.st_value).ok()?.wrapping_add(slide);
        (is_defined && text == name).then(|| image.address(value).cast())
    })
}

/// The vDSO as it lies in memory. The kernel wrote it, so it is believed.
#[derive(Clone, Copy)]
struct Image {
    base: usize,
}

/// Where its symbols are, from its base.
struct Tables {
    symbols: usize,
    names: usize,
    count: usize,
}

impl Tables {
    fn read(image: Image, dynamic: usize, slide: usize) -> Option<Self> {
        /// System V ABI, "Dynamic Section": tag and value, eight bytes each, ended by a zero tag.
        const STRTAB: u64 = 5;
        const SYMTAB: u64 = 6;
        const HASH: u64 = 4;
        const GNU_HASH: u64 = 0x6fff_fef5;
        let (mut symbols, mut names, mut hash, mut gnu_hash) = (None, None, None, None);
        let mut at = dynamic;
        loop {
            let [tag, value]: [u64; 2] = image.read(at);
            let place = usize::try_from(value).ok()?.wrapping_add(slide);
            match tag {
                0 => break,
                STRTAB => names = Some(place),
                SYMTAB => symbols = Some(place),
                HASH => hash = Some(place),
                GNU_HASH => gnu_hash = Some(place),
                _ => {}
            }
            at += size_of::<[u64; 2]>();
        }
        let count = match (hash, gnu_hash) {
            // The second word: one chain entry for each symbol.
            (Some(hash), _) => image.read::<[u32; 2]>(hash)[1] as usize,
            (None, Some(hash)) => gnu_symbols(image, hash),
            (None, None) => return None,
        };
        Some(Self {
            symbols: symbols?,
            names: names?,
            count,
        })
    }
}

/// A GNU hash table does not say how many symbols there are: the last chain of the highest bucket ends with the last one.
fn gnu_symbols(image: Image, hash: usize) -> usize {
    let [buckets, first, bloom, _shift]: [u32; 4] = image.read(hash);
    let buckets_at = hash + 16 + bloom as usize * 8;
    let chains_at = buckets_at + buckets as usize * 4;
    let highest = (0..buckets as usize).map(|number| image.read::<u32>(buckets_at + number * 4));
    let Some(mut last) = highest.max().filter(|last| *last >= first) else {
        return first as usize;
    };
    while image.read::<u32>(chains_at + (last - first) as usize * 4) & 1 == 0 {
        last += 1;
    }
    last as usize + 1
}

impl Image {
    fn address(self, offset: usize) -> *const u8 {
        std::ptr::with_exposed_provenance(self.base.wrapping_add(offset))
    }

    fn read<T: Copy>(self, offset: usize) -> T {
        let at = self.address(offset).cast();
        // SAFETY: the tables of the vDSO point into the vDSO, which is mapped for as long as the process lives; the types read
        // are plain numbers.
        unsafe { std::ptr::read_unaligned(at) }
    }

    fn text(self, offset: usize) -> &'static CStr {
        let at = self.address(offset).cast();
        // SAFETY: names in the vDSO end with a zero byte and never change.
        unsafe { CStr::from_ptr(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_that_every_kernel_has_is_found_and_another_one_is_not() {
        assert!(find(c"__vdso_clock_gettime").is_some());
        assert!(find(c"__vdso_no_such_thing").is_none());
    }

    #[test]
    fn two_reads_differ_where_the_kernel_has_it() {
        match Random::new() {
            Ok(mut random) => assert_ne!(random.bytes().unwrap(), random.bytes().unwrap()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        }
    }
}
