//! Which blocks of a disk have been written: a bit each, in pages that are made when they are needed.
//!
//! Most disks are large and hardly written, or written in long runs, or discarded as a whole by the
//! guest. A page of the map therefore exists only while its blocks differ: an untouched terabyte costs a
//! quarter of a MiB of addresses, of which nothing is touched, and a discarded one costs the same.

use std::ops::Range;

const WORD_BITS: u64 = 64;
const PAGE_WORDS: usize = 128;
/// Blocks that one page of the map stands for: 32 MiB of disk.
const PAGE_BLOCKS: u64 = PAGE_WORDS as u64 * WORD_BITS;

type Page = [u64; PAGE_WORDS];

/// The blocks that are there.
#[derive(Debug)]
pub struct Presence {
    blocks: u64,
    /// Pages whose blocks differ. `None`: all of them are as `full` says.
    pages: Vec<Option<Box<Page>>>,
    /// One bit for each page whose blocks are all there.
    full: Vec<u64>,
}

impl Presence {
    /// None of `blocks` blocks is there.
    pub fn new(blocks: u64) -> Self {
        let pages = to_index(blocks.div_ceil(PAGE_BLOCKS));
        Self {
            blocks,
            pages: vec![None; pages],
            full: vec![0; pages.div_ceil(64)],
        }
    }

    pub fn contains(&self, block: u64) -> bool {
        debug_assert!(block < self.blocks);
        let page = to_index(block / PAGE_BLOCKS);
        match &self.pages[page] {
            Some(bits) => bit(bits, block % PAGE_BLOCKS),
            None => self.is_full(page),
        }
    }

    /// The blocks from `range`'s start on that are alike, and whether they are there. Not empty unless
    /// `range` is.
    pub fn run(&self, range: Range<u64>) -> (bool, Range<u64>) {
        let there = range.start < range.end && self.contains(range.start);
        let mut end = range.start;
        while end < range.end {
            let page = to_index(end / PAGE_BLOCKS);
            let page_end = (end / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            let next = match &self.pages[page] {
                Some(bits) => end + same_bits(bits, end % PAGE_BLOCKS, there),
                None if self.is_full(page) == there => page_end,
                None => end,
            };
            end = next;
            if next < page_end {
                break;
            }
        }
        (there, range.start..end.min(range.end))
    }

    pub fn insert(&mut self, range: Range<u64>) {
        let mut at = range.start;
        let range_end = range.end.min(self.blocks);
        while at < range_end {
            let page = to_index(at / PAGE_BLOCKS);
            let page_start = at / PAGE_BLOCKS * PAGE_BLOCKS;
            // The last page ends where the disk does.
            let page_end = (page_start + PAGE_BLOCKS).min(self.blocks);
            let end = page_end.min(range_end);
            if at == page_start && end == page_end {
                self.fill(page);
            } else if !self.is_full(page) {
                let bits = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE_WORDS]));
                set_bits(bits, at - page_start, end - page_start);
                if same_bits(bits, 0, true) >= page_end - page_start {
                    self.fill(page);
                }
            }
            at = end;
        }
    }

    fn is_full(&self, page: usize) -> bool {
        self.full[page / 64] >> (page % 64) & 1 == 1
    }

    fn fill(&mut self, page: usize) {
        self.full[page / 64] |= 1 << (page % 64);
        self.pages[page] = None;
    }
}

/// Disks are at most as large as files can be, so that block numbers fit.
fn to_index(number: u64) -> usize {
    usize::try_from(number).expect("the target is 64-bit")
}

fn bit(bits: &Page, index: u64) -> bool {
    bits[to_index(index / WORD_BITS)] >> (index % WORD_BITS) & 1 == 1
}

/// How many bits from `start` on equal `value`, up to the end of the page.
fn same_bits(bits: &Page, start: u64, value: bool) -> u64 {
    let mut at = start;
    while at < PAGE_BLOCKS {
        let word = bits[to_index(at / WORD_BITS)];
        let differ = if value { !word } else { word } >> (at % WORD_BITS);
        if differ != 0 {
            return at + u64::from(differ.trailing_zeros()) - start;
        }
        at = (at / WORD_BITS + 1) * WORD_BITS;
    }
    PAGE_BLOCKS - start
}

fn set_bits(bits: &mut Page, start: u64, end: u64) {
    let mut at = start;
    while at < end {
        let word_start = at / WORD_BITS * WORD_BITS;
        let until = end.min(word_start + WORD_BITS);
        let ones = u64::MAX >> (WORD_BITS - (until - at));
        bits[to_index(at / WORD_BITS)] |= ones << (at - word_start);
        at = until;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages_made(presence: &Presence) -> usize {
        presence.pages.iter().flatten().count()
    }

    #[test]
    fn untouched_and_fully_written_disks_have_no_pages() {
        let blocks = (1 << 40) / 4096;
        let mut presence = Presence::new(blocks);
        assert_eq!(presence.run(0..blocks), (false, 0..blocks));
        presence.insert(0..blocks);
        assert_eq!(presence.run(0..blocks), (true, 0..blocks));
        assert_eq!(pages_made(&presence), 0);
    }

    #[test]
    fn page_that_fills_up_block_by_block_is_given_back() {
        // The second page has 100 blocks only.
        let mut presence = Presence::new(PAGE_BLOCKS + 100);
        for block in PAGE_BLOCKS..PAGE_BLOCKS + 99 {
            presence.insert(block..block + 1);
        }
        assert_eq!(pages_made(&presence), 1);
        presence.insert(PAGE_BLOCKS + 99..PAGE_BLOCKS + 100);
        assert_eq!(pages_made(&presence), 0);
        assert_eq!(
            presence.run(PAGE_BLOCKS..PAGE_BLOCKS + 100),
            (true, PAGE_BLOCKS..PAGE_BLOCKS + 100)
        );
        assert!(!presence.contains(PAGE_BLOCKS - 1));
    }

    #[test]
    fn empty_ranges_change_and_say_nothing() {
        let mut presence = Presence::new(10);
        presence.insert(5..5);
        assert_eq!(presence.run(0..10), (false, 0..10));
        assert_eq!(presence.run(5..5), (false, 5..5));
    }

    proptest! {
        #[test]
        fn presence_is_like_a_list_of_flags(
            blocks in 1..3 * PAGE_BLOCKS,
            inserts in proptest::collection::vec((0..3 * PAGE_BLOCKS, 0..2 * PAGE_BLOCKS), 0..12),
            small in proptest::collection::vec((0..3 * PAGE_BLOCKS, 1..70_u64), 0..30),
            probe in 0..3 * PAGE_BLOCKS,
        ) {
            let mut presence = Presence::new(blocks);
            let mut model = vec![false; to_index(blocks)];
            for (start, len) in inserts.into_iter().chain(small) {
                let range = start.min(blocks)..(start + len).min(blocks);
                presence.insert(range.clone());
                model[to_index(range.start)..to_index(range.end)].fill(true);
            }
            let mut at = probe % blocks;
            while at < blocks {
                let (there, run) = presence.run(at..blocks);
                prop_assert!(run.start == at && run.end > at && run.end <= blocks);
                let alike = model[to_index(run.start)..to_index(run.end)].iter().all(|&flag| flag == there);
                prop_assert!(alike, "{run:?} is not all {there}");
                if run.end < blocks {
                    prop_assert!(model[to_index(run.end)] != there, "{run:?} could be longer");
                }
                at = run.end;
            }
            prop_assert_eq!(presence.contains(probe % blocks), model[to_index(probe % blocks)]);
        }
    }
}
