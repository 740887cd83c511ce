//! Limits, and guests that keep to no rule.

use super::*;

#[test]
fn client_beyond_the_limit_is_closed_and_the_others_live() {
    let mut guest = Guest::new();
    let mut clients: Vec<UnixStream> = (0..CAPACITY).map(|_| guest.client("LISTEN 9\n")).collect();
    let mut refused = guest.try_client("").unwrap();
    assert!(is_closed(&mut refused));
    clients.pop();
    guest.settle();
    let mut welcome = guest.client("LISTEN 8\n");
    assert!(!is_closed(&mut welcome));
    guest.control(Op::Request, 9, 1);
    assert_eq!(line(&mut clients[0]), "OK 1\n");
}

#[test]
fn packets_for_connections_that_do_not_exist_are_refused_but_resets_are_not_answered() {
    let mut guest = Guest::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.control(op, 1000, 7);
        let reset = op_of(&guest.packet(), Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (1000, 7));
    }
    guest.control(Op::Reset, 1000, 7);
    assert_eq!(guest.packets(), []);
}

#[test]
fn unknown_operations_are_refused_and_unknown_addresses_ignored() {
    let mut guest = Guest::new();
    let header = guest.header(Op::Request, 1000, 7);
    for op in [0, 8, 0x1234, u16::MAX] {
        guest.send(Header { op, ..header }, &[]);
        op_of(&guest.packet(), Op::Reset);
    }
    for (src_cid, dst_cid) in [(CID, 3), (CID, 1), (CID, u64::MAX), (2, 2), (4, 2), (0, 0)] {
        guest.send(
            Header {
                src_cid,
                dst_cid,
                ..header
            },
            &[],
        );
    }
    assert_eq!(guest.packets(), []);
}

/// A fuzzer saw data of a connection that the guest had been told was over.
#[test]
fn unknown_operation_ends_the_connection_that_it_resets() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.connected(80);
    let header = guest.header(Op::Request, host, 80);
    guest.send(Header { op: 8, ..header }, &[]);
    op_of(&guest.packet(), Op::Reset);
    assert!(is_closed(&mut client));
}

#[test]
fn unknown_socket_type_is_refused_with_that_type() {
    let mut guest = Guest::new();
    guest.send(
        Header {
            kind: 2,
            ..guest.header(Op::Request, 1000, 7)
        },
        &[],
    );
    guest.settle();
    let used = guest.machine.queues[RX].used();
    assert_eq!(used.len(), 1);
    let bytes = guest.machine.get(RX_AREA, 44);
    let reset = Header::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!((reset.kind, reset.op), (2, Op::Reset.to_raw()));
}

#[test]
fn packet_in_the_wrong_state_resets_its_connection_only() {
    let mut guest = Guest::new();
    let (mut bystander, bystander_host) = guest.connected(79);
    for op in [Op::Request, Op::Response] {
        let (mut client, host) = guest.connected(80);
        guest.control(op, host, 80);
        assert_eq!(op_of(&guest.packet(), Op::Reset).src_port, host);
        assert!(is_closed(&mut client));
    }
    for op in [
        Op::Data,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Request,
    ] {
        let mut client = guest.client("CONNECT 80\n");
        let host = op_of(&guest.packet(), Op::Request).src_port;
        guest.control(op, host, 80);
        op_of(&guest.packet(), Op::Reset);
        assert!(is_closed(&mut client));
    }
    guest.data(bystander_host, 79, b"fine");
    assert_eq!(bytes(&mut bystander, 4), b"fine");
}

#[test]
fn response_before_the_request_was_sent_is_not_believed() {
    let mut guest = Guest::without_buffers();
    let mut client = guest.client("CONNECT 80\n");
    guest.control(Op::Response, FIRST_HOST_PORT, 80);
    assert!(is_closed(&mut client));
}

#[test]
fn cve_2019_18960_length_that_is_not_there_resets_the_connection() {
    for (claimed, there) in [(10, 9), (u32::MAX, 100), (1, 0), (WINDOW + 1, 100)] {
        let mut guest = Guest::new();
        let (mut client, host) = guest.connected(80);
        let header = Header {
            len: claimed,
            ..guest.header(Op::Data, host, 80)
        };
        guest.send(header, &vec![1; there]);
        op_of(&guest.packet(), Op::Reset);
        assert!(is_closed(&mut client));
    }
}

#[test]
fn data_after_the_guest_said_it_was_done_resets_the_connection() {
    let mut guest = Guest::new();
    let (_client, host) = guest.connected(80);
    guest.shut_down(host, 80, SHUTDOWN_SEND);
    guest.data(host, 80, b"more");
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn chain_too_short_for_a_header_is_given_back_and_ignored() {
    let mut guest = Guest::new();
    guest.send_pieces(&[(TX_AREA, 43, false)]);
    guest.send_pieces(&[(TX_AREA, 0, false)]);
    guest.send_pieces(&[(TX_AREA, 100, true)]);
    assert_eq!(guest.packets(), []);
    assert!(!guest.machine.needs_reset());
}

#[test]
fn receive_buffer_without_room_stops_the_device() {
    for pieces in [
        &[(RX_AREA, 44, true)][..],
        &[(RX_AREA, 4096, false)],
        &[(RX_AREA, 0, true)],
    ] {
        let mut guest = Guest::without_buffers();
        guest.machine.queues[RX].add(pieces);
        let _client = guest.client("CONNECT 80\n");
        assert!(guest.machine.needs_reset());
    }
}

#[test]
fn receive_buffer_cut_into_pieces_is_filled() {
    let mut guest = Guest::without_buffers();
    let pieces = [
        (RX_AREA, 10, true),
        (RX_AREA + 10, 30, true),
        (RX_AREA + 40, 500, true),
    ];
    guest.machine.queues[RX].add(&pieces);
    let _client = guest.client("CONNECT 80\n");
    guest.settle();
    assert_eq!(guest.machine.queues[RX].used(), [(0, 44)]);
    let header = Header::from_bytes(guest.machine.get(RX_AREA, 44).first_chunk().unwrap());
    assert_eq!((header.op, header.dst_port), (1, 80));
}

#[test]
fn guest_that_causes_resets_and_takes_none_is_kept_a_bounded_number() {
    let mut guest = Guest::without_buffers();
    for port in 0..2000 {
        guest.control(Op::Data, 1000, port);
    }
    guest.give_buffers(256);
    assert_eq!(guest.packets().len(), 256);
}

#[test]
fn loop_in_a_packet_stops_the_device_and_closes_everything() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connected(80);
    let mut listening = guest.client("LISTEN 1024\n");
    guest.machine.queues[TX].descriptor(0, TX_AREA, 44, NEXT, 0);
    guest.machine.queues[TX].publish(0);
    guest.notify(TX);
    assert!(guest.machine.needs_reset());
    assert!(is_closed(&mut client));
    assert!(!is_closed(&mut listening), "it waits for the next driver");
}

#[test]
fn driver_that_restarts_finds_waiting_clients_and_no_old_connections() {
    let mut guest = Guest::new();
    let (mut old, host) = guest.connected(80);
    guest.control(Op::Request, 1024, 50);
    guest.machine.write(VIRTIO_MMIO_STATUS, 0);
    assert!(is_closed(&mut old));
    let mut waiting = guest.client("CONNECT 81\n");

    let mut again = DriverQueue::new(&guest.machine.memory, 0, 256);
    std::mem::swap(&mut guest.machine.queues[RX], &mut again);
    guest.machine.queues[TX] = DriverQueue::new(&guest.machine.memory, 1, 256);
    guest.machine.put(RINGS, &[0; 0x2_0000]);
    guest.start_driver();
    guest.give_buffers(256);
    let request = op_of(&guest.packet(), Op::Request);
    assert_eq!(request.dst_port, 81);
    assert_ne!(request.src_port, host);
    guest.control(Op::Response, request.src_port, 81);
    assert_eq!(line(&mut waiting), format!("OK {}\n", request.src_port));
    // The held connection went with the old driver.
    let mut listening = guest.client("LISTEN 1024\n");
    assert!(!is_closed(&mut listening));
    assert_eq!(guest.packets(), []);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]

    /// Any packets at all, towards connections in all states.
    #[test]
    fn no_sequence_of_packets_panics_or_stops_the_device(
        packets in proptest::collection::vec(
            (0..10_u16, 0..4_u32, 0..4_u32, 0..4_u32, 0..200_u32, proptest::prelude::any::<(u32, u32)>()),
            0..40
        )
    ) {
        let mut guest = Guest::new();
        let (mut client, host) = guest.connected(80);
        let _listening = guest.client("LISTEN 1\n");
        let _asking = guest.client("CONNECT 81\n");
        let _ = client.write_all(&[1; 10_000]);
        for (op, host_port, guest_port, flags, len, (buf_alloc, fwd_cnt)) in packets {
            let header = Header {
                op,
                dst_port: [host, 1, 2, host + 1][host_port as usize],
                src_port: [80, 81, 5, 6][guest_port as usize],
                flags,
                len,
                buf_alloc,
                fwd_cnt,
                ..guest.header(Op::Data, 0, 0)
            };
            guest.send(header, &vec![1; len as usize]);
            guest.settle();
        }
        proptest::prop_assert!(!guest.machine.needs_reset());
    }
}
