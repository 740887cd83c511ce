//! Writing guest memory to a file that forks map.
//!
//! The file has the layout of the memory file ([`super::layout`]) and holes where the guest has zeros, so
//! that a guest of many idle gigabytes costs what it uses.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::mm::Advice;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::{Memory, advise};
use crate::sparse::{self, CHUNK};

/// Writes all of `memory` to `to`, which loses what it held. The guest must be paused, or what is written is no moment
/// of it.
///
/// Memory that the file behind a shared mapping has no page for is not looked at: reading it would make
/// the kernel allocate it. In a private mapping the file does not know what the guest wrote, so all of
/// it is read; where nothing was written, that costs page cache, no memory of the worker's own.
pub fn dump(memory: &Memory, to: &File) -> io::Result<()> {
    sparse::clear(to, memory.iter().map(GuestMemoryRegion::len).sum())?;
    let mut buffer = vec![0; CHUNK];
    let mut start = 0;
    for region in memory.iter() {
        let forked = region.file_offset().is_some() && !is_shared(region);
        if forked {
            // All of it is read, in order: one page after the other from a disk would take minutes.
            advise(region, Advice::Sequential)?;
        }
        // Regions follow each other in the file in the order of their addresses.
        let dumped = dump_region(region, to, start, &mut buffer);
        if forked {
            // As `map_private` made it: the guest may go on.
            advise(region, Advice::Random)?;
        }
        dumped?;
        start += region.len();
    }
    Ok(())
}

fn is_shared(region: &GuestRegionMmap<()>) -> bool {
    region.flags() & libc::MAP_SHARED != 0
}

fn dump_region(
    region: &GuestRegionMmap<()>,
    to: &File,
    start: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut rest = 0..region.len();
    while let Some(data) = next_data(region, rest.clone())? {
        let mut at = data.start;
        while at < data.end {
            let count =
                usize::try_from(data.end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            let slice = region
                .get_slice(MemoryRegionAddress(at), count)
                .map_err(io::Error::other)?;
            slice.copy_to(&mut buffer[..count]);
            sparse::write_nonzero(to, start + at, &buffer[..count])?;
            at += count as u64;
        }
        rest.start = data.end;
    }
    Ok(())
}

/// The next part of a region that can have something else than zeros.
fn next_data(region: &GuestRegionMmap<()>, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let file = match region.file_offset() {
        Some(file) if is_shared(region) => file,
        _ => return Ok((!range.is_empty()).then_some(range)),
    };
    let in_file = range.start + file.start()..range.end + file.start();
    let data = sparse::next_data(file.file(), in_file)?;
    Ok(data.map(|data| data.start - file.start()..data.end - file.start()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{MIB, create, layout, map, map_private};
    use crate::sparse::testing::allocated;

    fn byte(file: &File, offset: u64) -> u8 {
        let mut bytes = [0; 1];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes[0]
    }

    #[test]
    fn dump_has_every_byte_and_holes_for_the_rest() {
        let memory = map(create(64).unwrap(), 64).unwrap();
        for address in [0, 4096, 10 * MIB + 5, 64 * MIB - 1] {
            memory.write_obj(7_u8, GuestAddress(address)).unwrap();
        }
        // Touched, and zero again.
        memory.write_obj(1_u8, GuestAddress(20 * MIB)).unwrap();
        memory.write_obj(0_u8, GuestAddress(20 * MIB)).unwrap();
        let to = tempfile::tempfile().unwrap();
        dump(&memory, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 * MIB);
        for address in [0, 4096, 10 * MIB + 5, 64 * MIB - 1] {
            assert_eq!(byte(&to, address), 7);
        }
        assert_eq!(allocated(&to), 4 * 4096);
    }

    #[test]
    fn dump_of_shared_memory_does_not_allocate_what_the_guest_never_touched() {
        let file = create(64).unwrap();
        let memory = map(file.try_clone().unwrap(), 64).unwrap();
        memory.write_obj(7_u8, GuestAddress(5 * MIB)).unwrap();
        let before = allocated(&file);
        dump(&memory, &tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(allocated(&file), before);
    }

    #[test]
    fn firecracker_5705_memory_above_the_hole_follows_in_the_file() {
        let mem_mib = 3072 + 2;
        let memory = map(create(mem_mib).unwrap(), mem_mib).unwrap();
        memory
            .write_obj(1_u8, GuestAddress(layout::HOLE_START - 1))
            .unwrap();
        memory
            .write_obj(2_u8, GuestAddress(layout::HOLE_END))
            .unwrap();
        memory
            .write_obj(3_u8, GuestAddress(layout::HOLE_END + 2 * MIB - 1))
            .unwrap();
        let to = tempfile::tempfile().unwrap();
        dump(&memory, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), u64::from(mem_mib) * MIB);
        assert_eq!(byte(&to, 3072 * MIB - 1), 1);
        assert_eq!(byte(&to, 3072 * MIB), 2);
        assert_eq!(byte(&to, 3074 * MIB - 1), 3);
    }

    #[test]
    fn dump_of_a_fork_has_what_the_fork_wrote_over_what_it_was_forked_from() {
        let golden = tempfile::tempfile().unwrap();
        golden.set_len(4 * MIB).unwrap();
        golden.write_all_at(&[1; 8192], MIB).unwrap();
        let fork = map_private(golden.try_clone().unwrap(), 4).unwrap();
        fork.write_obj(2_u8, GuestAddress(MIB + 1)).unwrap();
        // A hole of the golden, written by the fork; and a page of the golden that the fork cleared.
        fork.write_obj(3_u8, GuestAddress(3 * MIB)).unwrap();
        fork.write_slice(&[0; 4096], GuestAddress(MIB + 4096))
            .unwrap();
        let to = tempfile::tempfile().unwrap();
        dump(&fork, &to).unwrap();
        assert_eq!([byte(&to, MIB), byte(&to, MIB + 1)], [1, 2]);
        assert_eq!(byte(&to, 3 * MIB), 3);
        assert_eq!(byte(&to, MIB + 4096), 0);
        assert_eq!(allocated(&to), 2 * 4096);
        assert_eq!(byte(&golden, MIB + 1), 1, "the golden stays as it is");
    }
}
