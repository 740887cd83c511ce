//! A host that cannot run guests is told so, why, and what to do about it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use e2e::appliance::{free_address, new_root, serve_command};
use e2e::cli::Ran;
use e2e::harness::skipped;
use e2e::{Cli, artifacts};

e2e::tests! {
    Anywhere: [
        doctor_says_whether_guests_can_run_here,
        serve_without_a_usable_kvm_says_why_and_leaves_nothing,
    ];
    Own: [
        user_without_permission_is_told_about_the_group,
        host_without_the_device_is_told_to_load_the_driver,
    ];
}

const DEVICE: &str = "/dev/kvm";
/// `nobody`: not root and in no group.
const NOBODY: u32 = 65534;

fn doctor_says_whether_guests_can_run_here() {
    let doctor = Cli::without_root().run(&["doctor"]);
    let report = artifacts::doctor();
    let kvm = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["name"] == "kvm")
        .unwrap();
    let detail = kvm["detail"].as_str().unwrap();
    assert!(
        doctor.stdout.contains(detail),
        "text and JSON differ: {doctor:#?} {report}"
    );
    match artifacts::kvm() {
        Ok(()) => {
            assert_eq!(doctor.code, Some(0), "{doctor:#?}");
            assert!(
                doctor.stdout.ends_with("This host can run guests.\n"),
                "{doctor:#?}"
            );
        }
        Err(why) => {
            assert_eq!(doctor.code, Some(1), "{doctor:#?}");
            assert!(
                doctor.stdout.ends_with("This host cannot run guests.\n"),
                "{doctor:#?}"
            );
            // The reason and the remedy, in one line.
            assert!(
                why.contains(DEVICE) && why.contains(": ") && !why.contains('\n'),
                "{why}"
            );
        }
    }
}

/// Only where it is so; where guests can run, `serve` is seen to run by all other tests.
fn serve_without_a_usable_kvm_says_why_and_leaves_nothing() {
    let Err(why) = artifacts::kvm() else { return };
    let root = new_root();
    let ran = Ran::of(&mut serve_command(root.path(), free_address()));
    ran.assert_refused(69, &[why]);
    assert_eq!(
        fs::read_dir(root.path()).unwrap().count(),
        0,
        "a refused start has touched its root"
    );
}

#[expect(
    clippy::disallowed_methods,
    reason = "the rule is about how the appliance starts processes; this one is somebody else's"
)]
fn user_without_permission_is_told_about_the_group() {
    let mut doctor = Command::new(artifacts::cabana());
    doctor.arg("doctor").uid(NOBODY).gid(NOBODY).env_clear();
    let ran = Ran::of(&mut doctor);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.stdout.contains("usermod -aG kvm"), "{ran:#?}");
}

/// The machine is made for these tests and thrown away after them, or this would be rude.
fn host_without_the_device_is_told_to_load_the_driver() {
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests may lose its /dev/kvm for a moment");
        return;
    }
    let away = Away::take();
    let doctor = Cli::without_root().run(&["doctor"]);
    let root = new_root();
    let serve = Ran::of(&mut serve_command(root.path(), free_address()));
    drop(away);
    assert_eq!(doctor.code, Some(1), "{doctor:#?}");
    assert!(
        doctor.stdout.contains("kvm_intel or kvm_amd"),
        "{doctor:#?}"
    );
    serve.assert_refused(69, &[DEVICE, "kvm_intel or kvm_amd"]);
    assert_eq!(
        fs::read_dir(root.path()).unwrap().count(),
        0,
        "a refused start has touched its root"
    );
}

/// The device under another name, until dropped.
struct Away;

impl Away {
    const NAME: &str = "/dev/kvm-away";

    fn take() -> Self {
        fs::rename(DEVICE, Self::NAME).unwrap();
        Self
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(Self::NAME, DEVICE).expect("the device goes back to its place");
    }
}
