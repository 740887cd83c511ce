//! Registers, read and written with any width at any place in every state of a device.

use fuzz::{Choices, Target};
use virtio_bindings::virtio_mmio::*;

use super::*;
use crate::devices::bus::BusDevice;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{VirtioDevice, block, vsock};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 500;

/// Where the status is without DEVICE_NEEDS_RESET.
const STATUS_BITS: u32 = 0x8f;
/// Registers that mean something, and what follows them.
const REGISTERS: [u32; 24] = [
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_SHM_SEL,
    VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    0xfc,
    0xffc,
];

fn device(choices: &mut Choices<'_>) -> Box<dyn VirtioDevice> {
    match choices.below(3) {
        0 => Box::new(Rng::new()),
        1 => {
            let file = tempfile::tempfile().unwrap();
            file.set_len(64 * 512).unwrap();
            let (base, read_only) = (None, choices.flag());
            let config = crate::config::BlockConfig {
                file,
                base,
                read_only,
            };
            Box::new(block::Block::new(config).unwrap())
        }
        _ => {
            // A socket without a place in the file system.
            let (listener, _) = std::os::unix::net::UnixStream::pair().unwrap();
            Box::new(vsock::Vsock::new(3, std::os::fd::OwnedFd::from(listener).into()).unwrap())
        }
    }
}

/// Every register that can be read without anything coming of it, and the configuration.
fn dump(machine: &mut Machine) -> Vec<u32> {
    (0..0x140).step_by(4).map(|at| machine.read(at)).collect()
}

/// Section 2.1: one step at a time, and back only to the beginning.
fn assert_step(before: u32, after: u32) {
    let (before, after) = (before & STATUS_BITS, after & STATUS_BITS);
    let added = after & !before;
    assert!(
        after == 0 || (after & before == before && added.count_ones() <= 1),
        "{before:#x} to {after:#x}"
    );
    let order = after & 0xf;
    assert!([0, 1, 3, 0xb, 0xf].contains(&order), "{after:#x}");
}

fn drive(input: &[u8]) -> bool {
    let mut choices = Choices::new(input);
    let mut machine = Machine::in_memory(device(&mut choices), small_memory());
    match choices.below(4) {
        0 => {}
        1 => machine.negotiate(EVENT_IDX),
        _ => {
            machine.negotiate(EVENT_IDX);
            machine.set_up_queues();
            machine.write(VIRTIO_MMIO_STATUS, 0xf);
        }
    }
    let queues = machine.queues.len();
    let mut was_up = false;
    while !choices.is_empty() {
        let status = machine.read(VIRTIO_MMIO_STATUS);
        was_up |= status & 0xf == 0xf;
        let near = REGISTERS.map(u64::from);
        match choices.below(8) {
            0 => {
                let offset = choices.number(&near) & 0xfff;
                let mut data = [0xaa; 8];
                let width = choices.pick(&[4, 1, 2, 8, 0, 3]);
                let registers = dump(&mut machine);
                machine.transport.read(offset, &mut data[..width]);
                assert_eq!(data[width..], [0xaa; 8][width..]);
                assert_eq!(dump(&mut machine), registers, "reading changes nothing");
            }
            1 => {
                // Not a register: nothing happens.
                let offset = choices.number(&near) & 0xfff;
                let width = choices.pick(&[1, 2, 8, 0, 3, 4]);
                if width == 4 && offset.is_multiple_of(4) && offset < 0x100 {
                    continue;
                }
                let registers = dump(&mut machine);
                let data = choices.u64().to_le_bytes();
                machine.transport.write(offset, &data[..width]);
                assert_eq!(dump(&mut machine), registers, "a write to {offset:#x}");
            }
            2 => machine.serve(choices.below(queues)),
            3 => {
                let queue = &mut machine.queues[choices.below(queues)];
                queue.add(&[(DATA, 16, false), (DATA + 64, 600, true)]);
            }
            4 => {
                // What a driver writes next that knows the order.
                let next = [1, 3, 0xb, 0xf, 0xf];
                let step = (status & 0xf).count_ones() as usize;
                machine.write(VIRTIO_MMIO_STATUS, next[step]);
                assert_step(status, machine.read(VIRTIO_MMIO_STATUS));
            }
            5 => {
                let index = choices.below(queues);
                let mut registers = machine.queues[index].registers();
                registers.size = choices.number(&[registers.size.into(), 0, 256, 65535]) as u16;
                registers.used_ring = choices.number(&PLACES);
                machine.set_up_queue(index as u32, &registers);
            }
            _ => {
                let register = choices.pick(&REGISTERS);
                let value = choices.number(&[0, 1, 3, 0xb, 0xf, 0x80, 256, 2, 1 << 32]) as u32;
                let before = dump(&mut machine);
                machine.write(register, value);
                assert_step(status, machine.read(VIRTIO_MMIO_STATUS));
                let free = [
                    VIRTIO_MMIO_STATUS,
                    VIRTIO_MMIO_QUEUE_SEL,
                    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
                    VIRTIO_MMIO_INTERRUPT_ACK,
                ];
                // Section 4.2.3.2: a queue is what it was at DRIVER_OK until the reset.
                if status & 4 != 0 && !free.contains(&register) {
                    assert_eq!(dump(&mut machine), before, "a write to {register:#x}");
                }
            }
        }
    }
    was_up && !machine.needs_reset()
}

#[test]
fn fuzz_mmio() {
    Target::new("mmio")
        .corpus(corpus("mmio"))
        .max_bytes(512)
        .run(INPUTS, drive);
}
