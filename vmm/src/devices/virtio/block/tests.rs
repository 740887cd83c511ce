use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::Block;
use crate::config::BlockConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::testing::*;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What no device writes as a status.
const UNTOUCHED: u8 = 0x77;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A disk of 64 sectors, sector n filled with n.
fn disk() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for n in 0..64 {
        file.write_all(&[n; 512]).unwrap();
    }
    file
}

fn machine(read_only: bool) -> (Machine, File) {
    let file = disk();
    let device = block(file.try_clone().unwrap(), read_only);
    (Machine::started(Box::new(device)), file)
}

fn block(file: File, read_only: bool) -> Block {
    let base = None;
    Block::new(BlockConfig {
        file,
        base,
        read_only,
    })
    .unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 512];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Sends one request of the usual three parts. Gives the status and the length used.
fn request(machine: &mut Machine, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
    machine.put(
        HEADER,
        &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
    );
    let mut pieces = vec![(HEADER, 16, false)];
    pieces.extend_from_slice(data);
    pieces.push((STATUS, 1, true));
    raw(machine, &pieces)
}

fn raw(machine: &mut Machine, pieces: &[Piece]) -> (u8, u32) {
    machine.put(STATUS, &[UNTOUCHED]);
    let head = machine.queues[0].add(pieces);
    machine.serve(0);
    let used = machine.queues[0].used();
    assert_eq!(used.len(), 1, "every request is answered once");
    assert_eq!(used[0].0, u32::from(head));
    (machine.get(STATUS, 1)[0], used[0].1)
}

/// One segment of a discard or write-zeroes request.
fn segment(machine: &Machine, at: u64, sector: u64, count: u32, flags: u32) {
    let bytes = [
        &sector.to_le_bytes()[..],
        &count.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat();
    machine.put(at, &bytes);
}

#[test]
fn configuration_tells_capacity_and_limits() {
    let (mut machine, _) = machine(false);
    assert_eq!(machine.read(0x100), 64);
    assert_eq!(machine.read(0x104), 0);
    assert_eq!(machine.read(0x108), 64 << 10);
    assert_eq!(machine.read(0x10c), 254);
    assert_eq!(machine.read(0x124), 1 << 21);
}

#[test]
fn part_of_a_sector_at_the_end_of_the_file_is_not_disk() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(512 * 3 + 511).unwrap();
    let mut config = [0; 8];
    block(file, false).read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 3);
}

#[test]
fn read_fills_scattered_buffers_in_order() {
    let (mut machine, _) = machine(true);
    let data = [
        (BUFFER, 100, true),
        (BUFFER + 4096, 412, true),
        (BUFFER + 8192, 512, true),
    ];
    assert_eq!(request(&mut machine, IN, 5, &data), (OK, 1025));
    assert_eq!(machine.get(BUFFER, 101), [vec![5; 100], vec![0]].concat());
    assert_eq!(machine.get(BUFFER + 4096, 412), [5; 412]);
    assert_eq!(
        machine.get(BUFFER + 8192, 513),
        [vec![6; 512], vec![0]].concat()
    );
}

#[test]
fn write_reaches_its_sectors_and_no_others() {
    let (mut machine, file) = machine(false);
    machine.put(BUFFER, &[0xab; 1024]);
    let mut expected = content(&file);
    expected[10 * 512..12 * 512].fill(0xab);
    let data = [(BUFFER, 1000, false), (BUFFER + 1000, 24, false)];
    assert_eq!(request(&mut machine, OUT, 10, &data), (OK, 1));
    assert_eq!(content(&file), expected);
    assert_eq!(request(&mut machine, FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn header_and_status_may_be_cut_anywhere() {
    let (mut machine, _) = machine(true);
    machine.put(
        HEADER,
        &[&IN.to_le_bytes()[..], &[0; 4], &7_u64.to_le_bytes()].concat(),
    );
    let pieces = [
        (HEADER, 3, false),
        (HEADER + 3, 1, false),
        (HEADER + 4, 12, false),
        (BUFFER, 512, true),
        (STATUS, 1, true),
    ];
    assert_eq!(raw(&mut machine, &pieces), (OK, 513));
    // Data and status in one descriptor.
    machine.put(BUFFER, &[UNTOUCHED; 513]);
    raw(&mut machine, &[(HEADER, 16, false), (BUFFER, 513, true)]);
    assert_eq!(machine.get(BUFFER, 513), [vec![7; 512], vec![OK]].concat());
}

#[test]
fn many_segments_are_moved_whole() {
    let (mut machine, _) = machine(true);
    let data: Vec<Piece> = (0..250).map(|n| (BUFFER + n * 128, 128, true)).collect();
    assert_eq!(
        request(&mut machine, IN, 0, &data),
        (IO_ERROR, 1),
        "62.5 sectors"
    );
    assert_eq!(
        request(&mut machine, IN, 1, &data[..248]),
        (OK, 248 * 128 + 1)
    );
    assert_eq!(machine.get(BUFFER + 247 * 128, 128), [62; 128]);
}

/// A disk that is larger than any request.
fn large() -> Machine {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 30).unwrap();
    Machine::started(Box::new(block(file, false)))
}

#[test]
fn firecracker_5762_disk_request_of_overlapping_descriptors_moves_no_more_than_the_limit() {
    let mut machine = large();
    machine.put(BUFFER, &[0x5a; 4096]);
    for kind in [IN, OUT] {
        let writable = kind == IN;
        // 2 GiB of a guest that has 16 MiB.
        let data = [(BUFFER, 8 << 20, writable); 250];
        assert_eq!(request(&mut machine, kind, 0, &data), (IO_ERROR, 1));
        assert_eq!(machine.get(BUFFER, 4096), [0x5a; 4096]);
        // A sector more than the largest request there is, and that one.
        let mut data = vec![(BUFFER, 64 << 10, writable); 253];
        data.push((BUFFER, (64 << 10) + 512, writable));
        assert_eq!(request(&mut machine, kind, 0, &data), (IO_ERROR, 1));
    }
    let data = [(BUFFER, 64 << 10, true); 254];
    let all = 254 * (64 << 10) + 1;
    assert_eq!(request(&mut machine, IN, 0, &data), (OK, all));
}

#[test]
fn turn_of_a_disk_ends_when_enough_bytes_have_been_moved() {
    let mut machine = large();
    machine.put(HEADER, &[0; 16]);
    for _ in 0..6 {
        machine.queues[0].add(&[
            (HEADER, 16, false),
            (BUFFER, 8 << 20, true),
            (STATUS, 1, true),
        ]);
    }
    machine.interrupts();
    machine.serve(0);
    assert_eq!(machine.queues[0].used().len(), 6);
    assert_eq!(machine.interrupts(), 3, "one for each turn");
}

#[test]
fn cve_2026_24834_cve_2026_46695_read_only_disk_is_never_written_whatever_the_driver_asks() {
    let (mut machine, file) = machine(true);
    let before = content(&file);
    machine.put(BUFFER, &[0xab; 512]);
    assert_eq!(
        request(&mut machine, OUT, 0, &[(BUFFER, 512, false)]),
        (IO_ERROR, 1)
    );
    segment(&machine, BUFFER, 0, 8, 0);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            request(&mut machine, kind, 0, &[(BUFFER, 16, false)]),
            (IO_ERROR, 1)
        );
    }
    assert_eq!(content(&file), before);
    let features = block(file, true).features();
    assert_eq!(features & (1 << 5), 1 << 5);
    assert_eq!(features & (1 << 13 | 1 << 14), 0);
}

#[test]
fn requests_beyond_the_end_fail_and_move_nothing() {
    let (mut machine, file) = machine(false);
    let before = content(&file);
    machine.put(BUFFER, &[0xcd; 1024]);
    for sector in [
        63,
        64,
        65,
        u64::MAX,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        1 << 55,
        (1 << 55) - 1,
    ] {
        assert_eq!(
            request(&mut machine, OUT, sector, &[(BUFFER, 1024, false)]),
            (IO_ERROR, 1)
        );
        assert_eq!(
            request(&mut machine, IN, sector, &[(BUFFER, 1024, true)]),
            (IO_ERROR, 1)
        );
    }
    assert_eq!(content(&file), before);
    assert_eq!(file.metadata().unwrap().size(), 64 * 512);
    assert_eq!(machine.get(BUFFER, 1024), [0xcd; 1024]);
    assert_eq!(
        request(&mut machine, IN, 63, &[(BUFFER, 512, true)]),
        (OK, 513)
    );
}

#[test]
fn lengths_that_are_no_sectors_fail() {
    let (mut machine, _) = machine(false);
    for len in [1, 511, 513] {
        assert_eq!(
            request(&mut machine, IN, 0, &[(BUFFER, len, true)]),
            (IO_ERROR, 1)
        );
        assert_eq!(
            request(&mut machine, OUT, 0, &[(BUFFER, len, false)]),
            (IO_ERROR, 1)
        );
    }
}

#[test]
fn empty_requests_succeed_and_move_nothing() {
    let (mut machine, file) = machine(false);
    let before = content(&file);
    assert_eq!(request(&mut machine, IN, 0, &[]), (OK, 1));
    assert_eq!(request(&mut machine, OUT, 64, &[]), (OK, 1));
    assert_eq!(request(&mut machine, IN, 0, &[(BUFFER, 0, true)]), (OK, 1));
    assert_eq!(content(&file), before);
}

#[test]
fn data_in_the_wrong_direction_is_not_touched() {
    let (mut machine, file) = machine(false);
    let before = content(&file);
    machine.put(BUFFER, &[0xee; 512]);
    // A write whose data the device should write, and a read whose data it should read.
    assert_eq!(
        request(&mut machine, OUT, 0, &[(BUFFER, 512, true)]),
        (OK, 1)
    );
    assert_eq!(
        request(&mut machine, IN, 0, &[(BUFFER, 512, false)]),
        (OK, 1)
    );
    assert_eq!(machine.get(BUFFER, 512), [0xee; 512]);
    assert_eq!(content(&file), before);
}

#[test]
fn header_that_is_too_short_fails() {
    let (mut machine, _) = machine(false);
    assert_eq!(
        raw(&mut machine, &[(HEADER, 15, false), (STATUS, 1, true)]),
        (IO_ERROR, 1)
    );
    assert_eq!(raw(&mut machine, &[(STATUS, 1, true)]), (IO_ERROR, 1));
}

#[test]
fn request_without_room_for_a_status_comes_back_empty() {
    let (mut machine, _) = machine(false);
    assert_eq!(raw(&mut machine, &[(HEADER, 16, false)]), (UNTOUCHED, 0));
    assert_eq!(
        raw(&mut machine, &[(HEADER, 16, false), (STATUS, 1, false)]),
        (UNTOUCHED, 0)
    );
    assert!(!machine.needs_reset());
}

#[test]
fn unknown_requests_are_unsupported() {
    let (mut machine, _) = machine(false);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 24, 26, u32::MAX] {
        assert_eq!(
            request(&mut machine, kind, 0, &[]),
            (UNSUPPORTED, 1),
            "type {kind}"
        );
    }
}

#[test]
fn identifier_needs_all_its_room() {
    let (mut machine, _) = machine(false);
    assert_eq!(
        request(&mut machine, GET_ID, 0, &[(BUFFER, 20, true)]),
        (OK, 21)
    );
    assert_eq!(machine.get(BUFFER, 9), b"cabana-rw");
    assert_eq!(
        request(&mut machine, GET_ID, 0, &[(BUFFER, 19, true)]),
        (IO_ERROR, 1)
    );
    assert_eq!(
        request(&mut machine, GET_ID, 0, &[(BUFFER, 4096, true)]),
        (OK, 21)
    );
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zero() {
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        let (mut machine, file) = machine(false);
        let mut expected = content(&file);
        expected[8 * 512..24 * 512].fill(0);
        expected[63 * 512..].fill(0);
        segment(&machine, BUFFER, 8, 16, flags);
        segment(&machine, BUFFER + 16, 63, 1, flags);
        segment(&machine, BUFFER + 32, 30, 0, flags);
        assert_eq!(
            request(&mut machine, kind, 0, &[(BUFFER, 48, false)]),
            (OK, 1)
        );
        assert_eq!(content(&file), expected);
        assert_eq!(file.metadata().unwrap().size(), 64 * 512);
    }
}

#[test]
fn discard_with_one_bad_segment_does_nothing() {
    let bad = [
        (60, 5, 0, IO_ERROR),
        (64, 1, 0, IO_ERROR),
        (u64::MAX, 1, 0, IO_ERROR),
        (u64::MAX, u32::MAX, 0, IO_ERROR),
        (0, (1 << 21) + 1, 0, IO_ERROR),
        (0, 1, 1, UNSUPPORTED),
        (0, 1, 0x8000_0000, UNSUPPORTED),
    ];
    for (sector, count, flags, status) in bad {
        let (mut machine, file) = machine(false);
        let before = content(&file);
        segment(&machine, BUFFER, 0, 8, 0);
        segment(&machine, BUFFER + 16, sector, count, flags);
        assert_eq!(
            request(&mut machine, DISCARD, 0, &[(BUFFER, 32, false)]),
            (status, 1)
        );
        assert_eq!(content(&file), before);
    }
}

#[test]
fn discard_with_no_half_or_too_many_segments_fails() {
    let (mut machine, file) = machine(false);
    let before = content(&file);
    for len in [0, 1, 15, 17, 16 * 17, 1 << 20] {
        let data = [(BUFFER, len, false)];
        assert_eq!(
            request(&mut machine, DISCARD, 0, &data),
            (IO_ERROR, 1),
            "{len} bytes"
        );
    }
    assert_eq!(content(&file), before);
}

#[test]
fn file_that_became_shorter_than_the_disk_is_an_error_not_a_hang() {
    let (mut machine, file) = machine(false);
    file.set_len(512).unwrap();
    assert_eq!(
        request(&mut machine, IN, 0, &[(BUFFER, 1024, true)]),
        (IO_ERROR, 1)
    );
}

#[test]
fn loop_in_a_request_stops_the_device() {
    let (mut machine, _) = machine(false);
    machine.queues[0].descriptor(0, HEADER, 16, NEXT, 1);
    machine.queues[0].descriptor(1, BUFFER, 512, NEXT | WRITE, 1);
    machine.queues[0].publish(0);
    machine.serve(0);
    assert!(machine.needs_reset());
    assert_eq!(machine.queues[0].used(), []);
}

#[test]
fn indirect_request_is_served() {
    let (mut machine, _) = machine(true);
    machine.put(
        HEADER,
        &[&IN.to_le_bytes()[..], &[0; 4], &9_u64.to_le_bytes()].concat(),
    );
    let table = DATA + 0x800;
    let queue = &mut machine.queues[0];
    queue.descriptor_at(table, 0, HEADER, 16, NEXT, 1);
    queue.descriptor_at(table, 1, BUFFER, 512, NEXT | WRITE, 2);
    queue.descriptor_at(table, 2, STATUS, 1, WRITE, 0);
    queue.descriptor(0, table, 48, INDIRECT, 0);
    queue.publish(0);
    machine.serve(0);
    assert_eq!(machine.queues[0].used(), [(0, 513)]);
    assert_eq!(machine.get(BUFFER, 512), [9; 512]);
}

/// A disk of 64 sectors over [`disk`], and the file with what it has of its own.
fn fork() -> (Machine, File, File) {
    let (file, base) = (tempfile::tempfile().unwrap(), disk());
    file.set_len(64 * 512).unwrap();
    let device = Block::new(BlockConfig {
        file: file.try_clone().unwrap(),
        base: Some(base.try_clone().unwrap()),
        read_only: false,
    });
    (Machine::started(Box::new(device.unwrap())), file, base)
}

#[test]
fn disk_over_a_base_is_read_and_written_through_the_queue() {
    let (mut machine, file, base) = fork();
    machine.put(BUFFER, &[0xab; 512]);
    assert_eq!(
        request(&mut machine, OUT, 10, &[(BUFFER, 512, false)]),
        (OK, 1)
    );
    let data = [(BUFFER, 700, true), (BUFFER + 4096, 836, true)];
    assert_eq!(request(&mut machine, IN, 9, &data), (OK, 1537));
    let read = [machine.get(BUFFER, 700), machine.get(BUFFER + 4096, 836)].concat();
    assert_eq!(read, [[9; 512], [0xab; 512], [11; 512]].concat());
    segment(&machine, BUFFER, 8, 16, 0);
    assert_eq!(
        request(&mut machine, DISCARD, 0, &[(BUFFER, 16, false)]),
        (OK, 1)
    );
    assert_eq!(
        request(&mut machine, IN, 10, &[(BUFFER, 512, true)]),
        (OK, 513)
    );
    assert_eq!(machine.get(BUFFER, 512), [0; 512]);
    assert_eq!(request(&mut machine, FLUSH, 0, &[]), (OK, 1));
    assert_eq!(content(&base), content(&disk()));
    assert_eq!(file.metadata().unwrap().size(), 64 * 512);
}

#[test]
fn read_only_disk_with_a_base_is_refused() {
    let config = BlockConfig {
        file: disk(),
        base: Some(disk()),
        read_only: true,
    };
    assert!(Block::new(config).is_err());
}

proptest::proptest! {
    #[test]
    fn no_request_panics_or_changes_the_length_of_the_disk(
        forked: bool, header: [u8; 16], kind in 0..16_u32, small: bool, sector in 0..80_u64,
        pieces in proptest::collection::vec((0..0x4000_u64, 0..2000_u32, proptest::prelude::any::<bool>()), 0..8)
    ) {
        let (mut machine, file) = if forked {
            let (machine, file, _) = fork();
            (machine, file)
        } else {
            machine(false)
        };
        machine.put(HEADER, &header);
        if small {
            machine.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        }
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(pieces.into_iter().map(|(at, len, writable)| (BUFFER + at, len, writable)));
        machine.queues[0].add(&chain);
        machine.serve(0);
        proptest::prop_assert_eq!(file.metadata().unwrap().size(), 64 * 512);
    }
}
