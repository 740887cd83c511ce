//! The copy-on-write disk against a list of bytes, and what it costs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::Block;
use super::cow::Cow;
use super::request::Range;
use crate::config::BlockConfig;
use crate::devices::virtio::buffers::Buffers;
use crate::sparse::testing::{allocated, content};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;

/// What sector `n` of a base is filled with: never zero, unlike what guests write here.
fn base_byte(offset: u64) -> u8 {
    u8::try_from(offset / SECTOR % 100 + 100).unwrap()
}

fn base_content(len: u64) -> Vec<u8> {
    (0..len).map(base_byte).collect()
}

/// A base of `len` bytes that nobody can write through this descriptor.
fn base(len: u64) -> File {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&base_content(len), 0).unwrap();
    File::open(file.path()).unwrap()
}

fn empty(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

/// Cuts `bytes` into pieces as a driver might, and hands them to `act`.
fn with_buffers<R>(bytes: &mut [u8], act: impl FnOnce(Buffers<'_>) -> R) -> R {
    let mut buffers = Buffers::default();
    for piece in bytes.chunks_mut(1000) {
        buffers.push(VolatileSlice::from(piece));
    }
    act(buffers)
}

fn read(cow: &Cow, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0x55; usize::try_from(len).unwrap()];
    with_buffers(&mut bytes, |to| cow.read(offset, to)).unwrap();
    bytes
}

fn write(cow: &mut Cow, offset: u64, mut bytes: Vec<u8>) {
    with_buffers(&mut bytes, |from| cow.write(offset, from)).unwrap();
}

#[test]
fn fresh_disk_reads_as_its_base_and_as_zeros_beyond_it() {
    let file = empty(10 * BLOCK);
    let cow = Cow::new(file, base(5 * BLOCK + 700), 10 * BLOCK).unwrap();
    let mut expected = base_content(5 * BLOCK + 700);
    expected.resize(10 * 4096, 0);
    assert_eq!(read(&cow, 0, 10 * BLOCK), expected);
    assert_eq!(
        read(&cow, 5 * BLOCK + 512, 512),
        expected[5 * 4096 + 512..][..512]
    );
    assert_eq!(read(&cow, 7 * BLOCK, BLOCK), [0; 4096]);
}

#[test]
fn fresh_disk_of_any_size_costs_nothing() {
    let bytes = 1 << 40;
    let file = empty(bytes);
    let cow = Cow::new(file.try_clone().unwrap(), base(BLOCK), bytes).unwrap();
    assert_eq!(read(&cow, bytes - BLOCK, BLOCK), [0; 4096]);
    assert_eq!(allocated(&file), 0);
}

#[test]
fn whole_blocks_are_written_without_a_look_at_the_base() {
    let file = empty(10 * BLOCK);
    let mut cow = Cow::new(file.try_clone().unwrap(), base(10 * BLOCK), 10 * BLOCK).unwrap();
    write(&mut cow, 2 * BLOCK, vec![1; 3 * 4096]);
    assert_eq!(allocated(&file), 3 * BLOCK);
    let mut expected = base_content(10 * BLOCK);
    expected[2 * 4096..5 * 4096].fill(1);
    assert_eq!(read(&cow, 0, 10 * BLOCK), expected);
}

#[test]
fn part_of_a_block_brings_the_rest_of_it_along() {
    let file = empty(4 * BLOCK);
    // The base ends within the second block.
    let mut cow = Cow::new(file.try_clone().unwrap(), base(BLOCK + 1024), 4 * BLOCK).unwrap();
    write(&mut cow, BLOCK - 512, vec![1; 1024]);
    assert_eq!(allocated(&file), 2 * BLOCK);
    let mut expected = base_content(BLOCK + 1024);
    expected.resize(4 * 4096, 0);
    expected[3584..4608].fill(1);
    assert_eq!(read(&cow, 0, 4 * BLOCK), expected);
    assert_eq!(content(&file)[..2 * 4096], expected[..2 * 4096]);
}

#[test]
fn disk_that_ends_within_a_block_does_not_grow() {
    let bytes = 2 * BLOCK + 1024;
    let file = empty(bytes);
    let mut cow = Cow::new(file.try_clone().unwrap(), base(4 * BLOCK), bytes).unwrap();
    write(&mut cow, 2 * BLOCK + 512, vec![1; 512]);
    write(&mut cow, 0, vec![2; 512]);
    let mut expected = base_content(bytes);
    expected[2 * 4096 + 512..].fill(1);
    expected[..512].fill(2);
    assert_eq!(read(&cow, 0, bytes), expected);
    assert_eq!(file.metadata().unwrap().len(), bytes);
    let flat = empty(0);
    cow.flatten(&flat).unwrap();
    assert_eq!(content(&flat), expected);
}

#[test]
fn discarded_blocks_read_as_zero_and_not_as_the_base() {
    let file = empty(10 * BLOCK);
    let mut cow = Cow::new(file.try_clone().unwrap(), base(10 * BLOCK), 10 * BLOCK).unwrap();
    write(&mut cow, 5 * BLOCK, vec![1; 2 * 4096]);
    cow.zero(Range {
        offset: 3 * BLOCK,
        len: 4 * BLOCK,
    })
    .unwrap();
    assert_eq!(allocated(&file), 0, "what was written is given back");
    // Parts of two blocks that were never written: their rest stays the base's.
    cow.zero(Range {
        offset: BLOCK - 512,
        len: 1024,
    })
    .unwrap();
    let mut expected = base_content(10 * BLOCK);
    expected[3 * 4096..7 * 4096].fill(0);
    expected[4096 - 512..4096 + 512].fill(0);
    assert_eq!(read(&cow, 0, 10 * BLOCK), expected);
    cow.zero(Range {
        offset: 8 * BLOCK,
        len: 0,
    })
    .unwrap();
    assert_eq!(read(&cow, 8 * BLOCK, BLOCK), expected[8 * 4096..9 * 4096]);
}

#[test]
fn empty_write_changes_nothing() {
    let file = empty(2 * BLOCK);
    let mut cow = Cow::new(file.try_clone().unwrap(), base(2 * BLOCK), 2 * BLOCK).unwrap();
    for offset in [0, 512, 2 * BLOCK] {
        write(&mut cow, offset, Vec::new());
    }
    assert_eq!(read(&cow, 0, 2 * BLOCK), base_content(2 * BLOCK));
    assert_eq!(allocated(&file), 0);
}

#[test]
fn write_that_the_file_refuses_leaves_the_base_visible() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(2 * BLOCK).unwrap();
    let read_only = File::open(path.path()).unwrap();
    let mut cow = Cow::new(read_only, base(2 * BLOCK), 2 * BLOCK).unwrap();
    for (offset, len) in [(0, 4096), (512, 512)] {
        let mut bytes = vec![1; len];
        assert!(with_buffers(&mut bytes, |from| cow.write(offset, from)).is_err());
    }
    assert!(
        cow.zero(Range {
            offset: 0,
            len: BLOCK
        })
        .is_err()
    );
    assert_eq!(read(&cow, 0, 2 * BLOCK), base_content(2 * BLOCK));
}

#[test]
fn base_that_became_shorter_is_an_error_not_a_hang() {
    let short = tempfile::tempfile().unwrap();
    short.write_all_at(&base_content(4 * BLOCK), 0).unwrap();
    let mut cow = Cow::new(empty(4 * BLOCK), short.try_clone().unwrap(), 4 * BLOCK).unwrap();
    short.set_len(BLOCK).unwrap();
    let mut bytes = vec![0; 2 * 4096];
    assert!(with_buffers(&mut bytes, |to| cow.read(0, to)).is_err());
    assert!(with_buffers(&mut bytes[..512], |from| cow.write(3 * BLOCK, from)).is_err());
}

#[test]
fn flattened_disk_is_equal_and_has_holes() {
    let len = 64 << 20;
    let lower = tempfile::tempfile().unwrap();
    lower.set_len(16 << 20).unwrap();
    lower.write_all_at(&[1; 8192], 1 << 20).unwrap();
    lower.write_all_at(&[2; 8192], 8 << 20).unwrap();
    let mut cow = Cow::new(empty(len), lower, len).unwrap();
    write(&mut cow, 32 << 20, vec![3; 4096]);
    // Zeros over something of the base, and over nothing.
    write(&mut cow, 8 << 20, vec![0; 8192]);
    write(&mut cow, 48 << 20, vec![0; 8192]);
    let flat = tempfile::tempfile().unwrap();
    flat.write_all_at(&[9; 4096], 4096).unwrap();
    cow.flatten(&flat).unwrap();
    assert_eq!(flat.metadata().unwrap().len(), len);
    assert!(content(&flat) == read(&cow, 0, len));
    assert_eq!(allocated(&flat), 3 * BLOCK);
}

#[test]
fn whole_disk_is_flattened_too() {
    let file = empty(1 << 20);
    file.write_all_at(&[7; 4096], 8192).unwrap();
    let block = Block::new(BlockConfig {
        file: file.try_clone().unwrap(),
        base: None,
        read_only: false,
    });
    let flat = empty(0);
    block.unwrap().flatten(&flat).unwrap();
    assert!(content(&flat) == content(&file));
    assert_eq!(allocated(&flat), BLOCK);
}

#[derive(Debug, Clone)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
}

/// Sectors of the disks below: not whole blocks.
const SECTORS: u64 = 101;

fn op() -> impl Strategy<Value = Op> {
    let span =
        || (0..=SECTORS, 0..40_u64).prop_map(|(start, len)| (start, len.min(SECTORS - start)));
    prop_oneof![
        span().prop_map(|(start, len)| Op::Read(start, len)),
        (span(), 0..100_u8).prop_map(|((start, len), fill)| Op::Write(start, len, fill)),
        span().prop_map(|(start, len)| Op::Zero(start, len)),
    ]
}

proptest! {
    #[test]
    fn disk_is_like_a_list_of_bytes(
        base_len in 0..(SECTORS + 10) * SECTOR,
        ops in proptest::collection::vec(op(), 0..40),
    ) {
        let bytes = SECTORS * SECTOR;
        let mut model = base_content(base_len);
        model.resize(usize::try_from(bytes).unwrap(), 0);
        let lower = base(base_len);
        let file = empty(bytes);
        let mut cow = Cow::new(file.try_clone().unwrap(), lower.try_clone().unwrap(), bytes).unwrap();
        let span = |start: u64, len: u64| {
            let start = usize::try_from(start * SECTOR).unwrap();
            start..start + usize::try_from(len * SECTOR).unwrap()
        };
        for op in ops {
            match op {
                Op::Read(start, len) => {
                    let found = read(&cow, start * SECTOR, len * SECTOR);
                    prop_assert_eq!(&found[..], &model[span(start, len)]);
                }
                Op::Write(start, len, fill) => {
                    model[span(start, len)].fill(fill);
                    write(&mut cow, start * SECTOR, model[span(start, len)].to_vec());
                }
                Op::Zero(start, len) => {
                    model[span(start, len)].fill(0);
                    cow.zero(Range { offset: start * SECTOR, len: len * SECTOR }).unwrap();
                }
            }
        }
        prop_assert!(read(&cow, 0, bytes) == model);
        prop_assert_eq!(file.metadata().unwrap().len(), bytes);
        prop_assert!(content(&lower) == base_content(base_len));
        let flat = empty(0);
        cow.flatten(&flat).unwrap();
        prop_assert!(content(&flat) == model);
    }
}
