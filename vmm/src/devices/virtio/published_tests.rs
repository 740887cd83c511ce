//! Faults that others published, where no device's own tests are the place. All of them: `decisions/published-faults.md`.

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_STATUS,
};

use super::VirtioDevice;
use super::block::Block;
use super::rng::Rng;
use super::state::QueueRegisters;
use super::testing::*;
use super::vsock::Vsock;
use crate::config::BlockConfig;
use crate::devices::bus::BusDevice;

/// All registers of a transport, and what is behind them.
const REGISTERS: std::ops::Range<u64> = 0..0x200;
const VALUES: [u32; 9] = [0, 1, 2, 3, 7, 0x100, 0xffff, 0x1_0000, u32::MAX];

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 64 * 512], 0).unwrap();
    Block::new(BlockConfig {
        file,
        base: None,
        read_only: false,
    })
    .unwrap()
}

/// One of each kind.
fn devices(directory: &tempfile::TempDir) -> Vec<Box<dyn VirtioDevice>> {
    let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
    vec![
        Box::new(disk()),
        Box::new(Rng::new()),
        Box::new(Vsock::new(3, listener).unwrap()),
    ]
}

/// Writes every value to every register but the one that would reset the device, with every queue selected.
fn write_everything(machine: &mut Machine) {
    for queue in 0..=machine.queues.len() {
        for register in REGISTERS {
            for value in VALUES {
                let select = u32::try_from(queue).unwrap();
                machine.write(VIRTIO_MMIO_QUEUE_SEL, select);
                if register != u64::from(VIRTIO_MMIO_STATUS) {
                    machine.transport.write(register, &value.to_le_bytes());
                }
            }
        }
    }
}

fn queues(machine: &Machine) -> Vec<QueueRegisters> {
    machine.transport.save().registers.queues
}

#[test]
fn cve_2026_5747_no_register_changes_a_queue_of_a_device_that_was_started() {
    const FAILED: u32 = 0x8f;
    let directory = tempfile::tempdir().unwrap();
    for device in devices(&directory) {
        let name = device.name();
        let mut machine = Machine::started(device);
        let before = queues(&machine);
        write_everything(&mut machine);
        assert_eq!(queues(&machine), before, "{name}");
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0xf, "{name}");
        // The driver has given up, and the ring is broken.
        machine.write(VIRTIO_MMIO_STATUS, FAILED);
        write_everything(&mut machine);
        assert_eq!(queues(&machine), before, "{name}");
        machine.queues[0].set_avail(5000);
        machine.serve(0);
        write_everything(&mut machine);
        assert_eq!(queues(&machine), before, "{name}");
    }
}

#[test]
fn cve_2026_5747_device_serves_the_rings_that_it_was_started_with_whatever_is_written_afterwards() {
    let mut machine = Machine::started(Box::new(Rng::new()));
    for round in 0..3 {
        write_everything(&mut machine);
        let at = DATA + round * 64;
        machine.queues[0].add(&[(at, 64, true)]);
        machine.serve(0);
        assert_eq!(
            machine.queues[0].used(),
            [(u32::try_from(round).unwrap(), 64)]
        );
        assert_ne!(machine.get(at, 64), [0; 64]);
    }
}

/// Every walk of four writes to the status register, with good features: each takes the next step, or gives up, or begins anew, or
/// nothing.
#[test]
fn firecracker_5818_no_walk_through_the_status_register_leaves_a_step_out() {
    const WRITES: [u32; 15] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 0xb, 0xc, 0xf, 0x40, 0x4f, 0x8b];
    const FAILED: u32 = 0x80;
    const NEEDS_RESET: u32 = 0x40;
    let mut machine = Machine::new(Box::new(Rng::new()));
    let mut started = 0;
    for walk in 0..WRITES.len().pow(4) {
        machine.write(VIRTIO_MMIO_STATUS, 0);
        let (mut rest, mut before) = (walk, 0);
        for _ in 0..4 {
            machine.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
            machine.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
            machine.set_up_queues();
            let value = WRITES[rest % WRITES.len()];
            rest /= WRITES.len();
            machine.write(VIRTIO_MMIO_STATUS, value);
            let after = machine.read(VIRTIO_MMIO_STATUS);
            let next = [(0, 1), (1, 3), (3, 0xb), (0xb, 0xf)].contains(&(before, after));
            let allowed = after == before || after == 0 || after == before | FAILED;
            assert!(
                next || allowed,
                "{walk}: {before:#x} → {after:#x} by {value:#x}"
            );
            assert_eq!(after & NEEDS_RESET, 0);
            started += u32::from((before, after) == (0xb, 0xf));
            before = after;
        }
    }
    // The one walk that is right, with each of the values that mean a step.
    assert!(started > 0);
}

#[test]
fn firecracker_3149_chain_that_was_made_available_once_is_carried_out_once() {
    let mut machine = Machine::started(Box::new(Rng::new()));
    machine.queues[0].add(&[(DATA, 32, true)]);
    machine.serve(0);
    let first = machine.get(DATA, 32);
    for _ in 0..100 {
        machine.serve(0);
    }
    assert_eq!(machine.queues[0].used(), [(0, 32)]);
    assert_eq!(machine.get(DATA, 32), first, "it was filled again");
}

#[test]
fn ghsa_jmr4_g2hv_mjj6_disk_on_which_the_guest_writes_the_header_of_a_format_stays_raw() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), [0x5a; 512]).unwrap();
    let path = secret.path().to_str().unwrap().as_bytes();
    // qcow2: magic, version 2, where the name of the backing file is, and how long.
    let mut header = [&b"QFI\xfb"[..], &2_u32.to_be_bytes(), &64_u64.to_be_bytes()].concat();
    header.extend(u32::try_from(path.len()).unwrap().to_be_bytes());
    header.resize(64, 0);
    header.extend(path);
    header.resize(512, 0);

    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * 512).unwrap();
    file.write_all_at(&header, 0).unwrap();
    let disk = |file: &std::fs::File, base| {
        Block::new(BlockConfig {
            file: file.try_clone().unwrap(),
            base,
            read_only: false,
        })
        .unwrap()
    };
    let layer = tempfile::tempfile().unwrap();
    layer.set_len(64 * 512).unwrap();
    for disk in [
        disk(&file, None),
        disk(&layer, Some(file.try_clone().unwrap())),
    ] {
        let mut machine = Machine::started(Box::new(disk));
        let mut capacity = [0; 8];
        machine.transport.read(0x100, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 64);
        for sector in [0_u64, 1] {
            machine.put(DATA, &[&[0; 8][..], &sector.to_le_bytes()].concat());
            let at = DATA + 0x1000 + sector * 512;
            machine.queues[0].add(&[(DATA, 16, false), (at, 512, true), (DATA + 64, 1, true)]);
            machine.serve(0);
            assert_eq!(machine.get(DATA + 64, 1), [0]);
        }
        assert_eq!(machine.get(DATA + 0x1000, 512), header);
        assert_eq!(machine.get(DATA + 0x1200, 512), [0; 512]);
    }
}
