//! Whole devices behind their registers, served request by request: block and rng. Their drivers chain any pieces, broken or not.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use fuzz::{Choices, Target};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;
use crate::config::BlockConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::rng::{MAX_REQUEST, Rng};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 400;

const SECTORS: usize = 64;
/// Of the one queue, in `DriverQueue`.
const RING: std::ops::Range<u64> = RINGS..RINGS + RING_SPACING;
/// What no device writes as the outcome of a request.
const UNTOUCHED: u8 = 0x77;

/// What the driver has done so far.
struct Driver {
    machine: Machine,
    /// Head and writable bytes of each chain that was made available and has not come back.
    open: Vec<(u16, u64)>,
    /// What the device may write to, beside its used ring.
    given: Vec<(u64, u64)>,
    /// Whether the driver keeps its descriptors and rings to itself, so that what they hold later is what it wrote.
    orderly: bool,
    /// Whether the driver had the device write to its rings, or has tables elsewhere: then nobody knows what it was given.
    wild: bool,
    /// The most that a chain may come back with.
    most: u64,
}

impl Driver {
    fn new(device: Box<dyn VirtioDevice>, event_idx: bool, most: u64) -> Self {
        let mut machine = Machine::in_memory(device, small_memory());
        let plain = 1 << VIRTIO_F_VERSION_1;
        machine.negotiate(if event_idx { EVENT_IDX } else { plain });
        machine.set_up_queues();
        machine.write(VIRTIO_MMIO_STATUS, 0xf);
        Self {
            machine,
            open: Vec::new(),
            given: Vec::new(),
            orderly: true,
            wild: false,
            most,
        }
    }

    /// A chain of pieces that are within memory, mostly.
    fn chain(&mut self, header: Option<[u8; 16]>, choices: &mut Choices<'_>) {
        let mut pieces = Vec::new();
        if let Some(header) = header {
            self.machine.put(DATA, &header);
            pieces.push((DATA, 16, false));
        }
        for _ in 0..choices.below(5) {
            let at = choices.number(&[DATA + 0x200, DATA + 0x1000, DATA + 0x8000, DATA + 0x4000]);
            let len = choices.number(&[512, 1, 16, 1024, 20, 0, 4096, 0x1_0000]) as u32;
            pieces.push((at, len, choices.flag()));
        }
        if choices.byte() < 0xe0 {
            self.machine.put(DATA + 0x100, &[UNTOUCHED]);
            pieces.push((DATA + 0x100, 1, true));
        }
        if choices.byte() < 0xf0 {
            // The order that the spec wants.
            pieces.sort_by_key(|(_, _, writable)| *writable);
        }
        // Descriptors of chains that are not back yet are not used again by a driver that wants to know what became of them.
        let next = self.machine.queues[0].next_descriptor;
        let in_use: usize = self.open.len() * 8;
        self.orderly &= in_use + pieces.len() < usize::from(self.machine.queues[0].size);
        if pieces.is_empty() {
            return;
        }
        let mut writable = 0;
        for (at, len, is_writable) in &pieces {
            if *is_writable {
                writable += u64::from(*len);
                self.give(*at, *len);
            }
            self.wild |= touches_ring(*at, *len);
        }
        self.orderly &= !self.wild;
        self.open.push((next, writable));
        self.machine.queues[0].add(&pieces);
    }

    /// For good: a driver that does anything makes old descriptors available again.
    fn give(&mut self, at: u64, len: u32) {
        let piece = (at, u64::from(len));
        if !self.given.contains(&piece) {
            self.given.push(piece);
        }
    }

    /// Lets the device work. What it wrote is within what it was given, and every chain came back at most once.
    fn serve(&mut self) {
        let before = Image::of(&self.machine.memory);
        self.machine.serve(0);
        let mut after = Image::of(&self.machine.memory);
        let mut expected = before;
        let own = (RING.start + 0x8000, 4 + 8 * 256 + 2);
        for (at, len) in self.given.iter().copied().chain([own]) {
            if let Some(part) = after.part(at, len) {
                let part = part.to_vec();
                expected.write(at, &part);
            }
        }
        if !self.wild {
            assert_same(&after, &expected);
        }
        if !self.orderly {
            return;
        }
        for (head, written) in self.machine.queues[0].used() {
            let index = self
                .open
                .iter()
                .position(|(open, _)| u32::from(*open) == head);
            let (_, writable) = self.open.remove(index.expect("a chain that is open"));
            assert!(
                u64::from(written) <= writable.min(self.most),
                "{written} of {writable}"
            );
        }
        assert!(self.machine.needs_reset() || self.open.is_empty());
    }

    /// `false` if the device had to stop.
    fn finish(mut self) -> bool {
        self.serve();
        !self.machine.needs_reset()
    }
}

fn touches_ring(at: u64, len: u32) -> bool {
    at < RING.end && at.saturating_add(len.into()) > RING.start
}

/// What is not one chain after the other: descriptors and indices that were never meant so.
fn disorder(driver: &mut Driver, choices: &mut Choices<'_>) {
    driver.orderly = false;
    match choices.below(3) {
        0 => {
            let at = RINGS + 16 * (choices.number(&[0, 1, 2, 255]) & 0xff);
            let descriptor = any_descriptor(choices);
            let [addr @ .., l0, l1, l2, l3, flags, _, _, _] = descriptor;
            let (addr, len) = (
                u64::from_le_bytes(addr),
                u32::from_le_bytes([l0, l1, l2, l3]),
            );
            driver.wild |= u16::from(flags) & INDIRECT != 0 || touches_ring(addr, len);
            driver.give(addr, len);
            driver.machine.put(at, &descriptor);
        }
        1 => {
            let head = choices.number(&[0, 1, 2, 255, 256]) as u16;
            driver.machine.queues[0].publish(head);
        }
        _ => {
            let index = choices.number(&[0, 1, 2, 256, 257]) as u16;
            driver.machine.queues[0].set_avail(index);
        }
    }
}

/// A disk of 64 sectors, filled with the number of each and `salt`.
fn disk(salt: u8) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..SECTORS * 512)
        .map(|at| (at / 512) as u8 ^ salt)
        .collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    (file, bytes)
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; SECTORS * 512];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writable,
    ReadOnly,
    Fork,
}

fn block(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let kind = choices.pick(&[Kind::Writable, Kind::ReadOnly, Kind::Fork]);
    let event_idx = choices.flag();
    let (file, bytes) = disk(0);
    let base = (kind == Kind::Fork).then(|| {
        file.set_len(0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        disk(0xa0)
    });
    let device = Block::new(BlockConfig {
        file: file.try_clone().unwrap(),
        base: base.as_ref().map(|(base, _)| base.try_clone().unwrap()),
        read_only: kind == Kind::ReadOnly,
    });
    let mut driver = Driver::new(Box::new(device.unwrap()), event_idx, u64::MAX);
    let mut changes = false;
    while !choices.is_empty() {
        match choices.byte() {
            0..=0xbf => {
                let request = choices.number(&[0, 1, 4, 8, 11, 13]) as u32;
                changes |= ![0, 4, 8].contains(&request);
                let sector = choices.number(&[0, 1, 62, 63, 64, u64::MAX / 512]);
                let mut header = [0; 16];
                header[..4].copy_from_slice(&request.to_le_bytes());
                header[8..].copy_from_slice(&sector.to_le_bytes());
                if choices.flag() {
                    // The ranges of a request that discards, or what one writes.
                    let count = choices.number(&[8, 1, 64, 1 << 21]) as u32;
                    let flags = choices.number(&[0, 1, 2]) as u32;
                    driver.machine.put(DATA + 0x200, &sector.to_le_bytes());
                    driver.machine.put(DATA + 0x208, &count.to_le_bytes());
                    driver.machine.put(DATA + 0x20c, &flags.to_le_bytes());
                }
                driver.chain(Some(header), &mut choices);
            }
            0xc0..=0xdf => {
                driver.chain(None, &mut choices);
                changes = true;
            }
            0xe0..=0xf7 => driver.serve(),
            _ => {
                disorder(&mut driver, &mut choices);
                changes = true;
            }
        }
    }
    let up = driver.finish();
    assert_eq!(file.metadata().unwrap().size(), bytes.len() as u64);
    if kind == Kind::ReadOnly || (kind == Kind::Writable && !changes) {
        assert!(content(&file) == bytes, "a disk that nobody wrote to");
    }
    if let Some((base, bytes)) = base {
        assert!(content(&base) == bytes, "what a fork shares");
        assert_eq!(base.metadata().unwrap().size(), bytes.len() as u64);
    }
    up
}

#[test]
fn fuzz_block() {
    Target::new("block")
        .corpus(corpus("block"))
        .max_bytes(512)
        .run(INPUTS, block);
}

fn rng(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let event_idx = choices.flag();
    let mut driver = Driver::new(Box::new(Rng::new()), event_idx, MAX_REQUEST as u64);
    while !choices.is_empty() {
        match choices.byte() {
            0..=0xbf => driver.chain(None, &mut choices),
            0xc0..=0xdf => driver.serve(),
            0xe0..=0xf7 => driver.chain(None, &mut choices),
            _ => disorder(&mut driver, &mut choices),
        }
    }
    driver.finish()
}

#[test]
fn fuzz_rng() {
    Target::new("rng")
        .corpus(corpus("rng"))
        .max_bytes(512)
        .run(INPUTS, rng);
}
