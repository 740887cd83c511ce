//! Drivers that do anything at all, in any order, made of changed series of choices: see the crate `fuzz`.
//!
//! Each target holds the device to more than coming back: what a guest finds in its memory afterwards is what a plain model of the ring wrote
//! there, or at least nothing outside of what the driver gave the device to write to.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

mod registers;
mod requests;
mod rings;

use std::path::PathBuf;

use fuzz::Choices;
use vm_memory::{Bytes, GuestAddress};

use super::testing::*;
use crate::memory::Memory;

/// Memory with a hole, as that of a guest with more than 3 GiB: rings below, and what they point to mostly above.
const RANGES: [(u64, usize); 2] = [(0, 0x4_0000), (DATA, 0x1_0000)];
/// Addresses that mean something: where memory begins and ends, rings, data, and nothing.
const PLACES: [u64; 10] = [
    DATA,
    DATA + 0x200,
    DATA + 0x1000,
    RINGS,
    RINGS + 0x4000,
    RINGS + 0x8000,
    DATA + 0x1_0000,
    0x4_0000,
    0,
    u64::MAX,
];
/// Lengths that mean something.
const LENGTHS: [u64; 10] = [512, 16, 1, 0, 44, 4096, 0x1_0000, 0x4_0000, 0xffff_ffff, 64];

pub fn corpus(target: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    PathBuf::from(folder).join(target)
}

pub fn small_memory() -> Memory {
    Memory::from_ranges(&RANGES.map(|(start, len)| (GuestAddress(start), len))).unwrap()
}

/// What guest memory should hold, as the simplest thing there is.
#[derive(Clone, PartialEq, Eq)]
struct Image([Vec<u8>; 2]);

impl Image {
    fn zero() -> Self {
        Self(RANGES.map(|(_, len)| vec![0; len]))
    }

    fn of(memory: &Memory) -> Self {
        Self(RANGES.map(|(start, len)| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
            bytes
        }))
    }

    /// All `len` bytes from `at`, if memory has them in one piece.
    fn part(&mut self, at: u64, len: u64) -> Option<&mut [u8]> {
        let end = at.checked_add(len)?;
        for ((start, size), bytes) in RANGES.iter().zip(&mut self.0) {
            if at >= *start && end <= start + *size as u64 {
                return Some(&mut bytes[(at - start) as usize..(end - start) as usize]);
            }
        }
        None
    }

    fn read<const N: usize>(&mut self, at: u64) -> Option<[u8; N]> {
        self.part(at, N as u64)?.try_into().ok()
    }

    fn u16(&mut self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at).unwrap())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.part(at, bytes.len() as u64)
            .unwrap()
            .copy_from_slice(bytes);
    }

    /// The first byte that differs.
    fn difference(&self, other: &Image) -> Option<(u64, u8, u8)> {
        for ((start, _), (left, right)) in RANGES.iter().zip(self.0.iter().zip(&other.0)) {
            if left != right {
                let at = left.iter().zip(right).position(|(l, r)| l != r)?;
                return Some((start + at as u64, left[at], right[at]));
            }
        }
        None
    }
}

#[track_caller]
fn assert_same(found: &Image, expected: &Image) {
    if let Some((at, found, expected)) = found.difference(expected) {
        panic!("memory at {at:#x} is {found:#x}, and not {expected:#x}");
    }
}

/// Writes a descriptor, somewhere.
fn any_descriptor(choices: &mut Choices<'_>) -> [u8; 16] {
    let addr = choices.number(&PLACES);
    let len = choices.number(&LENGTHS) as u32;
    let flags = match choices.byte() {
        any if any >= 0xf0 => choices.u16(),
        usual => u16::from(usual % 8),
    };
    let next = choices.number(&[0, 1, 2, 3, 7, 8, 255, 256]) as u16;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
