//! State files.

use vmm::snapshot::SnapshotError;
use vmm::snapshot::format::MAX_STATE_BYTES;
use vmm::snapshot::state::State;

use super::exemplar::exemplar;
use super::sealed::{HEADER_BYTES, Sealed};
use super::{MEM_MIB, read_state};

/// What a number that is coded in seven bits a byte looks like when it is as large as it can be.
const LARGEST: [&[u8]; 3] = [
    &[0xff, 0xff, 0x03],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

/// A state as it is in a file, with lists of `entries` entries, and as many different alternatives.
pub fn payload(entries: usize) -> Vec<u8> {
    let variant = u32::try_from(entries).expect("a small number");
    postcard::to_stdvec(&exemplar::<State>(entries, variant)).expect("states can be encoded")
}

fn good() -> Sealed {
    Sealed::state(MEM_MIB, 2, 0, payload(2))
}

/// Whether the payload was decoded. Its header is good.
fn decodes(file: &Sealed) -> bool {
    let (inspection, _) = read_state(&file.bytes()).expect("the header is good");
    inspection.summary.is_ok()
}

#[test]
fn file_written_by_its_description_is_read() {
    let (inspection, text) = read_state(&good().bytes()).unwrap();
    assert_eq!(inspection.header.mem_mib, MEM_MIB);
    assert_eq!(inspection.header.vcpus, 2);
    assert!(inspection.summary.is_ok(), "{text}");
    assert!(text.contains("memory    48 MiB"), "{text}");
}

#[test]
fn every_flipped_bit_of_the_header_is_an_error_with_a_remedy() {
    let good = good().bytes();
    for byte in 0..HEADER_BYTES {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[byte] ^= 1 << bit;
            let error = read_state(&bad).expect_err("a flipped bit").to_string();
            assert!(
                error.ends_with("make the golden again"),
                "byte {byte}: {error}"
            );
        }
    }
}

#[test]
fn every_byte_of_the_header_can_have_any_value() {
    let good = good().bytes();
    for byte in 0..HEADER_BYTES {
        for value in 0..=255 {
            let mut bad = good.clone();
            bad[byte] = value;
            assert_eq!(
                read_state(&bad).is_ok(),
                bad == good,
                "byte {byte} is {value}"
            );
        }
    }
}

#[test]
fn flipped_bits_of_the_payload_leave_the_header_readable_and_are_found() {
    let good = good().bytes();
    for byte in (HEADER_BYTES..good.len()).step_by(37) {
        let mut bad = good.clone();
        bad[byte] ^= 0x10;
        let (inspection, text) = read_state(&bad).unwrap();
        let found = inspection.summary;
        assert!(
            matches!(
                found,
                Err(SnapshotError::Damaged {
                    part: "payload",
                    ..
                })
            ),
            "byte {byte}: {found:?}"
        );
        assert!(text.contains("make the golden again"), "{text}");
    }
}

#[test]
fn file_cut_anywhere_is_an_error() {
    let good = good().bytes();
    let cuts = (0..=HEADER_BYTES + 40).chain((HEADER_BYTES + 41..good.len()).step_by(97));
    for len in cuts {
        assert!(read_state(&good[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn bytes_behind_the_payload_are_an_error() {
    for extra in [1, 100, 1 << 20] {
        let mut bytes = good().bytes();
        bytes.resize(bytes.len() + extra, 0);
        let error = read_state(&bytes).unwrap_err();
        assert!(matches!(error, SnapshotError::Length { .. }), "{error}");
    }
}

#[test]
fn length_that_lies_is_an_error_before_anything_is_allocated_for_it() {
    let good = good();
    let len = good.payload.len() as u64;
    for promised in [
        0,
        1,
        len - 1,
        len + 1,
        MAX_STATE_BYTES,
        MAX_STATE_BYTES + 1,
        1 << 40,
        u64::MAX,
    ] {
        let lie = Sealed {
            payload_bytes: Some(promised),
            ..good.clone()
        };
        let error = read_state(&lie.bytes()).unwrap_err();
        match error {
            SnapshotError::Length { .. } => assert!(promised <= MAX_STATE_BYTES),
            SnapshotError::Limit { .. } => assert!(promised > MAX_STATE_BYTES),
            other => panic!("{promised}: {other}"),
        }
    }
}

#[test]
fn sealed_lies_in_the_header_are_errors() {
    let lies: [fn(&mut Sealed); 8] = [
        |file| file.magic = *b"cabanaWS",
        |file| file.version = 0,
        |file| file.version = u32::MAX,
        |file| file.header_bytes = 0,
        |file| file.header_bytes = u32::MAX,
        |file| file.fields[..4].fill(0xff),
        |file| file.fields[4] = 0,
        |file| file.fields[15] = 1,
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let mut file = good();
        lie(&mut file);
        assert!(read_state(&file.bytes()).is_err(), "lie {index}");
    }
}

#[test]
fn header_that_contradicts_the_state_is_told() {
    let mut file = good();
    file.fields[4] = 31;
    let (_, text) = read_state(&file.bytes()).unwrap();
    assert!(text.contains("unusable"), "{text}");
}

#[test]
fn state_that_is_shorter_or_longer_than_its_payload_is_refused() {
    let good = good();
    for len in (0..good.payload.len()).step_by(61) {
        let short = Sealed {
            payload: good.payload[..len].to_vec(),
            ..good.clone()
        };
        assert!(!decodes(&short), "{len} bytes");
    }
    let mut long = good;
    long.payload.push(0);
    assert!(!decodes(&long));
}

#[test]
fn count_of_any_size_at_any_place_allocates_nothing_for_what_is_not_there() {
    let good = good();
    for at in (0..good.payload.len()).step_by(5) {
        let number = LARGEST[at % LARGEST.len()];
        let mut bomb = good.clone();
        bomb.payload.splice(at..=at, number.iter().copied());
        // Only that it comes back, within its memory.
        let _ = decodes(&bomb);
    }
}

#[test]
fn payloads_of_one_value_up_to_the_limit_are_bounded() {
    let len = usize::try_from(MAX_STATE_BYTES).unwrap();
    for value in [0, 1, 2, 0x10, 0x20, 0x7f, 0x80, 0xff] {
        let file = Sealed::state(MEM_MIB, 1, 0, vec![value; len]);
        assert!(!decodes(&file), "{value:#x}");
    }
}
