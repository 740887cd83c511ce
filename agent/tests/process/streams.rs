use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use wire::{ContainerSpec, GuestMessage};

use crate::harness::{Agent, CLOSED_PORT, Control, DEADLINE, idle, listener, shell, wait_until};

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
fn stream_that_names_a_port_is_joined_to_it_and_told_so() {
    let target = listener();
    let (agent, _control) = ready(&target);
    for other in [
        listener(),
        TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
    ] {
        let port = other.local_addr().unwrap().port();
        let mut client = agent.loopback(port);
        let mut server = accept(&other);
        let mut answer = [0; 2];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(u16::from_be_bytes(answer), port);
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut server), b"request");
        server.write_all(b"answer").unwrap();
        drop(server);
        assert_eq!(read_all(&mut client), b"answer");
    }
    // The target port is one like all others.
    let mut client = agent.loopback(target.local_addr().unwrap().port());
    let _server = accept(&target);
    client.read_exact(&mut [0; 2]).unwrap();
}

#[test]
fn port_that_refuses_and_port_zero_close_the_stream_without_an_answer() {
    let target = listener();
    let (agent, _control) = ready(&target);
    for port in [CLOSED_PORT, 0] {
        assert_eq!(read_all(&mut agent.loopback(port)), b"", "{port}");
    }
}

#[test]
fn stream_that_names_its_port_slowly_holds_up_nobody() {
    let target = listener();
    let (agent, _control) = ready(&target);
    let other = listener();
    let [high, low] = other.local_addr().unwrap().port().to_be_bytes();
    let mut slow = agent.say("CONNECT 1026\n");
    slow.read_exact(&mut [0; 8]).unwrap();
    slow.write_all(&[high]).unwrap();
    let mut quick = agent.loopback(other.local_addr().unwrap().port());
    drop(accept(&other));
    assert_eq!(read_all(&mut quick), [high, low]);
    slow.write_all(&[low]).unwrap();
    let mut server = accept(&other);
    server.write_all(b"late").unwrap();
    drop(server);
    assert_eq!(read_all(&mut slow), [&[high, low][..], b"late"].concat());
}

#[test]
fn stream_that_names_a_port_before_the_start_is_closed() {
    let agent = Agent::start();
    let _control = agent.greeted();
    let other = listener();
    // The agent may have closed it before the port was named.
    let mut client = agent.say("CONNECT 1026\n");
    let _ = client.write_all(&other.local_addr().unwrap().port().to_be_bytes());
    let mut said = Vec::new();
    let _ = client.read_to_end(&mut said);
    assert_eq!(said, b"OK 1026\n");
    other.set_nonblocking(true).unwrap();
    assert_eq!(
        other.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
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

#[test]
fn client_that_goes_away_ends_a_connect_that_nobody_accepts() {
    let target = listener();
    let (agent, _control) = ready(&target);
    // Its queue has room for one connection, and it takes none out.
    let deaf = listener();
    rustix::net::listen(&deaf, 0).unwrap();
    let port = deaf.local_addr().unwrap().port();
    let descriptors = || {
        let folder = format!("/proc/{}/fd", agent.pid());
        std::fs::read_dir(folder).unwrap().count()
    };
    let before = descriptors();
    let mut clients: Vec<_> = (0..4).map(|_| agent.loopback(port)).collect();
    clients[0].read_exact(&mut [0; 2]).unwrap();
    wait_until("all are joined", || descriptors() == before + 8);
    let mut last = clients.pop().unwrap();
    last.set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    last.read_exact(&mut [0; 2]).unwrap_err();
    drop((clients, last));
    wait_until("nothing is left of them", || descriptors() == before);
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
fn stream_above_the_limit_is_closed_and_a_later_one_works_again() {
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
    let pairs: Vec<_> = (0..1008)
        .map(|_| (agent.stream(), accept(&target)))
        .collect();
    assert_eq!(read_all(&mut agent.stream()), b"");
    // The host can still ask how the container is.
    let port = target.local_addr().unwrap().port();
    let mut named = agent.loopback(port);
    drop(accept(&target));
    assert_eq!(read_all(&mut named), port.to_be_bytes());
    drop(named);
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
