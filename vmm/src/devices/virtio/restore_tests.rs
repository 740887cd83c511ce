//! Devices that are restored from states nobody's driver brought about. No KVM: transports are called by hand.

use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use tempfile::TempDir;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS};

use super::block::Block;
use super::mmio::TransportError;
use super::rng::Rng;
use super::state::{DeviceState, QueuePosition, TransportSaved};
use super::testing::*;
use super::vsock::Vsock;
use super::{VirtioDevice, vsock::state::VsockState};
use crate::config::BlockConfig;
use crate::devices::event_loop::EventLoop;

const CID: u64 = 3;

/// One of each kind, always the same in what the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ReadOnlyDisk,
    Disk,
    ForkedDisk,
    Vsock,
    Rng,
}

const KINDS: [Kind; 5] = [
    Kind::ReadOnlyDisk,
    Kind::Disk,
    Kind::ForkedDisk,
    Kind::Vsock,
    Kind::Rng,
];

/// A machine with a new device, as a restore makes it.
struct New {
    machine: Machine,
    _event_loop: EventLoop,
    _directory: TempDir,
}

impl New {
    fn of(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = |base, read_only| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let config = BlockConfig {
                file,
                base,
                read_only,
            };
            Box::new(Block::new(config).unwrap())
        };
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::ReadOnlyDisk => disk(None, true),
            Kind::Disk => disk(None, false),
            Kind::ForkedDisk => disk(Some(tempfile::tempfile().unwrap()), false),
            Kind::Rng => Box::new(Rng::new()),
            Kind::Vsock => {
                let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
                Box::new(Vsock::new(CID, listener).unwrap())
            }
        };
        let mut event_loop = EventLoop::new().unwrap();
        let machine = Machine::new(device);
        machine.transport.attach_alone(&mut event_loop);
        Self {
            machine,
            _event_loop: event_loop,
            _directory: directory,
        }
    }

    /// With a driver that is up.
    fn running(kind: Kind) -> Self {
        let mut new = Self::of(kind);
        let features = if kind == Kind::Rng {
            1 << VIRTIO_F_VERSION_1
        } else {
            EVENT_IDX
        };
        new.machine.negotiate(features);
        new.machine.set_up_queues();
        new.machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(new.machine.read(VIRTIO_MMIO_STATUS), 0xf);
        new
    }

    /// Everything that can happen to a device, once.
    fn exercise(&mut self) {
        for register in (0..0x200).step_by(4) {
            self.machine.read(register);
        }
        for queue in 0..self.machine.queues.len() {
            self.machine
                .write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
            self.machine.serve(queue);
        }
        self.machine.transport.save();
        self.machine.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(
            self.machine.read(VIRTIO_MMIO_STATUS),
            0,
            "a reset brings every device back"
        );
        self.machine.negotiate(1 << VIRTIO_F_VERSION_1);
        self.machine.set_up_queues();
        self.machine.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(self.machine.read(VIRTIO_MMIO_STATUS), 0xf);
    }
}

fn saved(kind: Kind) -> TransportSaved {
    New::running(kind).machine.transport.save()
}

fn restore(kind: Kind, saved: TransportSaved) -> Result<New, TransportError> {
    let mut new = New::of(kind);
    new.machine.transport.restore(saved)?;
    Ok(new)
}

#[test]
fn every_device_comes_back_as_it_was_saved() {
    for kind in KINDS {
        let before = saved(kind);
        let new = restore(kind, before.clone()).unwrap();
        assert_eq!(new.machine.transport.save(), before, "{kind:?}");
    }
}

#[test]
fn device_without_a_driver_comes_back_without_one() {
    for kind in KINDS {
        let before = New::of(kind).machine.transport.save();
        let mut new = restore(kind, before.clone()).unwrap();
        assert_eq!(new.machine.transport.save(), before, "{kind:?}");
        new.exercise();
    }
}

#[test]
fn state_of_one_device_is_refused_by_every_other_kind() {
    for from in KINDS {
        for to in KINDS {
            let same = [from, to].map(|kind| {
                if kind == Kind::ForkedDisk {
                    Kind::Disk
                } else {
                    kind
                }
            });
            let restored = restore(to, saved(from)).is_ok();
            assert_eq!(restored, same[0] == same[1], "{from:?} as {to:?}");
        }
    }
}

#[test]
fn disk_of_another_size_is_refused() {
    let mut new = New::of(Kind::Disk);
    let mut other = saved(Kind::Disk);
    other.config[0] ^= 1;
    let error = new.machine.transport.restore(other).unwrap_err();
    assert!(matches!(error, TransportError::Config { .. }), "{error}");
}

#[test]
fn states_that_contradict_themselves_are_refused() {
    type Lie = (&'static str, fn(&mut TransportSaved));
    let lies: [Lie; 16] = [
        ("feature that is not offered", |saved| {
            saved.registers.driver_features |= 1 << 63
        }),
        ("driver that skipped a step", |saved| {
            saved.registers.status = 0xd
        }),
        ("unknown status bit", |saved| saved.registers.status |= 0x20),
        ("driver that is up without queues", |saved| {
            saved.positions.clear()
        }),
        ("queues without a driver", |saved| {
            saved.registers.status = 3
        }),
        ("queue that is missing", |saved| {
            saved.registers.queues.pop();
        }),
        ("position without a queue", |saved| {
            saved.positions.push(saved.positions[0])
        }),
        ("unknown interrupt", |saved| saved.interrupt_status = 4),
        ("wish to be reset of a device that runs", |saved| {
            saved.needs_reset = true
        }),
        ("configuration that is too short", |saved| {
            saved.config.pop();
        }),
        ("queue of size zero", |saved| {
            saved.registers.queues[0].size = 0
        }),
        ("queue of no power of two", |saved| {
            saved.registers.queues[0].size = 3
        }),
        ("queue that is larger than it can be", |saved| {
            saved.registers.queues[0].size = saved.registers.queues[0].max_size * 2;
        }),
        ("queue that is not ready", |saved| {
            saved.registers.queues[0].ready = false
        }),
        ("ring outside of memory", |saved| {
            saved.registers.queues[0].used_ring = MEMORY_BYTES
        }),
        ("ring at the end of all addresses", |saved| {
            saved.registers.queues[0].desc_table = !15;
        }),
    ];
    for (what, lie) in lies {
        for kind in KINDS {
            let mut bad = saved(kind);
            lie(&mut bad);
            assert!(restore(kind, bad).is_err(), "{kind:?}: {what}");
        }
    }
}

#[test]
fn vsock_with_the_address_of_another_guest_is_refused() {
    let mut bad = saved(Kind::Vsock);
    bad.device = DeviceState::Vsock(VsockState::new(CID + 1));
    assert!(restore(Kind::Vsock, bad).is_err());
}

#[test]
fn positions_that_the_rings_do_not_bear_out_stop_the_device_and_nothing_else() {
    for kind in KINDS {
        let mut bad = saved(kind);
        for position in &mut bad.positions {
            *position = QueuePosition {
                next_avail: 0x8000,
                next_used: 0x1234,
            };
        }
        let mut new = restore(kind, bad).unwrap();
        new.exercise();
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    (0..KINDS.len()).prop_map(|index| KINDS[index])
}

/// A number near to what a field may be, or any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit),
        Just(u64::MAX)
    ]
}

fn change(saved: &mut TransportSaved, field: usize, value: u64) {
    let bytes = value.to_le_bytes();
    let half = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let short = u16::from_le_bytes([bytes[4], bytes[5]]);
    let queues = saved.registers.queues.len();
    let queue = saved
        .registers
        .queues
        .get_mut(usize::from(bytes[6]) % queues.max(1));
    let position = saved.positions.first_mut();
    match (field, queue, position) {
        (0, ..) => saved.registers.status = half & 0xff,
        (1, ..) => saved.registers.driver_features = value,
        (2, ..) => saved.registers.queue_select = half,
        (3, ..) => saved.registers.driver_features_select = half,
        (4, ..) => saved.interrupt_status = half & 3,
        (5, ..) => saved.needs_reset = value & 1 != 0,
        (6, Some(queue), _) => queue.size = short,
        (7, Some(queue), _) => queue.desc_table = value % (2 * MEMORY_BYTES),
        (8, Some(queue), _) => queue.avail_ring = value % (2 * MEMORY_BYTES),
        (9, Some(queue), _) => queue.used_ring = value % (2 * MEMORY_BYTES),
        (10, _, Some(position)) => position.next_avail = short,
        (11, _, Some(position)) => position.next_used = short,
        (12, ..) => {
            if let DeviceState::Vsock(state) = &mut saved.device {
                state.next_host_port = half;
                state.features = value;
            }
        }
        (13, ..) => saved.positions.clear(),
        _ => {}
    }
}

proptest! {
    #[test]
    fn state_with_any_field_changed_is_refused_or_restored_and_never_a_panic(
        kind in kind(),
        changes in proptest::collection::vec((0..14_usize, number()), 0..6),
        noise in proptest::collection::vec((0..MEMORY_BYTES - 8, any::<u64>()), 0..20),
        rings in proptest::collection::vec(any::<u64>(), 0..40),
    ) {
        let mut saved = saved(kind);
        for (field, value) in changes {
            change(&mut saved, field, value);
        }
        if let Ok(mut new) = restore(kind, saved) {
            for (at, value) in noise {
                new.machine.put(at, &value.to_le_bytes());
            }
            for (at, value) in (RINGS..).step_by(8).zip(rings) {
                new.machine.put(at, &value.to_le_bytes());
            }
            new.exercise();
        }
    }

    #[test]
    fn state_with_any_byte_changed_is_refused_or_restored_and_never_a_panic(
        kind in kind(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = postcard::to_stdvec(&saved(kind)).unwrap();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(saved) = postcard::from_bytes(&bytes)
            && let Ok(mut new) = restore(kind, saved)
        {
            new.exercise();
        }
    }
}
