//! How many bytes each side may have under way (virtio 1.2, section 5.10.6.3). Pure.
//!
//! Counters wrap at 2^32 and only differences mean anything. What we promise the guest is a
//! [`WINDOW`]: as many of its bytes as we are ready to keep for a host client that does not read.

/// Bytes of the guest's that one connection may keep on the host.
pub const WINDOW: u32 = 64 * 1024;

/// Below this much promised room the guest is told about new room. Half, so that a guest that sends
/// without pause neither waits nor is told about every packet.
const LOW: u32 = WINDOW / 2;

/// What counts bytes. Only `u32` ever does; the arithmetic is written for any width so that a test can try all there is of a narrow one.
pub trait Counter: Copy + Default + Ord {
    /// [`WINDOW`] and [`LOW`], of this width.
    const WINDOW: Self;
    const LOW: Self;
    fn wrapping_add(self, other: Self) -> Self;
    fn wrapping_sub(self, other: Self) -> Self;
    fn saturating_sub(self, other: Self) -> Self;
}

macro_rules! counter {
    ($type:ty, $window:expr, $low:expr) => {
        impl Counter for $type {
            const WINDOW: Self = $window;
            const LOW: Self = $low;

            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            fn saturating_sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }
    };
}

counter!(u32, WINDOW, LOW);

/// The credit of one connection, both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credit<N = u32> {
    /// From the guest, so far.
    received: N,
    /// Of these, handed to the host client.
    forwarded: N,
    /// What the guest knows of `forwarded`.
    announced: N,
    /// To the guest, so far.
    sent: N,
    /// What the guest says it handed to its application.
    peer_forwarded: N,
    /// What the guest says it can keep.
    peer_window: N,
}

impl<N: Counter> Credit<N> {
    /// Bytes from the guest that wait for the host client. Never more than [`WINDOW`].
    pub fn waiting(&self) -> N {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Counts bytes from the guest. `false`, and nothing counted, if the guest had no room for them.
    #[must_use]
    pub fn receive(&mut self, len: N) -> bool {
        if len > N::WINDOW.saturating_sub(self.waiting()) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Counts bytes that the host client took, or that nobody wants any more.
    pub fn forward(&mut self, len: N) {
        self.forwarded = self.forwarded.wrapping_add(len.min(self.waiting()));
    }

    /// Whether the guest should be told about room before it has to stop.
    pub fn update_due(&self) -> bool {
        let room_known = N::WINDOW.saturating_sub(self.received.wrapping_sub(self.announced));
        self.forwarded != self.announced && room_known < N::LOW
    }

    /// What the next packet to the guest says about us: room and bytes forwarded.
    pub fn announce(&mut self) -> (N, N) {
        self.announced = self.forwarded;
        (N::WINDOW, self.forwarded)
    }

    /// What a packet from the guest says about it.
    pub fn learn(&mut self, window: N, forwarded: N) {
        self.peer_window = window;
        self.peer_forwarded = forwarded;
    }

    /// Bytes the guest has room for. A guest that claims to have handed on more than it got has
    /// none, which only hurts itself.
    pub fn room(&self) -> N {
        self.peer_window
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Counts bytes sent to the guest.
    pub fn send(&mut self, len: N) {
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
        let mut credit = Credit::<u32>::default();
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
        let mut credit = Credit::<u32>::default();
        assert!(credit.receive(WINDOW));
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());
    }

    #[test]
    fn guest_that_claims_more_than_it_got_has_no_room() {
        let mut credit = Credit::<u32>::default();
        credit.learn(1000, 1);
        assert_eq!(credit.room(), 0);
    }

    // As the real numbers are to theirs: a window far below the width, and half of it.
    counter!(u8, 16, 8);

    /// Every credit that there can be, at every place of the counters, and every number that comes then.
    #[test]
    fn counters_of_eight_bits_do_what_plain_numbers_do_wherever_they_wrap() {
        for start in 0..=u8::MAX {
            for waiting in 0..=16_u8 {
                // What is on its way to the client was announced at most as far as it is forwarded, and at least as far as the guest could
                // not have sent it otherwise.
                for unannounced in 0..=16 - waiting {
                    let credit = Credit {
                        received: start.wrapping_add(waiting),
                        forwarded: start,
                        announced: start.wrapping_sub(unannounced),
                        ..Credit::default()
                    };
                    assert_eq!(credit.waiting(), waiting);
                    let known_room = 16 - (waiting + unannounced);
                    assert_eq!(credit.update_due(), unannounced > 0 && known_room < 8);
                    for len in 0..=u8::MAX {
                        let mut received = credit.clone();
                        let fits = u32::from(waiting) + u32::from(len) <= 16;
                        assert_eq!(received.receive(len), fits);
                        assert_eq!(
                            received.waiting(),
                            if fits { waiting + len } else { waiting }
                        );
                        let mut forwarded = credit.clone();
                        forwarded.forward(len);
                        assert_eq!(forwarded.waiting(), waiting.saturating_sub(len));
                    }
                    let mut announced = credit.clone();
                    assert_eq!(announced.announce(), (16, start));
                    assert!(!announced.update_due());
                }
            }
        }
    }

    /// Whatever a guest says of its room, and whatever is under way.
    #[test]
    fn room_in_eight_bits_is_the_window_less_what_is_under_way_for_all_claims() {
        for peer_forwarded in 0..=u8::MAX {
            for under_way in 0..=u8::MAX {
                for window in 0..=u8::MAX {
                    let mut credit = Credit {
                        sent: peer_forwarded.wrapping_add(under_way),
                        ..Credit::default()
                    };
                    credit.learn(window, peer_forwarded);
                    let room = u32::from(window).saturating_sub(under_way.into());
                    assert_eq!(u32::from(credit.room()), room);
                    // All of it may be sent at once, and then there is none.
                    credit.send(credit.room());
                    assert_eq!(credit.room(), 0);
                }
            }
        }
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
            let mut credit = Credit::<u32>::default();
            credit.send(sent);
            credit.learn(window, forwarded);
            prop_assert!(credit.room() <= window);
        }
    }
}
