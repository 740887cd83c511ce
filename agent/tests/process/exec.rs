//! Commands of an operator beside a container.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use wire::exec::{ExecEnd, ExecRequest, FromCommand, Inbox, MAX_DATA_BYTES, ToCommand, WindowSize};
use wire::{ContainerSpec, Exit, GuestMessage, port};

use crate::harness::{Agent, Control, exists, shell, wait_until};
use crate::isolation::isolated;

/// The host's end of a command.
struct Exec {
    stream: UnixStream,
    inbox: Inbox,
}

/// All that a command wrote, and how it ended.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub out: String,
    err: String,
    end: ExecEnd,
}

impl Exec {
    /// A stream on which nothing was said.
    fn connect(agent: &Agent) -> Self {
        let mut stream = agent.say(&format!("CONNECT {}\n", port::EXEC));
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK 1027\n");
        Self {
            stream,
            inbox: Inbox::default(),
        }
    }

    fn start(agent: &Agent, request: ExecRequest) -> Self {
        let mut this = Self::connect(agent);
        this.send(&ToCommand::Request(Box::new(request)));
        this
    }

    fn send(&mut self, frame: &ToCommand) {
        self.stream.write_all(&frame.encode().unwrap()).unwrap();
    }

    /// `None` when the agent has closed the stream.
    fn next(&mut self) -> Option<FromCommand> {
        loop {
            if let Some(frame) = self.inbox.next_from_command().unwrap() {
                return Some(frame);
            }
            let mut chunk = vec![0; 64 << 10];
            match self.stream.read(&mut chunk).unwrap() {
                0 => return None,
                count => self.inbox.push(&chunk[..count]),
            }
        }
    }

    /// Reads output until it holds `text`.
    fn until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        loop {
            match self.next() {
                Some(FromCommand::Stdout(bytes) | FromCommand::Stderr(bytes)) => all.extend(bytes),
                other => panic!("{other:?} behind {:?}", String::from_utf8_lossy(&all)),
            }
            let so_far = String::from_utf8_lossy(&all);
            if so_far.contains(text) {
                return so_far.into_owned();
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Some(FromCommand::Stdout(bytes)) => out.extend(bytes),
                Some(FromCommand::Stderr(bytes)) => err.extend(bytes),
                Some(FromCommand::End(end)) => {
                    assert_eq!(self.next(), None, "the end is the last");
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    return Outcome {
                        out: text(&out),
                        err: text(&err),
                        end,
                    };
                }
                other => panic!("not output: {other:?}"),
            }
        }
    }
}

fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        ..ExecRequest::default()
    }
}

pub fn script(text: &str) -> ExecRequest {
    command(&["/bin/sh", "-c", text])
}

fn with_input(text: &str) -> ExecRequest {
    ExecRequest {
        stdin: true,
        ..script(text)
    }
}

fn in_a_terminal(text: &str) -> ExecRequest {
    ExecRequest {
        terminal: Some(WindowSize {
            rows: 31,
            columns: 117,
        }),
        stdin: true,
        ..script(text)
    }
}

pub fn run(agent: &Agent, request: ExecRequest) -> Outcome {
    Exec::start(agent, request).outcome()
}

/// An agent whose container sleeps.
fn ready() -> (Agent, Control) {
    ready_with(shell("echo up; exec sleep 1000"))
}

fn ready_with(spec: ContainerSpec) -> (Agent, Control) {
    let agent = Agent::start();
    let mut control = agent.run(spec);
    assert_eq!(control.line(), "up");
    (agent, control)
}

/// The same with a root and namespaces of its own; `None` where that cannot be.
fn ready_isolated(image: &Path) -> Option<(Agent, Control)> {
    let agent = isolated(image)?;
    let mut control = agent.run(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
    Some((agent, control))
}

fn ended(code: u8) -> ExecEnd {
    ExecEnd {
        code,
        message: None,
    }
}

/// Bytes that differ at every place a block could be lost or swapped.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * 31 + index / 251) % 256).unwrap())
        .collect()
}

#[test]
fn output_and_error_are_told_apart_and_the_exit_status_comes_last() {
    let (agent, _control) = ready();
    let outcome = run(&agent, script("echo out; echo err >&2; exit 7"));
    let expected = Outcome {
        out: "out\n".into(),
        err: "err\n".into(),
        end: ended(7),
    };
    assert_eq!(outcome, expected);
}

#[test]
fn command_ends_as_a_shell_reports_it() {
    let (agent, _control) = ready();
    assert_eq!(run(&agent, command(&["true"])).end, ended(0));
    assert_eq!(run(&agent, script("kill -TERM $$")).end, ended(143));
    assert_eq!(run(&agent, script("kill -KILL $$")).end, ended(137));
    let refused = |request, code, word: &str| {
        let Outcome { out, err, end } = run(&agent, request);
        assert_eq!((out, err, end.code), (String::new(), String::new(), code));
        let message = end.message.unwrap();
        assert!(message.contains(word), "{message}");
    };
    refused(command(&["no-such-program"]), 127, "no-such-program");
    refused(command(&["/no/such"]), 127, "/no/such");
    refused(command(&["/etc/passwd"]), 126, "/etc/passwd");
    refused(command(&[]), 125, "no command");
    let nobody = ExecRequest {
        user: Some("nosuchuser".into()),
        ..command(&["true"])
    };
    refused(nobody, 125, "nosuchuser");
    let nowhere = ExecRequest {
        working_dir: Some("/no/such/dir".into()),
        ..command(&["true"])
    };
    refused(nowhere, 125, "/no/such/dir");
    let text = tempfile::tempdir().unwrap();
    let file = text.path().join("script");
    std::fs::write(&file, "#!/no/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    refused(
        command(&[file.to_str().unwrap()]),
        126,
        "/no/interpreter, which the image does not have",
    );
}

#[test]
fn ten_megabytes_pass_both_ways_unchanged() {
    let (agent, _control) = ready();
    let mut exec = Exec::start(&agent, with_input("exec cat"));
    let sent = pattern(10 << 20);
    let mut stream = exec.stream.try_clone().unwrap();
    let bytes = sent.clone();
    let sender = thread::spawn(move || {
        for chunk in bytes.chunks(MAX_DATA_BYTES) {
            let frame = ToCommand::Stdin(chunk.to_vec()).encode().unwrap();
            stream.write_all(&frame).unwrap();
        }
        let close = ToCommand::CloseStdin.encode().unwrap();
        stream.write_all(&close).unwrap();
    });
    let mut got = Vec::new();
    loop {
        match exec.next() {
            Some(FromCommand::Stdout(bytes)) => got.extend(bytes),
            Some(FromCommand::End(end)) => break assert_eq!(end, ended(0)),
            other => panic!("{other:?}"),
        }
    }
    sender.join().unwrap();
    assert!(got == sent, "what came back differs");
}

#[test]
fn command_that_writes_faster_than_the_operator_reads_waits_and_loses_nothing() {
    let (agent, _control) = ready();
    let text = "head -c 8388608 /dev/zero; echo end >&2";
    let mut slow = Exec::start(&agent, script(text));
    // It cannot be done, because nobody reads; another command is served meanwhile.
    assert_eq!(run(&agent, script("echo quick")).out, "quick\n");
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse()
            .unwrap();
        kib
    };
    let before = resident(agent.pid());
    let Outcome { out, err, end } = slow.outcome();
    assert_eq!((out.len(), err.as_str(), end), (8 << 20, "end\n", ended(0)));
    let grown = resident(agent.pid()).saturating_sub(before);
    assert!(grown < 2048, "the agent grew by {grown} KiB");
}

#[test]
fn input_that_the_command_does_not_read_holds_up_nothing_else() {
    let (agent, _control) = ready();
    let mut deaf = Exec::start(&agent, with_input("echo up; exec sleep 1000"));
    assert_eq!(deaf.until("up"), "up\n");
    deaf.stream.set_nonblocking(true).unwrap();
    let frame = ToCommand::Stdin(vec![b'x'; MAX_DATA_BYTES])
        .encode()
        .unwrap();
    let mut taken = 0;
    // Until the socket is full, and for a while.
    wait_until("the agent takes no more", || {
        let before = taken;
        while let Ok(count) = deaf.stream.write(&frame) {
            taken += count;
        }
        run(&agent, command(&["true"]));
        before == taken
    });
    assert!(taken < 4 << 20, "{taken} bytes were taken");
}

#[test]
fn command_without_input_finds_its_end_at_once() {
    let (agent, _control) = ready();
    assert_eq!(run(&agent, script("cat; echo done")).out, "done\n");
    let mut closed = Exec::start(&agent, with_input("cat; echo done"));
    closed.send(&ToCommand::Stdin(b"word ".to_vec()));
    closed.send(&ToCommand::CloseStdin);
    assert_eq!(closed.outcome().out, "word done\n");
}

#[test]
fn command_has_the_containers_environment_user_and_place_unless_it_is_told_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let (agent, _control) = ready_with(ContainerSpec {
        env: vec!["A=container".into(), "B=container".into()],
        working_dir: path.into(),
        ..shell("echo up; exec sleep 1000")
    });
    let text = "echo $A $B $HOSTNAME ${TERM-none}; pwd";
    let plain = run(&agent, script(text));
    assert_eq!(plain.out, format!("container container s-1 none\n{path}\n"));
    let told = ExecRequest {
        env: vec!["B=operator".into()],
        working_dir: Some("/".into()),
        ..script(text)
    };
    assert_eq!(run(&agent, told).out, "container operator s-1 none\n/\n");
}

#[test]
fn terminal_has_the_operators_size_and_follows_it() {
    let (agent, _control) = ready();
    let mut exec = Exec::start(
        &agent,
        in_a_terminal(
            "trap 'stty size' WINCH; stty size; tty; echo $TERM; while :; do sleep 0.01; done",
        ),
    );
    let first = exec.until("xterm");
    assert!(first.starts_with("31 117\r\n/dev/pts/"), "{first:?}");
    exec.send(&ToCommand::Resize(WindowSize {
        rows: 5,
        columns: 66,
    }));
    exec.until("5 66");
    // Ctrl-C reaches the command as the signal it is in a terminal.
    exec.send(&ToCommand::Stdin(vec![3]));
    assert_eq!(exec.outcome().end, ended(130));
}

#[test]
fn end_of_input_ends_a_command_in_a_terminal() {
    let (agent, _control) = ready();
    let mut exec = Exec::start(&agent, in_a_terminal("stty -echo; echo up; cat"));
    exec.until("up");
    exec.send(&ToCommand::Stdin(b"half a line".to_vec()));
    exec.send(&ToCommand::CloseStdin);
    let Outcome { out, end, .. } = exec.outcome();
    assert!(out.ends_with("half a line"), "{out:?}");
    assert_eq!(end, ended(0));
}

#[test]
fn all_output_of_a_command_in_a_terminal_arrives_before_its_end() {
    let (agent, _control) = ready();
    let Outcome { out, end, .. } = run(&agent, in_a_terminal("seq 1 20000"));
    assert_eq!(end, ended(0));
    assert_eq!(out.lines().count(), 20_000);
    assert!(out.ends_with("20000\r\n"));
}

#[test]
fn command_is_told_when_the_operator_goes_away() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("said");
    let (agent, _control) = ready();
    let text = format!(
        "trap 'echo hung up > {}; exit' HUP; sleep 1000 & echo up; wait",
        file.display()
    );
    let mut exec = Exec::start(&agent, with_input(&text));
    exec.until("up");
    drop(exec);
    wait_until("the command has noticed", || {
        std::fs::read_to_string(&file).is_ok_and(|said| said == "hung up\n")
    });
}

#[test]
fn command_that_does_not_care_that_the_operator_has_gone_is_killed() {
    let (agent, _control) = ready();
    for request in [
        with_input("trap '' HUP; echo $$ up; while :; do sleep 0.1; done"),
        in_a_terminal("trap '' HUP; echo $$ up; while :; do sleep 0.1; done"),
        // One that has stopped itself, and one that never reads what is sent.
        with_input("echo $$ up; kill -STOP $$"),
        with_input("echo $$ up; exec sleep 1000"),
    ] {
        let mut exec = Exec::start(&agent, request);
        let pid = exec.until("up").split(' ').next().unwrap().to_owned();
        exec.stream.set_nonblocking(true).unwrap();
        let frame = ToCommand::Stdin(vec![b'\n'; MAX_DATA_BYTES])
            .encode()
            .unwrap();
        while exec.stream.write(&frame).is_ok() {}
        assert!(exists(&pid));
        drop(exec);
        wait_until("the command is gone", || !exists(&pid));
    }
}

#[test]
fn half_close_of_the_operator_is_the_end_of_the_operator() {
    let (agent, _control) = ready();
    let mut exec = Exec::start(&agent, with_input("echo $$ up; exec sleep 1000"));
    let pid = exec.until("up").split(' ').next().unwrap().to_owned();
    exec.stream.shutdown(Shutdown::Write).unwrap();
    wait_until("the command is gone", || !exists(&pid));
}

#[test]
fn background_process_that_keeps_the_output_open_does_not_delay_the_end() {
    let (agent, mut control) = ready();
    let outcome = run(&agent, script("sleep 1000 & echo started $!"));
    assert_eq!(outcome.end, ended(0));
    let pid = outcome
        .out
        .trim()
        .strip_prefix("started ")
        .unwrap()
        .to_owned();
    assert!(exists(&pid));
    control.stop(Duration::ZERO);
    drop(control);
    wait_until("it is gone with its container", || !exists(&pid));
}

#[test]
fn command_ends_with_its_container() {
    let (agent, mut control) = ready_with(shell("echo up; sleep 0.5; exit 3"));
    let mut exec = Exec::start(&agent, script("echo beside; exec sleep 1000"));
    exec.until("beside");
    assert_eq!(control.until_exit().2, Exit::Code(3));
    assert_eq!(exec.outcome().end, ended(137));
    let late = run(&agent, command(&["true"])).end;
    assert_eq!(late, ExecEnd::failed(125, "The container has ended"));
}

#[test]
fn nothing_runs_before_the_container_does() {
    let agent = Agent::start();
    let mut control = agent.renewed();
    let early = run(&agent, command(&["true"])).end;
    assert_eq!(early, ExecEnd::failed(125, "The container has not started"));
    control = control.start(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
    assert_eq!(run(&agent, command(&["true"])).end, ended(0));
}

#[test]
fn command_above_the_limit_is_refused_and_a_later_one_works_again() {
    let (agent, _control) = ready();
    let mut running: Vec<Exec> = (0..16)
        .map(|_| Exec::start(&agent, with_input("echo up; cat")))
        .collect();
    for exec in &mut running {
        exec.until("up");
    }
    let refused = run(&agent, command(&["true"])).end;
    assert_eq!(refused.code, 125);
    assert!(refused.message.unwrap().contains("16 commands"));
    running[3].send(&ToCommand::CloseStdin);
    assert_eq!(running[3].outcome().end, ended(0));
    assert_eq!(run(&agent, command(&["true"])).end, ended(0));
}

#[test]
fn streams_without_a_request_are_bounded_and_do_not_stay() {
    let (agent, _control) = ready();
    let mut silent: Vec<Exec> = (0..32).map(|_| Exec::connect(&agent)).collect();
    let mut above = Exec::connect(&agent);
    assert_eq!(above.next(), None);
    // Each gets some seconds for its request.
    assert_eq!(silent[0].next(), None);
    assert_eq!(run(&agent, command(&["true"])).end, ended(0));
}

#[test]
fn nonsense_closes_its_stream_and_nothing_else() {
    let (agent, mut control) = ready();
    for nonsense in [
        &[0xff; 64][..],
        &[5, 0, 0, 0, 0, b'{', 1, 2, 3],
        &[1, 0, 0, 0, 2],
    ] {
        let mut exec = Exec::connect(&agent);
        exec.stream.write_all(nonsense).unwrap();
        assert!(!matches!(exec.next(), Some(FromCommand::Stdout(_))));
    }
    assert_eq!(run(&agent, script("echo fine")).out, "fine\n");
    control.stop(Duration::ZERO);
    assert!(matches!(control.next(), GuestMessage::Exited(_)));
}

#[test]
fn isolated_command_is_where_the_container_is_and_sees_what_it_sees() {
    let image = tempfile::tempdir().unwrap();
    let Some((agent, mut control)) = ready_isolated(image.path()) else {
        return;
    };
    let text = "hostname; ls -d /proc/1 /bin/busybox; readlink /proc/1/exe; \
        for kind in mnt uts ipc cgroup pid; do \
        test $(readlink /proc/1/ns/$kind) = $(readlink /proc/self/ns/$kind) || echo other $kind; done";
    let Outcome { out, err, end } = run(&agent, script(text));
    assert_eq!((err.as_str(), end), ("", ended(0)));
    assert_eq!(out, "s-1\n/bin/busybox\n/proc/1\n/bin/busybox\n");
    // Nothing of the agent's is left open in it.
    let open = run(&agent, script("ls -l /proc/self/fd; echo here")).out;
    assert!(open.contains("here") && !open.contains("socket:"), "{open}");
    let app = ExecRequest {
        user: Some("app".into()),
        ..script("id -u; id -G; echo $HOME")
    };
    assert_eq!(run(&agent, app).out, "1234\n1235 77\n/home/app\n");
    // It is the agent's to reap, and the container's to end.
    assert_eq!(run(&agent, script("kill -9 $$")).end, ended(137));
    let mut beside = Exec::start(&agent, script("echo beside; exec sleep 1000"));
    beside.until("beside");
    control.stop(Duration::ZERO);
    assert!(matches!(control.next(), GuestMessage::Exited(_)));
    assert_eq!(beside.outcome().end, ended(137));
}

#[test]
fn isolated_command_gets_a_terminal_of_the_containers_own() {
    let image = tempfile::tempdir().unwrap();
    let Some((agent, _control)) = ready_isolated(image.path()) else {
        return;
    };
    let text = "readlink /proc/self/fd/0; test -c /dev/pts/0 && echo there; echo to it > /dev/tty";
    let Outcome { out, end, .. } = run(&agent, in_a_terminal(text));
    assert_eq!(out, "/dev/pts/0\r\nthere\r\nto it\r\n");
    assert_eq!(end, ended(0));
}

#[test]
fn hostile_container_can_hold_up_a_command_and_not_the_agent() {
    let image = tempfile::tempdir().unwrap();
    let Some((agent, _control)) = ready_isolated(image.path()) else {
        return;
    };
    // What the agent's process reads on its way is replaced by what blocks, and by what is no terminal.
    let trap = |file: &str| {
        let trap = format!("busybox rm {file}; busybox mkfifo {file}");
        assert_eq!(run(&agent, script(&trap)).end, ended(0));
    };
    trap("/dev/ptmx");
    let end = run(&agent, in_a_terminal("true")).end;
    let message = end.message.unwrap_or_default();
    assert_eq!(end.code, 125, "{message}");
    assert!(
        message.contains("make a terminal with /dev/ptmx"),
        "{message}"
    );
    trap("/etc/passwd");
    let stuck = Exec::start(&agent, command(&["true"]));
    let helpers = || {
        let children = format!("/proc/{0}/task/{0}/children", agent.pid());
        std::fs::read_to_string(children)
            .unwrap()
            .split_whitespace()
            .count()
    };
    wait_until("its process is there", || helpers() == 2);
    drop(stuck);
    wait_until("its process is gone", || helpers() == 1);
}
