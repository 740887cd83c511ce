use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    max_sessions: 3,
    cooldown: Duration::from_secs(300),
};

fn id(n: u8) -> Identifier {
    format!("user-{n}").parse().unwrap()
}

fn at(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

/// Brings the session of `id(n)` to where it serves; gives its slot.
fn serving(table: &mut Table, n: u8, now: Moment) -> SlotId {
    let ticket = Ticket(1000 + u64::from(n));
    let actions = table.claim(ticket, &id(n), now);
    let [Action::Fill { slot, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        table.slot_ready(slot),
        [Action::Bind {
            slot,
            identifier: id(n)
        }]
    );
    assert_eq!(
        table.bound(slot, now),
        [Action::Answer {
            ticket,
            answer: Ok(slot)
        }]
    );
    slot
}

#[test]
fn two_claims_of_one_new_identifier_fill_one_slot() {
    let mut table = Table::new(LIMITS);
    let first = table.claim(Ticket(1), &id(1), at(0));
    assert_eq!(
        first,
        [Action::Fill {
            slot: SlotId(0),
            identifier: id(1)
        }]
    );
    assert_eq!(table.claim(Ticket(2), &id(1), at(0)), []);
    table.slot_ready(SlotId(0));
    let answers = table.bound(SlotId(0), at(1));
    let answer = |n| Action::Answer {
        ticket: Ticket(n),
        answer: Ok(SlotId(0)),
    };
    assert_eq!(answers, [answer(1), answer(2)]);
}

#[test]
fn full_pool_refuses_with_the_time_until_the_longest_idle_session_ends() {
    let mut table = Table::new(LIMITS);
    for n in 0..3 {
        let slot = serving(&mut table, n, at(0));
        table.released(slot, at(100 + u64::from(n)));
    }
    let refused = table.claim(Ticket(1), &id(9), at(250));
    let answer = Err(Denied::Full {
        max_sessions: 3,
        retry_after: at(150),
    });
    assert_eq!(
        refused,
        [Action::Answer {
            ticket: Ticket(1),
            answer
        }]
    );
}

#[test]
fn session_in_use_outlives_the_cooldown_and_ends_one_cooldown_after_its_last_request() {
    let mut table = Table::new(LIMITS);
    let slot = serving(&mut table, 1, at(0));
    assert_eq!(table.next_deadline(), None);
    assert_eq!(table.tick(at(10_000)), []);
    table.released(slot, at(10_000));
    assert_eq!(table.next_deadline(), Some(at(10_300)));
    table.claim(Ticket(2), &id(1), at(10_299));
    table.released(slot, at(10_299));
    assert_eq!(table.tick(at(10_300)), []);
    assert_eq!(
        table.tick(at(10_599)),
        [Action::Drain {
            slot,
            reason: EndReason::Idle
        }]
    );
    assert_eq!(table.slots_in_use(), 1);
    table.slot_gone(slot, at(10_600));
    assert_eq!(table.slots_in_use(), 0);
}

#[test]
fn claim_of_an_ending_session_waits_for_it_to_be_gone_and_gets_a_new_slot() {
    let mut table = Table::new(Limits {
        max_sessions: 1,
        ..LIMITS
    });
    let old = serving(&mut table, 1, at(0));
    table.slot_failed(old, StartFailure::vanished());
    assert_eq!(table.claim(Ticket(2), &id(1), at(1)), []);
    let actions = table.slot_gone(old, at(2));
    assert_eq!(
        actions,
        [Action::Fill {
            slot: SlotId(1),
            identifier: id(1)
        }]
    );
    table.slot_ready(SlotId(1));
    let answer = Action::Answer {
        ticket: Ticket(2),
        answer: Ok(SlotId(1)),
    };
    assert_eq!(table.bound(SlotId(1), at(3)), [answer]);
}

#[test]
fn failed_start_answers_every_caller_and_frees_the_slot_when_gone() {
    let mut table = Table::new(LIMITS);
    table.claim(Ticket(1), &id(1), at(0));
    table.claim(Ticket(2), &id(1), at(0));
    let failure = StartFailure::vanished();
    let answers = table.slot_failed(SlotId(0), failure.clone());
    let answer = |n| Action::Answer {
        ticket: Ticket(n),
        answer: Err(Denied::StartFailed(failure.clone())),
    };
    assert_eq!(answers, [answer(1), answer(2)]);
    assert_eq!(table.slot_gone(SlotId(0), at(1)), []);
    assert_eq!(table.slots_in_use(), 0);
}

#[test]
fn lowered_maximum_keeps_the_sessions_that_are_there_and_admits_no_more() {
    let mut table = Table::new(LIMITS);
    serving(&mut table, 1, at(0));
    serving(&mut table, 2, at(0));
    table.set_limits(Limits {
        max_sessions: 1,
        ..LIMITS
    });
    assert_eq!(table.slots_in_use(), 2);
    assert!(matches!(
        table.claim(Ticket(1), &id(3), at(0))[..],
        [Action::Answer {
            answer: Err(Denied::Full { .. }),
            ..
        }]
    ));
}

/// What a caller or the world may do next.
#[derive(Debug, Clone)]
enum Step {
    Claim(u8),
    Release(usize),
    Ready(usize),
    Bound(usize),
    BindFailed(usize),
    Failed(usize),
    Gone(usize),
    Pass(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let any_slot = 0..8_usize;
    prop_oneof![
        6 => (0..6_u8).prop_map(Step::Claim),
        4 => any_slot.clone().prop_map(Step::Release),
        6 => any_slot.clone().prop_map(Step::Ready),
        6 => any_slot.clone().prop_map(Step::Bound),
        1 => any_slot.clone().prop_map(Step::BindFailed),
        1 => any_slot.clone().prop_map(Step::Failed),
        4 => any_slot.prop_map(Step::Gone),
        3 => (1..400_u64).prop_map(Step::Pass),
        1 => Just(Step::Close),
    ]
}

/// The world outside the table, as far as it must be consistent.
#[derive(Default)]
struct World {
    now: u64,
    next_ticket: u64,
    /// Slots that exist, with what was asked for them.
    slots: Vec<(SlotId, Place)>,
    asked: HashMap<Ticket, Identifier>,
    open: Vec<SlotId>,
}

#[derive(Debug, Clone)]
struct Place {
    identifier: Identifier,
    ready: bool,
    bind_asked: bool,
    bound: bool,
    ending: bool,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fill { slot, identifier } => {
                    let taken = self
                        .slots
                        .iter()
                        .any(|(_, place)| place.identifier == identifier);
                    assert!(!taken, "two slots for one identifier");
                    let place = Place {
                        identifier,
                        ready: false,
                        bind_asked: false,
                        bound: false,
                        ending: false,
                    };
                    self.slots.push((slot, place));
                    assert!(
                        self.slots.len() <= LIMITS.max_sessions,
                        "more slots than allowed"
                    );
                }
                Action::Bind { slot, identifier } => {
                    let place = self.place(slot);
                    assert_eq!(place.identifier, identifier);
                    assert!(place.ready && !place.bind_asked, "a slot is bound once");
                    place.bind_asked = true;
                }
                Action::Answer { ticket, answer } => {
                    let identifier = self.asked.remove(&ticket).expect("answered twice");
                    if let Ok(slot) = answer {
                        let place = self.place(slot);
                        assert_eq!(place.identifier, identifier, "somebody else's session");
                        assert!(
                            place.bound && !place.ending,
                            "a session that does not serve"
                        );
                        self.open.push(slot);
                    }
                }
                Action::Drain { slot, reason } => {
                    assert!(
                        reason != EndReason::Idle || !self.open.contains(&slot),
                        "in use"
                    );
                    self.place(slot).ending = true;
                }
            }
        }
    }

    fn place(&mut self, slot: SlotId) -> &mut Place {
        let found = self.slots.iter_mut().find(|(id, _)| *id == slot);
        &mut found.unwrap_or_else(|| panic!("{slot:?} does not exist")).1
    }

    fn pick(&self, n: usize, fits: impl Fn(&Place) -> bool) -> Option<SlotId> {
        let fitting: Vec<_> = self.slots.iter().filter(|(_, place)| fits(place)).collect();
        (!fitting.is_empty()).then(|| fitting[n % fitting.len()].0)
    }

    fn apply(&mut self, table: &mut Table, step: Step) {
        let now = at(self.now);
        let actions = match step {
            Step::Claim(n) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.asked.insert(ticket, id(n));
                table.claim(ticket, &id(n), now)
            }
            Step::Release(n) if !self.open.is_empty() => {
                let slot = self.open.swap_remove(n % self.open.len());
                table.released(slot, now);
                Vec::new()
            }
            Step::Ready(n) => match self.pick(n, |place| !place.ready && !place.ending) {
                Some(slot) => {
                    self.place(slot).ready = true;
                    table.slot_ready(slot)
                }
                None => Vec::new(),
            },
            Step::Bound(n) => match self.pick(n, |place| place.bind_asked && !place.bound) {
                Some(slot) => {
                    self.place(slot).bound = true;
                    table.bound(slot, now)
                }
                None => Vec::new(),
            },
            Step::BindFailed(n) => match self.pick(n, |place| place.bind_asked && !place.bound) {
                Some(slot) => {
                    self.place(slot).bind_asked = false;
                    self.place(slot).ending = true;
                    table.bind_failed(slot)
                }
                None => Vec::new(),
            },
            Step::Failed(n) => match self.pick(n, |place| !place.ending) {
                Some(slot) => {
                    self.place(slot).ending = true;
                    table.slot_failed(slot, StartFailure::vanished())
                }
                None => Vec::new(),
            },
            Step::Gone(n) => match self.pick(n, |place| place.ending) {
                Some(slot) => {
                    self.slots.retain(|(id, _)| *id != slot);
                    self.open.retain(|id| *id != slot);
                    table.slot_gone(slot, now)
                }
                None => Vec::new(),
            },
            Step::Pass(seconds) => {
                self.now += seconds;
                table.tick(at(self.now))
            }
            Step::Close => table.close(),
            Step::Release(_) => Vec::new(),
        };
        self.carry_out(actions);
        assert_eq!(table.slots_in_use(), self.slots.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_keeps_one_session_per_identifier_and_answers_every_caller(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut table = Table::new(LIMITS);
        let mut world = World::default();
        for step in steps {
            world.apply(&mut table, step);
        }
        // Let everything come to its end: nothing may be left, nobody unanswered.
        let closing = table.close();
        world.carry_out(closing);
        while !world.slots.is_empty() {
            for (_, place) in &mut world.slots {
                place.ending = true;
            }
            world.apply(&mut table, Step::Gone(0));
        }
        prop_assert_eq!(table.slots_in_use(), 0);
        prop_assert!(world.asked.is_empty(), "{} callers were never answered", world.asked.len());
        prop_assert_eq!(table.next_deadline(), None);
    }
}
