use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use wire::{ContainerSpec, GuestMessage};

use crate::harness::{Agent, Control, DEADLINE, idle, listener, shell};

/// An agent whose container runs and is ready; the test is the container's server.
fn ready(target: &TcpListener) -> (Agent, Control) {
    let agent = Agent::start();
    let mut control = agent.run(idle(target));
    assert_eq!(control.next(), GuestMessage::Ready);
    drop(target.accept().unwrap()); // the probe
    (agent, control)
}

fn accept(target: &TcpListener) -> TcpStream {
    let (stream, _) = target.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes that differ at every place a block could be lost or swapped.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from((index * 31 + index / 251 + seed) % 256).unwrap())
        .collect()
}

#[test]
fn ready_comes_when_the_port_accepts_and_not_before() {
    let agent = Agent::start();
    let target = listener();
    let port = target.local_addr().unwrap().port();
    drop(target);
    // Much longer than the probe's pauses.
    let spec = shell("sleep 0.3; echo now; exec sleep 1000");
    let mut control = agent.run(ContainerSpec {
        target_port: port,
        ..spec
    });
    assert_eq!(control.line(), "now");
    let _target = TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert_eq!(control.next(), GuestMessage::Ready);
}

#[test]
fn port_that_is_open_on_version_6_alone_is_ready_and_reached() {
    let target = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let (agent, _control) = ready(&target);
    let mut client = agent.stream();
    client.write_all(b"six").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut accept(&target)), b"six");
}

#[test]
fn client_that_finishes_its_request_still_gets_the_answer() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let mut client = agent.stream();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = accept(&target);
    assert_eq!(read_all(&mut server), b"request");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(read_all(&mut client), b"answer");
}

#[test]
fn server_that_finishes_its_answer_still_gets_the_request() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let mut client = agent.stream();
    let mut server = accept(&target);
    server.write_all(b"answer").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"answer");
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut server), b"request");
}

#[test]
fn answer_to_an_upload_that_nobody_reads_arrives() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let mut client = agent.stream();
    let mut server = accept(&target);
    // Enough to be under way when the server refuses it.
    client.write_all(&pattern(200_000, 0)).unwrap();
    let mut head = [0; 10];
    server.read_exact(&mut head).unwrap();
    server.write_all(b"too large").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"too large");
}

#[test]
fn refused_target_port_closes_the_stream() {
    let target = listener();
    let (agent, _control) = ready(&target);
    drop(target);
    assert_eq!(read_all(&mut agent.stream()), b"");
}

#[test]
fn stream_before_the_start_is_closed() {
    let agent = Agent::start();
    let _control = agent.greeted();
    assert_eq!(read_all(&mut agent.stream()), b"");
}

#[test]
fn client_that_goes_away_closes_the_connection_of_a_silent_server() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let client = agent.stream();
    let mut server = accept(&target);
    drop(client);
    assert_eq!(read_all(&mut server), b"");
    // The agent's end is closed altogether and not only half: the server learns by a reset.
    let chunk = pattern(1 << 20, 0);
    while server.write_all(&chunk).is_ok() {}
}

#[test]
fn server_that_goes_away_closes_the_stream() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let mut client = agent.stream();
    drop(accept(&target));
    assert_eq!(read_all(&mut client), b"");
}

/// Sends everything and checks that everything comes back.
fn echo_through(mut client: UnixStream, bytes: &[u8]) {
    let mut sender = client.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_all(&mut client) == bytes, "what came back differs");
    });
}

fn serve_echo(target: TcpListener) {
    thread::spawn(move || {
        for stream in target.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut sender = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut sender);
                let _ = sender.shutdown(Shutdown::Write);
            });
        }
    });
}

#[test]
fn many_megabytes_pass_both_ways_unchanged() {
    let target = listener();
    let (agent, _control) = ready(&target);
    serve_echo(target);
    echo_through(agent.stream(), &pattern(32 << 20, 0));
}

#[test]
fn two_hundred_streams_at_once_do_not_mix() {
    let target = listener();
    let (agent, _control) = ready(&target);
    serve_echo(target);
    // All are open before the first one says anything.
    let clients: Vec<_> = (0..200).map(|_| agent.stream()).collect();
    thread::scope(|scope| {
        for (seed, client) in clients.into_iter().enumerate() {
            scope.spawn(move || echo_through(client, &pattern(100_000, seed)));
        }
    });
}

#[test]
fn stream_above_the_limit_of_1024_is_closed_and_a_later_one_works_again() {
    let target = listener();
    let (agent, _control) = ready(&target);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
        },
    )
    .unwrap();
    let pairs: Vec<_> = (0..1024)
        .map(|_| (agent.stream(), accept(&target)))
        .collect();
    assert_eq!(read_all(&mut agent.stream()), b"");
    let mut pairs = pairs.into_iter();
    let (client, mut server) = pairs.next().unwrap();
    drop(client);
    assert_eq!(read_all(&mut server), b"");
    let mut client = agent.stream();
    let mut server = accept(&target);
    server.write_all(b"again").unwrap();
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"again");
}
