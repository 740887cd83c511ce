//! Much and long: a month of a busy pool with simulated time, and what a claim costs when many
//! sessions are there.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::*;

const REVISION: Uuid = Uuid::from_u128(1);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const SESSIONS: usize = 100_000;
const COOLDOWN: Duration = Duration::from_secs(300);
const MAX_SESSIONS: usize = 60;
const READY_SESSIONS: usize = 5;

/// What happens in the world, at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Ready(SlotId),
    Failed(SlotId),
    Bound(SlotId),
    Released(SlotId),
    Gone(SlotId),
}

/// A host on which starts take a while and fail now and then.
struct Simulation {
    table: Table,
    now: Moment,
    events: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    number: u64,
    random: u64,
    arrivals: usize,
    asked: HashMap<Ticket, Moment>,
    used: HashSet<SlotId>,
    alive: HashSet<SlotId>,
    most_alive: usize,
    answered: usize,
    at_once: usize,
    full: usize,
    failed: usize,
}

impl Simulation {
    fn new() -> Self {
        let limits = Limits {
            max_sessions: MAX_SESSIONS,
            ready_sessions: READY_SESSIONS,
            life: Life::Idle(COOLDOWN),
        };
        Self {
            table: Table::new(limits, REVISION, 1),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            number: 0,
            random: 1,
            arrivals: 0,
            asked: HashMap::new(),
            used: HashSet::new(),
            alive: HashSet::new(),
            most_alive: 0,
            answered: 0,
            at_once: 0,
            full: 0,
            failed: 0,
        }
    }

    /// Less than `below`; the same in every run. Knuth's constants for a linear generator.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.number += 1;
        let at = self.now + Duration::from_millis(millis);
        self.events.push(Reverse((at, self.number, event)));
    }

    fn run(&mut self) {
        let actions = self.table.tick(self.now);
        self.carry_out(actions);
        self.after(10_000, Event::Arrival);
        loop {
            let deadline = self.table.next_deadline(self.now);
            let event = self.events.peek().map(|Reverse((at, ..))| *at);
            let actions = match (event, deadline) {
                (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else {
                        return;
                    };
                    self.now = at;
                    self.happen(event)
                }
                (_, Some(deadline)) => {
                    self.now = deadline;
                    self.table.tick(deadline)
                }
                (_, None) => return,
            };
            self.carry_out(actions);
        }
    }

    fn happen(&mut self, event: Event) -> Vec<Action> {
        let now = self.now;
        match event {
            Event::Arrival => {
                self.arrivals += 1;
                if self.arrivals < SESSIONS {
                    let mean = u64::try_from(MONTH.as_millis()).unwrap() / SESSIONS as u64;
                    let pause = self.random(2 * mean);
                    self.after(pause, Event::Arrival);
                }
                let ticket = Ticket(self.arrivals as u64);
                self.asked.insert(ticket, now);
                let identifier = format!("user-{}", self.arrivals).parse().unwrap();
                self.table.claim(ticket, &identifier, now)
            }
            Event::Ready(slot) => self.table.slot_ready(slot, now),
            Event::Failed(slot) => {
                self.after(100, Event::Gone(slot));
                self.table.slot_failed(slot, StartFailure::vanished(), now)
            }
            Event::Bound(slot) => self.table.bound(slot, now),
            Event::Released(slot) => {
                self.table.released(slot, now);
                Vec::new()
            }
            Event::Gone(slot) => {
                assert!(self.alive.remove(&slot), "{slot:?} is gone twice");
                self.table.slot_gone(slot, now)
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fill { slot, .. } => {
                    assert!(self.alive.insert(slot));
                    self.most_alive = self.most_alive.max(self.alive.len());
                    let takes = 20 + self.random(400);
                    let event = match self.random(100) {
                        0..3 => Event::Failed(slot),
                        _ => Event::Ready(slot),
                    };
                    self.after(takes, event);
                }
                Action::Bind { slot, .. } => {
                    assert!(self.used.insert(slot), "{slot:?} is used twice");
                    self.after(1, Event::Bound(slot));
                }
                Action::Answer { ticket, answer } => {
                    let asked = self.asked.remove(&ticket).expect("answered twice");
                    match answer {
                        Ok(slot) => {
                            self.answered += 1;
                            self.at_once += usize::from(self.now - asked <= COOLDOWN / 100_000);
                            let open = self.random(120_000);
                            self.after(open, Event::Released(slot));
                        }
                        Err(Denied::Full { retry_after, .. }) => {
                            assert!(retry_after <= COOLDOWN);
                            self.full += 1;
                        }
                        Err(Denied::StartFailed(_)) => self.failed += 1,
                        Err(denied) => panic!("{denied:?}"),
                    }
                }
                Action::Drain { slot, .. } => self.after(500, Event::Gone(slot)),
                Action::Activate { .. } => panic!("there is one revision"),
            }
        }
    }
}

#[test]
fn month_with_a_hundred_thousand_sessions_leaves_nothing_but_what_is_kept_ready() {
    let mut simulation = Simulation::new();
    simulation.run();
    let Simulation {
        answered,
        at_once,
        full,
        failed,
        ..
    } = simulation;
    assert_eq!(answered + full + failed, SESSIONS);
    // Nearly nobody waits for a start, and nobody sees one that failed while slots were ready.
    assert!(
        at_once * 1000 > SESSIONS * 985,
        "{at_once} at once, {full} full, {failed} failed"
    );
    assert!(failed < SESSIONS / 1000, "{failed}");
    assert!(simulation.asked.is_empty());
    assert_eq!(simulation.alive.len(), READY_SESSIONS);
    assert_eq!(
        simulation.table.counts(REVISION).ready as usize,
        READY_SESSIONS
    );
    assert!(simulation.most_alive <= MAX_SESSIONS);
    assert!(simulation.now > MONTH * 9 / 10, "{:?}", simulation.now);
}

/// The least time that one session's whole life took, over many of them, with `others` beside it.
fn life_beside(others: usize) -> Duration {
    let limits = Limits {
        max_sessions: others + 8,
        ready_sessions: 4,
        life: Life::Idle(COOLDOWN),
    };
    let now = Duration::from_secs(1);
    let mut table = Table::new(limits, REVISION, 1);
    let mut next_ticket = 0;
    // Everything that is asked for happens at once.
    let happen = |table: &mut Table, mut actions: Vec<Action>| {
        while let Some(action) = actions.pop() {
            actions.extend(match action {
                Action::Fill { slot, .. } => table.slot_ready(slot, now),
                Action::Bind { slot, .. } => table.bound(slot, now),
                Action::Answer { answer, .. } => {
                    table.released(answer.unwrap(), now);
                    Vec::new()
                }
                Action::Drain { slot, .. } => table.slot_gone(slot, now),
                Action::Activate { .. } => Vec::new(),
            });
        }
    };
    let actions = table.tick(now);
    happen(&mut table, actions);
    let mut claim = |table: &mut Table, identifier: &Identifier| {
        next_ticket += 1;
        table.claim(Ticket(next_ticket), identifier, now)
    };
    for n in 0..others {
        let actions = claim(&mut table, &format!("other-{n}").parse().unwrap());
        happen(&mut table, actions);
    }
    let identifier: Identifier = "the-one".parse().unwrap();
    let lives = (0..20).map(|_| {
        let begin = std::time::Instant::now();
        for _ in 0..100 {
            let actions = claim(&mut table, &identifier);
            happen(&mut table, actions);
            let actions = claim(&mut table, &identifier);
            happen(&mut table, actions);
            assert!(table.next_deadline(now).is_some());
            let (_, actions) = table.stop(&identifier, now).unwrap();
            happen(&mut table, actions);
        }
        begin.elapsed()
    });
    lives.min().unwrap()
}

#[test]
fn claim_costs_the_same_beside_ten_and_beside_a_thousand_other_sessions() {
    let [few, many, most] = [10, 100, 1000].map(life_beside);
    // Anything that looked at every session would take a hundred times as long.
    for (beside, took) in [(100, many), (1000, most)] {
        assert!(
            took < few * 8,
            "{few:?} beside 10, {took:?} beside {beside}"
        );
    }
}
