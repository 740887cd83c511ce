use std::fs;

use wire::{ContainerSpec, Exit, GuestMessage, HostMessage};

use crate::harness::{Agent, exists, shell, wait_until};

#[test]
fn container_gets_its_environment_directory_and_nothing_of_the_agents() {
    let agent = Agent::start();
    let directory = agent.directory().join("made/for/it");
    let script = "pwd; echo $A-$HOSTNAME; echo ${TERM-no TERM}; echo $PATH; umask; \
        grep SigIgn /proc/self/status; readlink /proc/self/fd/0";
    let spec = ContainerSpec {
        env: vec!["A=1".into(), "A=2".into()],
        working_dir: directory.display().to_string(),
        ..shell(script)
    };
    let (mut out, err, exit) = agent.run(spec).until_exit();
    // The two that libc keeps for itself (32 and 33) cannot be changed and do not matter.
    let ignored = u64::from_str_radix(out.remove(5).trim_start_matches("SigIgn:\t"), 16);
    assert_eq!(ignored.unwrap() & !(0b11 << 31), 0);
    let expected = [
        &directory.display().to_string(),
        "2-s-1",
        "no TERM",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "0022",
        "/dev/null",
    ];
    assert_eq!(
        (out, err, exit),
        (expected.map(str::to_owned).into(), vec![], Exit::Code(0))
    );
}

#[test]
fn exit_code_of_the_container_reaches_the_host() {
    let agent = Agent::start();
    assert_eq!(agent.run(shell("exit 3")).until_exit().2, Exit::Code(3));
}

#[test]
fn signal_that_ended_the_container_reaches_the_host() {
    let agent = Agent::start();
    assert_eq!(
        agent.run(shell("kill -SEGV $$")).until_exit().2,
        Exit::Signal(11)
    );
}

#[test]
fn started_names_the_process_of_the_container() {
    let agent = Agent::start();
    let mut control = agent.renewed();
    control.send(&HostMessage::Start(Box::new(shell("echo $$"))));
    let GuestMessage::Started { pid } = control.next() else {
        panic!("not started")
    };
    assert_eq!(control.line(), pid.to_string());
}

fn failure_of(spec: ContainerSpec) -> (String, Exit) {
    let agent = Agent::start();
    let mut control = agent.renewed();
    control.send(&HostMessage::Start(Box::new(spec)));
    control.failure()
}

fn program(name: &str) -> ContainerSpec {
    ContainerSpec {
        argv: vec![name.into()],
        ..shell("")
    }
}

#[test]
fn program_that_is_not_in_path_is_a_failure_with_code_127() {
    let spec = ContainerSpec {
        env: vec!["PATH=/a:/b".into()],
        ..program("nosuch")
    };
    let text = "Cannot execute \"nosuch\": no such file nosuch in PATH /a:/b";
    assert_eq!(failure_of(spec), (text.into(), Exit::Code(127)));
    let text = "Cannot execute \"/no/such\": no such file /no/such";
    assert_eq!(
        failure_of(program("/no/such")),
        (text.into(), Exit::Code(127))
    );
}

#[test]
fn program_that_cannot_be_executed_is_a_failure_with_code_126() {
    let text = "Cannot execute \"/etc\": /etc is not an executable file";
    assert_eq!(failure_of(program("/etc")), (text.into(), Exit::Code(126)));
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("run");
    fs::write(&script, "echo no first line\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).unwrap();
    let (text, exit) = failure_of(program(script.to_str().unwrap()));
    assert!(
        text.contains("neither a program for this machine nor a script"),
        "{text}"
    );
    assert_eq!(exit, Exit::Code(126));
}

#[test]
fn container_that_cannot_be_set_up_is_a_failure_with_code_125() {
    for (spec, text) in [
        (
            ContainerSpec {
                user: "no-such-user".into(),
                ..shell("")
            },
            "The image has no user \"no-such-user\" in /etc/passwd",
        ),
        (
            ContainerSpec {
                working_dir: "/dev/null/x".into(),
                ..shell("")
            },
            "Cannot make the working directory /dev/null/x: Not a directory (os error 20)",
        ),
        (
            ContainerSpec {
                env: vec!["A".into()],
                ..shell("")
            },
            "Cannot start: environment entry \"A\" is not of the form NAME=value",
        ),
        (
            ContainerSpec {
                argv: vec![],
                ..shell("")
            },
            "Cannot start: neither image nor pool says what to execute",
        ),
        (
            ContainerSpec {
                stop_signal: "SIGNONE".into(),
                ..shell("")
            },
            "Unknown stop signal \"SIGNONE\"",
        ),
    ] {
        assert_eq!(failure_of(spec), (text.into(), Exit::Code(125)));
    }
}

#[test]
fn second_start_is_refused_and_the_first_container_goes_on() {
    let agent = Agent::start();
    let mut control = agent.run(shell(
        "trap 'echo done; exit 0' USR1; while :; do sleep 0.01; done",
    ));
    control.send(&HostMessage::Start(Box::new(shell("echo second"))));
    let refused = GuestMessage::Failed {
        message: "The container was started before".into(),
    };
    assert_eq!(control.next(), refused);
    control.stop(crate::harness::DEADLINE);
    assert_eq!(control.until_exit().2, Exit::Signal(15));
}

#[test]
fn orphan_of_the_container_is_reaped() {
    let agent = Agent::start();
    // The inner shell ends first, so its background job becomes a child of the agent.
    let script = "sh -c 'sleep 0.1 & echo $!'; exec sleep 1000";
    let orphan = agent.run(shell(script)).line();
    wait_until("the orphan is reaped", || !exists(&orphan));
}

#[test]
fn bad_command_line_is_one_line_and_exit_code_64() {
    let bad = std::process::Command::new(env!("CARGO_BIN_EXE_agent"))
        .arg("--nosuch")
        .output();
    let bad = bad.unwrap();
    assert_eq!(bad.status.code(), Some(64));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(
        text,
        "agent: Unknown argument \"--nosuch\"; see agent --help\n"
    );
}
