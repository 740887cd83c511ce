//! Working set files.

use vmm::memory::working_set::MAX_RUNS;
use vmm::snapshot::SnapshotError;

use super::sealed::{HEADER_BYTES, Sealed};
use super::{MEM_MIB, read_working_set};

/// Pages of the guest.
const PAGES: u32 = MEM_MIB * 256;

pub fn good() -> Sealed {
    let runs = [
        (0, 1, true),
        (1, 15, false),
        (100, 7, true),
        (PAGES - 1, 1, false),
    ];
    Sealed::working_set(MEM_MIB, &runs)
}

#[test]
fn file_written_by_its_description_is_read() {
    let set = read_working_set(&good().bytes(), MEM_MIB).unwrap();
    assert_eq!(set.pages(), (8, 16));
}

#[test]
fn every_flipped_bit_is_an_error_with_a_remedy() {
    let good = good().bytes();
    for byte in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[byte] ^= 1 << bit;
            let error = read_working_set(&bad, MEM_MIB)
                .expect_err("a flipped bit")
                .to_string();
            assert!(
                error.ends_with("make the golden again"),
                "byte {byte}: {error}"
            );
        }
    }
}

#[test]
fn file_cut_anywhere_or_with_more_behind_it_is_an_error() {
    let mut bytes = good().bytes();
    for len in 0..bytes.len() {
        assert!(
            read_working_set(&bytes[..len], MEM_MIB).is_err(),
            "{len} bytes"
        );
    }
    bytes.push(0);
    assert!(read_working_set(&bytes, MEM_MIB).is_err());
}

#[test]
fn sealed_runs_that_lie_are_errors() {
    for runs in [
        &[(PAGES, 1, false)][..],
        &[(PAGES - 1, 2, true)],
        &[(0, PAGES + 1, false)],
        &[(0, 0, true)],
        &[(u32::MAX, u32::MAX >> 1, true)],
        &[(7, 1, true), (7, 1, false)],
        &[(8, 1, true), (7, 1, true)],
    ] {
        let file = Sealed::working_set(MEM_MIB, runs);
        let error = read_working_set(&file.bytes(), MEM_MIB).unwrap_err();
        assert!(
            matches!(error, SnapshotError::Nonsense { .. }),
            "{runs:?}: {error}"
        );
    }
}

#[test]
fn all_pages_one_by_one_are_as_much_as_a_file_can_say() {
    let all: Vec<_> = (0..PAGES).map(|page| (page, 1, page % 2 == 0)).collect();
    let set = read_working_set(&Sealed::working_set(MEM_MIB, &all).bytes(), MEM_MIB).unwrap();
    assert_eq!(set.pages(), (u64::from(PAGES / 2), u64::from(PAGES / 2)));
    let more = Sealed::working_set(MEM_MIB, &[&all[..], &[(0, 1, true)]].concat());
    assert!(read_working_set(&more.bytes(), MEM_MIB).is_err());
}

#[test]
fn more_runs_than_any_file_may_have_are_not_even_read() {
    let mem_mib = 4096;
    let runs: Vec<_> = (0..=u32::try_from(MAX_RUNS).unwrap())
        .map(|n| (2 * n, 1, true))
        .collect();
    let error =
        read_working_set(&Sealed::working_set(mem_mib, &runs).bytes(), mem_mib).unwrap_err();
    assert!(matches!(error, SnapshotError::Limit { .. }), "{error}");
    let fits = Sealed::working_set(mem_mib, &runs[1..]);
    assert!(read_working_set(&fits.bytes(), mem_mib).is_ok());
}

#[test]
fn length_that_lies_is_an_error() {
    let good = good();
    let len = good.payload.len() as u64;
    for promised in [
        0,
        len - 8,
        len + 8,
        1 << 40,
        u64::MAX,
        u64::MAX - HEADER_BYTES as u64 + 1,
    ] {
        let lie = Sealed {
            payload_bytes: Some(promised),
            ..good.clone()
        };
        assert!(
            read_working_set(&lie.bytes(), MEM_MIB).is_err(),
            "{promised}"
        );
    }
}
