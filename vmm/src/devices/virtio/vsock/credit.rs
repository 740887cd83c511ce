//! How many bytes each side may have under way (virtio 1.2, section 5.10.6.3). Pure.
//!
//! Counters wrap at 2^32 and only differences mean anything. What we promise the guest is a
//! [`WINDOW`]: as many of its bytes as we are ready to keep for a host client that does not read.

/// Bytes of the guest's that one connection may keep on the host.
pub const WINDOW: u32 = 64 * 1024;

/// Below this much promised room the guest is told about new room. Half, so that a guest that sends
/// without pause neither waits nor is told about every packet.
const LOW: u32 = WINDOW / 2;

/// The credit of one connection, both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credit {
    /// From the guest, so far.
    received: u32,
    /// Of these, handed to the host client.
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    announced: u32,
    /// To the guest, so far.
    sent: u32,
    /// What the guest says it handed to its application.
    peer_forwarded: u32,
    /// What the guest says it can keep.
    peer_window: u32,
}

impl Credit {
    /// Bytes from the guest that wait for the host client. Never more than [`WINDOW`].
    pub fn waiting(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Counts bytes from the guest. `false`, and nothing counted, if the guest had no room for them.
    #[must_use]
    pub fn receive(&mut self, len: u32) -> bool {
        if len > WINDOW - self.waiting() {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Counts bytes that the host client took, or that nobody wants any more.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len.min(self.waiting()));
    }

    /// Whether the guest should be told about room before it has to stop.
    pub fn update_due(&self) -> bool {
        let room_known = WINDOW.saturating_sub(self.received.wrapping_sub(self.announced));
        self.forwarded != self.announced && room_known < LOW
    }

    /// What the next packet to the guest says about us: room and bytes forwarded.
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (WINDOW, self.forwarded)
    }

    /// What a packet from the guest says about it.
    pub fn learn(&mut self, window: u32, forwarded: u32) {
        self.peer_window = window;
        self.peer_forwarded = forwarded;
    }

    /// Bytes the guest has room for. A guest that claims to have handed on more than it got has
    /// none, which only hurts itself.
    pub fn room(&self) -> u32 {
        self.peer_window
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Counts bytes sent to the guest.
    pub fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counters that start anywhere, so that wrapping is as likely as not.
    fn credit_starting_at(start: u32) -> Credit {
        Credit {
            received: start,
            forwarded: start,
            announced: start,
            sent: start,
            peer_forwarded: start,
            peer_window: 0,
        }
    }

    #[test]
    fn guest_that_fills_the_window_is_refused_one_byte_more() {
        let mut credit = credit_starting_at(u32::MAX - 5);
        assert!(credit.receive(WINDOW));
        assert!(!credit.receive(1));
        assert!(credit.receive(0));
        assert!(!credit.receive(u32::MAX));
        credit.forward(10);
        assert!(credit.receive(10));
    }

    #[test]
    fn update_is_due_once_when_half_the_window_is_used() {
        let mut credit = Credit::default();
        assert!(credit.receive(LOW));
        credit.forward(LOW);
        assert!(!credit.update_due());
        assert!(credit.receive(1));
        assert!(credit.update_due());
        credit.announce();
        assert!(!credit.update_due());
    }

    #[test]
    fn update_is_not_due_while_there_is_nothing_new_to_say() {
        let mut credit = Credit::default();
        assert!(credit.receive(WINDOW));
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());
    }

    #[test]
    fn guest_that_claims_more_than_it_got_has_no_room() {
        let mut credit = Credit::default();
        credit.learn(1000, 1);
        assert_eq!(credit.room(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Receive(u32),
        Forward(u32),
        Announce,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..2 * WINDOW).prop_map(Step::Receive),
            any::<u32>().prop_map(Step::Receive),
            (0..2 * WINDOW).prop_map(Step::Forward),
            Just(Step::Announce),
        ]
    }

    proptest! {
        #[test]
        fn waiting_bytes_match_a_plain_count_and_never_pass_the_window(
            start: u32, steps in prop::collection::vec(step(), 0..60)
        ) {
            let mut credit = credit_starting_at(start);
            let mut waiting = 0_u64;
            for step in steps {
                match step {
                    Step::Receive(len) => {
                        let fits = waiting + u64::from(len) <= u64::from(WINDOW);
                        prop_assert_eq!(credit.receive(len), fits);
                        waiting += if fits { len.into() } else { 0 };
                    }
                    Step::Forward(len) => {
                        credit.forward(len);
                        waiting = waiting.saturating_sub(len.into());
                    }
                    Step::Announce => {
                        credit.announce();
                    }
                }
                prop_assert_eq!(u64::from(credit.waiting()), waiting);
                prop_assert!(credit.waiting() <= WINDOW);
            }
        }

        /// The guest computes its room from what it was told last; that must never be more than
        /// what is accepted, or an honest guest would be reset.
        #[test]
        fn guest_that_stays_within_what_it_was_told_is_never_refused(
            start: u32, steps in prop::collection::vec((0..WINDOW, 0..WINDOW, any::<bool>()), 0..60)
        ) {
            let mut credit = credit_starting_at(start);
            let (mut guest_sent, mut guest_knows) = (start, start);
            for (len, forward, told) in steps {
                let room = WINDOW - guest_sent.wrapping_sub(guest_knows);
                let len = len.min(room);
                prop_assert!(credit.receive(len));
                guest_sent = guest_sent.wrapping_add(len);
                credit.forward(forward);
                if told || credit.update_due() {
                    guest_knows = credit.announce().1;
                }
                // And it is never left without room for ever.
                prop_assert!(credit.waiting() > 0 || guest_sent.wrapping_sub(guest_knows) < WINDOW);
            }
        }

        #[test]
        fn host_never_sends_more_than_an_honest_guest_has_room_for(
            start: u32, window: u32, steps in prop::collection::vec((any::<u32>(), any::<u32>()), 0..60)
        ) {
            let mut credit = credit_starting_at(start);
            credit.learn(window, start);
            let (mut kept, mut forwarded) = (0_u32, start);
            for (send, read) in steps {
                let len = send.min(credit.room());
                credit.send(len);
                kept = kept.checked_add(len).unwrap();
                prop_assert!(kept <= window);
                let read = read.min(kept);
                kept -= read;
                forwarded = forwarded.wrapping_add(read);
                credit.learn(window, forwarded);
                prop_assert_eq!(credit.room(), window - kept);
            }
        }

        #[test]
        fn no_claim_of_a_guest_makes_the_arithmetic_fail(window: u32, forwarded: u32, sent: u32) {
            let mut credit = Credit::default();
            credit.send(sent);
            credit.learn(window, forwarded);
            prop_assert!(credit.room() <= window);
        }
    }
}
