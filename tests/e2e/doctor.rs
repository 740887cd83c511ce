//! A host that cannot run guests is told so, why, and what to do about it; and every host, how it is set up.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

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
        doctor_says_of_the_host_what_its_kernel_says,
        merging_that_is_switched_on_is_weaker_and_its_remedy_cures_it,
    ];
}

const DEVICE: &str = "/dev/kvm";
/// `nobody`: not root and in no group.
const NOBODY: u32 = 65534;

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["name"] == name);
    found.unwrap_or_else(|| panic!("no finding {name}: {report:#}"))
}

fn doctor_says_whether_guests_can_run_here() {
    let doctor = Cli::without_root().run(&["doctor"]);
    let report = artifacts::doctor();
    let kvm = finding(&report, "kvm");
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

/// Not what is good, which differs from host to host, but that it is this kernel's own words.
fn doctor_says_of_the_host_what_its_kernel_says() {
    let report = artifacts::doctor();
    let read = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    for (name, path) in [
        ("kernel", "/proc/sys/kernel/osrelease"),
        ("nx_huge_pages", "/sys/module/kvm/parameters/nx_huge_pages"),
        (
            "timer_period",
            "/sys/module/kvm/parameters/min_timer_period_us",
        ),
    ] {
        let found = finding(&report, name);
        let detail = found["detail"].as_str().unwrap();
        match read(path) {
            Some(text) => assert!(detail.contains(&text), "{text}: {found}"),
            None => assert!(detail.contains("not told"), "{found}"),
        }
    }
    let open = |text: &str| text.to_lowercase().starts_with("vulnerable");
    let mut flaws = 0;
    for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = read(path.to_str().unwrap()).unwrap();
        flaws += 1;
        if open(&text) && name != "old_microcode" {
            let found = finding(&report, &name);
            assert_eq!(found["verdict"], "weaker", "{found}");
            assert_eq!(found["detail"], text, "{found}");
        }
    }
    assert!(flaws > 5, "a kernel that tells of {flaws} flaws only");
    // The lab is a guest of QEMU's, and has no swap.
    assert_eq!(finding(&report, "bare_metal")["verdict"], "weaker");
    assert_eq!(finding(&report, "swap")["detail"], "none");
}

/// The remedy is typed as it is printed, up to where it is about the next boot.
fn merging_that_is_switched_on_is_weaker_and_its_remedy_cures_it() {
    const RUN: &str = "/sys/kernel/mm/ksm/run";
    if !artifacts::kvm_is_required() {
        skipped("only a machine that is made for tests may merge its pages for a moment");
        return;
    }
    fs::write(RUN, "1").expect("the lab's kernel can merge pages");
    let weak = artifacts::doctor();
    let ksm = finding(&weak, "ksm").clone();
    let remedy = ksm["remedy"].as_str().unwrap_or_default();
    let now = remedy.split(';').next().unwrap_or_default();
    let cured = Ran::of(Command::new("sh").args(["-c", now]));
    assert_eq!(ksm["verdict"], "weaker", "{ksm}");
    assert_eq!(ksm["severity"], "medium", "{ksm}");
    assert_eq!(cured.code, Some(0), "{cured:#?}");
    assert_eq!(finding(&artifacts::doctor(), "ksm")["verdict"], "ok");
    assert_eq!(weak["canRunGuests"], true, "a weakness is no failure");
    fs::write(RUN, "0").unwrap();
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
