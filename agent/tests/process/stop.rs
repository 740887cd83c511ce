use std::time::{Duration, Instant};

use rustix::process::Signal;
use wire::{ContainerSpec, Exit, GuestMessage};

use crate::harness::{Agent, DEADLINE, exists, shell, wait_until};

/// Says "up" when its trap is set.
fn trapping(action: &str, signal: &str) -> ContainerSpec {
    shell(&format!(
        "trap '{action}' {signal}; echo up; while :; do sleep 0.01; done"
    ))
}

#[test]
fn stop_sends_the_images_stop_signal_and_the_agent_ends_after_the_container() {
    let agent = Agent::start();
    let spec = trapping("echo bye; exit 4", "USR1");
    let mut control = agent.run(ContainerSpec {
        stop_signal: "SIGUSR1".into(),
        ..spec
    });
    assert_eq!(control.line(), "up");
    control.stop(DEADLINE);
    assert_eq!(
        control.until_exit(),
        (vec!["bye".into()], vec![], Exit::Code(4))
    );
    control.expect_end();
    drop(control);
    let (status, directory) = agent.wait();
    assert!(status.success(), "{status}");
    assert!(
        !directory.path().join("s").exists(),
        "the socket is left behind"
    );
}

#[test]
fn container_that_ignores_its_stop_signal_is_killed_after_the_grace() {
    let agent = Agent::start();
    let mut control = agent.run(trapping("", "TERM"));
    assert_eq!(control.line(), "up");
    let (begin, grace) = (Instant::now(), Duration::from_millis(200));
    control.stop(grace);
    assert_eq!(control.until_exit().2, Exit::Signal(9));
    assert!(begin.elapsed() >= grace);
}

#[test]
fn second_stop_shortens_the_grace() {
    let agent = Agent::start();
    let mut control = agent.run(trapping("", "TERM"));
    assert_eq!(control.line(), "up");
    control.stop(Duration::from_secs(1000));
    control.stop(Duration::ZERO);
    assert_eq!(control.until_exit().2, Exit::Signal(9));
}

#[test]
fn stop_before_start_ends_the_agent_and_no_container_is_reported() {
    let agent = Agent::start();
    let mut control = agent.greeted();
    control.stop(DEADLINE);
    control.expect_end();
    drop(control);
    assert!(agent.wait().0.success());
}

#[test]
fn agent_stays_after_the_container_ended_until_it_is_stopped() {
    let agent = Agent::start();
    let mut control = agent.run(shell("exit 1"));
    assert_eq!(control.until_exit().2, Exit::Code(1));
    drop(control);
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    assert_eq!(control.next(), GuestMessage::Exited(Exit::Code(1).into()));
    control.stop(Duration::ZERO);
    control.expect_end();
}

#[test]
fn processes_that_the_container_left_behind_end_with_it() {
    let agent = Agent::start();
    let script = "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; exit 0";
    let mut control = agent.run(shell(script));
    let (left, _, _) = control.until_exit();
    assert_eq!(left.len(), 2);
    for pid in &left {
        wait_until("what was left behind is gone", || !exists(pid));
    }
}

#[test]
fn sigterm_stops_the_container_like_the_host_would() {
    let agent = Agent::start();
    let mut control = agent.run(trapping("exit 6", "TERM"));
    assert_eq!(control.line(), "up");
    agent.signal(Signal::TERM);
    assert_eq!(control.until_exit().2, Exit::Code(6));
    control.expect_end();
    drop(control);
    assert!(agent.wait().0.success());
}

#[test]
fn container_ends_with_an_agent_that_is_killed() {
    let agent = Agent::start();
    let pid = agent.run(shell("echo $$; exec sleep 1000")).line();
    agent.signal(Signal::KILL);
    agent.wait();
    wait_until("the container is gone", || !exists(&pid) || is_zombie(&pid));
}

/// Nobody may be there to reap it.
fn is_zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(") Z ")
}
