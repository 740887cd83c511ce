//! Bytes both ways: whole, in order, and never more than credit allows.

use super::*;

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    client.write_all(b"question").unwrap();
    let (header, payload) = guest.packet();
    assert_eq!((header.src_port, header.dst_port), (host, 80));
    assert_eq!(payload, b"question");
    guest.data(host, 80, b"answer");
    assert_eq!(bytes(&mut client, 6), b"answer");
}

#[test]
fn cve_2019_18960_header_and_payload_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let header = Header {
        len: 6,
        ..guest.header(Op::Data, host, 80)
    };
    guest.machine.put(
        TX_AREA,
        &[&header.to_bytes()[..], b"abcdef, and what is not counted"].concat(),
    );
    for cuts in [[1, 43, 45], [20, 44, 50], [44, 47, 49], [0, 0, 44]] {
        let [a, b, c] = cuts;
        guest.send_pieces(&[
            (TX_AREA, a, false),
            (TX_AREA + u64::from(a), b - a, false),
            (TX_AREA + u64::from(b), c - b, false),
            (TX_AREA + u64::from(c), 60 - c, false),
        ]);
        assert_eq!(bytes(&mut client, 6), b"abcdef");
    }
}

#[test]
fn long_stream_to_the_guest_arrives_whole_and_in_order() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connected(80);
    let sent: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client
    });
    let mut got = Vec::new();
    while got.len() < expected.len() {
        for (header, payload) in guest.packets() {
            op_of(&(header, Vec::new()), Op::Data);
            got.extend(payload);
        }
        guest.read = got.len() as u32;
    }
    assert_eq!(got, expected);
    writer.join().unwrap();
}

#[test]
fn host_does_not_send_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.window = 10_000;
    let (mut client, host) = guest.connected(80);
    client.write_all(&[7; 30_000]).unwrap();
    let got: usize = guest
        .packets()
        .iter()
        .map(|(_, payload)| payload.len())
        .sum();
    assert_eq!(got, 10_000);
    guest.read = 4_000;
    guest.control(Op::CreditUpdate, host, 80);
    let got: usize = guest
        .packets()
        .iter()
        .map(|(_, payload)| payload.len())
        .sum();
    assert_eq!(got, 4_000);
}

#[test]
fn cve_2020_16843_guest_without_receive_buffers_gets_everything_once_it_has_some() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client("CONNECT 80\n");
    guest.settle();
    guest.give_buffers(1);
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 80);
    client.write_all(&[1; 20_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.packets();
    let got: usize = packets.iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(got, 20_000);
    assert_eq!(
        op_of(packets.last().unwrap(), Op::Shutdown).flags,
        SHUTDOWN_SEND
    );
}

#[test]
fn client_that_does_not_read_costs_one_window_and_stops_the_guest() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut sent = 0_usize;
    let mut told = 0_u32;
    // An honest guest: stops when it has no room.
    while (sent as u32).wrapping_sub(told) + 4096 <= WINDOW {
        guest.data(host, 80, &[sent as u8; 4096]);
        sent += 4096;
        for (header, _) in guest.packets() {
            op_of(&(header, Vec::new()), Op::CreditUpdate);
            told = header.fwd_cnt;
        }
    }
    assert!(sent as u32 > WINDOW, "the socket's own buffer took some");
    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(bytes(&mut client, 4096));
        guest.settle();
    }
    assert!(
        got.chunks(4096)
            .enumerate()
            .all(|(n, chunk)| chunk == [(n * 4096) as u8; 4096])
    );
    // Once it is read, the guest hears of it.
    let packets = guest.packets();
    assert_eq!(packets.last().unwrap().0.fwd_cnt as usize, sent);
}

#[test]
fn guest_that_sends_past_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let mut packets = Vec::new();
    for _ in 0..100 {
        guest.data(host, 80, &[1; 32 * 1024]);
        packets.extend(guest.packets());
        if packets
            .iter()
            .any(|(header, _)| header.op == Op::Reset.to_raw())
        {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert!(rest.len() < 1 << 20);
            return;
        }
    }
    panic!("{} packets and no reset", packets.len());
}

#[test]
fn credit_request_is_answered() {
    let mut guest = Guest::new();
    let (_client, host) = guest.connected(80);
    guest.data(host, 80, b"12345");
    guest.control(Op::CreditRequest, host, 80);
    let update = op_of(&guest.packet(), Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (WINDOW, 5));
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::without_buffers();
    let mut clients = [80, 81].map(|port| {
        guest.give_buffers(1);
        let client = guest.client(&format!("CONNECT {port}\n"));
        let host = op_of(&guest.taken().pop().unwrap(), Op::Request).src_port;
        guest.control(Op::Response, host, port);
        client
    });
    clients
        .iter_mut()
        .for_each(|client| client.write_all(&[1; 50_000]).unwrap());
    guest.settle();
    guest.give_buffers(100);
    let ports: Vec<u32> = guest
        .packets()
        .iter()
        .map(|(header, _)| header.dst_port)
        .collect();
    assert_ne!(ports[0], ports[1], "{ports:?}");
}

/// A driver with event indices rings for what the device has asked for, and for nothing else.
#[test]
fn cve_2020_16843_device_that_runs_out_of_receive_buffers_asks_for_a_doorbell_each_time() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client("CONNECT 80\n");
    assert_eq!(guest.machine.queues[RX].avail_event(), 0);
    guest.give_buffers(1);
    let host = op_of(&guest.taken().pop().unwrap(), Op::Request).src_port;
    guest.control(Op::Response, host, 80);
    line(&mut client);
    for given in 1..200 {
        client.write_all(b"x").unwrap();
        guest.settle();
        assert_eq!(guest.machine.queues[RX].avail_event(), given);
        guest.give_buffers(1);
        assert_eq!(guest.taken().len(), 1);
    }
}
