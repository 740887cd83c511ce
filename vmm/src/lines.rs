//! What joins a guest and its devices within KVM: interrupt lines and doorbells.
//!
//! A device writes to an event, and KVM raises the line; the guest rings a doorbell, and KVM signals an event, without
//! a return to user space. KVM waits for all of its readers whenever a doorbell is registered (`kvm_io_bus_register_dev`
//! in virt/kvm/kvm_main.c), so those of the usual devices are made ahead. A guest with other devices gets what is missing when they are connected; a
//! doorbell that then belongs to no queue signals an event that nobody watches.

use std::collections::VecDeque;
use std::io;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::mmio;
use crate::memory::layout;
use crate::wiring;

/// How many queues the transports that are made ahead have: two disks, vsock, rng. No more, since KVM waits for each.
const USUAL_QUEUES: [usize; 4] = [1, 1, 3, 1];

/// Why a device could not be joined.
#[derive(Debug, thiserror::Error)]
#[error("Cannot make {what}")]
pub struct LineError {
    what: &'static str,
    source: io::Error,
}

/// Those of one transport.
pub(crate) struct TransportLines {
    pub irq: EventFd,
    /// By the numbers of their queues.
    pub doorbells: Vec<EventFd>,
}

/// The lines of a machine.
pub(crate) struct Lines {
    serial: Option<EventFd>,
    ahead: VecDeque<TransportLines>,
    taken: usize,
}

impl Lines {
    /// Makes those that most microVMs need.
    pub fn make(vm: &VmFd) -> Result<Self, LineError> {
        let usual = USUAL_QUEUES.iter().enumerate();
        let ahead = usual.map(|(number, queues)| transport(vm, number, *queues));
        Ok(Self {
            serial: Some(interrupt(vm, layout::SERIAL_GSI)?),
            ahead: ahead.collect::<Result<_, _>>()?,
            taken: 0,
        })
    }

    /// The serial port's, once.
    pub fn take_serial(&mut self) -> Option<EventFd> {
        self.serial.take()
    }

    /// Those of the next transport, which has this many queues.
    pub fn take(&mut self, vm: &VmFd, queues: usize) -> Result<TransportLines, LineError> {
        let number = self.taken;
        self.taken += 1;
        let Some(mut lines) = self.ahead.pop_front() else {
            return transport(vm, number, queues);
        };
        for queue in lines.doorbells.len()..queues {
            lines.doorbells.push(doorbell(vm, number, queue)?);
        }
        lines.doorbells.truncate(queues);
        Ok(lines)
    }
}

fn transport(vm: &VmFd, number: usize, queues: usize) -> Result<TransportLines, LineError> {
    let doorbells = (0..queues).map(|queue| doorbell(vm, number, queue));
    Ok(TransportLines {
        irq: interrupt(vm, wiring::slot(number).gsi())?,
        doorbells: doorbells.collect::<Result<_, _>>()?,
    })
}

/// An event that is signalled when the guest rings `queue` of a transport.
fn doorbell(vm: &VmFd, transport: usize, queue: usize) -> Result<EventFd, LineError> {
    let what = "a doorbell";
    let failed = |source| LineError { what, source };
    let event = event().map_err(failed)?;
    let base = u64::from(wiring::slot(transport).base());
    let address = IoEventAddress::Mmio(base + mmio::DOORBELL_OFFSET);
    let queue = u32::try_from(queue).expect("a device has few queues");
    vm.register_ioevent(&event, &address, queue)
        .map_err(|error| failed(error.into()))?;
    Ok(event)
}

/// An event that raises the interrupt line `gsi`.
fn interrupt(vm: &VmFd, gsi: u32) -> Result<EventFd, LineError> {
    let what = "an interrupt";
    let failed = |source| LineError { what, source };
    let event = event().map_err(failed)?;
    vm.register_irqfd(&event, gsi)
        .map_err(|error| failed(error.into()))?;
    Ok(event)
}

fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
