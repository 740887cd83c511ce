//! A guest's identity: what may be done without one, and what a container sees of it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use wire::{Exit, GuestMessage, HostMessage, Identity};

use crate::harness::{Agent, Control, DEADLINE, identity, shell};
use crate::isolation::isolated;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SHOW: &str = "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id";

fn lines(control: &mut Control, count: usize) -> Vec<String> {
    (0..count).map(|_| control.line()).collect()
}

/// What [`SHOW`] prints.
fn shown(identity: &Identity) -> Vec<String> {
    let Identity {
        hostname,
        machine_id,
        boot_id,
        ..
    } = identity.clone();
    vec![hostname.clone(), hostname, machine_id, boot_id]
}

#[test]
fn start_before_renew_is_refused_and_one_behind_it_is_not() {
    let agent = Agent::start();
    let mut control = agent.greeted();
    control.send(&HostMessage::Start(Box::new(shell("echo too early"))));
    assert_eq!(
        control.refusal(),
        "Nothing starts in a guest before it is renewed"
    );
    control.renew(identity(2));
    let mut control = control.start(shell("echo $HOSTNAME"));
    assert_eq!(control.line(), "s-2");
}

#[test]
fn agent_that_is_held_before_the_start_waits_without_a_timer() {
    let agent = Agent::start();
    let _control = agent.greeted();
    assert!(agent.sleeps_without_a_timer());
    // One that tries a closed port again and again has a timer, which shows that this would be noticed.
    let agent = Agent::start();
    let _control = agent.run(shell("exec sleep 1000"));
    assert!(!agent.sleeps_without_a_timer());
}

/// A snapshot may have been taken between the two streams, so the guest may be another one.
#[test]
fn renewal_counts_for_its_own_stream_and_not_for_the_next() {
    let agent = Agent::start();
    drop(agent.renewed());
    let mut control = agent.greeted();
    control.send(&HostMessage::Start(Box::new(shell("echo too early"))));
    assert_eq!(
        control.refusal(),
        "Nothing starts in a guest before it is renewed"
    );
    control.renew(identity(2));
    assert_eq!(control.start(shell("echo $HOSTNAME")).line(), "s-2");
}

#[test]
fn identity_that_is_wrong_is_a_failure_after_which_nothing_starts() {
    let wrong: [fn(&mut Identity); 5] = [
        |it| it.seed.truncate(63),
        |it| it.seed.push(0),
        |it| it.hostname = "a\nb".into(),
        |it| it.machine_id.clear(),
        |it| it.boot_id.push('0'),
    ];
    for spoil in wrong {
        let agent = Agent::start();
        let mut control = agent.greeted();
        let mut bad = identity(2);
        spoil(&mut bad);
        control.send(&HostMessage::Renew(Box::new(bad)));
        let failure = control.refusal();
        assert!(failure.starts_with("Cannot renew the guest: "), "{failure}");
        // Neither on this stream nor on the next, and no good identity makes it good.
        for message in [
            HostMessage::Start(Box::new(shell("echo no"))),
            HostMessage::Renew(Box::new(identity(3))),
        ] {
            control.send(&message);
            assert_eq!(control.refusal(), failure);
        }
        drop(control);
        let mut control = agent.greeted();
        for _ in 0..3 {
            assert_eq!(control.refusal(), failure, "is told again");
        }
        control.send(&HostMessage::Renew(Box::new(identity(3))));
        assert_eq!(control.refusal(), failure);
        control.send(&HostMessage::Start(Box::new(shell("echo no"))));
        assert_eq!(control.refusal(), failure);
        control.stop(Duration::ZERO);
        control.expect_end();
    }
}

#[test]
fn guest_whose_container_could_not_be_prepared_is_not_renewed() {
    let agent = Agent::start_with(&["--root".as_ref(), "/no/such".as_ref()]);
    let mut control = agent.greeted();
    assert_eq!(control.failure().1, Exit::Code(125));
    control.send(&HostMessage::Renew(Box::new(identity(2))));
    let failure = control.refusal();
    assert!(
        failure.starts_with("Cannot renew the guest: Cannot make /no/such the root: "),
        "{failure}"
    );
}

#[test]
fn isolated_container_sees_the_identity_and_the_machine_keeps_its_own() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    let machine = || {
        let name = rustix::system::uname().nodename().to_owned();
        let ids = [BOOT_ID, "/etc/machine-id", "/etc/hostname"];
        (name, ids.map(|path| fs::read(path).ok()))
    };
    let before = machine();
    let script = format!(
        "{SHOW}; stat -c %a /etc/hostname /etc/hosts /etc/machine-id {BOOT_ID}; echo $HOSTNAME; \
         echo x 2> /dev/null > {BOOT_ID} || echo read-only; ls -a /dev | grep -E '^\\.[a-z]'"
    );
    let (out, err, exit) = agent.run(shell(&script)).until_exit();
    let mut expected = shown(&identity(1));
    expected.extend(["644", "644", "444", "444", "s-1", "read-only"].map(str::to_owned));
    assert_eq!((out, err, exit), (expected, vec![], Exit::Code(1)));
    assert_eq!(machine(), before);
}

/// A fork of a container that runs: the same processes, and another guest.
#[test]
fn renew_on_a_new_stream_changes_what_a_running_container_sees() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    let fifo = image.path().join("ask");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let ask = || fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let script = format!("while read x < /ask; do {SHOW}; grep -c s-2 /etc/hosts; done");
    let mut control = agent.run(shell(&script));
    ask().write_all(b"\n").unwrap();
    assert_eq!(lines(&mut control, 4), shown(&identity(1)));
    assert_eq!(control.line(), "0");
    drop(control);
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    control.renew(identity(2));
    ask().write_all(b"\n").unwrap();
    assert_eq!(lines(&mut control, 4), shown(&identity(2)));
    assert_eq!(control.line(), "2");
}

/// The files are mounted over the image's, and a container with all capabilities may take the mounts away.
#[test]
fn container_that_put_other_files_in_the_place_of_its_names_has_its_own_again_after_a_renewal() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    for applet in ["umount", "rm"] {
        symlink("busybox", image.path().join("bin").join(applet)).unwrap();
    }
    let fifo = image.path().join("ask");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let script = format!(
        "hostname mine; umount /etc/hostname; echo mine > /etc/hostname; \
         umount /etc/machine-id; rm /etc/machine-id; umount /etc/hosts; echo done; \
         read x < /ask; {SHOW}; grep -c s-2 /etc/hosts"
    );
    let mut control = agent.run(shell(&script));
    assert_eq!(control.line(), "done");
    drop(control);
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    control.renew(identity(2));
    fs::write(&fifo, "\n").unwrap();
    assert_eq!(lines(&mut control, 4), shown(&identity(2)));
    assert_eq!(control.line(), "2");
}

/// Files of the test beside the image, which no container may reach.
fn plant(image: &Path, name: &str, target: &Path) {
    fs::create_dir_all(image.join("etc")).unwrap();
    symlink(target, image.join("etc").join(name)).unwrap();
}

#[test]
fn links_that_an_image_has_in_place_of_the_files_lead_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let outside = directory.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    // As seen from the image's root, from the file's own directory, and through an open file of the agent.
    plant(&image, "hostname", &outside);
    plant(&image, "machine-id", "../../outside".as_ref());
    plant(&image, "hosts", "/proc/self/fd/1".as_ref());
    let Some(agent) = isolated(&image) else {
        return;
    };
    let mut control = agent.run(shell(SHOW));
    assert_eq!(lines(&mut control, 4), shown(&identity(1)));
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    for name in ["hostname", "machine-id", "hosts"] {
        let file = fs::symlink_metadata(image.join("etc").join(name)).unwrap();
        assert!(file.is_file(), "{name}");
    }
}

#[test]
fn container_that_plants_links_while_it_runs_gains_nothing_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let outside = directory.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let Some(agent) = isolated(&image) else {
        return;
    };
    // /etc itself leads out of the root, as far as the container can say such a thing.
    let up = "../".repeat(40);
    let script = format!(
        "mv /etc /was && ln -s {up}{} /etc && echo planted; sleep 1000",
        &outside.display().to_string()[1..]
    );
    for applet in ["mv", "ln"] {
        symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    let mut control = agent.run(shell(&script));
    assert_eq!(control.line(), "planted");
    control.send(&HostMessage::Renew(Box::new(identity(2))));
    let failure = control.refusal();
    assert!(
        failure.starts_with("Cannot renew the guest: Cannot open the container's /etc: "),
        "{failure}"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    control.stop(DEADLINE);
    assert_eq!(control.until_exit().2, Exit::Signal(9));
}
