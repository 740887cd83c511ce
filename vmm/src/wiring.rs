//! Connects devices to buses, interrupt lines and doorbells, and runs their thread.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;

use crate::boot::acpi::VirtioSlot;
use crate::config::{BlockConfig, RateLimits};
use crate::devices::bus::{Bus, BusDevice, BusError};
use crate::devices::event_loop::EventLoop;
use crate::devices::gate::{Ended, Gate};
use crate::devices::power::{self, I8042, Power};
use crate::devices::rate::{Limiter, Rate};
use crate::devices::serial::{self, CONSOLE_LIMIT, Serial, SerialSaved};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::{self, MmioTransport};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::lines::{LineError, Lines};
use crate::machine::BlankMachine;
use crate::memory::{Memory, layout};
use crate::vcpu::exit::Buses;
use crate::vm::{EndOnPanic, IdleThread, VmExit};

/// The guest's address on vsock. The host is 2; the numbers below are reserved.
const GUEST_CID: u64 = 3;

/// Why a device could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("Cannot make {what}")]
    Make {
        what: &'static str,
        source: io::Error,
    },
    #[error("Two devices want the same address")]
    Bus { source: BusError },
    #[error("Cannot join {device} and the guest")]
    Lines {
        device: &'static str,
        source: LineError,
    },
    #[error("No serial port can have the saved state; make the golden again")]
    Serial,
}

/// The caller's half of the devices.
pub(crate) struct Devices<'a> {
    pub blocks: Vec<BlockConfig>,
    pub vsock: UnixListener,
    pub console: File,
    /// What the serial port goes on from, if the guest is a restored one.
    pub serial: Option<&'a SerialSaved>,
    pub limits: RateLimits,
}

/// Devices on their buses.
pub(crate) struct Wired {
    pub buses: Buses,
    pub serial: Arc<Mutex<Serial>>,
    /// In the order of their slots, see [`slot`].
    pub transports: Vec<Arc<Mutex<MmioTransport>>>,
}

/// Where the transport of this number is, and its interrupt line.
pub(crate) fn slot(number: usize) -> VirtioSlot {
    VirtioSlot {
        index: u8::try_from(number).expect("the number of disks is checked first"),
    }
}

/// Makes all devices. The event loop is not running yet.
pub(crate) fn connect(
    blank: &mut BlankMachine,
    memory: &Memory,
    devices: Devices<'_>,
) -> Result<(Wired, EventLoop), WiringError> {
    let make = |what| move |source| WiringError::Make { what, source };
    let mut event_loop = EventLoop::new().map_err(make("the event loop"))?;
    let mut wiring = Wiring {
        vm: &blank.fd,
        lines: &mut blank.lines,
        memory,
        event_loop: &mut event_loop,
        buses: Buses::default(),
        transports: Vec::new(),
    };
    let serial = wiring.connect_ports(devices.console, devices.serial)?;
    let RateLimits {
        disk_bytes_per_second,
        disk_iops,
        stream_bytes_per_second,
    } = devices.limits;
    let mut disk_limiters = limiters(disk_bytes_per_second, disk_iops, devices.blocks.len())?;
    // Disks first: their order is the order of their names in the guest.
    for block in devices.blocks {
        let block = Block::new(block).map_err(make("a disk"))?;
        let block = block.limited(disk_limiters.pop());
        wiring.connect_virtio("a disk", Box::new(block))?;
    }
    let vsock = Vsock::new(GUEST_CID, devices.vsock).map_err(make("vsock"))?;
    // Not together: what a guest sends is no reason not to tell it anything.
    let direction = || Ok(limiters(stream_bytes_per_second, None, 1)?.pop());
    let vsock = vsock.limited(direction()?, direction()?);
    wiring.connect_virtio("vsock", Box::new(vsock))?;
    wiring.connect_virtio("rng", Box::new(Rng::new()))?;
    let wired = Wired {
        buses: wiring.buses,
        serial,
        transports: wiring.transports,
    };
    Ok((wired, event_loop))
}

/// Of devices that are limited together; none without a limit.
fn limiters(
    bytes: Option<NonZeroU64>,
    operations: Option<NonZeroU64>,
    devices: usize,
) -> Result<Vec<Limiter>, WiringError> {
    if bytes.is_none() && operations.is_none() {
        return Ok(Vec::new());
    }
    let rate = Rate { bytes, operations };
    Limiter::shared(rate, devices).map_err(|source| WiringError::Make {
        what: "a timer",
        source,
    })
}

struct Wiring<'a> {
    vm: &'a VmFd,
    lines: &'a mut Lines,
    memory: &'a Memory,
    event_loop: &'a mut EventLoop,
    buses: Buses,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
}

impl Wiring<'_> {
    fn connect_ports(
        &mut self,
        console: File,
        saved: Option<&SerialSaved>,
    ) -> Result<Arc<Mutex<Serial>>, WiringError> {
        let irq = self.lines.take_serial();
        let serial = match saved {
            None => Some(Serial::new(console, CONSOLE_LIMIT, irq)),
            Some(saved) => Serial::restore(saved, console, CONSOLE_LIMIT, irq),
        };
        let serial = Arc::new(Mutex::new(serial.ok_or(WiringError::Serial)?));
        let power = Arc::clone(&self.buses.power);
        let ports = &mut self.buses.ports;
        let bus = |source| WiringError::Bus { source };
        let on_bus = Arc::clone(&serial);
        ports
            .insert(layout::SERIAL_PORT.into(), serial::LEN, on_bus)
            .map_err(bus)?;
        insert(
            ports,
            layout::POWER_PORTS.into(),
            power::LEN,
            Power::new(Arc::clone(&power)),
        )?;
        insert(ports, power::I8042_COMMAND_PORT, 1, I8042::new(power))?;
        Ok(serial)
    }

    fn connect_virtio(
        &mut self,
        name: &'static str,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), WiringError> {
        let make = |source| WiringError::Make { what: name, source };
        let slot = slot(self.transports.len());
        let base = u64::from(slot.base());
        let lines = self.lines.take(self.vm, device.queue_max_sizes().len());
        let lines = lines.map_err(|source| WiringError::Lines {
            device: name,
            source,
        })?;
        let transport = MmioTransport::new(device, self.memory.clone(), lines);
        let transport = Arc::new(Mutex::new(transport));
        MmioTransport::attach(&transport, self.event_loop).map_err(make)?;
        self.buses
            .mmio
            .insert(base, mmio::LEN, Arc::clone(&transport) as _)
            .map_err(|source| WiringError::Bus { source })?;
        self.transports.push(transport);
        Ok(())
    }
}

fn insert(
    bus: &mut Bus,
    base: u64,
    len: u64,
    device: impl BusDevice + 'static,
) -> Result<(), WiringError> {
    bus.insert(base, len, Arc::new(Mutex::new(device)))
        .map_err(|source| WiringError::Bus { source })
}

/// The running event loop. Dropping it ends the thread and waits for that.
pub(crate) struct DeviceThread {
    gate: Gate,
    /// `None` only while dropping.
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    pub const NAME: &str = "devices";

    /// Runs the devices on `thread`.
    pub fn start(thread: IdleThread, event_loop: EventLoop, exits: Sender<VmExit>) -> Self {
        let gate = event_loop.gate();
        let thread = thread.start(move || {
            let _guard = EndOnPanic(exits.clone());
            if let Err(error) = event_loop.run() {
                let what = format!("the device thread cannot go on: {error}");
                // Nobody listens any more: the microVM ended for another reason.
                let _ = exits.send(VmExit::Failed { what });
            }
        });
        Self {
            gate,
            thread: Some(thread),
        }
    }
}

impl DeviceThread {
    /// Waits until no device does anything. None does until it is unparked.
    pub fn park(&self) -> Result<(), Ended> {
        self.gate.park()
    }

    pub fn unpark(&self) -> Result<(), Ended> {
        self.gate.unpark()
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.gate.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been printed there; the machine goes away all the same.
            let _ = thread.join();
        }
    }
}
