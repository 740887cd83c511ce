//! Changes good files at random for a while.

use std::time::{Duration, Instant};

use super::sealed::Sealed;
use super::{MEM_MIB, read_state, read_working_set, state_file, working_set_file};

/// Files of a run without `CABANA_FUZZ_SECONDS`: some seconds where nothing is optimised.
const FILES: u64 = 4000;

#[test]
fn fuzz() {
    let first = number("CABANA_FUZZ_SEED").unwrap_or(1);
    let duration = number("CABANA_FUZZ_SECONDS").map(Duration::from_secs);
    let started = Instant::now();
    let states =
        [0, 1, 2].map(|entries| Sealed::state(MEM_MIB, 1, 0, state_file::payload(entries)));
    let mut counts = [0_u64; 2];
    for seed in first.. {
        let done = match duration {
            Some(duration) => started.elapsed() >= duration,
            None => seed - first >= FILES,
        };
        if done {
            break;
        }
        let blame = Blame(seed);
        let mut random = Random::new(seed);
        let good = if seed % 4 == 0 {
            let file = mutate(&working_set_file::good(), &mut random);
            read_working_set(&file, MEM_MIB).is_ok()
        } else {
            let index = random.below(states.len());
            let file = mutate(&states[index], &mut random);
            read_state(&file).is_ok_and(|(inspection, _)| inspection.summary.is_ok())
        };
        std::mem::forget(blame);
        counts[usize::from(good)] += 1;
    }
    println!("{} files refused, {} read", counts[0], counts[1]);
    assert!(
        counts[0] > 0 && counts[1] > 0,
        "the changes are neither all fatal nor all harmless"
    );
}

/// Says which file it was, should reading it panic.
struct Blame(u64);

impl Drop for Blame {
    fn drop(&mut self) {
        eprintln!("to see this again: CABANA_FUZZ_SEED={}", self.0);
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

/// A few changes to the payload, sealed; now and then changes to the sealed file or its header.
fn mutate(good: &Sealed, random: &mut Random) -> Vec<u8> {
    let mut file = good.clone();
    for _ in 0..=random.below(4) {
        change(&mut file.payload, random);
    }
    if random.below(8) == 0 {
        let at = random.below(file.fields.len());
        file.fields[at] = random.byte();
    }
    if random.below(16) == 0 {
        file.payload_bytes = Some(random.next() >> random.below(64));
    }
    let mut bytes = file.bytes();
    if random.below(16) == 0 {
        change(&mut bytes, random);
    }
    bytes
}

/// One change of the kinds that find faults in parsers: flipped bits, numbers at their limits, lost, doubled
/// and moved parts.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.byte());
        return;
    }
    let at = random.below(bytes.len());
    let len = 1 + random.below((bytes.len() - at).min(64));
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.byte(),
        2 => {
            let edge = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
            bytes[at..at + len].fill(edge);
        }
        3 => drop(bytes.drain(at..at + len)),
        4 => {
            let part = bytes[at..at + len].to_vec();
            bytes.splice(at..at, part);
        }
        5 => {
            let part = bytes[at..at + len].to_vec();
            let to = random.below(bytes.len() - len + 1);
            bytes[to..to + len].copy_from_slice(&part);
        }
        _ => {
            // A number in seven bits a byte.
            let mut value = random.next() >> random.below(64);
            let mut coded = Vec::new();
            while value >= 0x80 {
                coded.push(value.to_le_bytes()[0] | 0x80);
                value >>= 7;
            }
            coded.push(value.to_le_bytes()[0]);
            bytes.splice(at..=at, coded);
        }
    }
}

/// Numbers that look random and depend on the seed alone (splitmix64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("smaller than a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
