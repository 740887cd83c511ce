use std::fs;

use wire::Exit;

use crate::harness::{Agent, DEADLINE, shell};

#[test]
fn lines_of_both_streams_arrive_the_last_one_without_its_end() {
    let agent = Agent::start();
    let script = r"printf 'one\n\r\ntwo\r\nthree'; printf 'oops\n\nlast' >&2; exit 5";
    let (out, err, exit) = agent.run(shell(script)).until_exit();
    assert_eq!(out, ["one", "", "two", "three"]);
    assert_eq!(err, ["oops", "", "last"]);
    assert_eq!(exit, Exit::Code(5));
}

#[test]
fn bytes_that_are_not_utf_8_are_replaced() {
    let agent = Agent::start();
    let (out, _, _) = agent.run(shell(r"printf 'a\377b\303\251\n'")).until_exit();
    assert_eq!(out, ["a\u{fffd}b\u{e9}"]);
}

#[test]
fn line_longer_than_16_kib_arrives_in_pieces() {
    let agent = Agent::start();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo after";
    let (out, _, _) = agent.run(shell(script)).until_exit();
    let lengths: Vec<_> = out.iter().map(String::len).collect();
    assert_eq!(lengths, [16384, 16384, 40000 - 2 * 16384, 5]);
}

#[test]
fn everything_that_was_written_before_the_exit_arrives_before_it() {
    let agent = Agent::start();
    // More than pipes and queues hold, so the last lines are still on their way at the exit.
    let script = "seq 1 200000; echo last >&2; exit 7";
    let (out, err, exit) = agent.run(shell(script)).until_exit();
    let expected: Vec<_> = (1..=200_000).map(|n| n.to_string()).collect();
    assert!(
        out == expected,
        "{} lines, the last is {:?}",
        out.len(),
        out.last()
    );
    assert_eq!((err, exit), (vec!["last".to_owned()], Exit::Code(7)));
}

#[test]
fn container_that_floods_its_output_does_not_fill_the_agents_memory() {
    let agent = Agent::start();
    let mut control = agent.run(shell("exec yes some line of text"));
    for _ in 0..100_000 {
        assert_eq!(control.line(), "some line of text");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kib: u32 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 16 << 10, "{peak_kib} KiB");
    control.stop(DEADLINE);
    assert_eq!(control.until_exit().2, Exit::Signal(15));
}

#[test]
fn burst_that_is_larger_than_the_queue_arrives_without_any_further_event() {
    let agent = Agent::start();
    // 600 KiB, and then the container is silent. Read as fast as it comes.
    let script = "head -c 600000 /dev/zero | tr '\\0' x | fold -w 99; echo; exec sleep 1000";
    let mut control = agent.run(shell(script));
    let mut bytes = 0;
    while bytes < 600_000 {
        bytes += control.line().len();
    }
    assert_eq!(bytes, 600_000);
}
