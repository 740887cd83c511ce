//! The vsock device's queues: takes packets out of chains and puts packets into them.

use std::io;
use std::os::unix::net::UnixListener;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::VolatileSlice;

use super::muxer::{FREE_TOKEN, Muxer, Offer};
use super::packet::{HEADER_BYTES, Header};
use super::state::VsockState;
use crate::devices::event_loop::{Ready, Watcher};
use crate::devices::rate::{self, Cost, Limiter};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::queue::{Chain, ChainFault, RingError, VirtQueue};
use crate::devices::virtio::state::DeviceState;
use crate::devices::virtio::{Rings, VirtioDevice, Work, copy_config};
use crate::memory::Memory;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Receive, transmit, event. The one event there is tells a restored guest that its connections are gone.
const QUEUE_SIZES: &[u16] = &[256, 256, 8];

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, section 5.10.6.7.
const EVENT_TRANSPORT_RESET: u32 = 0;

/// Packets from the guest served before other devices get their turn. Each carries up to 64 KiB.
const TX_PER_CALL: usize = 64;
/// Receive buffers filled before other devices, and events of other clients, get their turn.
const BUFFERS_PER_CALL: usize = 64;

/// The tokens of the limiters' alarms.
const SEND_ALARM: u32 = FREE_TOKEN;
const RECEIVE_ALARM: u32 = FREE_TOKEN + 1;

/// What a restored guest has to be told before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// Nothing, or it has been told and has answered.
    Done,
    /// Its connections are gone.
    Due,
    /// It was told. When it has drawn its conclusions it gives the buffer back, so that it has then made more
    /// chains available than this.
    Told { available: u16 },
}

/// The socket device.
pub struct Vsock {
    muxer: Muxer,
    reset: Reset,
    /// How much the guest may send in a second.
    send: Option<Limiter>,
    /// How much it may be sent.
    receive: Option<Limiter>,
}

/// A receive buffer, cut where the payload begins.
struct Slot<'m> {
    head: u16,
    header: Buffers<'m>,
    payload: Buffers<'m>,
}

impl<'m> Slot<'m> {
    /// A buffer that cannot hold a header and a byte was never made by a working driver.
    fn new(mut chain: Chain<'m>) -> Result<Self, RingError> {
        if chain.writable.len() <= HEADER_BYTES {
            return Err(RingError::Chain {
                head: chain.head,
                fault: ChainFault::NoRoom,
            });
        }
        let payload = chain.writable.split_off(HEADER_BYTES);
        Ok(Self {
            head: chain.head,
            header: chain.writable,
            payload,
        })
    }

    fn finish(
        mut self,
        queue: &mut VirtQueue,
        memory: &Memory,
        header: Header,
    ) -> Result<(), RingError> {
        self.header.copy_in(&header.to_bytes());
        queue.complete(memory, self.head, HEADER_BYTES + header.len as usize)
    }
}

impl Vsock {
    /// The guest gets this address; clients of the host come to `listener`.
    pub fn new(guest_cid: u64, listener: UnixListener) -> io::Result<Self> {
        Ok(Self {
            muxer: Muxer::new(VsockState::new(guest_cid), listener)?,
            reset: Reset::Done,
            send: None,
            receive: None,
        })
    }

    /// The same device, through which no more goes in a second than may.
    pub fn limited(mut self, send: Option<Limiter>, receive: Option<Limiter>) -> Self {
        self.send = send;
        self.receive = receive;
        self
    }

    /// What could be saved of the device.
    pub fn state(&self) -> &VsockState {
        self.muxer.state()
    }

    fn transmit(&mut self, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        let Rings { memory, queues } = rings;
        let queue = &mut queues[TX];
        for _ in 0..TX_PER_CALL {
            match queue.pop(memory)? {
                Some(mut chain) => {
                    // With the header, so that packets without payload are counted as well.
                    let cost = || Cost::bytes(chain.readable.len());
                    if !rate::may(&mut self.send, cost) {
                        queue.undo_pop();
                        return Ok(Work::Done);
                    }
                    // What is too short for a header names no connection that could be told.
                    if let Some(bytes) = chain.readable.take::<HEADER_BYTES>() {
                        self.muxer
                            .on_packet(&Header::from_bytes(&bytes), chain.readable);
                    }
                    queue.complete(memory, chain.head, 0)?;
                }
                None if queue.rearm(memory)? => {}
                None => return Ok(Work::Done),
            }
        }
        Ok(Work::Again { queue: TX })
    }

    /// Tells a restored guest about its connections, then waits for its answer. Until that is there it gets no
    /// packet: it would take one that follows the event for a part of what the event ends, and so end a
    /// connection that was never there before.
    fn tell(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let Rings { memory, queues } = rings;
        let queue = &mut queues[EVENT];
        while self.reset == Reset::Due {
            match queue.pop(memory)? {
                Some(mut chain) => {
                    let available = queue.available_index(memory)?;
                    let written = chain.writable.copy_in(&EVENT_TRANSPORT_RESET.to_le_bytes());
                    queue.complete(memory, chain.head, written)?;
                    queue.rearm_beyond(memory, available)?;
                    self.reset = Reset::Told { available };
                }
                None if queue.rearm(memory)? => {}
                None => break,
            }
        }
        // Also right after it was told: the doorbell may have been rung before it was asked for.
        if let Reset::Told { available } = self.reset
            && queue.available_index(memory)? != available
        {
            self.reset = Reset::Done;
        }
        Ok(())
    }

    /// Serves as many offers as there are receive buffers.
    fn deliver(&mut self, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        if self.reset != Reset::Done {
            self.tell(rings)?;
            if self.reset != Reset::Done {
                return Ok(Work::Done);
            }
        }
        let Rings { memory, queues } = rings;
        let queue = &mut queues[RX];
        let mut filled = 0;
        while filled < BUFFERS_PER_CALL {
            if !self.muxer.has_offers() {
                return Ok(Work::Done);
            }
            // How much a client has is known when it was read: it is paid for afterwards.
            if !rate::may(&mut self.receive, Cost::default) {
                return Ok(Work::Done);
            }
            let Some(chain) = queue.pop(memory)? else {
                if !queue.rearm(memory)? {
                    return Ok(Work::Done);
                }
                filled += 1;
                continue;
            };
            let slot = Slot::new(chain)?;
            match self.muxer.next_offer() {
                Some(Offer::Packet(header)) => {
                    slot.finish(queue, memory, header)?;
                    self.received(HEADER_BYTES);
                    filled += 1;
                }
                Some(Offer::Data { token, room, burst }) => {
                    // An offer that turns out to be empty counts, too: it took time.
                    filled += self.fill(queue, memory, slot, token, room, burst)?.max(1);
                }
                None => queue.undo_pop(),
            }
        }
        Ok(Work::Again { queue: RX })
    }

    /// Reads from one client into as many receive buffers as its burst and the guest's room allow.
    /// Gives the number of buffers filled.
    fn fill(
        &mut self,
        queue: &mut VirtQueue,
        memory: &Memory,
        first: Slot<'_>,
        token: u32,
        mut room: usize,
        burst: usize,
    ) -> Result<usize, RingError> {
        let mut slots = vec![first];
        loop {
            if let Some(last) = slots.last_mut() {
                last.payload.split_off(room);
                room -= last.payload.len();
            }
            if slots.len() >= burst || room == 0 {
                break;
            }
            match queue.pop(memory)? {
                Some(chain) => slots.push(Slot::new(chain)?),
                None => break,
            }
        }
        let pieces: Vec<VolatileSlice<'_>> = slots
            .iter()
            .flat_map(|slot| slot.payload.slices())
            .cloned()
            .collect();
        let (mut left, header) = self.muxer.receive(token, &pieces).unwrap_or_default();
        let mut filled = 0;
        for slot in slots {
            if left == 0 {
                // Taken back in any order: they are the last ones popped.
                queue.undo_pop();
                continue;
            }
            let count = left.min(slot.payload.len());
            left -= count;
            // A receive buffer is far below 4 GiB: its descriptors were summed up in 32 bits.
            let len = u32::try_from(count).unwrap_or(u32::MAX);
            slot.finish(queue, memory, Header { len, ..header })?;
            self.received(HEADER_BYTES + count);
            filled += 1;
        }
        Ok(filled)
    }

    /// Counts what the guest was sent.
    fn received(&self, bytes: usize) {
        if let Some(limiter) = &self.receive {
            limiter.spend(Cost::bytes(bytes));
        }
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.state().guest_cid.to_le_bytes(), offset, data);
    }

    fn watch(&mut self, watcher: Watcher) -> io::Result<()> {
        for (limiter, token) in [(&self.send, SEND_ALARM), (&self.receive, RECEIVE_ALARM)] {
            if let Some(limiter) = limiter {
                limiter.watch(&watcher, token)?;
            }
        }
        self.muxer.watch(watcher)
    }

    fn activate(&mut self, features: u64) {
        self.muxer.set_features(features);
    }

    fn reset(&mut self) {
        // A new driver has no connections to lose.
        self.reset = Reset::Done;
        self.muxer.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(self.muxer.save())
    }

    fn restore(&mut self, state: DeviceState) -> Option<()> {
        match state {
            DeviceState::Vsock(state) if state.guest_cid == self.state().guest_cid => {
                self.muxer.restore(state);
                self.reset = Reset::Due;
                Some(())
            }
            DeviceState::Vsock(_) | DeviceState::Nothing => None,
        }
    }

    fn welcome(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        self.tell(rings)
    }

    fn queue_ready(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<Work, RingError> {
        let sent = if queue == TX {
            self.transmit(rings)?
        } else {
            Work::Done
        };
        let received = self.deliver(rings)?;
        // Serving the transmit queue again delivers again as well.
        Ok(if sent == Work::Done { received } else { sent })
    }

    fn host_ready(
        &mut self,
        token: u32,
        ready: Ready,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Work, RingError> {
        let limiter = match token {
            SEND_ALARM => &mut self.send,
            RECEIVE_ALARM => &mut self.receive,
            _ => {
                self.muxer.on_host(token, ready);
                &mut None
            }
        };
        if let Some(limiter) = limiter {
            limiter.rang();
        }
        if token == SEND_ALARM {
            return rings.map_or(Ok(Work::Done), |rings| self.queue_ready(TX, rings));
        }
        rings.map_or(Ok(Work::Done), |rings| self.deliver(rings))
    }
}
