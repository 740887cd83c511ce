//! What one event does. Random orders of events are in `model_tests.rs`.

use super::*;
use crate::pool::adopt::Left;
use crate::pool::supply::{LINGER, PATIENCE};
use crate::pool::view::SessionState;

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);
const THREE: Uuid = Uuid::from_u128(3);
const COOLDOWN: Duration = Duration::from_secs(300);

fn id(n: u8) -> Identifier {
    format!("user-{n}").parse().unwrap()
}

fn at(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

fn limits(max_sessions: usize, ready_sessions: usize) -> Limits {
    Limits {
        max_sessions,
        ready_sessions,
        life: Life::Idle(COOLDOWN),
    }
}

/// A pool whose first slots are started already.
fn pool(max_sessions: usize, ready_sessions: usize) -> (Table, Vec<Action>) {
    let mut table = Table::new(limits(max_sessions, ready_sessions), ONE, 1);
    let actions = table.tick(at(0));
    (table, actions)
}

/// A pool that has what it keeps ready, in the slots from 0 on.
fn stocked(max_sessions: usize, ready_sessions: usize) -> Table {
    let (mut table, _) = pool(max_sessions, ready_sessions);
    for slot in 0..ready_sessions as u64 {
        assert_eq!(table.slot_ready(SlotId(slot), at(0)), []);
    }
    table
}

fn fill(slot: u64, revision: Uuid, urgency: Urgency) -> Action {
    Action::Fill {
        slot: SlotId(slot),
        revision,
        urgency,
    }
}

fn urgent(slot: u64) -> Action {
    fill(slot, ONE, Urgency::Claim)
}

fn refill(slot: u64) -> Action {
    fill(slot, ONE, Urgency::Refill)
}

fn bind(slot: u64, n: u8) -> Action {
    Action::Bind {
        slot: SlotId(slot),
        identifier: id(n),
    }
}

fn drain(slot: u64, reason: EndReason) -> Action {
    Action::Drain {
        slot: SlotId(slot),
        reason,
    }
}

fn served(ticket: u64, slot: u64) -> Action {
    Action::Answer {
        ticket: Ticket(ticket),
        answer: Ok(SlotId(slot)),
    }
}

fn denied(ticket: u64, denied: Denied) -> Action {
    Action::Answer {
        ticket: Ticket(ticket),
        answer: Err(denied),
    }
}

fn full(max_sessions: usize, seconds: u64) -> Denied {
    Denied::Full {
        max_sessions,
        retry_after: at(seconds),
    }
}

fn claim(table: &mut Table, n: u8, now: u64) -> Vec<Action> {
    table.claim(Ticket(n.into()), &id(n), at(now))
}

fn fail(table: &mut Table, slot: u64, now: u64) -> Vec<Action> {
    table.slot_failed(SlotId(slot), StartFailure::vanished(), at(now))
}

fn gone(table: &mut Table, slot: u64, now: u64) -> Vec<Action> {
    table.slot_gone(SlotId(slot), at(now))
}

fn failed() -> Denied {
    Denied::StartFailed(StartFailure::vanished())
}

fn shortage() -> Shortage {
    Shortage {
        resource: crate::pool::budget::Resource::Memory,
        needed: 2,
        taken: 9,
        total: 10,
    }
}

/// Brings the session of `id(n)` to where it serves, with one request open; gives its slot.
fn serving(table: &mut Table, n: u8, now: u64) -> u64 {
    let mut actions = claim(table, n, now);
    if let [Action::Fill { slot, .. }] = actions[..] {
        actions = table.slot_ready(slot, at(now));
    }
    let Action::Bind { slot, .. } = actions[0] else {
        panic!("{actions:?}")
    };
    let answers = table.bound(slot, at(now));
    assert_eq!(answers, [served(n.into(), slot.0)]);
    slot.0
}

#[test]
fn ready_slots_are_made_before_anybody_comes() {
    let (_, actions) = pool(10, 3);
    assert_eq!(actions, [refill(0), refill(1), refill(2)]);
    // Never more than there may be at all.
    assert_eq!(pool(2, 3).1.len(), 2);
    assert_eq!(pool(2, 0).1, []);
}

#[test]
fn claim_takes_a_ready_slot_at_once_and_another_is_started_in_the_same_breath() {
    let mut table = stocked(10, 2);
    assert_eq!(claim(&mut table, 1, 7), [bind(0, 1), refill(2)]);
    assert_eq!(table.bound(SlotId(0), at(7)), [served(1, 0)]);
    assert_eq!(claim(&mut table, 2, 7), [bind(1, 2), refill(3)]);
}

#[test]
fn claim_that_finds_nothing_ready_starts_a_slot_of_its_own() {
    let (mut table, _) = pool(10, 1);
    assert_eq!(claim(&mut table, 1, 0), [urgent(1)]);
    // Whichever is ready first is its own; the other one stays ready.
    assert_eq!(table.slot_ready(SlotId(0), at(1)), [bind(0, 1)]);
    assert_eq!(table.slot_ready(SlotId(1), at(2)), []);
    assert_eq!(claim(&mut table, 2, 3), [bind(1, 2), refill(2)]);
}

#[test]
fn claims_that_wait_are_served_in_their_order() {
    let (mut table, _) = pool(10, 0);
    for n in 1..=3 {
        assert_eq!(claim(&mut table, n, 0), [urgent(u64::from(n) - 1)]);
    }
    assert_eq!(table.slot_ready(SlotId(2), at(1)), [bind(2, 1)]);
    assert_eq!(table.slot_ready(SlotId(0), at(1)), [bind(0, 2)]);
    assert_eq!(table.slot_ready(SlotId(1), at(1)), [bind(1, 3)]);
}

#[test]
fn two_claims_of_one_new_identifier_fill_one_slot() {
    let (mut table, _) = pool(10, 0);
    assert_eq!(table.claim(Ticket(1), &id(1), at(0)), [urgent(0)]);
    assert_eq!(table.claim(Ticket(2), &id(1), at(0)), []);
    table.slot_ready(SlotId(0), at(1));
    assert_eq!(table.claim(Ticket(3), &id(1), at(1)), []);
    let answers = table.bound(SlotId(0), at(1));
    assert_eq!(answers, [served(1, 0), served(2, 0), served(3, 0)]);
    assert_eq!(table.claim(Ticket(4), &id(1), at(1)), [served(4, 0)]);
}

#[test]
fn full_pool_refuses_with_the_time_until_the_longest_idle_session_ends() {
    let (mut table, _) = pool(3, 0);
    for n in 0..3 {
        let slot = serving(&mut table, n, 0);
        table.released(SlotId(slot), at(100 + u64::from(n)));
    }
    assert_eq!(claim(&mut table, 9, 250), [denied(9, full(3, 150))]);
}

#[test]
fn full_pool_whose_sessions_are_all_in_use_refuses_for_a_whole_cooldown() {
    let (mut table, _) = pool(1, 0);
    serving(&mut table, 1, 0);
    assert_eq!(claim(&mut table, 2, 250), [denied(2, full(1, 300))]);
}

#[test]
fn claim_waits_for_a_slot_that_drains_or_warms_when_all_room_is_taken() {
    let (mut table, _) = pool(2, 1);
    assert_eq!(claim(&mut table, 1, 0), [urgent(1)]);
    assert_eq!(table.slot_ready(SlotId(1), at(1)), [bind(1, 1)]);
    // Slot 0 warms still.
    assert_eq!(claim(&mut table, 2, 1), []);
    assert!(matches!(
        claim(&mut table, 3, 1)[..],
        [Action::Answer {
            answer: Err(Denied::Full { .. }),
            ..
        }]
    ));
    assert_eq!(table.slot_ready(SlotId(0), at(2)), [bind(0, 2)]);
    // One that drains.
    fail(&mut table, 1, 3);
    assert_eq!(claim(&mut table, 4, 3), []);
    assert_eq!(gone(&mut table, 1, 4), [urgent(2)]);
    assert_eq!(table.slot_ready(SlotId(2), at(5)), [bind(2, 4)]);
}

#[test]
fn refills_leave_the_last_room_to_claims() {
    let (mut table, _) = pool(2, 2);
    table.slot_ready(SlotId(0), at(0));
    table.slot_ready(SlotId(1), at(0));
    assert_eq!(claim(&mut table, 1, 0), [bind(0, 1)]);
    assert_eq!(claim(&mut table, 2, 0), [bind(1, 2)]);
    fail(&mut table, 0, 1);
    assert_eq!(claim(&mut table, 3, 1), []);
    assert_eq!(gone(&mut table, 0, 2), [urgent(2)]);
}

#[test]
fn session_in_use_outlives_the_cooldown_and_ends_one_cooldown_after_its_last_request() {
    let (mut table, _) = pool(3, 0);
    let slot = SlotId(serving(&mut table, 1, 0));
    assert_eq!(table.next_deadline(at(0)), None);
    assert_eq!(table.tick(at(10_000)), []);
    table.released(slot, at(10_000));
    assert_eq!(table.next_deadline(at(10_000)), Some(at(10_300)));
    table.claim(Ticket(2), &id(1), at(10_299));
    table.released(slot, at(10_299));
    assert_eq!(table.tick(at(10_300)), []);
    assert_eq!(table.tick(at(10_599)), [drain(slot.0, EndReason::Idle)]);
    assert_eq!(table.slots_in_use(), 1);
    gone(&mut table, slot.0, 10_600);
    assert_eq!(table.slots_in_use(), 0);
}

#[test]
fn session_of_a_container_that_ends_by_itself_has_no_idle_clock_and_a_longest_life() {
    let (mut table, _) = pool(1, 0);
    table.update(
        Limits {
            life: Life::Alive(at(1000)),
            ..limits(1, 0)
        },
        ONE,
        at(0),
    );
    let slot = serving(&mut table, 1, 50);
    table.released(SlotId(slot), at(51));
    assert_eq!(table.tick(at(1049)), []);
    // It may end at any time, so nobody is told to stay away for long.
    assert_eq!(claim(&mut table, 2, 100), [denied(2, full(1, 10))]);
    assert_eq!(claim(&mut table, 2, 1045), [denied(2, full(1, 5))]);
    // Even with a stream open.
    table.claim(Ticket(3), &id(1), at(1049));
    assert_eq!(table.tick(at(1050)), [drain(slot, EndReason::MaxAlive)]);
}

#[test]
fn claim_of_an_ending_session_waits_for_it_to_be_gone_and_gets_a_slot_that_was_never_used() {
    let mut table = stocked(3, 1);
    assert_eq!(claim(&mut table, 1, 0), [bind(0, 1), refill(1)]);
    table.bound(SlotId(0), at(0));
    fail(&mut table, 0, 1);
    table.slot_ready(SlotId(1), at(1));
    // A ready slot is there, and yet: one session per identifier. What it will take is made up for.
    assert_eq!(table.claim(Ticket(2), &id(1), at(2)), [refill(2)]);
    assert_eq!(gone(&mut table, 0, 3), [bind(1, 1)]);
    assert_eq!(table.bound(SlotId(1), at(3)), [served(2, 1)]);
}

#[test]
fn urgent_start_that_fails_denies_those_who_wait_longest_and_nobody_else() {
    let (mut table, _) = pool(9, 0);
    claim(&mut table, 1, 0);
    table.claim(Ticket(11), &id(1), at(0));
    claim(&mut table, 2, 0);
    assert_eq!(
        fail(&mut table, 1, 1),
        [denied(1, failed()), denied(11, failed())]
    );
    assert_eq!(gone(&mut table, 1, 2), []);
    assert_eq!(table.slot_ready(SlotId(0), at(2)), [bind(0, 2)]);
}

#[test]
fn refill_that_fails_denies_nobody_and_is_tried_again_after_a_pause() {
    let (mut table, _) = pool(2, 1);
    serving(&mut table, 1, 0);
    // No room for a start of its own.
    table.slot_ready(SlotId(0), at(0));
    assert_eq!(claim(&mut table, 2, 0), [bind(0, 2)]);

    let (mut table, _) = pool(1, 1);
    assert_eq!(claim(&mut table, 1, 0), []);
    assert_eq!(fail(&mut table, 0, 1), []);
    // A claim does not wait for the pause.
    assert_eq!(gone(&mut table, 0, 2), [urgent(1)]);

    let (mut table, _) = pool(2, 1);
    fail(&mut table, 0, 1);
    assert_eq!(gone(&mut table, 0, 1), []);
    let retry = table.next_deadline(at(1)).unwrap();
    assert!((at(1)..at(3)).contains(&retry), "{retry:?}");
    assert_eq!(table.tick(retry), [refill(1)]);
}

/// Somebody looked at the pool in the millisecond between the end of the pause and the timer: the pool was never filled again.
#[test]
fn start_that_is_due_stays_due_until_it_is_made() {
    let mut table = stocked(2, 1);
    fail(&mut table, 0, 1);
    gone(&mut table, 0, 1);
    let retry = table.next_deadline(at(1)).unwrap();
    for late in [retry, retry + Duration::from_nanos(1), retry + at(1)] {
        let due = table.next_deadline(late).expect("it is due");
        assert!(due <= retry + at(1), "{due:?}");
    }
    assert_eq!(table.tick(retry + at(1)), [refill(1)]);
    assert_eq!(table.next_deadline(retry + at(1)), None);

    // The same for a revision that is to be the next one.
    let mut table = stocked(2, 1);
    assert_eq!(
        table.update(limits(2, 1), TWO, at(0)),
        [fill(1, TWO, Urgency::Refill)]
    );
    fail(&mut table, 1, 1);
    gone(&mut table, 1, 1);
    let late = table.next_deadline(at(1)).unwrap() + at(1);
    assert_eq!(table.next_deadline(late), Some(late));
    assert_eq!(table.tick(late), [fill(2, TWO, Urgency::Refill)]);

    // Where it has to wait for a slot that drains, nothing is due.
    let mut table = stocked(1, 1);
    assert_eq!(
        table.update(limits(1, 1), TWO, at(0)),
        [drain(0, EndReason::Superseded)]
    );
    assert_eq!(table.next_deadline(at(9)), None);
}

#[test]
fn claim_of_a_ready_slot_does_not_end_the_pause_of_refills_that_fail() {
    let mut table = stocked(9, 2);
    assert_eq!(claim(&mut table, 1, 0), [bind(0, 1), refill(2)]);
    fail(&mut table, 2, 1);
    assert_eq!(gone(&mut table, 2, 1), []);
    assert_eq!(claim(&mut table, 2, 1), [bind(1, 2)]);
    assert_eq!(table.counts(ONE).failed, 1);
    // One at a time until one comes up, then all that are missing.
    let retry = table.next_deadline(at(1)).unwrap();
    assert_eq!(table.tick(retry), [refill(3)]);
    assert_eq!(table.slot_ready(SlotId(3), retry), [refill(4)]);
}

#[test]
fn ready_container_that_exits_is_replaced_and_counted_as_failed() {
    let mut table = stocked(5, 1);
    assert_eq!(fail(&mut table, 0, 10), []);
    let counts = table.counts(ONE);
    assert_eq!((counts.ready, counts.draining, counts.failed), (0, 1, 1));
    assert!(table.last_failure(ONE).unwrap().contains("worker is gone"));
    let retry = table.next_deadline(at(10)).unwrap();
    assert_eq!(table.tick(retry), [refill(1)]);
    table.slot_ready(SlotId(1), retry);
    assert_eq!(table.counts(ONE).failed, 0);
}

#[test]
fn caller_that_hangs_up_in_the_queue_leaves_no_entry_and_its_slot_lingers_for_the_next() {
    let (mut table, _) = pool(1, 0);
    claim(&mut table, 1, 0);
    table.abandon(Ticket(1), &id(1));
    assert_eq!(table.slot_ready(SlotId(0), at(5)), []);
    assert_eq!(table.look(&id(1), at(5)), None);
    assert_eq!(table.next_deadline(at(5)), Some(at(5) + LINGER));
    assert_eq!(table.tick(at(5) + LINGER), [drain(0, EndReason::Surplus)]);

    // One that comes in time has it at once.
    let (mut table, _) = pool(1, 0);
    claim(&mut table, 1, 0);
    table.abandon(Ticket(1), &id(1));
    table.slot_ready(SlotId(0), at(5));
    assert_eq!(claim(&mut table, 2, 6), [bind(0, 2)]);
}

#[test]
fn caller_that_hangs_up_while_its_slot_is_recorded_leaves_an_idle_session() {
    let mut table = stocked(1, 1);
    claim(&mut table, 1, 0);
    table.abandon(Ticket(1), &id(1));
    assert_eq!(table.bound(SlotId(0), at(1)), []);
    assert_eq!(table.next_deadline(at(1)), Some(at(1) + COOLDOWN));
}

#[test]
fn session_whose_record_is_not_written_is_not_handed_out() {
    let mut table = stocked(1, 1);
    claim(&mut table, 1, 0);
    let actions = table.bind_failed(SlotId(0), at(1));
    assert_eq!(
        actions,
        [
            denied(1, Denied::NotRecorded),
            drain(0, EndReason::NotRecorded)
        ]
    );
}

#[test]
fn stopped_session_is_gone_with_its_slot_and_those_who_wait_for_it_get_the_next() {
    let mut table = stocked(2, 1);
    claim(&mut table, 1, 0);
    let (slot, actions) = table.stop(&id(1), at(1)).unwrap();
    assert_eq!(
        (slot, actions),
        (SlotId(0), vec![drain(0, EndReason::Stopped)])
    );
    assert_eq!(
        table.look(&id(1), at(1)).unwrap().state,
        SessionState::Ending
    );
    table.slot_ready(SlotId(1), at(1));
    assert_eq!(gone(&mut table, 0, 2)[0], bind(1, 1));
    assert_eq!(table.bound(SlotId(1), at(2)), [served(1, 1)]);
    assert_eq!(table.stop(&id(2), at(2)), None);
}

#[test]
fn look_tells_when_a_session_ends_and_does_not_touch_it() {
    let mut table = stocked(1, 1);
    claim(&mut table, 1, 10);
    let look = table.look(&id(1), at(11)).unwrap();
    assert_eq!((look.state, look.expires), (SessionState::Starting, None));
    table.bound(SlotId(0), at(12));
    let look = table.look(&id(1), at(20)).unwrap();
    assert_eq!(
        (look.state, look.open, look.expires),
        (SessionState::Active, 1, Some(at(320)))
    );
    table.released(SlotId(0), at(30));
    let look = table.look(&id(1), at(40)).unwrap();
    assert_eq!(
        (look.open, look.accessed, look.expires),
        (0, at(30), Some(at(330)))
    );
    assert_eq!(table.next_deadline(at(40)), Some(at(330)));
}

#[test]
fn lowered_maximum_keeps_the_sessions_that_are_there_and_admits_no_more() {
    let (mut table, _) = pool(3, 0);
    serving(&mut table, 1, 0);
    serving(&mut table, 2, 0);
    assert_eq!(table.update(limits(1, 0), ONE, at(1)), []);
    assert_eq!(table.slots_in_use(), 2);
    assert_eq!(claim(&mut table, 3, 1), [denied(3, full(1, 300))]);
}

#[test]
fn lowered_maximum_sends_the_last_of_the_queue_away() {
    let (mut table, _) = pool(3, 0);
    for n in 1..=3 {
        claim(&mut table, n, 0);
    }
    let actions = table.update(limits(1, 0), ONE, at(1));
    let expected = [
        denied(3, full(1, 300)),
        denied(2, full(1, 300)),
        drain(2, EndReason::Surplus),
        drain(1, EndReason::Surplus),
    ];
    assert_eq!(actions, expected);
}

#[test]
fn changed_number_of_ready_sessions_takes_effect_at_once() {
    let mut table = stocked(9, 2);
    assert_eq!(table.update(limits(9, 3), ONE, at(1)), [refill(2)]);
    // What is not up yet goes first.
    let actions = table.update(limits(9, 1), ONE, at(2));
    assert_eq!(
        actions,
        [drain(2, EndReason::Surplus), drain(1, EndReason::Surplus)]
    );
}

#[test]
fn new_revision_warms_beside_the_old_one_which_serves_until_the_first_slot_is_ready() {
    let mut table = stocked(9, 2);
    let two = |slot| fill(slot, TWO, Urgency::Refill);
    assert_eq!(table.update(limits(9, 2), TWO, at(1)), [two(2), two(3)]);
    assert_eq!(claim(&mut table, 1, 2), [bind(0, 1), refill(4)]);
    let actions = table.slot_ready(SlotId(3), at(3));
    let expected = [
        Action::Activate { revision: TWO },
        drain(4, EndReason::Superseded),
        drain(1, EndReason::Superseded),
    ];
    assert_eq!(actions, expected);
    assert_eq!(claim(&mut table, 2, 3), [bind(3, 2), two(5)]);
    // The old one's session lives on.
    assert_eq!(table.bound(SlotId(0), at(3)), [served(1, 0)]);
}

#[test]
fn claims_that_wait_when_the_revisions_change_get_the_new_one() {
    let (mut table, _) = pool(9, 0);
    claim(&mut table, 1, 0);
    claim(&mut table, 2, 0);
    assert_eq!(
        table.update(limits(9, 0), TWO, at(1)),
        [fill(2, TWO, Urgency::Refill)]
    );
    let actions = table.slot_ready(SlotId(2), at(2));
    let expected = [
        Action::Activate { revision: TWO },
        drain(0, EndReason::Superseded),
        drain(1, EndReason::Superseded),
        bind(2, 1),
        fill(3, TWO, Urgency::Claim),
    ];
    assert_eq!(actions, expected);
}

#[test]
fn proof_of_a_revision_of_which_nothing_is_kept_ready_is_given_up_again() {
    let (mut table, _) = pool(9, 0);
    table.update(limits(9, 0), TWO, at(1));
    let expected = [
        Action::Activate { revision: TWO },
        drain(0, EndReason::Surplus),
    ];
    assert_eq!(table.slot_ready(SlotId(0), at(2)), expected);
}

#[test]
fn revision_that_keeps_failing_leaves_the_old_one_serving_and_ready() {
    let mut table = stocked(9, 1);
    table.update(limits(9, 1), TWO, at(1));
    let mut now = at(2);
    for slot in 1..6 {
        let failure = StartFailure::vanished();
        assert_eq!(table.slot_failed(SlotId(slot), failure, now), []);
        assert_eq!(table.slot_gone(SlotId(slot), now), []);
        assert_eq!(u64::from(table.counts(TWO).failed), slot);
        now = table.next_deadline(now).unwrap();
        let two = fill(slot + 1, TWO, Urgency::Refill);
        assert_eq!(table.tick(now), [two]);
    }
    assert!(now > at(2 + 20), "the pauses grow: {now:?}");
    assert_eq!(table.counts(ONE).ready, 1);
    assert!(table.last_failure(TWO).is_some() && table.last_failure(ONE).is_none());
    assert_eq!(claim(&mut table, 1, 100)[0], bind(0, 1));
}

#[test]
fn further_change_takes_the_place_of_the_one_before() {
    let mut table = stocked(9, 1);
    table.update(limits(9, 1), TWO, at(1));
    let actions = table.update(limits(9, 1), THREE, at(2));
    assert_eq!(
        actions,
        [
            drain(1, EndReason::Superseded),
            fill(2, THREE, Urgency::Refill)
        ]
    );
    // Too late.
    assert_eq!(table.slot_ready(SlotId(1), at(3)), []);
    // Back to what serves.
    let actions = table.update(limits(9, 1), ONE, at(4));
    assert_eq!(actions, [drain(2, EndReason::Superseded)]);
    assert_eq!(claim(&mut table, 1, 5)[0], bind(0, 1));
}

#[test]
fn ready_slot_gives_way_when_a_new_revision_has_no_room_at_all() {
    let mut table = stocked(2, 2);
    assert_eq!(
        table.update(limits(2, 2), TWO, at(1)),
        [drain(0, EndReason::Superseded)]
    );
    // Not the other one as well, and the room is not refilled.
    assert_eq!(table.tick(at(2)), []);
    assert_eq!(gone(&mut table, 0, 3), [fill(2, TWO, Urgency::Refill)]);
    assert_eq!(
        table.slot_ready(SlotId(2), at(4)),
        [
            Action::Activate { revision: TWO },
            drain(1, EndReason::Superseded)
        ]
    );
    assert_eq!(gone(&mut table, 1, 5), [fill(3, TWO, Urgency::Refill)]);
}

#[test]
fn new_revision_gets_its_turn_under_a_load_that_takes_every_place() {
    let (mut table, _) = pool(2, 0);
    let [first, second] = [1, 2].map(|n| serving(&mut table, n, 0));
    table.update(limits(2, 0), TWO, at(1));
    fail(&mut table, first, 2);
    claim(&mut table, 3, 2);
    // Claims go first.
    assert_eq!(gone(&mut table, first, 3), [urgent(2)]);
    table.slot_ready(SlotId(2), at(4));
    let later = 2 + PATIENCE.as_secs();
    fail(&mut table, second, later);
    claim(&mut table, 4, later);
    assert_eq!(
        gone(&mut table, second, later + 1),
        [fill(3, TWO, Urgency::Refill)]
    );
    let actions = table.slot_ready(SlotId(3), at(later + 2));
    assert_eq!(actions, [Action::Activate { revision: TWO }, bind(3, 4)]);
}

#[test]
fn claim_that_the_host_has_no_room_for_is_told_so_and_refills_wait() {
    let (mut table, _) = pool(9, 1);
    assert_eq!(table.start_refused(SlotId(0), shortage(), at(0)), []);
    assert!(table.next_deadline(at(0)).unwrap() < at(2));
    assert_eq!(claim(&mut table, 1, 0), [urgent(1)]);
    let denial = Table::host_full(shortage());
    assert_eq!(
        table.start_refused(SlotId(1), shortage(), at(0)),
        [denied(1, denial)]
    );
    assert_eq!(table.slots_in_use(), 0);
}

#[test]
fn claim_that_the_host_has_no_room_for_waits_if_a_slot_of_the_pool_is_on_its_way() {
    let (mut table, _) = pool(9, 1);
    assert_eq!(claim(&mut table, 1, 0), [urgent(1)]);
    assert_eq!(table.start_refused(SlotId(1), shortage(), at(0)), []);
    // The next one does not push it out.
    assert_eq!(claim(&mut table, 2, 0), [urgent(2), urgent(3)]);
    assert_eq!(table.start_refused(SlotId(2), shortage(), at(0)), []);
    let denial = Table::host_full(shortage());
    assert_eq!(
        table.start_refused(SlotId(3), shortage(), at(0)),
        [denied(2, denial)]
    );
    assert_eq!(table.slot_ready(SlotId(0), at(1))[0], bind(0, 1));
}

#[test]
fn ready_slot_gives_way_to_a_new_revision_that_the_host_has_no_room_for() {
    let mut table = stocked(9, 1);
    assert_eq!(
        table.update(limits(9, 1), TWO, at(1)),
        [fill(1, TWO, Urgency::Refill)]
    );
    let actions = table.start_refused(SlotId(1), shortage(), at(1));
    assert_eq!(actions, [drain(0, EndReason::Superseded)]);
    assert_eq!(gone(&mut table, 0, 2)[0], fill(2, TWO, Urgency::Refill));
}

#[test]
fn closing_pool_answers_everybody_and_starts_nothing() {
    let mut table = stocked(3, 1);
    claim(&mut table, 1, 0);
    claim(&mut table, 2, 0);
    let actions = table.close(at(1));
    let expected = [
        denied(2, Denied::Closing),
        denied(1, Denied::Closing),
        drain(0, EndReason::Closing),
        drain(1, EndReason::Closing),
        drain(2, EndReason::Closing),
    ];
    assert_eq!(actions, expected);
    assert_eq!(claim(&mut table, 3, 1), [denied(3, Denied::Closing)]);
    for slot in 0..3 {
        assert_eq!(gone(&mut table, slot, 2), []);
    }
    assert_eq!(
        (table.slots_in_use(), table.next_deadline(at(2))),
        (0, None)
    );
}

/// A table that goes on from an earlier one, at 1000 seconds on its clock.
fn resumed(max_sessions: usize, ready_sessions: usize, desired: Uuid) -> Table {
    let mut table = Table::new(limits(max_sessions, ready_sessions), ONE, 1);
    assert_eq!(table.resume(desired, at(1000)), []);
    table
}

fn left(n: u8, revision: Uuid, accessed: u64) -> Left {
    Left {
        identifier: id(n),
        revision,
        claimed: at(100),
        accessed: at(accessed),
    }
}

#[test]
fn adopted_session_answers_at_once_and_its_idle_time_goes_on() {
    let mut table = resumed(2, 0, ONE);
    let (slot, actions) = table.adopt_session(left(1, ONE, 900), at(1000)).unwrap();
    assert_eq!(actions, []);
    assert_eq!(table.update(limits(2, 0), ONE, at(1000)), []);
    assert_eq!(table.next_deadline(at(1000)), Some(at(1200)));
    assert_eq!(claim(&mut table, 1, 1100), [served(1, slot.0)]);
    table.released(slot, at(1150));
    assert_eq!(table.next_deadline(at(1150)), Some(at(1450)));
    assert_eq!(table.tick(at(1450)), [drain(slot.0, EndReason::Idle)]);
}

#[test]
fn adopted_session_whose_time_came_while_nobody_looked_ends_at_once() {
    let mut table = resumed(2, 0, ONE);
    let (slot, _) = table.adopt_session(left(1, ONE, 600), at(1000)).unwrap();
    table.update(limits(2, 0), ONE, at(1000));
    assert_eq!(table.tick(at(1000)), [drain(slot.0, EndReason::Idle)]);
}

#[test]
fn longest_life_of_an_adopted_session_counts_from_when_it_was_made() {
    let mut table = resumed(2, 0, ONE);
    let limits = Limits {
        life: Life::Alive(at(1000)),
        ..limits(2, 0)
    };
    let (slot, _) = table.adopt_session(left(1, ONE, 990), at(1000)).unwrap();
    table.update(limits, ONE, at(1000));
    assert_eq!(table.next_deadline(at(1000)), Some(at(1100)));
    assert_eq!(table.tick(at(1100)), [drain(slot.0, EndReason::MaxAlive)]);
}

#[test]
fn adopted_ready_slot_is_the_next_that_somebody_gets_and_none_is_started_in_its_place() {
    let mut table = resumed(3, 1, ONE);
    let slot = table.adopt_ready(ONE, at(1000)).unwrap();
    assert_eq!(table.update(limits(3, 1), ONE, at(1000)), []);
    assert_eq!(table.slot_ready(slot, at(1000)), []);
    let actions = claim(&mut table, 1, 1001);
    assert_eq!(actions, [bind(slot.0, 1), refill(slot.0 + 1)]);
}

#[test]
fn more_is_adopted_than_the_limits_allow_by_now_but_only_what_is_ready_is_given_up() {
    let mut table = resumed(2, 1, ONE);
    for n in 1..=3 {
        table.adopt_session(left(n, ONE, 990), at(1000)).unwrap();
    }
    let slot = table.adopt_ready(ONE, at(1000)).unwrap();
    assert_eq!(
        table.update(limits(2, 1), ONE, at(1000)),
        [drain(slot.0, EndReason::Surplus)]
    );
    assert_eq!(claim(&mut table, 4, 1000), [denied(4, full(2, 290))]);
    assert!(matches!(
        claim(&mut table, 2, 1000)[..],
        [Action::Answer { answer: Ok(_), .. }]
    ));
}

#[test]
fn ready_slot_of_a_revision_that_nobody_wants_is_not_adopted_and_its_session_is() {
    let mut table = resumed(3, 0, TWO);
    assert_eq!(table.adopt_ready(THREE, at(1000)), None);
    assert!(table.adopt_session(left(1, THREE, 990), at(1000)).is_some());
    assert_eq!(table.counts_of_earlier().allocated, 1);
}

#[test]
fn session_of_the_desired_revision_proves_that_claims_had_moved_over() {
    let mut table = resumed(3, 1, TWO);
    let (_, actions) = table.adopt_session(left(1, TWO, 990), at(1000)).unwrap();
    assert_eq!(actions, [Action::Activate { revision: TWO }]);
    assert_eq!(table.adopt_ready(ONE, at(1000)), None);
    let slot = table.adopt_ready(TWO, at(1000)).unwrap();
    assert_eq!(table.update(limits(3, 1), TWO, at(1000)), []);
    assert_eq!(table.slot_ready(slot, at(1000)), []);
}

#[test]
fn identifier_has_one_session_also_when_two_are_said_to_be_left() {
    let mut table = resumed(3, 0, ONE);
    assert!(table.adopt_session(left(1, ONE, 990), at(1000)).is_some());
    assert!(table.adopt_session(left(1, ONE, 991), at(1000)).is_none());
    assert_eq!(table.slots_in_use(), 1);
}

#[test]
fn drain_gives_up_what_nobody_uses_and_lets_requests_finish() {
    let mut table = stocked(4, 2);
    claim(&mut table, 1, 10);
    table.bound(SlotId(0), at(10));
    assert_eq!(
        table.begin_drain(at(20)),
        [
            drain(1, EndReason::HostDrains),
            drain(2, EndReason::HostDrains)
        ]
    );
    // Whoever has a session is served while it is in use, and nobody else is.
    assert_eq!(claim(&mut table, 1, 21), [served(1, 0)]);
    assert_eq!(claim(&mut table, 2, 21), [denied(2, Denied::Draining)]);
    assert_eq!(table.released(SlotId(0), at(22)), []);
    assert_eq!(
        table.released(SlotId(0), at(23)),
        [drain(0, EndReason::HostDrains)]
    );
    assert_eq!(claim(&mut table, 1, 24), [denied(1, Denied::Draining)]);
    for slot in 0..3 {
        assert_eq!(gone(&mut table, slot, 30), []);
    }
    assert_eq!(
        (table.slots_in_use(), table.next_deadline(at(30))),
        (0, None)
    );
    assert_eq!(table.end_drain(at(40)), [refill(3), refill(4)]);
}

#[test]
fn callers_in_the_queue_of_a_pool_that_is_drained_are_told_so() {
    let (mut table, _) = pool(4, 0);
    assert_eq!(claim(&mut table, 1, 0), [urgent(0)]);
    assert_eq!(
        table.begin_drain(at(1)),
        [denied(1, Denied::Draining), drain(0, EndReason::HostDrains)]
    );
}

#[test]
fn session_that_is_being_recorded_when_the_drain_begins_serves_its_callers_and_then_ends() {
    let mut table = stocked(4, 1);
    claim(&mut table, 1, 0);
    table.begin_drain(at(1));
    assert_eq!(table.bound(SlotId(0), at(2)), [served(1, 0)]);
    assert_eq!(
        table.released(SlotId(0), at(3)),
        [drain(0, EndReason::HostDrains)]
    );
}

#[test]
fn drain_whose_time_is_up_ends_what_is_in_use() {
    let mut table = stocked(4, 1);
    claim(&mut table, 1, 0);
    table.bound(SlotId(0), at(0));
    table.begin_drain(at(1));
    assert_eq!(table.hurry_drain(at(61)), [drain(0, EndReason::HostDrains)]);
    assert_eq!(table.released(SlotId(0), at(62)), []);
    // Without a drain there is nothing to hurry.
    let mut table = stocked(4, 1);
    assert_eq!(table.hurry_drain(at(1)), []);
}
