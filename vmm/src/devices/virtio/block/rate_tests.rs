//! A disk that may do so much in a second, on a clock of the test's.

use std::time::Duration;

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS};

use super::Block;
use crate::config::BlockConfig;
use crate::devices::event_loop::EventLoop;
use crate::devices::rate::Rate;
use crate::devices::rate::testing::{Clock, nz};
use crate::devices::virtio::testing::*;

const HEADERS: u64 = DATA;
const STATUSES: u64 = DATA + 0x1000;
const BUFFERS: u64 = DATA + 0x10_0000;
const BLOCK: u32 = 4096;
/// What no device writes as a status.
const UNTOUCHED: u8 = 0x77;

struct Guest {
    machine: Machine,
    event_loop: EventLoop,
    clock: Clock,
}

impl Guest {
    fn new(rate: Rate) -> Self {
        let mut guest = Self::bare(rate);
        guest.start_driver();
        guest
    }

    fn bare(rate: Rate) -> Self {
        let clock = Clock::new();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Block::new(BlockConfig {
            file,
            base: None,
            read_only: false,
        });
        let disk = disk.unwrap().limited(Some(clock.limiter(rate)));
        let machine = Machine::new(Box::new(disk));
        let mut event_loop = EventLoop::new().unwrap();
        machine.transport.attach_alone(&mut event_loop);
        Self {
            machine,
            event_loop,
            clock,
        }
    }

    fn start_driver(&mut self) {
        self.machine.negotiate(EVENT_IDX);
        self.machine.set_up_queues();
        self.machine.write(VIRTIO_MMIO_STATUS, 0xf);
        self.event_loop.settle();
    }

    /// Adds reads or writes of a block each, and rings the doorbell.
    fn ask(&mut self, kind: u32, count: u64) {
        for n in 0..count {
            let header = HEADERS + n * 16;
            let text = [&kind.to_le_bytes()[..], &[0; 4], &(n * 8).to_le_bytes()];
            self.machine.put(header, &text.concat());
            self.machine.put(STATUSES + n, &[UNTOUCHED]);
            self.machine.queues[0].add(&[
                (header, 16, false),
                (BUFFERS + n * u64::from(BLOCK), BLOCK, kind == 0),
                (STATUSES + n, 1, true),
            ]);
        }
        self.ring();
    }

    fn ring(&mut self) {
        self.machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        self.event_loop.settle();
    }

    /// Lets time pass until the next alarm. `false`: none is set.
    fn wait(&mut self) -> bool {
        let Some(due) = self.clock.due() else {
            return false;
        };
        self.clock.advance_to(due);
        self.event_loop.settle();
        true
    }

    /// How many requests have been answered since the last call, all of them well.
    fn answered(&mut self) -> u64 {
        let used = self.machine.queues[0].used();
        for n in 0..used.len() as u64 {
            assert_ne!(self.machine.get(STATUSES + n, 1)[0], 1);
        }
        used.len() as u64
    }
}

/// What a bucket of this rate has given by now at most.
fn most(rate: u64, clock: &Clock) -> u128 {
    let filled = clock.now() + Duration::from_secs(1);
    u128::from(rate) * filled.as_nanos() / 1_000_000_000
}

fn bytes(rate: u64) -> Rate {
    Rate {
        bytes: Some(nz(rate)),
        operations: None,
    }
}

fn operations(rate: u64) -> Rate {
    Rate {
        bytes: None,
        operations: Some(nz(rate)),
    }
}

#[test]
fn disk_stays_within_its_bytes_at_every_moment_and_ends_when_they_allow() {
    const RATE: u64 = 16 * BLOCK as u64;
    for kind in [0, 1] {
        let mut guest = Guest::new(bytes(RATE));
        guest.ask(kind, 80);
        let mut done = guest.answered();
        assert_eq!(done, 16, "a quiet disk has a second's worth");
        while guest.wait() {
            done += guest.answered();
            let bytes = u128::from(done * u64::from(BLOCK));
            assert!(
                bytes <= most(RATE, &guest.clock),
                "{done} at {:?}",
                guest.clock.now()
            );
        }
        assert_eq!(done, 80);
        assert_eq!(guest.clock.now(), Duration::from_secs(4));
        assert_eq!(guest.machine.get(STATUSES, 80), [0; 80]);
    }
}

#[test]
fn disk_stays_within_its_operations_and_wakes_up_no_more_often_than_it_must() {
    let mut guest = Guest::new(operations(1000));
    let mut done = 0;
    for _ in 0..25 {
        guest.ask(0, 80);
        done += guest.answered();
        while guest.wait() {
            done += guest.answered();
            assert!(u128::from(done) <= most(1000, &guest.clock));
        }
    }
    assert_eq!(done, 2000);
    let now = guest.clock.now();
    assert!(
        now >= Duration::from_millis(1000) && now < Duration::from_millis(1020),
        "{now:?}"
    );
    assert!(
        guest.clock.times_set() <= 125,
        "{}",
        guest.clock.times_set()
    );
}

#[test]
fn discard_counts_once_for_each_part_of_the_disk() {
    const DISCARD: u32 = 11;
    let mut guest = Guest::new(operations(20));
    let part = [&0_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]].concat();
    guest.machine.put(BUFFERS, &part.repeat(16));
    let header = [&DISCARD.to_le_bytes()[..], &[0; 12]].concat();
    guest.machine.put(HEADERS, &header);
    for _ in 0..3 {
        guest.machine.queues[0].add(&[
            (HEADERS, 16, false),
            (BUFFERS, 16 * 16, false),
            (STATUSES, 1, true),
        ]);
    }
    guest.ring();
    assert_eq!(guest.answered(), 1);
    assert!(guest.wait());
    assert_eq!(
        (guest.answered(), guest.clock.now()),
        (1, Duration::from_millis(600))
    );
}

#[test]
fn request_that_is_refused_counts_as_an_operation() {
    const NO_SUCH_REQUEST: u32 = 99;
    let mut guest = Guest::new(operations(10));
    guest.ask(NO_SUCH_REQUEST, 15);
    assert_eq!(guest.machine.queues[0].used().len(), 10);
}

#[test]
fn doorbells_of_a_disk_that_waits_do_not_hasten_it() {
    let mut guest = Guest::new(operations(10));
    guest.ask(0, 20);
    assert_eq!(guest.answered(), 10);
    for _ in 0..1000 {
        guest.ring();
    }
    assert_eq!((guest.answered(), guest.clock.times_set()), (0, 1));
    assert!(guest.wait());
    assert_eq!(guest.answered(), 1);
}

#[test]
fn reset_of_a_disk_that_waits_ends_its_requests_and_brings_no_tokens_back() {
    let mut guest = Guest::new(operations(10));
    guest.ask(0, 20);
    assert_eq!(guest.answered(), 10);
    guest.machine.write(VIRTIO_MMIO_STATUS, 0);
    // The alarm of the driver that is gone.
    assert!(guest.wait());
    assert_eq!(guest.answered(), 0);
    assert_eq!(guest.machine.get(STATUSES + 10, 10), [UNTOUCHED; 10]);

    // The rings begin anew.
    guest
        .machine
        .put(RINGS, &vec![0; usize::try_from(RING_SPACING).unwrap()]);
    guest.machine.queues[0] = DriverQueue::new(&guest.machine.memory, 0, 256);
    guest.start_driver();
    guest.ask(0, 20);
    assert_eq!(guest.answered(), 1, "what has come in a tenth of a second");
    while guest.wait() {}
    assert_eq!(guest.answered(), 19);
}

#[test]
fn driver_that_starts_while_the_alarm_is_set_is_served_when_it_rings() {
    let mut guest = Guest::new(operations(10));
    guest.ask(0, 20);
    assert_eq!(guest.answered(), 10);
    guest.machine.write(VIRTIO_MMIO_STATUS, 0);
    guest
        .machine
        .put(RINGS, &vec![0; usize::try_from(RING_SPACING).unwrap()]);
    guest.machine.queues[0] = DriverQueue::new(&guest.machine.memory, 0, 256);
    guest.start_driver();
    guest.ask(0, 5);
    assert_eq!(guest.answered(), 0);
    while guest.wait() {}
    assert_eq!(guest.answered(), 5);
}

#[test]
fn copy_of_a_guest_whose_disk_waits_has_a_full_bucket_and_its_requests_are_served() {
    let mut guest = Guest::new(operations(10));
    guest.ask(1, 25);
    assert_eq!(guest.answered(), 10);
    let saved = guest.machine.transport.save();
    let mut copy = Guest::bare(operations(10));
    copy.machine.put(
        0,
        &guest.machine.get(0, usize::try_from(MEMORY_BYTES).unwrap()),
    );
    copy.machine.transport.restore(saved).unwrap();
    copy.event_loop.settle();
    assert_eq!(
        copy.machine.get(STATUSES, 21),
        [&[0; 20][..], &[UNTOUCHED]].concat()
    );
    while copy.wait() {}
    assert_eq!(copy.machine.get(STATUSES, 25), [0; 25]);
    assert_eq!(copy.clock.now(), Duration::from_millis(500));
    // The one that was copied goes on by itself.
    while guest.wait() {}
    assert_eq!(guest.answered(), 15);
}

#[test]
fn ring_that_breaks_while_the_disk_waits_stops_it() {
    let mut guest = Guest::new(operations(10));
    guest.ask(0, 20);
    assert_eq!(guest.answered(), 10);
    guest.machine.queues[0].set_avail(5000);
    assert!(guest.wait());
    assert!(guest.machine.needs_reset());
}
