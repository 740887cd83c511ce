//! Changes of the kinds that find faults in parsers: flipped bits, numbers at their limits, lost, doubled and moved parts, parts of another
//! input, and words of the format.

use crate::random::Random;

/// The longest part that is lost, doubled or moved at once, but for blocks.
const PART: usize = 64;
/// Sizes of records in the formats at hand: descriptors of a queue, packet headers, blocks of an archive.
const BLOCKS: [usize; 3] = [16, 44, 512];
/// Bytes that mean something: ends of ranges, and what begins, ends and separates in texts.
const BYTES: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xff, b'0', b'7', b'/', b'.', b'"', b'\\', b'\n', b'\r', b' ', b'=', b'%',
];

/// Changes `input` a few times. It ends with at most `max` bytes.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&str], max: usize, random: &mut Random) {
    for _ in 0..=random.below(4) {
        change(input, other, words, random);
    }
    input.truncate(max);
}

fn change(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut Random) {
    if bytes.is_empty() {
        let count = 1 + random.below(PART);
        bytes.extend(random.bytes(count));
        return;
    }
    let at = random.below(bytes.len());
    let len = 1 + random.below((bytes.len() - at).min(PART));
    match random.below(if words.is_empty() { 12 } else { 15 }) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.byte(),
        2 => bytes[at..at + len].fill(*random.pick(&BYTES)),
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
        6 => {
            // A record somewhere else, or twice.
            let block = *random.pick(&BLOCKS);
            let from = at / block * block;
            let part = bytes[from..bytes.len().min(from + block)].to_vec();
            let to = random.below(bytes.len()) / block * block;
            bytes.splice(to..to, part);
        }
        7 => {
            let number = limit(random).to_le_bytes();
            let width = 1 << random.below(4);
            overwrite(bytes, at, &number[..width]);
        }
        8 => {
            let mut number = [0; 8];
            let width = (1 << random.below(4)).min(bytes.len() - at);
            number[..width].copy_from_slice(&bytes[at..at + width]);
            let step = random.below(32) as u64;
            let number = u64::from_le_bytes(number)
                .wrapping_add(step)
                .wrapping_sub(16);
            overwrite(bytes, at, &number.to_le_bytes()[..width]);
        }
        9 if !other.is_empty() => {
            let from = random.below(other.len());
            let part = &other[from..other.len().min(from + 1 + random.below(4 * PART))];
            let until = if random.below(2) == 0 { at } else { at + len };
            bytes.splice(at..until, part.iter().copied());
        }
        9 | 10 => {
            // A number in seven bits a byte.
            let mut value = random.number();
            let mut coded = Vec::new();
            while value >= 0x80 {
                coded.push(value.to_le_bytes()[0] | 0x80);
                value >>= 7;
            }
            coded.push(value.to_le_bytes()[0]);
            bytes.splice(at..=at, coded);
        }
        11 => {
            let number = match random.below(3) {
                0 => limit(random).to_string(),
                1 => format!("{:o}\0", random.number()),
                _ => random.number().to_string(),
            };
            bytes.splice(at..at + len.min(number.len()), number.bytes());
        }
        12 => {
            let word = random.pick(words).bytes();
            bytes.splice(at..at, word);
        }
        _ => {
            let word = random.pick(words).bytes();
            bytes.splice(at..at + len.min(8), word);
        }
    }
}

/// A number at the end of a range, or next to it.
fn limit(random: &mut Random) -> u64 {
    let power = 1_u64 << random.below(64);
    match random.below(4) {
        0 => power,
        1 => power - 1,
        2 => power.wrapping_neg(),
        _ => 0,
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let end = bytes.len().min(at + with.len());
    bytes[at..end].copy_from_slice(&with[..end - at]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_makes_the_same_change_and_length_is_kept_to() {
        let change = |seed| {
            let mut bytes = b"some text that is changed".to_vec();
            mutate(
                &mut bytes,
                b"another",
                &["word"],
                30,
                &mut Random::new(seed),
            );
            assert!(bytes.len() <= 30);
            bytes
        };
        for seed in 0..2000 {
            assert_eq!(change(seed), change(seed));
        }
        assert_ne!(change(1), change(2));
    }
}
