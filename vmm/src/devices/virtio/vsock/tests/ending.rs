//! How a stream ends: half-close, reset, and what must still be delivered.

use super::*;

#[test]
fn client_that_shuts_its_side_down_still_gets_the_answer() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"request");
    assert_eq!(op_of(&packets[1], Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.data(host, 80, b"answer");
    guest.shut_down(host, 80, SHUTDOWN_BOTH);
    assert_eq!(bytes(&mut client, 6), b"answer");
    assert!(is_closed(&mut client));
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn guest_that_shuts_its_side_down_still_gets_the_answer() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.data(host, 80, b"request");
    guest.shut_down(host, 80, SHUTDOWN_SEND);
    let mut request = String::new();
    client.read_to_string(&mut request).unwrap();
    assert_eq!(request, "request");
    client.write_all(b"answer").unwrap();
    assert_eq!(guest.packet().1, b"answer");
    drop(client);
    let flags: Vec<u32> = guest
        .packets()
        .iter()
        .map(|packet| op_of(packet, Op::Shutdown).flags)
        .collect();
    assert_eq!(flags.last(), Some(&SHUTDOWN_BOTH));
    // And it is forgotten: whatever the guest says now is refused.
    guest.data(host, 80, b"late");
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn client_that_writes_and_hangs_up_has_everything_delivered_before_the_end() {
    let mut guest = Guest::new();
    guest.window = 5_000;
    let (mut client, host) = guest.connected(80);
    client.write_all(&[3; 12_000]).unwrap();
    drop(client);
    let mut got = 0;
    let mut last = None;
    while last.is_none() {
        for (header, payload) in guest.packets() {
            got += payload.len();
            last = (header.flags == SHUTDOWN_BOTH).then_some(header).or(last);
        }
        guest.read = got as u32;
        if last.is_none() {
            guest.control(Op::CreditUpdate, host, 80);
        }
    }
    assert_eq!(got, 12_000);
}

#[test]
fn guest_that_sends_and_closes_has_everything_delivered_even_if_it_gets_impatient() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut sent = 0_usize;
    let mut told = 0_u32;
    while (sent as u32).wrapping_sub(told) + 4096 <= WINDOW {
        guest.data(host, 80, &[9; 4096]);
        sent += 4096;
        told = guest
            .packets()
            .last()
            .map_or(told, |(header, _)| header.fwd_cnt);
    }
    guest.shut_down(host, 80, SHUTDOWN_BOTH);
    assert_eq!(guest.packets(), []);
    guest.control(Op::Reset, host, 80);
    guest.control(Op::Reset, host, 80);
    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(bytes(&mut client, 4096));
        guest.settle();
    }
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn reset_closes_the_client() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.control(Op::Reset, host, 80);
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn guest_that_will_not_receive_stops_the_client_from_writing() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    guest.shut_down(host, 80, SHUTDOWN_RECEIVE);
    assert_eq!(
        client.write_all(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    guest.data(host, 80, b"still");
    assert_eq!(bytes(&mut client, 5), b"still");
}

#[test]
fn client_that_will_not_read_stops_the_guest_from_writing() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.shutdown(Shutdown::Read).unwrap();
    guest.data(host, 80, b"for nobody");
    assert_eq!(op_of(&guest.packet(), Op::Shutdown).flags, SHUTDOWN_RECEIVE);
    client.write_all(b"still").unwrap();
    assert_eq!(guest.packet().1, b"still");
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut guest = Guest::new();
    for n in 0..3 * CAPACITY as u32 {
        let (client, host) = guest.connected(80);
        match n % 3 {
            0 => drop(client),
            1 => guest.control(Op::Reset, host, 80),
            _ => guest.shut_down(host, 80, SHUTDOWN_BOTH),
        }
        guest.packets();
    }
    guest.connected(80);
}

#[test]
fn microsandbox_half_closed_connections_that_come_and_go_leave_nothing_behind() {
    let mut guest = Guest::new();
    for n in 0..4 * CAPACITY as u32 {
        let (client, host) = guest.connected(80);
        match n % 4 {
            // The guest is done, and the client goes.
            0 => guest.shut_down(host, 80, SHUTDOWN_SEND),
            // Each has ended its own direction.
            1 => {
                client.shutdown(Shutdown::Write).unwrap();
                guest.shut_down(host, 80, SHUTDOWN_SEND);
            }
            // The client is done, and the guest forgets the connection.
            2 => {
                client.shutdown(Shutdown::Write).unwrap();
                guest.packets();
                guest.control(Op::Reset, host, 80);
            }
            // The guest wants nothing more, and the client goes.
            _ => guest.shut_down(host, 80, SHUTDOWN_RECEIVE),
        }
        drop(client);
        guest.packets();
    }
    // As many as there can be at a time.
    let clients: Vec<_> = (0..CAPACITY).map(|_| guest.connected(80)).collect();
    assert_eq!(clients.len(), CAPACITY);
}
