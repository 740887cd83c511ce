//! The pages that a fork touches in its first moments, and getting them before they are asked for.
//!
//! A fork starts with an empty page table. Each first touch of a page is a fault, and each first write
//! also a copy, with the guest waiting. Which pages these are hardly differs between forks of one golden
//! (REAP, ASPLOS'21), so they are recorded once and then populated in a few calls before the guest runs.
//!
//! # Recording
//! `/proc/<pid>/pagemap` tells of each page whether it is there and whether it is the process's own. A page of
//! a private mapping is its own once it was written. Pages that are there and not its own were read. Without
//! [`OneByOne`](super::one_by_one::OneByOne), some of them only lie next to one that was.
//!
//! # File
//! A `snapshot::envelope` whose fields are the size of the memory in MiB, then zeros. The payload is
//! runs of pages in ascending order: number of the first page in the memory file, then the number of pages
//! with the top bit set if they were written; 32 bits each, little endian. A file that promises more runs
//! than [`MAX_RUNS`] or than the guest has pages is refused, and so is one with pages outside of the guest:
//! the most that a hostile file can do is to make a fork as large as its guest may become anyway.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::mm::Advice;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{MIB, Memory, PAGE, layout};
use crate::snapshot::envelope::{FIELD_BYTES, Kind, SnapshotError};

/// The most runs of one file. A guest that starts a container touches a few thousand pages; what does not
/// fit is faulted in as if nothing had been recorded.
pub const MAX_RUNS: usize = 64 * 1024;

const WORKING_SET_FILE: Kind = Kind {
    file: "working set file",
    magic: *b"cabanaWS",
    version: 1,
    max_payload: (MAX_RUNS * RUN_BYTES) as u64,
};

const RUN_BYTES: usize = 8;
const WRITTEN: u32 = 1 << 31;

// Documentation/admin-guide/mm/pagemap.rst.
const PAGEMAP_ENTRY: usize = 8;
const PAGEMAP_FILE: u64 = 1 << 61;
const PAGEMAP_SWAPPED: u64 = 1 << 62;
const PAGEMAP_PRESENT: u64 = 1 << 63;
/// linux/magic.h
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Entries read at a time.
const PAGEMAP_CHUNK: usize = 8192;

/// As a step between pages.
#[expect(clippy::cast_possible_truncation, reason = "4096")]
const PAGE_BYTES: usize = PAGE as usize;

/// Between runs that are mapped in one call. A call costs about as much as two pages that it maps.
const NEAR: u64 = 2 * PAGE;

/// At a read fault the kernel also maps what it has in memory of the aligned stretch around, of this size by default
/// (`fault_around_bytes`, mm/memory.c).
const AROUND: u64 = 64 << 10;

/// Places of the memory file that are tried to learn whether it is in memory.
const COLD_SAMPLES: usize = 8;

/// Pages that follow each other in the memory file and were used alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u32,
    /// Never zero, below 2^31.
    pages: u32,
    written: bool,
}

/// What a fork touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    mem_mib: u32,
    /// Ascending, without overlap, within the memory.
    runs: Vec<Run>,
}

impl WorkingSet {
    /// What has been touched of `memory`, a private mapping. `pagemap` is this process's own.
    pub fn record(memory: &Memory, pagemap: &File) -> io::Result<Self> {
        let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let mem_mib = u32::try_from(bytes / MIB).map_err(io::Error::other)?;
        let mut runs = Vec::new();
        let mut page = 0;
        let mut buffer = vec![0; PAGEMAP_CHUNK * PAGEMAP_ENTRY];
        for region in memory.iter() {
            let mut at = region.as_ptr() as u64 / PAGE;
            let end = at + region.len() / PAGE;
            while at < end {
                let entries =
                    usize::try_from(end - at).map_or(PAGEMAP_CHUNK, |left| left.min(PAGEMAP_CHUNK));
                let bytes = &mut buffer[..entries * PAGEMAP_ENTRY];
                pagemap.read_exact_at(bytes, at * PAGEMAP_ENTRY as u64)?;
                for entry in bytes.as_chunks::<PAGEMAP_ENTRY>().0 {
                    add(&mut runs, page, u64::from_le_bytes(*entry));
                    page += 1;
                }
                at += entries as u64;
            }
        }
        Ok(Self { mem_mib, runs })
    }

    /// Writes the file. What `to` held before is gone.
    pub fn write(&self, to: &File) -> Result<(), SnapshotError> {
        let mut payload = Vec::with_capacity(self.runs.len() * RUN_BYTES);
        for run in &self.runs {
            let flag = if run.written { WRITTEN } else { 0 };
            payload.extend_from_slice(&run.first.to_le_bytes());
            payload.extend_from_slice(&(run.pages | flag).to_le_bytes());
        }
        let mut fields = [0; FIELD_BYTES];
        fields[..4].copy_from_slice(&self.mem_mib.to_le_bytes());
        WORKING_SET_FILE.write(to, fields, &payload)
    }

    /// Reads the file of a guest with `mem_mib` MiB of memory.
    pub fn read(from: &File, mem_mib: u32) -> Result<Self, SnapshotError> {
        let header = WORKING_SET_FILE.read_header(from)?;
        let mut fields = [0; FIELD_BYTES];
        fields[..4].copy_from_slice(&mem_mib.to_le_bytes());
        let nonsense = |what: &str| Err(WORKING_SET_FILE.nonsense(what));
        if header.fields != fields {
            return nonsense("it was recorded of a guest with other memory");
        }
        let pages = u64::from(mem_mib) * (MIB / PAGE);
        if header.payload_bytes > pages * RUN_BYTES as u64 {
            return nonsense("it has more runs than the guest has pages");
        }
        let payload = WORKING_SET_FILE.read_payload(from, &header)?;
        let (entries, []) = payload.as_chunks::<RUN_BYTES>() else {
            return nonsense("it ends within a run");
        };
        let mut runs: Vec<Run> = Vec::with_capacity(entries.len());
        let mut free = 0;
        for &[f0, f1, f2, f3, n0, n1, n2, n3] in entries {
            let count = u32::from_le_bytes([n0, n1, n2, n3]);
            let run = Run {
                first: u32::from_le_bytes([f0, f1, f2, f3]),
                pages: count & !WRITTEN,
                written: count & WRITTEN != 0,
            };
            if run.pages == 0 || u64::from(run.first) < free || run.end() > pages {
                return nonsense("its runs are out of order or outside of the memory");
            }
            free = run.end();
            runs.push(run);
        }
        Ok(Self { mem_mib, runs })
    }

    /// Makes the pages ready in `memory`, a fresh private mapping of the file this was recorded of: pages that
    /// will be written get their copy now, the others are mapped, with what lies around. Linux before 5.14 cannot; then
    /// nothing happens.
    ///
    /// The guest may already run: populating is what its own accesses would do.
    pub fn prefetch(&self, memory: &Memory) -> io::Result<()> {
        let near = self.merged();
        if is_cold(memory, &near) {
            for range in near {
                // A hint; if it is refused, populating reads the pages itself.
                let _ = advise(memory, range, Advice::WillNeed);
            }
        }
        // Written ones first: a page that is mapped for reading would have to be faulted once more.
        let written = self.runs.iter().filter(|run| run.written);
        for range in written.map(Run::file_range) {
            if !advise(memory, range, Advice::LinuxPopulateWrite)? {
                return Ok(());
            }
        }
        // One of each stretch: populating looks at every page it is asked for, also at those that came with another one.
        for page in self.one_of_each_stretch(memory) {
            advise(memory, page..page + PAGE, Advice::LinuxPopulateRead)?;
        }
        Ok(())
    }

    /// The first page that was only read of each stretch that the kernel maps together, as it lies in the memory file.
    fn one_of_each_stretch(&self, memory: &Memory) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut start = 0;
        for region in memory.iter() {
            let within = start..start + region.len();
            // Stretches are aligned as this process sees them.
            let at = region.as_ptr() as u64;
            let stretch = |offset: u64| (at + offset - within.start) / AROUND;
            let mut last = None;
            let read = self.runs.iter().filter(|run| !run.written);
            for part in read.filter_map(|run| intersection(&run.file_range(), &within)) {
                for page in part.step_by(PAGE_BYTES) {
                    if last != Some(stretch(page)) {
                        last = Some(stretch(page));
                        pages.push(page);
                    }
                }
            }
            start = within.end;
        }
        pages
    }

    /// The pages by guest-physical address, for KVM_PRE_FAULT_MEMORY: in order, and those that are near each other
    /// in one range.
    pub fn guest_ranges(&self) -> Vec<Range<u64>> {
        let memory = layout::ram_ranges(u64::from(self.mem_mib) * MIB);
        let mut ranges = Vec::new();
        for range in self.merged() {
            for ram in &memory {
                let within = intersection(&range, &(ram.file_offset..ram.file_offset + ram.size));
                if let Some(part) = within {
                    let start = ram.start + (part.start - ram.file_offset);
                    ranges.push(start..start + (part.end - part.start));
                }
            }
        }
        ranges
    }

    /// Bytes of the memory file, in order, and whether they were written.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<u64>, bool)> {
        self.runs.iter().map(|run| (run.file_range(), run.written))
    }

    /// How many pages were written, and how many only read.
    pub fn pages(&self) -> (u64, u64) {
        self.runs.iter().fold((0, 0), |(written, read), run| {
            let pages = u64::from(run.pages);
            if run.written {
                (written + pages, read)
            } else {
                (written, read + pages)
            }
        })
    }

    /// Bytes of the memory file, whatever was done to them: runs that are near each other become one.
    fn merged(&self) -> Vec<Range<u64>> {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in self.runs.iter().map(Run::file_range) {
            match merged.last_mut() {
                Some(last) if range.start - last.end <= NEAR => last.end = range.end,
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl Run {
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.pages)
    }

    fn file_range(&self) -> Range<u64> {
        u64::from(self.first) * PAGE..self.end() * PAGE
    }
}

/// Adds a page by what its entry says of it.
fn add(runs: &mut Vec<Run>, page: u32, entry: u64) {
    if entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) == 0 {
        return;
    }
    // What a private mapping has in swap is its own: pages of the file go back to the file.
    let written = entry & PAGEMAP_SWAPPED != 0 || entry & PAGEMAP_FILE == 0;
    if let Some(last) = runs.last_mut()
        && last.end() == u64::from(page)
        && last.written == written
    {
        last.pages += 1;
    } else if runs.len() < MAX_RUNS {
        runs.push(Run {
            first: page,
            pages: 1,
            written,
        });
    }
}

/// Whether the file would have to be read from its disk, by a look at some of its pages. A memory file is
/// used all the time or not at all, so a few tell.
///
/// Populating reads one page after the other, since the mapping asks for no read-ahead: thousands of waits,
/// five seconds for 6 MiB on a disk of a virtual machine, against some 10 ms if all are announced before. With
/// a warm file, the announcement alone would cost as much as a tenth of the populating.
fn is_cold(memory: &Memory, ranges: &[Range<u64>]) -> bool {
    let mut regions = memory.iter();
    let Some(file) = regions.next().and_then(|region| region.file_offset()) else {
        return false;
    };
    // It has no disk, and older kernels do not answer the question below for it.
    if rustix::fs::fstatfs(file.file()).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC) {
        return false;
    }
    let step = ranges.len().div_ceil(COLD_SAMPLES).max(1);
    ranges.iter().step_by(step).any(|range| {
        let mut byte = [0];
        let mut piece = [IoSliceMut::new(&mut byte)];
        // AGAIN if it is not there; a file system that cannot say counts as cold.
        preadv2(file.file(), &mut piece, range.start, ReadWriteFlags::NOWAIT).is_err()
    })
}

/// Gives advice for a range of the memory file in every region that has a part of it. False: the kernel cannot.
fn advise(memory: &Memory, range: Range<u64>, advice: Advice) -> io::Result<bool> {
    let mut start = 0;
    for region in memory.iter() {
        let end = start + region.len();
        if let Some(part) = intersection(&range, &(start..end)) {
            let offset = usize::try_from(part.start - start).map_err(io::Error::other)?;
            let len = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
            let at = region.as_ptr().wrapping_add(offset);
            // SAFETY: the advice given here makes pages present or reads them from the file, as a touch of
            // each would, and changes no byte.
            // - Valid: `part` lies within `region`, a live mapping that may be read and written.
            // - Not aliased: nothing in Rust refers to guest memory.
            match unsafe { rustix::mm::madvise(at.cast(), len, advice) } {
                Ok(()) => {}
                Err(Errno::INVAL) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        start = end;
    }
    Ok(true)
}

fn intersection(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::map_private;
    use crate::memory::one_by_one::OneByOne;

    const PAGES_PER_MIB: u32 = 256;

    /// A golden of `mem_mib` MiB, each page of its first MiB filled with its number.
    fn golden(mem_mib: u32) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(mem_mib) * MIB).unwrap();
        for page in 0..=255_u8 {
            file.write_all_at(&[page; 4096], u64::from(page) * PAGE)
                .unwrap();
        }
        file
    }

    fn fork(golden: &File, mem_mib: u32) -> Memory {
        map_private(golden.try_clone().unwrap(), mem_mib).unwrap()
    }

    fn recorded(memory: &Memory) -> WorkingSet {
        WorkingSet::record(memory, &File::open("/proc/self/pagemap").unwrap()).unwrap()
    }

    fn set(mem_mib: u32, runs: &[(u32, u32, bool)]) -> WorkingSet {
        let runs = runs.iter().map(|&(first, pages, written)| Run {
            first,
            pages,
            written,
        });
        WorkingSet {
            mem_mib,
            runs: runs.collect(),
        }
    }

    fn written_pages(set: &WorkingSet) -> Vec<u32> {
        let written = set.runs.iter().filter(|run| run.written);
        written
            .flat_map(|run| run.first..run.first + run.pages)
            .collect()
    }

    #[test]
    fn untouched_fork_has_an_empty_working_set() {
        assert_eq!(recorded(&fork(&golden(2), 2)), set(2, &[]));
    }

    #[test]
    fn written_pages_are_told_from_read_ones() {
        let memory = fork(&golden(2), 2);
        for page in [3, 4, 5, 200, 400] {
            memory.write_obj(1_u8, GuestAddress(page * PAGE)).unwrap();
        }
        memory.read_obj::<u8>(GuestAddress(100 * PAGE)).unwrap();
        let set = recorded(&memory);
        assert_eq!(written_pages(&set), [3, 4, 5, 200, 400]);
        let has = |page: u32| {
            let mut runs = set.runs.iter();
            runs.any(|run| !run.written && (run.first..run.first + run.pages).contains(&page))
        };
        assert!(has(100), "{set:?}");
        assert_eq!(set.pages().0, 5);
    }

    #[test]
    fn pages_mapped_one_by_one_are_exactly_those_touched_on_tmpfs_and_on_a_disk() {
        for folder in ["/dev/shm", "/var/tmp"] {
            let golden = tempfile::tempfile_in(folder).unwrap();
            golden.set_len(2 * MIB).unwrap();
            golden.write_all_at(&[1; 300 * 4096], 0).unwrap();
            let memory = fork(&golden, 2);
            let _kept = match OneByOne::keep(&memory) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    eprintln!("SKIPPED: this kernel cannot map pages one by one (Linux 6.7)");
                    return;
                }
                kept => kept.unwrap(),
            };
            memory.read_obj::<u8>(GuestAddress(100 * PAGE)).unwrap();
            memory.write_obj(2_u8, GuestAddress(120 * PAGE)).unwrap();
            memory.read_obj::<u8>(GuestAddress(121 * PAGE)).unwrap();
            memory.read_obj::<u8>(GuestAddress(400 * PAGE)).unwrap();
            memory.read_obj::<u8>(GuestAddress(5 * PAGE)).unwrap();
            memory.write_obj(1_u8, GuestAddress(5 * PAGE)).unwrap();
            let expected = [
                (5, 1, true),
                (100, 1, false),
                (120, 1, true),
                (121, 1, false),
                (400, 1, false),
            ];
            assert_eq!(recorded(&memory), set(2, &expected), "{folder}");
        }
    }

    #[test]
    fn prefetched_fork_has_the_pages_of_the_recorded_one_and_their_content() {
        let golden = golden(2);
        let first = fork(&golden, 2);
        for page in [0, 7, 8, 300] {
            first.write_obj(0xee_u8, GuestAddress(page * PAGE)).unwrap();
        }
        first.read_obj::<u8>(GuestAddress(64 * PAGE)).unwrap();
        let set = recorded(&first);
        let second = fork(&golden, 2);
        set.prefetch(&second).unwrap();
        let prefetched = recorded(&second);
        assert_eq!(written_pages(&prefetched), [0, 7, 8, 300]);
        assert!(prefetched.pages().1 >= set.pages().1);
        for page in 0..=255_u8 {
            let byte: u8 = second
                .read_obj(GuestAddress(u64::from(page) * PAGE))
                .unwrap();
            assert_eq!(byte, page, "prefetching changes nothing");
        }
    }

    #[test]
    fn one_page_of_each_stretch_brings_the_others_that_were_only_read() {
        let golden = golden(2);
        let memory = fork(&golden, 2);
        // All in the first MiB, which is in the page cache; a stretch begins at a page with a number of these.
        let at = memory.iter().next().unwrap().as_ptr() as u64 / PAGE;
        let stretch = u32::try_from(16 - at % 16).unwrap();
        let set = set(
            2,
            &[
                (stretch, 2, true),
                (stretch + 3, 2, false),
                (stretch + 9, 1, false),
                (stretch + 15, 2, false),
                (stretch + 40, 1, true),
            ],
        );
        let pages = set.one_of_each_stretch(&memory);
        let expected = [stretch + 3, stretch + 16].map(|page| u64::from(page) * PAGE);
        assert_eq!(pages, expected);
        set.prefetch(&memory).unwrap();
        let prefetched = recorded(&memory);
        assert_eq!(
            written_pages(&prefetched),
            [stretch, stretch + 1, stretch + 40]
        );
        let has = |page: u32| {
            let mut runs = prefetched.runs.iter();
            runs.any(|run| (run.first..run.first + run.pages).contains(&page))
        };
        for page in [3, 4, 9, 15, 16] {
            assert!(has(stretch + page), "{page} {prefetched:?}");
        }
    }

    #[test]
    fn file_that_the_host_dropped_from_its_memory_is_prefetched_too() {
        let golden = golden(2);
        golden.sync_all().unwrap();
        rustix::fs::fadvise(&golden, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let memory = fork(&golden, 2);
        let set = set(2, &[(0, 3, true), (10, 100, false)]);
        set.prefetch(&memory).unwrap();
        assert_eq!(written_pages(&recorded(&memory)), [0, 1, 2]);
        let byte: u8 = memory.read_obj(GuestAddress(109 * PAGE)).unwrap();
        assert_eq!(byte, 109);
    }

    #[test]
    fn prefetch_of_memory_above_the_hole_finds_its_pages() {
        let mem_mib = 3072 + 2;
        let golden = golden(mem_mib);
        let boundary = 3072 * PAGES_PER_MIB;
        let set = set(mem_mib, &[(boundary - 1, 3, true)]);
        let memory = fork(&golden, mem_mib);
        set.prefetch(&memory).unwrap();
        assert_eq!(recorded(&memory), set);
        assert_eq!(
            set.guest_ranges(),
            [
                layout::HOLE_START - PAGE..layout::HOLE_START,
                layout::HOLE_END..layout::HOLE_END + 2 * PAGE
            ]
        );
    }

    #[test]
    fn guest_ranges_join_what_is_near_whatever_was_done_to_it() {
        let set = set(
            2,
            &[
                (1, 1, false),
                (2, 2, true),
                (4, 1, false),
                (7, 1, false),
                (11, 1, true),
            ],
        );
        assert_eq!(set.guest_ranges(), [PAGE..8 * PAGE, 11 * PAGE..12 * PAGE]);
        assert_eq!(set.pages(), (3, 3));
    }

    #[test]
    fn entries_of_the_page_map_become_runs() {
        let mut runs = Vec::new();
        let read = PAGEMAP_PRESENT | PAGEMAP_FILE;
        let entries = [
            0,
            read,
            read,
            PAGEMAP_PRESENT,
            PAGEMAP_SWAPPED,
            PAGEMAP_FILE,
            PAGEMAP_PRESENT,
        ];
        for (page, entry) in (0..).zip(entries) {
            add(&mut runs, page, entry);
        }
        let expected = set(2, &[(1, 2, false), (3, 2, true), (6, 1, true)]);
        assert_eq!(runs, expected.runs);
    }

    #[test]
    fn more_runs_than_a_file_holds_are_left_out() {
        let mut runs = Vec::new();
        for page in 0..=u32::try_from(MAX_RUNS).unwrap() {
            add(&mut runs, 2 * page, PAGEMAP_PRESENT);
        }
        assert_eq!(runs.len(), MAX_RUNS);
    }

    #[test]
    fn file_gives_back_what_was_written() {
        for runs in [
            &[][..],
            &[(0, 1, true)],
            &[(0, 512, false)],
            &[(1, 2, false), (3, 2, true), (511, 1, true)],
        ] {
            let set = set(2, runs);
            let file = tempfile::tempfile().unwrap();
            set.write(&file).unwrap();
            assert_eq!(WorkingSet::read(&file, 2).unwrap(), set);
        }
    }

    #[test]
    fn file_of_another_guest_is_refused() {
        let file = tempfile::tempfile().unwrap();
        set(2, &[(0, 1, true)]).write(&file).unwrap();
        let error = WorkingSet::read(&file, 3).unwrap_err();
        assert!(matches!(error, SnapshotError::Nonsense { .. }), "{error}");
    }

    #[test]
    fn runs_that_lie_are_refused() {
        for runs in [
            &[(512, 1, false)][..],
            &[(511, 2, false)],
            &[(0, 513, true)],
            &[(0, 0, false)],
            &[(5, 2, false), (6, 1, false)],
            &[(6, 1, false), (5, 1, false)],
            &[(u32::MAX, 1, false)],
            &[(u32::MAX, u32::MAX >> 1, true)],
        ] {
            let file = tempfile::tempfile().unwrap();
            set(2, runs).write(&file).unwrap();
            let error = WorkingSet::read(&file, 2).unwrap_err();
            assert!(matches!(error, SnapshotError::Nonsense { .. }), "{runs:?}");
        }
    }

    #[test]
    fn file_with_more_runs_than_pages_is_refused() {
        let runs: Vec<_> = (0..513).map(|page| (page, 1, page % 2 == 0)).collect();
        let file = tempfile::tempfile().unwrap();
        set(2, &runs).write(&file).unwrap();
        let error = WorkingSet::read(&file, 2).unwrap_err();
        assert!(error.to_string().contains("more runs"), "{error}");
    }

    #[test]
    fn file_that_ends_within_a_run_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut fields = [0; FIELD_BYTES];
        fields[0] = 2;
        WORKING_SET_FILE.write(&file, fields, &[0; 15]).unwrap();
        let error = WorkingSet::read(&file, 2).unwrap_err();
        assert!(error.to_string().contains("within a run"), "{error}");
    }
}
