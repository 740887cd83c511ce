//! The agent that is shipped, in a real guest, where the kernel refuses what no kernel of ours refuses.
//!
//! Nothing of the appliance runs here: these tests are the host's end of the wire themselves. The test program is
//! also the guest's first process; it takes a right away from itself and then becomes the agent ([`guest`]).
//!
//! The artefacts are those of `$CABANA_GUEST_DIR`, or of `target/guest`, as `cargo dev guest` leaves them. On a host whose KVM
//! cannot run guests a test prints `SKIPPED: <test>: <why>` and passes, unless `CABANA_REQUIRE_KVM=1`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod archive;
mod guest;
mod machine;

use machine::Machine;
use wire::{ContainerSpec, GuestMessage, HostMessage, Identity};

fn identity() -> Identity {
    Identity {
        seed: vec![7; Identity::SEED_BYTES],
        unix_time_ns: 1_795_000_000_000_000_000,
        hostname: "renewed".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "01234567-89ab-4def-8123-456789abcdef".to_owned(),
    }
}

/// A program that the image lacks: that the guest tries to run it is told all the same.
fn start() -> HostMessage {
    HostMessage::Start(Box::new(ContainerSpec {
        argv: vec!["/no/such/program".to_owned()],
        target_port: 8080,
        ..ContainerSpec::default()
    }))
}

#[track_caller]
fn failure(message: GuestMessage) -> String {
    match message {
        GuestMessage::Failed { message } => message,
        other => panic!("no failure but {other:?}"),
    }
}

#[test]
fn guest_whose_random_numbers_cannot_be_made_new_fails_to_renew_and_starts_nothing() {
    let Some(mut machine) = Machine::boot("refused") else {
        return;
    };
    machine.send(&HostMessage::Renew(Box::new(identity())));
    let why = failure(machine.next());
    assert!(why.contains("RNDRESEEDCRNG"), "{why}");
    // Whatever is asked of it from now on is refused for the same reason.
    machine.send(&start());
    assert_eq!(failure(machine.next()), why);
    machine.send(&HostMessage::Renew(Box::new(identity())));
    assert_eq!(failure(machine.next()), why);
    machine.send(&HostMessage::Stop { grace_ms: 0 });
    let rest = machine.rest();
    let started = |message: &GuestMessage| matches!(message, GuestMessage::Started { .. });
    assert!(!rest.iter().any(started), "{rest:?}");
}

/// The same guest, with the right that the other one lacks: what fails there is the refusal and nothing else.
#[test]
fn guest_whose_random_numbers_can_be_made_new_is_renewed_and_tries_to_start() {
    let Some(mut machine) = Machine::boot("allowed") else {
        return;
    };
    machine.send(&start());
    let why = failure(machine.next());
    assert!(why.contains("renewed"), "{why}");
    machine.send(&HostMessage::Renew(Box::new(identity())));
    assert_eq!(machine.next(), GuestMessage::Renewed);
    machine.send(&start());
    let why = failure(machine.next());
    assert!(why.contains("/no/such/program"), "{why}");
}
