use std::io::{Read, Write};

use wire::{Exit, GuestMessage, MAX_FRAME_BYTES};

use crate::harness::{Agent, Control, DEADLINE, idle, listener, shell};

#[test]
fn unknown_message_is_ignored() {
    let agent = Agent::start();
    let mut control = agent.renewed();
    let body = br#"{"type":"cloned","depth":3}"#;
    control.stream.write_all(&27_u32.to_le_bytes()).unwrap();
    control.stream.write_all(body).unwrap();
    control.send(&wire::HostMessage::Start(Box::new(shell("exit 2"))));
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    assert_eq!(control.until_exit().2, Exit::Code(2));
}

#[test]
fn new_control_stream_is_told_what_the_lost_one_knew_and_what_came_since() {
    let agent = Agent::start();
    let mut control = agent.run(shell(
        "echo early; read x < fifo || exit 9; echo late; exit 8",
    ));
    assert_eq!(control.line(), "early");
    // The container fails to open its fifo and ends while nobody listens.
    drop(control);
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    let (_, _, exit) = control.until_exit();
    assert_eq!(exit, Exit::Code(9));
}

/// The stream is gone, and the container, its streams and the next control stream are not.
fn expect_only_the_stream_to_end(bytes: &[u8]) {
    let agent = Agent::start();
    let target = listener();
    let mut control = agent.run(idle(&target));
    assert_eq!(control.next(), GuestMessage::Ready);
    let probe = target.accept().unwrap();
    drop(probe);
    let mut client = agent.stream();
    let (mut server, _) = target.accept().unwrap();
    control.stream.write_all(bytes).unwrap();
    control.expect_end();
    client.write_all(b"ping").unwrap();
    let mut ping = [0; 4];
    server.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"ping");
    let mut control = agent.greeted();
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
    assert_eq!(control.next(), GuestMessage::Ready);
    control.stop(DEADLINE);
    assert_eq!(control.until_exit().2, Exit::Signal(15));
}

#[test]
fn malformed_frame_closes_the_stream_and_nothing_else() {
    expect_only_the_stream_to_end(b"\x03\0\0\0{}}");
}

#[test]
fn frame_above_the_limit_closes_the_stream_and_nothing_else() {
    let length = u32::try_from(MAX_FRAME_BYTES + 1).unwrap();
    expect_only_the_stream_to_end(&length.to_le_bytes());
}

#[test]
fn frame_that_arrives_byte_by_byte_is_understood() {
    let agent = Agent::start();
    let mut control = agent.renewed();
    let start = wire::HostMessage::Start(Box::new(shell("exit 1")));
    for byte in wire::frame::encode(&start).unwrap() {
        control.stream.write_all(&[byte]).unwrap();
    }
    assert!(matches!(control.next(), GuestMessage::Started { .. }));
}

#[test]
fn largest_frame_is_understood() {
    let agent = Agent::start();
    let mut spec = shell("echo ${#BIG1}");
    // An environment entry is limited to 128 KiB by the kernel (MAX_ARG_STRLEN).
    for index in 0..7 {
        spec.env.push(format!("BIG{index}={}", "x".repeat(100_000)));
    }
    assert_eq!(agent.run(spec).line(), "100000");
}

#[test]
fn line_that_is_no_request_is_closed_without_an_answer() {
    let agent = Agent::start();
    let long = "CONNECT 0000000000000000000000000000000001025\n";
    for line in ["HELLO\n", "CONNECT 1\n", "CONNECT x\n", "\n", long] {
        let mut stream = agent.say(line);
        let mut answer = Vec::new();
        // A stream that is closed before all was read is reset.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{line:?}");
    }
}

#[test]
fn ninth_client_that_waits_for_the_guest_is_closed() {
    let agent = Agent::start();
    let waiting: Vec<_> = (0..8).map(|_| agent.say("LISTEN 9\n")).collect();
    let mut answer = Vec::new();
    agent.say("LISTEN 9\n").read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
    drop(waiting);
}

#[test]
fn second_client_gets_the_control_stream_after_the_first() {
    let agent = Agent::start();
    let first = agent.greeted();
    let mut second = agent.say("LISTEN 1024\n");
    drop(first);
    let mut answer = [0; 8];
    second.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1024\n");
    let hello = Control { stream: second }.next();
    assert!(matches!(hello, GuestMessage::Hello { .. }), "{hello:?}");
}
