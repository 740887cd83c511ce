//! Changes good files at random. An input begins with a byte that says what it is.

use ::fuzz::Target;

use super::sealed::{HEADER_BYTES, Sealed};
use super::{MEM_MIB, read_state, read_working_set, state_file, working_set_file};

/// Files of a run without `CABANA_FUZZ_SECONDS`.
const FILES: u64 = 1500;

/// Bytes of the header that are the format's own.
const FIELDS: usize = 16;

/// What the first byte of an input says of the others.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// A payload, which gets a good header.
    Payload,
    /// Fields of the header, and a payload.
    Fields,
    /// A whole file.
    File,
}

impl Kind {
    fn of(byte: u8) -> Self {
        // What is most worth changing is most likely.
        match byte {
            1 => Self::Fields,
            2 => Self::File,
            _ => Self::Payload,
        }
    }
}

fn input(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    [&[kind as u8], bytes].concat()
}

/// Some of a good file, as inputs of each kind.
fn inputs(good: &Sealed) -> [Vec<u8>; 3] {
    [
        input(Kind::Payload, &good.payload),
        input(Kind::Fields, &[&good.fields[..], &good.payload].concat()),
        input(Kind::File, &good.bytes()),
    ]
}

/// The file that an input means.
fn file(input: &[u8], good: &Sealed) -> Vec<u8> {
    let (kind, bytes) = input.split_first().unwrap_or((&0, &[]));
    let mut file = good.clone();
    match Kind::of(*kind) {
        Kind::Payload => file.payload = bytes.to_vec(),
        Kind::Fields => {
            let (fields, payload) = bytes.split_at(FIELDS.min(bytes.len()));
            file.fields[..fields.len()].copy_from_slice(fields);
            file.payload = payload.to_vec();
        }
        Kind::File => return bytes.to_vec(),
    }
    file.bytes()
}

fn state(entries: usize) -> Sealed {
    Sealed::state(MEM_MIB, 1, 0, state_file::payload(entries))
}

#[test]
fn fuzz_state_file() {
    let good = state(1);
    Target::new("state_file")
        .seeds(
            [0, 1, 2]
                .iter()
                .flat_map(|entries| inputs(&state(*entries))),
        )
        .max_bytes(1 << 16)
        .run(FILES, |bytes| {
            read_state(&file(bytes, &good)).is_ok_and(|(inspection, _)| inspection.summary.is_ok())
        });
}

#[test]
fn fuzz_working_set_file() {
    let good = working_set_file::good();
    assert!(good.bytes().len() > HEADER_BYTES);
    Target::new("working_set_file")
        .seeds(inputs(&good))
        .max_bytes(1 << 16)
        .run(FILES, |bytes| {
            read_working_set(&file(bytes, &good), MEM_MIB).is_ok()
        });
}
