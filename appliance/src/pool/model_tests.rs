//! The table against a simple model of the world around it: whatever happens in whatever order, what
//! was promised holds.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::pool::adopt::Left;

const COOLDOWN: Duration = Duration::from_secs(300);
/// Longer than everything in a pool that depends on time.
const LONG: Duration = Duration::from_secs(400);

fn id(n: u8) -> Identifier {
    format!("user-{n}").parse().unwrap()
}

fn revision(n: u8) -> Uuid {
    Uuid::from_u128(n.into())
}

/// What a caller or the world may do next.
#[derive(Debug, Clone)]
enum Step {
    Claim(u8),
    HangUp(usize),
    Release(usize),
    Ready(usize),
    Bound(usize),
    BindFailed(usize),
    Failed(usize),
    /// The container ends, or the worker dies.
    Gone(usize),
    Stop(u8),
    Pass(u64),
    Update {
        max_sessions: usize,
        ready_sessions: usize,
        revision: u8,
        alive: bool,
    },
    /// From now on the host has room for so many slots.
    Room(usize),
    /// The appliance dies, and another one goes on with what it finds. The bits say how far the one had come with what it was
    /// doing.
    Restart(u64),
    /// An operator empties the host, has no patience any more, or lets it serve again.
    Drain,
    Hurry,
    Undrain,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..12_usize;
    let update = (1..6_usize, 0..5_usize, 1..4_u8, proptest::bool::ANY);
    prop_oneof![
        12 => (0..8_u8).prop_map(Step::Claim),
        3 => any.clone().prop_map(Step::HangUp),
        6 => any.clone().prop_map(Step::Release),
        12 => any.clone().prop_map(Step::Ready),
        10 => any.clone().prop_map(Step::Bound),
        1 => any.clone().prop_map(Step::BindFailed),
        3 => any.clone().prop_map(Step::Failed),
        8 => any.prop_map(Step::Gone),
        2 => (0..8_u8).prop_map(Step::Stop),
        6 => (1..200_u64).prop_map(Step::Pass),
        3 => update.prop_map(|(max_sessions, ready_sessions, revision, alive)| Step::Update {
            max_sessions,
            ready_sessions,
            revision,
            alive,
        }),
        1 => (2..12_usize).prop_map(Step::Room),
        2 => proptest::num::u64::ANY.prop_map(Step::Restart),
        2 => Just(Step::Drain),
        1 => Just(Step::Hurry),
        2 => Just(Step::Undrain),
    ]
}

/// A slot as the world sees it.
#[derive(Debug, Clone)]
struct Seen {
    revision: Uuid,
    ready: bool,
    /// It is noted beside the guest that nobody had it.
    noted: bool,
    owner: Option<Identifier>,
    bound: bool,
    ending: bool,
    open: usize,
    /// Somebody had it.
    used: bool,
    /// When a request last began or ended.
    last_used: Moment,
}

/// The world outside the table, as far as it must be consistent.
struct World {
    table: Table,
    limits: Limits,
    now: Moment,
    next_ticket: u64,
    slots: BTreeMap<SlotId, Seen>,
    /// Callers that wait.
    asked: HashMap<Ticket, Identifier>,
    active: Uuid,
    /// What the store says that claims get, which it is told after they have moved over.
    recorded: Uuid,
    wanted: Uuid,
    room: usize,
    closed: bool,
    emptying: bool,
}

impl World {
    fn new() -> Self {
        let limits = limits(4, 2, false);
        let mut world = Self {
            table: Table::new(limits, revision(1), 7),
            limits,
            now: Duration::ZERO,
            next_ticket: 0,
            slots: BTreeMap::new(),
            asked: HashMap::new(),
            active: revision(1),
            recorded: revision(1),
            wanted: revision(1),
            room: usize::MAX,
            closed: false,
            emptying: false,
        };
        let actions = world.table.tick(world.now);
        world.carry_out(actions);
        world
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Fill { slot, revision, .. } => self.on_fill(slot, revision),
                Action::Bind { slot, identifier } => self.on_bind(slot, identifier),
                Action::Answer { ticket, answer } => self.on_answer(ticket, answer),
                Action::Drain { slot, reason } => {
                    let now = self.now;
                    let seen = self.slot(slot);
                    assert!(!seen.ending, "{slot:?} is stopped twice");
                    assert!(
                        reason != EndReason::Idle
                            || seen.open == 0 && now - seen.last_used >= COOLDOWN,
                        "{slot:?} is in use or was"
                    );
                    assert_eq!(
                        matches!(reason, EndReason::Superseded | EndReason::Surplus),
                        seen.owner.is_none()
                            && !matches!(reason, EndReason::Closing | EndReason::HostDrains),
                        "{reason:?} of {slot:?}"
                    );
                    seen.ending = true;
                }
                Action::Activate { revision } => {
                    assert_eq!(revision, self.wanted, "nobody wants it");
                    self.active = revision;
                }
            }
        }
    }

    fn on_fill(&mut self, slot: SlotId, revision: Uuid) {
        assert!(!self.closed, "a closed pool starts nothing");
        assert!(
            !self.emptying,
            "nothing is started on a host that is emptied"
        );
        assert!(revision == self.active || revision == self.wanted);
        if self.slots.len() >= self.room {
            let shortage = Shortage {
                resource: crate::pool::budget::Resource::Memory,
                needed: 1,
                taken: 1,
                total: 1,
            };
            let actions = self.table.start_refused(slot, shortage, self.now);
            return self.carry_out(actions);
        }
        let seen = Seen {
            revision,
            ready: false,
            noted: false,
            owner: None,
            bound: false,
            ending: false,
            open: 0,
            used: false,
            last_used: Duration::ZERO,
        };
        assert!(self.slots.insert(slot, seen).is_none(), "used twice");
        let most = self.limits.max_sessions;
        assert!(self.slots.len() <= most, "more slots than {most}");
    }

    fn on_bind(&mut self, slot: SlotId, identifier: Identifier) {
        assert!(
            !self.emptying,
            "a session is begun on a host that is emptied"
        );
        let others = self.slots.values();
        let taken = others.filter(|seen| seen.owner.as_ref() == Some(&identifier));
        assert_eq!(taken.count(), 0, "two slots for one identifier");
        let waits = self.asked.values().any(|asked| *asked == identifier);
        assert!(waits, "a session that nobody asks for");
        let seen = self.slot(slot);
        assert!(
            seen.ready && !seen.ending && seen.owner.is_none() && !seen.used,
            "{slot:?} is not free: {seen:?}"
        );
        seen.owner = Some(identifier);
        let revision = seen.revision;
        assert_eq!(revision, self.active, "claims moved over before");
    }

    fn on_answer(&mut self, ticket: Ticket, answer: Result<SlotId, Denied>) {
        let identifier = self.asked.remove(&ticket).expect("answered twice");
        let Ok(slot) = answer else { return };
        let now = self.now;
        let seen = self.slot(slot);
        assert_eq!(seen.owner, Some(identifier), "somebody else's session");
        assert!(seen.bound && !seen.ending, "it does not serve: {seen:?}");
        seen.open += 1;
        seen.used = true;
        seen.last_used = now;
    }

    fn slot(&mut self, slot: SlotId) -> &mut Seen {
        let seen = self.slots.get_mut(&slot);
        seen.unwrap_or_else(|| panic!("{slot:?} does not exist"))
    }

    fn pick(&self, n: usize, fits: impl Fn(&Seen) -> bool) -> Option<SlotId> {
        let fitting: Vec<_> = self.slots.iter().filter(|(_, seen)| fits(seen)).collect();
        (!fitting.is_empty()).then(|| *fitting[n % fitting.len()].0)
    }

    fn apply(&mut self, step: Step) {
        let now = self.now;
        let actions = match step {
            Step::Claim(n) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.asked.insert(ticket, id(n));
                self.table.claim(ticket, &id(n), now)
            }
            Step::HangUp(n) => {
                let mut waiting: Vec<_> = self.asked.keys().copied().collect();
                waiting.sort_unstable();
                if let Some(ticket) = waiting.get(n % waiting.len().max(1)) {
                    let identifier = self.asked.remove(ticket).unwrap();
                    self.table.abandon(*ticket, &identifier);
                }
                Vec::new()
            }
            Step::Release(n) => {
                if let Some(slot) = self.pick(n, |seen| seen.open > 0) {
                    let seen = self.slot(slot);
                    seen.open -= 1;
                    seen.last_used = now;
                    self.table.released(slot, now)
                } else {
                    Vec::new()
                }
            }
            Step::Ready(n) => self.on_slot(
                n,
                |seen| !seen.ready,
                |table, slot, now| table.slot_ready(slot, now),
                |seen| {
                    seen.ready = true;
                    seen.noted = true;
                },
            ),
            Step::Bound(n) => self.on_slot(n, is_binding, Table::bound, |seen| {
                seen.bound = true;
                seen.last_used = now;
            }),
            Step::BindFailed(n) => self.on_slot(n, is_binding, Table::bind_failed, |_| {}),
            Step::Failed(n) => self.on_slot(
                n,
                |seen| !seen.ending,
                |table, slot, now| table.slot_failed(slot, StartFailure::vanished(), now),
                |seen| seen.ending = true,
            ),
            Step::Gone(n) => match self.pick(n, |seen| seen.ending) {
                Some(slot) => {
                    self.slots.remove(&slot);
                    self.table.slot_gone(slot, now)
                }
                None => Vec::new(),
            },
            Step::Stop(n) => match self.table.stop(&id(n), now) {
                Some((slot, actions)) => {
                    assert_eq!(self.slot(slot).owner, Some(id(n)));
                    actions
                }
                None => Vec::new(),
            },
            Step::Pass(seconds) => return self.pass(Duration::from_secs(seconds)),
            Step::Update {
                max_sessions,
                ready_sessions,
                revision: n,
                alive,
            } => {
                self.limits = limits(max_sessions, ready_sessions, alive);
                self.wanted = revision(n);
                self.recorded = self.active;
                self.table.update(self.limits, revision(n), now)
            }
            Step::Room(room) => {
                self.room = room;
                Vec::new()
            }
            Step::Restart(chances) => return self.restart(chances),
            Step::Drain => {
                self.emptying = true;
                self.table.begin_drain(now)
            }
            Step::Hurry => self.table.hurry_drain(now),
            Step::Undrain => {
                self.emptying = false;
                self.table.end_drain(now)
            }
            Step::Close => {
                self.closed = true;
                self.table.close(now)
            }
        };
        self.carry_out(actions);
        self.check();
    }

    fn on_slot(
        &mut self,
        n: usize,
        fits: impl Fn(&Seen) -> bool,
        tell: impl Fn(&mut Table, SlotId, Moment) -> Vec<Action>,
        mark: impl Fn(&mut Seen),
    ) -> Vec<Action> {
        let Some(slot) = self.pick(n, |seen| !seen.ending && fits(seen)) else {
            return Vec::new();
        };
        mark(self.slot(slot));
        tell(&mut self.table, slot, self.now)
    }

    /// Time passes as the driver sees it: every deadline is kept.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.table.next_deadline(self.now)
            && deadline <= end
        {
            self.now = self.now.max(deadline);
            let actions = self.table.tick(self.now);
            self.carry_out(actions);
            let next = self.table.next_deadline(self.now);
            assert!(next.is_none_or(|next| next > self.now), "it spins");
        }
        self.now = end;
        // By now it is written down.
        self.recorded = self.active;
        self.check();
        if matches!(self.limits.life, Life::Idle(_)) {
            for (slot, seen) in &self.slots {
                let idles = seen.bound && !seen.ending && seen.open == 0;
                assert!(
                    !idles || self.now - seen.last_used < COOLDOWN,
                    "{slot:?} should have ended"
                );
            }
        }
    }

    /// A table made of nothing but what a later appliance finds.
    fn restart(&mut self, mut chances: u64) {
        let mut happened = || {
            chances = chances.rotate_right(1);
            chances & 1 == 1
        };
        let before = std::mem::take(&mut self.slots);
        self.asked.clear();
        if happened() {
            self.recorded = self.active;
        }
        self.active = self.recorded;
        self.emptying = false;
        let (mut sessions, mut ready) = (Vec::new(), Vec::new());
        for seen in before.into_values().filter(|seen| !seen.ending) {
            match &seen.owner {
                None if seen.noted => ready.push(seen),
                None => {}
                Some(_) if seen.bound => sessions.push(seen),
                // The note comes first, then the store, then the word to those who wait.
                Some(_) if !happened() => ready.push(seen),
                Some(_) if happened() => sessions.push(seen),
                Some(_) => {}
            }
        }
        let now = self.now;
        self.table = Table::new(self.limits, self.active, 7);
        let actions = self.table.resume(self.wanted, now);
        self.carry_out(actions);
        for seen in sessions {
            let left = Left {
                identifier: seen.owner.clone().unwrap(),
                revision: seen.revision,
                claimed: now,
                accessed: if seen.open > 0 { now } else { seen.last_used },
            };
            let last_used = left.accessed;
            let (slot, actions) = self.table.adopt_session(left, now).expect("two of one");
            let seen = Seen {
                ready: true,
                bound: true,
                open: 0,
                used: true,
                last_used,
                ..seen
            };
            assert!(self.slots.insert(slot, seen).is_none(), "used twice");
            self.carry_out(actions);
        }
        for seen in ready {
            assert!(!seen.used && seen.open == 0, "somebody had it: {seen:?}");
            if let Some(slot) = self.table.adopt_ready(seen.revision, now) {
                let seen = Seen {
                    ready: false,
                    owner: None,
                    ..seen
                };
                assert!(self.slots.insert(slot, seen).is_none(), "used twice");
            }
        }
        let actions = self.table.update(self.limits, self.wanted, now);
        self.carry_out(actions);
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.table.slots_in_use(), self.slots.len());
        for (slot, seen) in &self.slots {
            let place = &self.table.slots[slot];
            assert_eq!(place.state == Slot::Draining, seen.ending, "{slot:?}");
        }
        let count = |state| {
            self.table
                .slots
                .values()
                .filter(|it| it.state == state)
                .count()
        };
        assert_eq!(self.table.leased, count(Slot::Leased));
        assert_eq!(self.table.draining, count(Slot::Draining));
        if self.emptying {
            let ends = |seen: &Seen| seen.ending || seen.open > 0 || is_binding(seen);
            assert!(
                self.slots.values().all(ends),
                "nobody uses it, and it does not end: {:?}",
                self.slots
            );
        }
        // Nobody waits while a slot is free for it.
        if self.table.active.ready() > 0 {
            for identifier in self.asked.values() {
                let has = |seen: &Seen| seen.owner.as_ref() == Some(identifier);
                assert!(self.slots.values().any(has), "waits beside a ready slot");
            }
        }
    }

    /// The world at its best: everything comes up, what ends is gone, and time passes.
    fn settle(&mut self) {
        for _ in 0..40 {
            while let Some(slot) = self.pick(0, |seen| !seen.ready && !seen.ending) {
                self.slot(slot).ready = true;
                let actions = self.table.slot_ready(slot, self.now);
                self.carry_out(actions);
            }
            while self.pick(0, is_binding).is_some() {
                self.apply(Step::Bound(0));
            }
            while self.pick(0, |seen| seen.open > 0).is_some() {
                self.apply(Step::Release(0));
            }
            while self.pick(0, |seen| seen.ending).is_some() {
                self.apply(Step::Gone(0));
            }
            self.pass(LONG / 10);
        }
    }
}

fn is_binding(seen: &Seen) -> bool {
    seen.owner.is_some() && !seen.bound && !seen.ending
}

fn limits(max_sessions: usize, ready_sessions: usize, alive: bool) -> Limits {
    Limits {
        max_sessions,
        ready_sessions,
        life: if alive {
            Life::Alive(COOLDOWN)
        } else {
            Life::Idle(COOLDOWN)
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3 * ProptestConfig::default().cases,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_order_of_events_keeps_every_promise_and_a_quiet_pool_has_what_it_keeps_ready(
        steps in proptest::collection::vec(step(), 1..150)
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        // Nothing fails any more and nobody comes: what is to be ready is, and no more.
        world.room = usize::MAX;
        world.apply(Step::Undrain);
        world.settle();
        let kept = world.limits.ready_sessions.min(world.limits.max_sessions);
        prop_assert!(world.asked.is_empty(), "{} callers were never answered", world.asked.len());
        prop_assert_eq!(world.active, world.wanted);
        prop_assert_eq!(world.table.counts(world.active).ready as usize, kept);
        prop_assert_eq!(world.slots.len(), kept, "{:?}", world.slots);
        // Nothing is left of a closed pool.
        world.apply(Step::Close);
        while !world.slots.is_empty() {
            world.apply(Step::Gone(0));
        }
        prop_assert_eq!(world.table.next_deadline(world.now), None);
    }

    #[test]
    fn pool_that_is_emptied_at_any_time_is_empty_soon_and_fills_again(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.apply(Step::Drain);
        world.apply(Step::Hurry);
        while !world.slots.is_empty() {
            world.apply(Step::Gone(0));
        }
        prop_assert!(world.asked.is_empty(), "{} callers were never answered", world.asked.len());
        world.pass(LONG);
        prop_assert!(world.slots.is_empty());
        world.room = usize::MAX;
        world.apply(Step::Undrain);
        world.settle();
        let kept = world.limits.ready_sessions.min(world.limits.max_sessions);
        prop_assert_eq!(world.table.counts(world.active).ready as usize, kept);
    }

    #[test]
    fn pool_that_is_closed_at_any_time_answers_everybody_and_leaves_nothing(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.apply(Step::Close);
        prop_assert!(world.asked.is_empty(), "{} callers were never answered", world.asked.len());
        while !world.slots.is_empty() {
            world.apply(Step::Gone(0));
        }
        prop_assert_eq!(world.table.slots_in_use(), 0);
        prop_assert_eq!(world.table.next_deadline(world.now), None);
    }
}
