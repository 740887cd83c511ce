//! One stream between a host client and the guest: who may still send, what the guest has to be
//! told next, when it is over. Pure: no sockets, no queues.
//!
//! ```text
//! Asking ── Response ──▶ Open ── both directions done ──▶ over
//! Held ──── accept ──────▶ │ ──── Reset with bytes left ──▶ Draining ──▶ over
//! ```
//!
//! Each direction ends on its own: a client that has sent its request and shut its side down still
//! gets the answer, and so does a guest. A connection is forgotten as soon as the guest has been
//! sent the last word about it, so that half-closed connections cannot pile up (a peer's table
//! leaked them); what the guest says afterwards is answered with a reset.

use super::credit::Credit;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host asked the guest, which has not answered. `sent` once the request is in its queue.
    Asking {
        sent: bool,
    },
    /// The guest asked the host, where nobody has accepted yet.
    Held,
    Open,
    /// The guest forgot the connection, but the host client has not read everything.
    Draining,
    Over,
}

/// What a packet from the guest did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Continue,
    /// The guest accepted: the host client may be told.
    Accepted,
    /// Close the host's side. With `reset`, the guest has to be told as well.
    Over {
        reset: bool,
    },
}

/// A packet without payload that the guest has to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    pub op: Op,
    pub flags: u32,
}

/// What to shut down on the host client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostShutdown {
    /// The guest will send no more, and the client has got everything.
    Write,
    /// The guest will receive no more.
    Read,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    credit: Credit,
    /// The guest has not said that it will send no more.
    guest_sends: bool,
    /// The guest has not said that it will receive no more.
    guest_receives: bool,
    /// The client's stream has not ended.
    client_sends: bool,
    /// The client's socket still takes bytes.
    client_receives: bool,
    /// What the guest was told of the client, as shutdown flags.
    told: u32,
    response_due: bool,
    update_due: bool,
    write_shut: bool,
    read_shut: bool,
}

impl Connection {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            credit: Credit::default(),
            guest_sends: true,
            guest_receives: true,
            client_sends: true,
            client_receives: true,
            told: 0,
            response_due: false,
            update_due: false,
            write_shut: false,
            read_shut: false,
        }
    }

    /// A client of the host asks for a port of the guest.
    pub fn from_host() -> Self {
        Self::new(Phase::Asking { sent: false })
    }

    /// The guest asks for a port of the host, with this packet.
    pub fn from_guest(request: &Header) -> Self {
        let mut connection = Self::new(Phase::Held);
        connection.credit.learn(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// Somebody on the host accepts a held connection.
    pub fn accept(&mut self) {
        self.phase = Phase::Open;
        self.response_due = true;
    }

    /// The guest waits to hear that its request was accepted.
    pub fn is_unanswered(&self) -> bool {
        self.phase == Phase::Held || self.response_due
    }

    /// Handles any packet of this connection but data.
    pub fn on_control(&mut self, op: Op, header: &Header) -> Outcome {
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        match (self.phase, op) {
            (_, Op::Reset) => self.on_reset(),
            (Phase::Asking { sent: true }, Op::Response) => {
                self.phase = Phase::Open;
                Outcome::Accepted
            }
            // The guest gives its request up.
            (Phase::Held, Op::Shutdown) => self.end(true),
            (Phase::Open, Op::CreditUpdate) => Outcome::Continue,
            (Phase::Open, Op::CreditRequest) => {
                self.update_due = true;
                Outcome::Continue
            }
            (Phase::Open, Op::Shutdown) => {
                self.guest_receives &= header.flags & SHUTDOWN_RECEIVE == 0;
                self.guest_sends &= header.flags & SHUTDOWN_SEND == 0;
                Outcome::Continue
            }
            // Nothing else makes sense where it comes.
            _ => self.end(true),
        }
    }

    fn on_reset(&mut self) -> Outcome {
        // An application that sends and closes gets impatient with a slow client after some
        // seconds, and its kernel resets. Its bytes were accepted, so the client still gets them.
        let established = matches!(self.phase, Phase::Open | Phase::Draining);
        if established && !self.guest_sends && self.wants_forward() {
            self.phase = Phase::Draining;
            return Outcome::Continue;
        }
        self.end(false)
    }

    /// Ends the connection whatever is under way.
    fn end(&mut self, reset: bool) -> Outcome {
        self.phase = Phase::Over;
        Outcome::Over { reset }
    }

    /// Counts `len` bytes of data from the guest. They must be taken when the answer is
    /// [`Outcome::Continue`], and be reported as forwarded later.
    pub fn on_data(&mut self, header: &Header) -> Outcome {
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        if self.phase != Phase::Open || !self.guest_sends || !self.credit.receive(header.len) {
            return self.end(true);
        }
        Outcome::Continue
    }

    /// The client took `len` bytes of the guest's.
    pub fn on_forwarded(&mut self, len: usize) {
        self.credit.forward(u32::try_from(len).unwrap_or(u32::MAX));
        self.update_due |= self.credit.update_due();
    }

    /// The client's stream has ended.
    pub fn on_client_end(&mut self) {
        self.client_sends = false;
    }

    /// The client's socket takes no more bytes; those that wait for it are lost.
    pub fn on_client_deaf(&mut self) {
        self.client_receives = false;
        self.on_forwarded(self.waiting());
    }

    /// `len` bytes of the client's went to the guest.
    pub fn on_sent(&mut self, len: usize) {
        self.credit.send(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Bytes of the guest's that the client has not taken.
    pub fn waiting(&self) -> usize {
        self.credit.waiting() as usize
    }

    /// Whether bytes of the guest's still have to reach the client.
    pub fn wants_forward(&self) -> bool {
        self.client_receives && self.waiting() > 0
    }

    /// Whether the client still takes bytes.
    pub fn client_receives(&self) -> bool {
        self.client_receives
    }

    /// How many bytes of the client's may go to the guest now.
    pub fn room(&self) -> usize {
        let open = self.phase == Phase::Open && !self.response_due;
        if open && self.client_sends && self.guest_receives {
            self.credit.room() as usize
        } else {
            0
        }
    }

    /// Room and forwarded bytes for the header of a packet to the guest.
    pub fn announce(&mut self) -> (u32, u32) {
        self.update_due = false;
        self.credit.announce()
    }

    /// Whether the guest has never heard of this connection, so that it can wait for another driver.
    pub fn is_unsent(&self) -> bool {
        self.phase == Phase::Asking { sent: false }
    }

    pub fn is_over(&self) -> bool {
        match self.phase {
            Phase::Over => true,
            Phase::Draining => !self.wants_forward(),
            Phase::Asking { .. } | Phase::Held | Phase::Open => false,
        }
    }

    /// The client hung up before the guest answered. Says whether the guest has to be told.
    pub fn abandon(&mut self) -> bool {
        let known = !self.is_unsent();
        self.phase = Phase::Over;
        known
    }

    pub fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking { .. })
    }

    /// What to do to the client's socket, each at most once.
    pub fn take_host_shutdown(&mut self) -> Option<HostShutdown> {
        if !self.guest_sends && !self.write_shut && !self.wants_forward() {
            self.write_shut = true;
            return Some(HostShutdown::Write);
        }
        if !self.guest_receives && !self.read_shut {
            self.read_shut = true;
            return Some(HostShutdown::Read);
        }
        None
    }

    /// Both directions have come to their end.
    fn is_done(&self) -> bool {
        let to_client = !self.client_receives || (!self.guest_sends && !self.wants_forward());
        let to_guest = !self.client_sends || !self.guest_receives;
        self.phase == Phase::Open && to_client && to_guest
    }

    /// What the client's side of the connection looks like, as shutdown flags.
    fn client_flags(&self) -> u32 {
        let receive = if self.client_receives {
            0
        } else {
            SHUTDOWN_RECEIVE
        };
        let send = if self.client_sends { 0 } else { SHUTDOWN_SEND };
        receive | send
    }

    /// Whether [`Connection::take_control`] has something.
    pub fn has_control(&self) -> bool {
        match self.phase {
            Phase::Asking { sent } => !sent,
            Phase::Open => {
                self.response_due
                    || self.update_due
                    || self.client_flags() & !self.told != 0
                    || self.is_done()
            }
            Phase::Held | Phase::Draining | Phase::Over => false,
        }
    }

    /// The next packet without payload that the guest has to get.
    pub fn take_control(&mut self) -> Option<Control> {
        if self.phase == (Phase::Asking { sent: false }) {
            self.phase = Phase::Asking { sent: true };
            return Some(Control {
                op: Op::Request,
                flags: 0,
            });
        }
        if self.phase != Phase::Open {
            return None;
        }
        if std::mem::take(&mut self.response_due) {
            return Some(Control {
                op: Op::Response,
                flags: 0,
            });
        }
        if self.is_done() {
            self.phase = Phase::Over;
            // The guest closed its socket and waits for this, or it learns that it may.
            let closed = !self.guest_sends && !self.guest_receives;
            let last = Control {
                op: Op::Shutdown,
                flags: SHUTDOWN_BOTH,
            };
            return Some(if closed {
                Control {
                    op: Op::Reset,
                    flags: 0,
                }
            } else {
                last
            });
        }
        let flags = self.client_flags();
        if flags & !self.told != 0 {
            self.told = flags;
            return Some(Control {
                op: Op::Shutdown,
                flags,
            });
        }
        std::mem::take(&mut self.update_due).then_some(Control {
            op: Op::CreditUpdate,
            flags: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::credit::WINDOW;
    use super::*;
    use proptest::prelude::*;

    fn header(flags: u32) -> Header {
        Header {
            flags,
            buf_alloc: 1000,
            ..Header::default()
        }
    }

    fn open() -> Connection {
        let mut connection = Connection::from_host();
        assert_eq!(
            connection.take_control().map(|control| control.op),
            Some(Op::Request)
        );
        assert_eq!(
            connection.on_control(Op::Response, &header(0)),
            Outcome::Accepted
        );
        connection
    }

    fn data(connection: &mut Connection, len: u32) -> Outcome {
        connection.on_data(&Header { len, ..header(0) })
    }

    #[test]
    fn request_is_sent_once_and_bytes_wait_for_the_answer() {
        let mut connection = Connection::from_host();
        assert!(connection.is_unsent() && connection.has_control());
        assert_eq!(
            connection.take_control(),
            Some(Control {
                op: Op::Request,
                flags: 0
            })
        );
        assert_eq!(connection.take_control(), None);
        assert_eq!(connection.room(), 0);
        connection.on_control(Op::Response, &header(0));
        assert_eq!(connection.room(), 1000);
    }

    #[test]
    fn accepted_connection_answers_before_it_sends() {
        let mut connection = Connection::from_guest(&header(0));
        assert!(!connection.has_control());
        connection.accept();
        assert_eq!(connection.room(), 0);
        assert_eq!(
            connection.take_control(),
            Some(Control {
                op: Op::Response,
                flags: 0
            })
        );
        assert_eq!(connection.room(), 1000);
    }

    #[test]
    fn client_socket_is_shut_only_after_the_last_byte_of_the_guest() {
        let mut connection = open();
        assert_eq!(data(&mut connection, 10), Outcome::Continue);
        connection.on_control(Op::Shutdown, &header(SHUTDOWN_SEND));
        assert_eq!(connection.take_host_shutdown(), None);
        connection.on_forwarded(10);
        assert_eq!(connection.take_host_shutdown(), Some(HostShutdown::Write));
        assert_eq!(connection.take_host_shutdown(), None);
        assert!(!connection.is_over());
    }

    #[test]
    fn shutdown_of_the_guest_cannot_be_taken_back() {
        let mut connection = open();
        connection.on_control(Op::Shutdown, &header(SHUTDOWN_BOTH));
        connection.on_control(Op::Shutdown, &header(0));
        assert_eq!(connection.room(), 0);
        assert_eq!(
            connection.take_control(),
            Some(Control {
                op: Op::Reset,
                flags: 0
            })
        );
        assert!(connection.is_over());
    }

    #[test]
    fn guest_is_told_of_each_end_of_the_client_once() {
        let mut connection = open();
        connection.on_client_end();
        let told = Control {
            op: Op::Shutdown,
            flags: SHUTDOWN_SEND,
        };
        assert_eq!(connection.take_control(), Some(told));
        assert_eq!(connection.take_control(), None);
        connection.on_client_deaf();
        let last = Control {
            op: Op::Shutdown,
            flags: SHUTDOWN_BOTH,
        };
        assert_eq!(connection.take_control(), Some(last));
        assert!(connection.is_over());
    }

    #[test]
    fn reset_with_bytes_left_waits_for_the_client_and_tells_the_guest_nothing() {
        let mut connection = open();
        assert_eq!(data(&mut connection, 10), Outcome::Continue);
        connection.on_control(Op::Shutdown, &header(SHUTDOWN_BOTH));
        assert_eq!(
            connection.on_control(Op::Reset, &header(0)),
            Outcome::Continue
        );
        assert!(!connection.is_over() && !connection.has_control());
        connection.on_forwarded(10);
        assert!(connection.is_over());
    }

    #[test]
    fn reset_without_a_shutdown_ends_at_once() {
        let mut connection = open();
        assert_eq!(data(&mut connection, 10), Outcome::Continue);
        assert_eq!(
            connection.on_control(Op::Reset, &header(0)),
            Outcome::Over { reset: false }
        );
    }

    proptest! {
        /// Nothing is left half-closed for ever: once both sides have ended and what was promised is
        /// delivered, taking the packets that are due ends the connection.
        #[test]
        fn connection_whose_sides_have_all_ended_is_over(
            steps in prop::collection::vec((0..7_u8, 0..4_u32, 0..WINDOW), 0..40)
        ) {
            let mut connection = open();
            let mut waiting = 0;
            for (step, flags, len) in steps {
                let outcome = match step {
                    0 => connection.on_control(Op::Shutdown, &header(flags)),
                    1 => connection.on_control(Op::CreditRequest, &header(0)),
                    2 => data(&mut connection, len),
                    3 => { connection.on_forwarded(len as usize); Outcome::Continue }
                    4 => { connection.on_client_end(); Outcome::Continue }
                    5 => { connection.on_client_deaf(); Outcome::Continue }
                    _ => { connection.take_control(); Outcome::Continue }
                };
                if outcome != Outcome::Continue || connection.is_over() {
                    return Ok(());
                }
                waiting = connection.waiting();
                prop_assert!(waiting <= WINDOW as usize);
            }
            connection.on_client_end();
            connection.on_control(Op::Shutdown, &header(SHUTDOWN_SEND));
            connection.on_forwarded(waiting);
            let mut packets = 0;
            while connection.has_control() {
                prop_assert!(connection.take_control().is_some(), "promised a packet");
                packets += 1;
                prop_assert!(packets < 10);
            }
            prop_assert!(connection.is_over());
        }
    }
}
