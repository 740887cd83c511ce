use wire::Exit;

use super::*;
use crate::worker::launch::{Snapshot, WorkingSet};
use wire::{ContainerSpec, Stream};

fn file() -> std::fs::File {
    tempfile::tempfile().unwrap()
}

fn boot() -> Source {
    Source::Boot {
        root_image: file(),
        disk_bytes: 1 << 30,
    }
}

fn fork() -> Source {
    let snapshot = Snapshot {
        state: file(),
        memory: file(),
        disk: file(),
        working_set: WorkingSet::Unknown,
        disk_bytes: 1 << 30,
    };
    Source::Fork {
        snapshot,
        root_image: file(),
    }
}

fn session(source: &Source, point: ForkPoint) -> Progress {
    let container = ContainerSpec::default();
    Progress::new(Script::new(&Purpose::Session { container, point }, source))
}

fn golden(point: ForkPoint) -> Progress {
    let container = ContainerSpec::default();
    Progress::new(Script::new(&Purpose::Golden { point, container }, &boot()))
}

const HELLO: GuestMessage = GuestMessage::Hello {
    version: 2,
    uptime_us: 7,
};
const BOOTED: Act = Act::Tell(Told::Booted {
    version: 2,
    uptime_us: 7,
});
const STARTED: GuestMessage = GuestMessage::Started { pid: 1 };

fn failed(message: &str) -> GuestMessage {
    GuestMessage::Failed {
        message: message.to_owned(),
    }
}

fn output(line: &str) -> GuestMessage {
    GuestMessage::Output {
        stream: Stream::Stdout,
        line: line.to_owned(),
    }
}

#[track_caller]
fn killed(acts: &[Act], why: &str) {
    let [Act::Tell(Told::Failed(text)), Act::Kill] = acts else {
        panic!("not killed: {acts:?}");
    };
    assert!(text.contains(why), "{text}");
}

#[test]
fn guest_that_booted_is_renewed_before_its_container_starts() {
    let mut progress = session(&boot(), ForkPoint::AfterReady);
    assert_eq!(progress.awaited(), Some(Awaited::Hello));
    assert_eq!(progress.on(HELLO), [BOOTED, Act::Renew]);
    assert_eq!(progress.awaited(), Some(Awaited::Renewed));
    assert_eq!(
        progress.on(GuestMessage::Renewed),
        [Act::Tell(Told::Renewed), Act::Up, Act::LimitCpu, Act::Start]
    );
    assert_eq!(progress.awaited(), None);
    assert_eq!(progress.on(STARTED), [Act::Tell(Told::Started)]);
    assert_eq!(progress.on(GuestMessage::Ready), [Act::Tell(Told::Ready)]);
    assert!(progress.can_stop_in_order());
}

#[test]
fn fork_from_before_the_start_is_led_as_one_that_booted() {
    let mut fork = session(&fork(), ForkPoint::BeforeStart);
    let mut boot = session(&boot(), ForkPoint::BeforeStart);
    for message in [HELLO, GuestMessage::Renewed, STARTED, GuestMessage::Ready] {
        assert_eq!(fork.on(message.clone()), boot.on(message));
    }
}

#[test]
fn fork_of_a_frozen_container_says_what_was_true_and_is_believed_once_it_is_renewed() {
    let mut progress = session(&fork(), ForkPoint::AfterReady);
    // Renewing thaws it, so its share of the CPU holds before.
    assert_eq!(progress.on(HELLO), [BOOTED, Act::LimitCpu, Act::Renew]);
    assert_eq!(progress.on(STARTED), []);
    assert_eq!(progress.on(GuestMessage::Ready), []);
    assert_eq!(
        progress.on(output("x")),
        [Act::Keep(Stream::Stdout, "x".to_owned())]
    );
    assert!(!progress.can_stop_in_order());
    assert_eq!(
        progress.on(GuestMessage::Renewed),
        [
            Act::Tell(Told::Renewed),
            Act::Up,
            Act::Tell(Told::Started),
            Act::Tell(Told::Ready)
        ],
        "its container must not be started again"
    );
    assert_eq!(progress.on(GuestMessage::Ready), []);
}

#[test]
fn container_that_runs_before_its_guest_is_renewed_is_the_end_of_that_guest() {
    let claims = [
        STARTED,
        GuestMessage::Ready,
        output("x"),
        GuestMessage::Exited(Exit::Code(0).into()),
    ];
    for claim in claims {
        for make in [
            || session(&boot(), ForkPoint::BeforeStart),
            || session(&fork(), ForkPoint::BeforeStart),
        ] {
            let mut progress = make();
            progress.on(HELLO);
            killed(&progress.on(claim.clone()), "before it may have happened");
            assert_eq!(progress.on(GuestMessage::Renewed), [], "it is over");
            // Even before the first word.
            killed(&make().on(claim.clone()), "before it may have happened");
        }
    }
}

#[test]
fn container_that_ended_while_it_was_frozen_is_the_end_of_the_fork() {
    let mut progress = session(&fork(), ForkPoint::AfterReady);
    progress.on(HELLO);
    let exit = Exit::Code(0);
    killed(&progress.on(GuestMessage::Exited(exit.into())), "has ended");
}

#[test]
fn failure_before_the_guest_is_renewed_kills_it_and_later_words_do_not_count() {
    for point in [ForkPoint::BeforeStart, ForkPoint::AfterReady] {
        let mut progress = session(&fork(), point);
        progress.on(HELLO);
        killed(&progress.on(failed("RNDADDENTROPY")), "RNDADDENTROPY");
        for message in [GuestMessage::Renewed, STARTED, GuestMessage::Ready, HELLO] {
            assert_eq!(progress.on(message), []);
        }
        assert_eq!(progress.awaited(), None);
    }
}

#[test]
fn guest_that_says_it_is_renewed_before_it_was_asked_is_killed() {
    let mut progress = session(&fork(), ForkPoint::AfterReady);
    killed(&progress.on(GuestMessage::Renewed), "nobody gave it");
}

#[test]
fn agent_that_comes_back_before_it_is_renewed_ends_its_guest_and_later_it_does_not() {
    let mut progress = session(&fork(), ForkPoint::BeforeStart);
    progress.on(HELLO);
    killed(&progress.on(HELLO), "came back");
    let mut progress = session(&fork(), ForkPoint::BeforeStart);
    progress.on(HELLO);
    progress.on(GuestMessage::Renewed);
    let heard = [Act::Heard { version: 2 }];
    assert_eq!(
        progress.on(HELLO),
        heard,
        "its container must not start twice"
    );
}

#[test]
fn golden_before_the_start_is_told_to_stand_still_and_nothing_else() {
    let mut progress = golden(ForkPoint::BeforeStart);
    assert_eq!(progress.on(HELLO), [BOOTED, Act::Freeze]);
    assert_eq!(progress.awaited(), Some(Awaited::Frozen));
    assert_eq!(
        progress.on(GuestMessage::Frozen),
        [Act::Up, Act::Tell(Told::Held)]
    );
    assert_eq!(progress.awaited(), None);
    assert!(!progress.can_stop_in_order());
    killed(&progress.on(STARTED), "has started");
}

#[test]
fn golden_that_cannot_stand_still_or_runs_something_is_killed() {
    for (message, why) in [
        (failed("the disk is broken"), "the disk is broken"),
        (STARTED, "has started"),
        (GuestMessage::Renewed, "nobody gave it"),
    ] {
        let mut progress = golden(ForkPoint::BeforeStart);
        progress.on(HELLO);
        killed(&progress.on(message), why);
    }
}

#[test]
fn golden_after_ready_is_held_once_its_container_is_frozen() {
    let mut progress = golden(ForkPoint::AfterReady);
    progress.on(HELLO);
    let acts = progress.on(GuestMessage::Renewed);
    assert!(acts.contains(&Act::Start), "{acts:?}");
    progress.on(STARTED);
    assert_eq!(progress.on(GuestMessage::Ready), [Act::Tell(Told::Ready)]);
    assert_eq!(progress.awaited(), None, "nobody has asked for it");
    assert_eq!(progress.freeze_when_ready(), [Act::Freeze]);
    assert_eq!(progress.freeze_when_ready(), [], "once is enough");
    assert_eq!(progress.awaited(), Some(Awaited::Frozen));
    assert_eq!(
        progress.on(output("x")),
        [Act::Keep(Stream::Stdout, "x".to_owned())]
    );
    assert_eq!(progress.on(GuestMessage::Frozen), [Act::Tell(Told::Held)]);
    assert_eq!(progress.on(GuestMessage::Frozen), []);
    assert_eq!(progress.awaited(), None);
}

#[test]
fn golden_that_may_be_frozen_early_is_so_when_it_is_ready() {
    let mut progress = golden(ForkPoint::AfterReady);
    assert_eq!(progress.freeze_when_ready(), []);
    for message in [HELLO, GuestMessage::Renewed, STARTED] {
        progress.on(message);
    }
    assert_eq!(
        progress.on(GuestMessage::Ready),
        [Act::Tell(Told::Ready), Act::Freeze]
    );
}

#[test]
fn only_the_container_of_a_golden_that_runs_is_frozen() {
    let mut session = session(&boot(), ForkPoint::AfterReady);
    let mut held = golden(ForkPoint::BeforeStart);
    let mut ended = golden(ForkPoint::AfterReady);
    for message in [HELLO, GuestMessage::Renewed, STARTED, GuestMessage::Ready] {
        session.on(message.clone());
        ended.on(message);
    }
    held.on(HELLO);
    let exit = Exit::Code(0);
    ended.on(GuestMessage::Exited(exit.into()));
    for mut progress in [session, held, ended] {
        assert_eq!(progress.freeze_when_ready(), []);
    }
}

#[test]
fn golden_whose_container_cannot_be_frozen_is_not_held() {
    let mut progress = golden(ForkPoint::AfterReady);
    progress.freeze_when_ready();
    for message in [HELLO, GuestMessage::Renewed, STARTED, GuestMessage::Ready] {
        progress.on(message);
    }
    let why = "no freezer".to_owned();
    assert_eq!(
        progress.on(failed(&why)),
        [Act::Tell(Told::Failed(why))],
        "whoever builds it ends it"
    );
}

#[test]
fn trial_gets_an_identity_and_starts_nothing() {
    for source in [boot(), fork()] {
        let mut progress = Progress::new(Script::new(&Purpose::Trial, &source));
        let mut acts = progress.on(HELLO);
        acts.extend(progress.on(GuestMessage::Renewed));
        assert!(acts.contains(&Act::Renew) && acts.contains(&Act::LimitCpu));
        assert!(!acts.contains(&Act::Start), "{acts:?}");
        assert!(!progress.can_stop_in_order());
    }
}

#[test]
fn messages_of_a_newer_agent_change_nothing() {
    let mut progress = session(&fork(), ForkPoint::BeforeStart);
    assert_eq!(progress.on(GuestMessage::Unknown), []);
    progress.on(HELLO);
    assert_eq!(progress.on(GuestMessage::Unknown), []);
    assert_eq!(progress.awaited(), Some(Awaited::Renewed));
}

#[test]
fn end_of_a_container_is_told_once() {
    let mut progress = session(&boot(), ForkPoint::BeforeStart);
    progress.on(HELLO);
    progress.on(GuestMessage::Renewed);
    assert_eq!(
        progress.on(failed("not found")),
        [Act::Tell(Told::Failed("not found".to_owned()))]
    );
    let exit = Exit::Code(127);
    assert_eq!(progress.on(GuestMessage::Exited(exit.into())), []);
    assert_eq!(progress.fail("late".to_owned()), [Act::Kill]);
}

#[test]
fn adopted_guest_runs_and_what_its_agent_says_again_is_no_news() {
    let mut progress = Progress::adopted();
    assert_eq!(progress.awaited(), None, "it need not say anything");
    assert!(progress.can_stop_in_order());
    assert_eq!(progress.on(HELLO), [Act::Heard { version: 2 }]);
    assert_eq!(progress.on(STARTED), []);
    assert_eq!(progress.on(GuestMessage::Ready), []);
    assert_eq!(
        progress.on(output("x")),
        [Act::Keep(Stream::Stdout, "x".to_owned())]
    );
    let exit = Exit::Code(3);
    assert_eq!(
        progress.on(GuestMessage::Exited(exit.into())),
        [Act::Tell(Told::Exited(exit.into()))]
    );
    assert_eq!(progress.on(HELLO), [Act::Heard { version: 2 }]);
    assert_eq!(progress.on(GuestMessage::Exited(exit.into())), []);
}

#[test]
fn adopted_guest_of_any_version_is_kept() {
    for version in [1, 2, 99] {
        let mut progress = Progress::adopted();
        let hello = GuestMessage::Hello {
            version,
            uptime_us: 1,
        };
        assert_eq!(progress.on(hello), [Act::Heard { version }]);
        assert_eq!(progress.on(GuestMessage::Unknown), []);
        assert!(progress.can_stop_in_order());
    }
}
