//! How a stream comes about: the socket's two verbs, and who waits for whom.

use super::*;

#[test]
fn configuration_is_the_guest_address() {
    let mut guest = Guest::bare();
    assert_eq!(
        (guest.machine.read(0x100), guest.machine.read(0x104)),
        (CID as u32, 0)
    );
}

#[test]
fn client_that_connects_is_told_when_the_guest_accepts() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 1025\n");
    let request = op_of(&guest.packet(), Op::Request);
    assert_eq!(
        (request.dst_port, request.src_port),
        (1025, FIRST_HOST_PORT)
    );
    assert_eq!(
        (request.buf_alloc, request.fwd_cnt, request.flags),
        (WINDOW, 0, 0)
    );
    guest.control(Op::Response, request.src_port, 1025);
    assert_eq!(line(&mut client), format!("OK {FIRST_HOST_PORT}\n"));
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_is_closed_without_an_answer_when_the_guest_refuses() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONNECT 1025\n");
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Reset, host, 1025);
    assert!(is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_that_connects_before_the_driver_is_up_waits_for_it() {
    let mut guest = Guest::bare();
    let mut client = guest.client("CONNECT 7\n");
    assert!(!is_closed(&mut client));
    guest.start_driver();
    guest.give_buffers(4);
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 7);
    assert_eq!(line(&mut client), format!("OK {host}\n"));
}

#[test]
fn client_may_send_its_line_in_pieces_and_bytes_right_behind_it() {
    let mut guest = Guest::new();
    let mut client = guest.client("CONN");
    client.write_all(b"ECT 9").unwrap();
    guest.settle();
    assert_eq!(guest.packets(), []);
    client.write_all(b"\nearly").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let host = op_of(&guest.packet(), Op::Request).src_port;
    guest.control(Op::Response, host, 9);
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"early");
    assert_eq!(op_of(&packets[1], Op::Shutdown).flags, SHUTDOWN_SEND);
    assert_eq!(packets.len(), 2);
}

#[test]
fn client_that_says_anything_else_is_closed() {
    let mut guest = Guest::new();
    for text in [
        "GET / HTTP/1.1\r\n",
        "CONNECT x\n",
        "CONNECT 1 2\n",
        &"x".repeat(32),
        "\n",
    ] {
        let mut client = guest.client(text);
        assert!(is_closed(&mut client), "{text:?}");
    }
    assert_eq!(guest.packets(), []);
}

#[test]
fn client_that_hangs_up_before_the_guest_answers_takes_its_request_back() {
    let mut guest = Guest::new();
    let client = guest.client("CONNECT 5\n");
    let host = op_of(&guest.packet(), Op::Request).src_port;
    drop(client);
    assert_eq!(op_of(&guest.packet(), Op::Reset).src_port, host);
    // The answer that was under way is for nobody.
    guest.control(Op::Response, host, 5);
    op_of(&guest.packet(), Op::Reset);
}

#[test]
fn client_that_hangs_up_before_the_driver_is_up_leaves_no_trace() {
    let mut guest = Guest::bare();
    drop(guest.client("CONNECT 5\n"));
    guest.settle();
    guest.start_driver();
    guest.give_buffers(4);
    assert_eq!(guest.packets(), []);
}

#[test]
fn guest_that_connects_is_joined_to_the_client_that_listens() {
    let mut guest = Guest::new();
    let mut other = guest.client("LISTEN 1023\n");
    let mut first = guest.client("LISTEN 1024\n");
    let mut second = guest.client("LISTEN 1024\n");
    guest.control(Op::Request, 1024, 50);
    assert_eq!(op_of(&guest.packet(), Op::Response).dst_port, 50);
    assert_eq!(line(&mut first), "OK 50\n");
    guest.control(Op::Request, 1024, 51);
    assert_eq!(line(&mut second), "OK 51\n");
    guest.packets();
    guest.data(1024, 51, b"hi");
    assert_eq!(bytes(&mut second, 2), b"hi");
    assert!(!is_closed(&mut other) && !is_closed(&mut first));
}

#[test]
fn guest_that_connects_first_is_held_until_a_client_listens() {
    let mut guest = Guest::new();
    guest.control(Op::Request, 1024, 50);
    assert_eq!(guest.packets(), []);
    let mut client = guest.client("LISTEN 1024\n");
    assert_eq!(line(&mut client), "OK 50\n");
    op_of(&guest.packet(), Op::Response);
}

#[test]
fn listener_that_left_is_not_given_a_connection() {
    let mut guest = Guest::new();
    let first = guest.client("LISTEN 1024\n");
    let mut second = guest.client("LISTEN 1024\n");
    drop(first);
    guest.control(Op::Request, 1024, 50);
    assert_eq!(line(&mut second), "OK 50\n");
}

#[test]
fn listener_that_shut_its_side_down_still_gets_its_connection() {
    let mut guest = Guest::new();
    let mut client = guest.client("LISTEN 1024\nbye");
    client.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    guest.control(Op::Request, 1024, 50);
    assert_eq!(line(&mut client), "OK 50\n");
    let packets = guest.packets();
    op_of(&packets[0], Op::Response);
    assert_eq!(packets[1].1, b"bye");
    assert_eq!(op_of(&packets[2], Op::Shutdown).flags, SHUTDOWN_SEND);
}

#[test]
fn mvm_1861_guest_cannot_have_more_than_a_few_connections_held() {
    let mut guest = Guest::new();
    for port in 0..MAX_HELD as u32 + 3 {
        guest.control(Op::Request, 1024, port);
    }
    let refused: Vec<u32> = guest
        .packets()
        .iter()
        .map(|packet| op_of(packet, Op::Reset).dst_port)
        .collect();
    assert_eq!(refused, [0, 1, 2], "the oldest go");
    let mut client = guest.client("LISTEN 1024\n");
    assert_eq!(
        line(&mut client),
        "OK 10\n",
        "the newest is the one that still waits"
    );
}

#[test]
fn held_connection_that_the_guest_gives_up_is_forgotten() {
    let mut guest = Guest::new();
    guest.control(Op::Request, 1024, 1);
    guest.control(Op::Reset, 1024, 1);
    guest.control(Op::Request, 1024, 2);
    guest.shut_down(1024, 2, SHUTDOWN_BOTH);
    op_of(&guest.packet(), Op::Reset);
    let mut client = guest.client("LISTEN 1024\n");
    assert!(!is_closed(&mut client));
    assert_eq!(guest.packets(), []);
}
