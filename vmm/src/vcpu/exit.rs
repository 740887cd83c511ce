//! What to do when a vCPU leaves the guest: exit → bus → next step. No file descriptors, no threads.

use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use crate::devices::bus::Bus;
use crate::devices::power::{PowerState, PowerWish};
use crate::vm::VmExit;

/// Everything an exit can reach.
#[derive(Default)]
pub struct Buses {
    pub ports: Bus,
    pub mmio: Bus,
    /// What the power registers, which are on `ports`, have been asked for.
    pub power: Arc<PowerState>,
}

/// What the vCPU does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Enter,
    /// The microVM is over.
    Exit(VmExit),
}

/// Serves one exit.
pub fn dispatch(exit: VcpuExit<'_>, buses: &Buses) -> Next {
    match exit {
        // KVM hands out `rep outs` one item at a time, so a slice here is one access.
        VcpuExit::IoOut(port, data) => {
            buses.ports.write(port.into(), data);
            after_port_write(&buses.power)
        }
        // `rep ins` may arrive as one long slice; no device of ours has such a port, and the bus gives all ones.
        VcpuExit::IoIn(port, data) => {
            buses.ports.read(port.into(), data);
            Next::Enter
        }
        VcpuExit::MmioRead(address, data) => {
            buses.mmio.read(address, data);
            Next::Enter
        }
        VcpuExit::MmioWrite(address, data) => {
            buses.mmio.write(address, data);
            Next::Enter
        }
        // Without nested paging tricks this is a triple fault: the CPU gave up on the guest's own handlers.
        VcpuExit::Shutdown => Next::Exit(VmExit::TripleFault),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Next::Enter,
        VcpuExit::FailEntry(reason, cpu) => failed(format!(
            "the CPU refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
        )),
        // The local APIC is in the kernel, which therefore handles HLT itself, also one with interrupts off.
        VcpuExit::Hlt => failed("KVM reported a halt that it should have handled".to_owned()),
        other => failed(format!("unexpected exit {other:?}")),
    }
}

fn after_port_write(power: &PowerState) -> Next {
    match power.wish() {
        None => Next::Enter,
        Some(PowerWish::PowerOff) => Next::Exit(VmExit::PowerOff),
        Some(PowerWish::Reset) => Next::Exit(VmExit::Reset),
    }
}

fn failed(what: String) -> Next {
    Next::Exit(VmExit::Failed { what })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::devices::bus::BusDevice;
    use crate::devices::power::Power;

    /// Reads as its last write.
    struct Latch(u8);

    impl BusDevice for Latch {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn buses() -> Buses {
        let mut buses = Buses::default();
        let power = Power::new(Arc::clone(&buses.power));
        buses
            .ports
            .insert(0x600, 3, Arc::new(Mutex::new(power)))
            .unwrap();
        buses
            .ports
            .insert(0x10, 4, Arc::new(Mutex::new(Latch(1))))
            .unwrap();
        buses
            .mmio
            .insert(0x1000, 4, Arc::new(Mutex::new(Latch(2))))
            .unwrap();
        buses
    }

    #[test]
    fn port_and_memory_accesses_reach_their_own_bus() {
        let buses = buses();
        let (mut from_port, mut from_memory) = ([0; 1], [0; 1]);
        assert_eq!(dispatch(VcpuExit::IoOut(0x10, &[7]), &buses), Next::Enter);
        assert_eq!(
            dispatch(VcpuExit::MmioWrite(0x1000, &[8]), &buses),
            Next::Enter
        );
        assert_eq!(
            dispatch(VcpuExit::IoIn(0x10, &mut from_port), &buses),
            Next::Enter
        );
        assert_eq!(
            dispatch(VcpuExit::MmioRead(0x1000, &mut from_memory), &buses),
            Next::Enter
        );
        assert_eq!((from_port, from_memory), ([7], [8]));
    }

    #[test]
    fn string_input_longer_than_any_register_reads_as_ones() {
        let mut data = [0; 4096];
        assert_eq!(
            dispatch(VcpuExit::IoIn(0x10, &mut data), &buses()),
            Next::Enter
        );
        assert_eq!(data, [0xff; 4096]);
    }

    #[test]
    fn power_off_register_ends_the_microvm() {
        assert_eq!(
            dispatch(VcpuExit::IoOut(0x600, &[0x34]), &buses()),
            Next::Exit(VmExit::PowerOff)
        );
    }

    #[test]
    fn reset_register_ends_the_microvm_as_a_reset() {
        assert_eq!(
            dispatch(VcpuExit::IoOut(0x602, &[1]), &buses()),
            Next::Exit(VmExit::Reset)
        );
    }

    #[test]
    fn shutdown_is_a_triple_fault() {
        assert_eq!(
            dispatch(VcpuExit::Shutdown, &buses()),
            Next::Exit(VmExit::TripleFault)
        );
    }

    #[test]
    fn exit_that_nobody_expects_is_a_typed_failure() {
        let next = dispatch(VcpuExit::FailEntry(0x21, 3), &buses());
        assert!(matches!(next, Next::Exit(VmExit::Failed { what }) if what.contains("0x21")));
        let next = dispatch(VcpuExit::Unknown, &buses());
        assert!(matches!(next, Next::Exit(VmExit::Failed { what }) if what.contains("Unknown")));
    }
}
