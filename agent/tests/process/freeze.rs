//! A container that is stopped where it is, and goes on when its guest is renewed. Needs cgroup v2.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use wire::{ContainerSpec, Exit, GuestMessage, HostMessage};

use crate::exec;
use crate::harness::{Agent, Control, DEADLINE, identity, listener, shell, wait_until};
use crate::isolation::isolated_with;

/// A control group of the test; removed when dropped, when the agent that used it has ended.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where there can be none.
    fn make() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let root = mounts.find_map(|mut fields| {
            let target = fields.nth(1)?;
            (fields.next() == Some("cgroup2")).then(|| PathBuf::from(target))
        });
        let Some(root) = root else {
            eprintln!("skipped: cgroup v2 is not mounted");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("agent-test-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                eprintln!(
                    "skipped: this user may not make {}: {error}",
                    path.display()
                );
                None
            }
        }
    }

    fn arguments(&self) -> [&Path; 2] {
        ["--cgroup".as_ref(), &self.0]
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What was killed is gone a moment later.
        let deadline = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// A container that writes all the time, in several processes.
fn chatty(target: &TcpListener) -> ContainerSpec {
    ContainerSpec {
        target_port: target.local_addr().unwrap().port(),
        ..shell("while :; do echo one; done & sh -c 'while :; do echo two; done' & wait")
    }
}

/// The first message that is no output, and whether there was output before it.
fn next_but_output(control: &mut Control) -> (GuestMessage, bool) {
    let mut output = false;
    loop {
        match control.next() {
            GuestMessage::Output { .. } => output = true,
            other => return (other, output),
        }
    }
}

/// A container that was ready and is frozen.
fn frozen(agent: &Agent, target: &TcpListener) -> Control {
    let mut control = agent.run(chatty(target));
    assert_eq!(next_but_output(&mut control).0, GuestMessage::Ready);
    control.send(&HostMessage::Freeze);
    assert_eq!(next_but_output(&mut control).0, GuestMessage::Frozen);
    control
}

/// It writes as fast as it can, so that it would have written something between two of these answers.
fn expect_silence(control: &mut Control) {
    for _ in 0..200 {
        control.send(&HostMessage::Freeze);
        assert_eq!(control.next(), GuestMessage::Frozen);
    }
}

#[test]
fn command_of_an_operator_is_in_the_control_group_of_its_container() {
    let Some(cgroup) = Cgroup::make() else { return };
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated_with(image.path(), &cgroup.arguments()) else {
        return;
    };
    let mut control = agent.run(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
    // As the container sees it, which has it as its root.
    let told = exec::run(&agent, exec::script("grep ^0:: /proc/self/cgroup")).out;
    assert_eq!(told, "0::/\n");
}

#[test]
fn frozen_container_makes_no_progress_until_its_guest_is_renewed() {
    let Some(cgroup) = Cgroup::make() else { return };
    let target = listener();
    let agent = Agent::start_with(&cgroup.arguments());
    let mut control = frozen(&agent, &target);
    expect_silence(&mut control);
    assert!(agent.sleeps_without_a_timer());
    control.renew(identity(2));
    for _ in 0..1000 {
        control.line();
    }
    // And it can be frozen once more.
    control.send(&HostMessage::Freeze);
    assert_eq!(next_but_output(&mut control).0, GuestMessage::Frozen);
    expect_silence(&mut control);
}

/// What the agent of a fork goes through.
#[test]
fn frozen_container_whose_stream_is_reset_stays_frozen_until_its_guest_is_renewed() {
    let Some(cgroup) = Cgroup::make() else { return };
    let image = tempfile::tempdir().unwrap();
    let target = listener();
    let Some(agent) = isolated_with(image.path(), &cgroup.arguments()) else {
        return;
    };
    drop(frozen(&agent, &target));
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    assert_eq!(control.next(), GuestMessage::Ready);
    expect_silence(&mut control);
    control.send(&HostMessage::Start(Box::new(shell("echo again"))));
    assert_eq!(
        control.refusal(),
        "Nothing starts in a guest before it is renewed"
    );
    control.renew(identity(2));
    control.line();
}

#[test]
fn guest_that_cannot_be_renewed_leaves_its_container_frozen() {
    let Some(cgroup) = Cgroup::make() else { return };
    let target = listener();
    let agent = Agent::start_with(&cgroup.arguments());
    let mut control = frozen(&agent, &target);
    let mut bad = identity(2);
    bad.seed.pop();
    control.send(&HostMessage::Renew(Box::new(bad)));
    let failure = control.refusal();
    expect_silence(&mut control);
    control.send(&HostMessage::Renew(Box::new(identity(2))));
    assert_eq!(control.refusal(), failure);
    expect_silence(&mut control);
}

#[test]
fn stop_kills_a_frozen_container_without_letting_it_run() {
    let Some(cgroup) = Cgroup::make() else { return };
    let target = listener();
    let agent = Agent::start_with(&cgroup.arguments());
    let mut control = frozen(&agent, &target);
    control.stop(Duration::from_secs(1000));
    assert_eq!(control.next(), GuestMessage::Exited(Exit::Signal(9).into()));
    control.expect_end();
    drop(control);
    assert!(agent.wait().0.success());
    wait_until("the control group is empty", || {
        let events = fs::read_to_string(cgroup.0.join("cgroup.events")).unwrap();
        events.contains("populated 0")
    });
}

#[test]
fn guest_whose_container_has_not_started_stands_still_and_starts_it_later() {
    let agent = Agent::start();
    let mut control = agent.greeted();
    control.send(&HostMessage::Freeze);
    assert_eq!(control.next(), GuestMessage::Frozen);
    control.send(&HostMessage::Start(Box::new(shell("echo too early"))));
    assert_eq!(
        control.refusal(),
        "Nothing starts in a guest before it is renewed"
    );
    control.renew(identity(1));
    let mut control = control.start(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
}

#[test]
fn freeze_of_a_container_that_has_started_and_is_not_ready_is_refused() {
    let Some(cgroup) = Cgroup::make() else { return };
    let agent = Agent::start_with(&cgroup.arguments());
    let control = agent.renewed();
    let mut control = control.start(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
    control.send(&HostMessage::Freeze);
    assert_eq!(
        control.refusal(),
        "A guest is frozen before its container starts or when it is ready"
    );
}

#[test]
fn container_without_a_control_group_cannot_be_frozen_and_goes_on() {
    let target = listener();
    let agent = Agent::start();
    let mut control = agent.run(chatty(&target));
    assert_eq!(next_but_output(&mut control).0, GuestMessage::Ready);
    control.send(&HostMessage::Freeze);
    let (message, _) = next_but_output(&mut control);
    let GuestMessage::Failed { message } = message else {
        panic!("{message:?}");
    };
    assert!(
        message.starts_with("Cannot freeze a container that has no control group"),
        "{message}"
    );
    control.line();
}

#[test]
fn frozen_comes_behind_all_output_that_was_written_before() {
    let Some(cgroup) = Cgroup::make() else { return };
    let target = listener();
    let agent = Agent::start_with(&cgroup.arguments());
    let script = "i=0; while :; do echo $i; i=$((i+1)); done";
    let mut control = agent.run(ContainerSpec {
        target_port: target.local_addr().unwrap().port(),
        ..shell(script)
    });
    // Nobody reads: the agent's queue and the socket fill, then the pipe, and the container sleeps.
    let pid = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    wait_until("the container waits for a reader", || {
        fs::read_to_string(&stat).unwrap().contains(") S ")
    });
    control.send(&HostMessage::Freeze);
    let mut lines = Vec::new();
    loop {
        match control.next() {
            GuestMessage::Output { line, .. } => lines.push(line),
            GuestMessage::Ready => {}
            GuestMessage::Frozen => break,
            other => panic!("{other:?}"),
        }
    }
    control.renew(identity(2));
    for _ in 0..100 {
        lines.push(control.line());
    }
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(*line, index.to_string());
    }
}
