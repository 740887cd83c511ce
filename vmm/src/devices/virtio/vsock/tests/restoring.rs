//! A guest that was saved and goes on elsewhere: what it hears, and in which order.

use super::*;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testing::lines;

const EVENT: usize = 2;
const EVENT_AREA: u64 = TX_AREA + 0x1_0000;

impl Guest {
    /// The same guest on a new device with a socket of its own.
    fn restored(mut self) -> Self {
        let saved = self.machine.transport.save();
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock.sock")).unwrap();
        let device = Box::new(Vsock::new(CID, listener).unwrap());
        let (lines, _) = lines(&*device, &self.machine.irq);
        let mut transport = MmioTransport::new(device, self.machine.memory.clone(), lines);
        let mut event_loop = EventLoop::new().unwrap();
        transport.attach_alone(&mut event_loop);
        transport.restore(saved).unwrap();
        self.machine.interrupts();
        self.machine.transport = transport;
        self.event_loop = event_loop;
        self.directory = directory;
        self.settle();
        self
    }

    /// Gives a buffer for an event, as the driver does at its start and after each event.
    fn give_event_buffer(&mut self) {
        let at = EVENT_AREA + u64::from(self.machine.queues[EVENT].next_descriptor) * 8;
        self.machine.queues[EVENT].add(&[(at, 4, true)]);
        self.notify(EVENT);
    }

    /// Whether the one event there is has come since the last call.
    fn heard_of_reset(&mut self) -> bool {
        let used = self.machine.queues[EVENT].used();
        assert!(used.len() <= 1, "{used:?}");
        let heard = used.first().inspect(|(head, len)| {
            assert_eq!(*len, 4);
            let at = EVENT_AREA + u64::from(*head) * 8;
            assert_eq!(self.machine.get(at, 4), [0; 4]);
        });
        heard.is_some()
    }
}

fn with_event_buffers(count: usize) -> Guest {
    let mut guest = Guest::new();
    (0..count).for_each(|_| guest.give_event_buffer());
    guest
}

#[test]
fn restored_guest_is_told_at_once_and_gets_no_packet_before_it_answers() {
    for buffers in [1, 8] {
        let mut guest = with_event_buffers(buffers).restored();
        assert!(guest.machine.transport.interrupt_pending());
        assert!(guest.heard_of_reset());
        // A new client, and a reset for a connection that the guest thinks it has.
        let _client = guest.client("CONNECT 1025\n");
        guest.control(Op::CreditRequest, 77, 88);
        assert!(guest.packets().is_empty());
        guest.give_event_buffer();
        let mut ops: Vec<_> = guest
            .packets()
            .iter()
            .map(|(header, _)| header.op)
            .collect();
        ops.sort_unstable();
        assert_eq!(ops, [Op::Request.to_raw(), Op::Reset.to_raw()]);
        assert!(!guest.heard_of_reset(), "told once");
    }
}

#[test]
fn restored_guest_without_a_buffer_for_events_is_told_as_soon_as_it_has_one() {
    let mut guest = with_event_buffers(0).restored();
    let _client = guest.client("CONNECT 1025\n");
    assert!(guest.packets().is_empty() && !guest.heard_of_reset());
    guest.give_event_buffer();
    assert!(guest.packets().is_empty());
    assert!(guest.heard_of_reset());
    guest.give_event_buffer();
    op_of(&guest.packet(), Op::Request);
}

#[test]
fn new_connection_after_a_restore_has_a_port_that_the_guest_has_not_seen() {
    let mut guest = with_event_buffers(8);
    let (client, before) = guest.connected(1025);
    let mut guest = guest.restored();
    drop(client);
    guest.give_event_buffer();
    let (mut client, after) = guest.connected(1025);
    assert!(after > before, "{after} after {before}");
    guest.data(after, 1025, b"hello");
    assert_eq!(bytes(&mut client, 5), b"hello");
}

#[test]
fn data_of_a_connection_from_before_the_restore_is_answered_with_a_reset() {
    let mut guest = with_event_buffers(8);
    let (_client, host) = guest.connected(1025);
    let mut guest = guest.restored();
    guest.give_event_buffer();
    guest.data(host, 1025, b"late");
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn guest_that_is_saved_before_it_answered_is_told_again() {
    let guest = with_event_buffers(8).restored();
    let mut guest = guest.restored();
    // Once by each of the two devices.
    assert_eq!(guest.machine.queues[EVENT].used().len(), 2);
    let _client = guest.client("CONNECT 1025\n");
    assert!(guest.packets().is_empty());
    guest.give_event_buffer();
    op_of(&guest.packet(), Op::Request);
}

#[test]
fn request_that_nobody_had_answered_is_reset_after_a_restore() {
    let mut guest = with_event_buffers(8);
    guest.control(Op::Request, 1024, 77);
    assert!(guest.packets().is_empty(), "nobody listens");
    // Saved once more before it hears of it.
    let mut guest = guest.restored().restored();
    assert!(guest.packets().is_empty());
    guest.give_event_buffer();
    let reset = guest.packet();
    op_of(&reset, Op::Reset);
    assert_eq!((reset.0.src_port, reset.0.dst_port), (1024, 77));
    assert!(guest.packets().is_empty(), "each is told once");
}
