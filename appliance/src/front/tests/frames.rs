//! HTTP/2 that is malformed or means more than one thing: byte for byte, and nothing of it may reach a container.
//!
//! What each row violates is in RFC 9113: sections 6 (frames), 8.1.1 and 8.2 (messages and headers), 8.3 (pseudo-headers).

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const WHOLE: u8 = END_STREAM | END_HEADERS;
/// No kind of frame: the connection has ended.
const CLOSED: u8 = 255;
/// For a server that answers nothing: what it does is to be seen at once.
const PATIENCE: Duration = Duration::from_secs(5);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literals that are not indexed and not compressed (RFC 7541 section 6.2.2): what is written is what is sent.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        // A length of 127 and more goes on in sevens of bits.
        match text.len().checked_sub(127) {
            None => bytes.push(u8::try_from(text.len()).unwrap()),
            Some(mut rest) => {
                bytes.push(127);
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend(text.as_bytes());
    };
    for (name, value) in fields {
        bytes.push(0);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// Sends `frames` after the preface and reads until the end, or until the server says that it has seen all of it. Gives each
/// frame of the answer that tells something, its kind and payload, and [`CLOSED`].
async fn talk(door: &Door, preface: &[u8], frames: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut stream = door.tls("localhost", Some("h2")).await;
    let mut sent = preface.to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    sent.extend(frames);
    sent.extend(frame(PING, 0, 0, b"are we?!"));
    // It may close before it has read everything.
    let _ = stream.write_all(&sent).await;
    let mut got = Vec::new();
    let read = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return got.push((CLOSED, Vec::new()));
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return got.push((CLOSED, Vec::new()));
            }
            let ours = head[3] == PING && payload == b"are we?!";
            if [DATA, HEADERS, RST_STREAM, GOAWAY].contains(&head[3]) {
                got.push((head[3], payload));
            }
            // An answer to the last frame, and to what came before it.
            let answered = got
                .iter()
                .any(|(kind, _)| [RST_STREAM, GOAWAY, DATA].contains(kind));
            if ours && answered {
                return;
            }
            if answered && head[3] != PING && head[3] != HEADERS {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, read).await;
    got
}

/// With every container's view of what came through.
async fn witnessed() -> (Door, mpsc::UnboundedReceiver<String>) {
    let (seen, reports) = mpsc::unbounded_channel();
    let server = http_server(move |_, request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let line = format!(
                "{} {} {:?}",
                request.method(),
                request.uri(),
                request.headers()
            );
            let body = request.into_body().collect().await;
            // One that breaks off is no request.
            if body.is_ok() {
                seen.send(line).unwrap();
            }
            say("seen").await
        }
    });
    (Door::open(FakeLauncher::new(server)).await, reports)
}

#[tokio::test]
async fn requests_that_http2_forbids_never_reach_a_container() {
    let (door, mut seen) = witnessed().await;
    let token = format!("Bearer {}", door.token());
    let path = format!("{BASE}/?identifier=user-1");
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path.as_str()),
        ("authorization", token.as_str()),
    ];
    let with = |more: &[(&str, &str)]| {
        [&usual[..], more]
            .concat()
            .iter()
            .map(|&(n, v)| (n.to_owned(), v.to_owned()))
            .collect::<Vec<_>>()
    };
    let without = |gone: &str| {
        with(&[])
            .into_iter()
            .filter(|(name, _)| name != gone)
            .collect::<Vec<_>>()
    };
    let other = |name: &str, value: &str| {
        with(&[])
            .into_iter()
            .map(|(n, v)| {
                if n == name {
                    (n, value.to_owned())
                } else {
                    (n, v)
                }
            })
            .collect::<Vec<_>>()
    };
    let smuggled = "x\r\n\r\nGET /stolen HTTP/1.1\r\nhost: localhost";
    let path_with = |tail: &str| format!("{path}{tail}");
    let rows = [
        ("connection", with(&[("connection", "keep-alive")])),
        (
            "connection that names a header",
            with(&[("connection", "x-forwarded-for")]),
        ),
        ("chunked", with(&[("transfer-encoding", "chunked")])),
        ("keep-alive", with(&[("keep-alive", "timeout=5")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te that is not trailers", with(&[("te", "gzip")])),
        ("upper case", with(&[("X-Upper", "1")])),
        ("space in a name", with(&[("x a", "1")])),
        ("colon in a name", with(&[("x:a", "1")])),
        (
            "line break in a name",
            with(&[("x\r\ntransfer-encoding: chunked\r\nx", "1")]),
        ),
        ("empty name", with(&[("", "1")])),
        ("line break in a value", with(&[("x-a", smuggled)])),
        (
            "bare line feed in a value",
            with(&[("x-a", "1\ntransfer-encoding: chunked")]),
        ),
        (
            "bare carriage return in a value",
            with(&[("x-a", "1\rtransfer-encoding: chunked")]),
        ),
        ("zero byte in a value", with(&[("x-a", "\0")])),
        (
            "line break in the path",
            other(":path", &path_with(" HTTP/1.1\r\nx: y")),
        ),
        ("space in the path", other(":path", &path_with("&a=b c"))),
        ("empty path", other(":path", "")),
        (
            "line break in the method",
            other(":method", "POST / HTTP/1.1\r\nx: y"),
        ),
        (
            "line break in the host",
            other(":authority", "localhost\r\nx: y"),
        ),
        ("user in the host", other(":authority", "a@localhost")),
        ("another host beside it", with(&[("host", "evil.example")])),
        (
            "two hosts",
            with(&[("host", "localhost"), ("host", "localhost")]),
        ),
        (
            "pseudo-header at the end",
            [&without(":path")[..], &[(":path".into(), path.clone())]].concat(),
        ),
        ("two paths", with(&[(":path", "/stolen")])),
        (
            "unknown pseudo-header",
            [&[(":secret".to_owned(), "1".to_owned())], &with(&[])[..]].concat(),
        ),
        (
            "pseudo-header of answers",
            [&[(":status".to_owned(), "200".to_owned())], &with(&[])[..]].concat(),
        ),
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("no token", without("authorization")),
        (
            "two lengths",
            with(&[("content-length", "0"), ("content-length", "3")]),
        ),
        ("signed length", with(&[("content-length", "+0")])),
        ("length and no body", with(&[("content-length", "3")])),
        (
            "tunnel",
            vec![
                (":method".into(), "CONNECT".into()),
                (":authority".into(), "localhost:22".into()),
            ],
        ),
    ];
    for (name, fields) in rows {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let answer = talk(&door, PREFACE, &frame(HEADERS, WHOLE, 1, &block(&fields))).await;
        let body: Vec<u8> = answer
            .iter()
            .filter(|(kind, _)| *kind == DATA)
            .flat_map(|(_, it)| it.clone())
            .collect();
        let refused = answer
            .iter()
            .any(|(kind, _)| [RST_STREAM, GOAWAY, CLOSED].contains(kind))
            || body.starts_with(b"{\"error\"");
        let answers = String::from_utf8_lossy(&body);
        assert!(refused, "{name}: {answers}");
        assert_eq!(seen.try_recv().ok(), None, "{name}");
    }
    // A body that is longer, and one that is shorter than its length.
    for (name, length, body) in [("longer", "1", "four"), ("shorter", "9", "four")] {
        let fields = with(&[("content-length", length)]);
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut frames = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        frames.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
        talk(&door, PREFACE, &frames).await;
        assert_eq!(seen.try_recv().ok(), None, "{name}");
    }
    // The same without anything wrong arrives, so that the table proves something.
    let answer = talk(&door, PREFACE, &frame(HEADERS, WHOLE, 1, &block(&usual))).await;
    assert!(
        answer
            .iter()
            .any(|(kind, body)| *kind == DATA && body == b"seen"),
        "{answer:?}"
    );
    assert!(
        in_time(seen.recv())
            .await
            .unwrap()
            .starts_with("POST /?identifier=user-1")
    );
}

#[tokio::test]
async fn broken_frames_end_their_connection_and_nothing_else() {
    let (door, mut seen) = witnessed().await;
    let usual = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
    ];
    let head = block(&usual);
    let rows = [
        ("headers on stream 0", frame(HEADERS, WHOLE, 0, &head)),
        ("headers on an even stream", frame(HEADERS, WHOLE, 2, &head)),
        (
            "stream that goes back",
            [
                frame(HEADERS, WHOLE, 5, &head),
                frame(HEADERS, WHOLE, 3, &head),
            ]
            .concat(),
        ),
        ("data on an idle stream", frame(DATA, 0, 1, b"x")),
        ("data on stream 0", frame(DATA, 0, 0, b"x")),
        (
            "padding longer than the frame",
            frame(HEADERS, WHOLE | 8, 1, &[200, 0]),
        ),
        (
            "block that is no compression",
            frame(HEADERS, WHOLE, 1, &[0xff; 20]),
        ),
        ("index beyond the table", frame(HEADERS, WHOLE, 1, &[0xbf])),
        (
            "continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &head),
        ),
        (
            "something else within a block",
            [
                frame(HEADERS, END_STREAM, 1, &head),
                frame(PING, 0, 0, &[0; 8]),
            ]
            .concat(),
        ),
        (
            "continuation of another stream",
            [
                frame(HEADERS, END_STREAM, 1, &head),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
        ),
        ("settings of half a setting", frame(SETTINGS, 0, 0, &[0; 3])),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[])),
        (
            "acknowledgement with content",
            frame(SETTINGS, 1, 0, &[0; 6]),
        ),
        (
            "window beyond its limit",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
        ),
        (
            "frames beyond their limit",
            frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
        ),
        (
            "push that is neither on nor off",
            frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]),
        ),
        ("short ping", frame(PING, 0, 0, &[0; 7])),
        ("ping on a stream", frame(PING, 0, 1, &[0; 8])),
        (
            "window update of nothing",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        ),
        ("short window update", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        (
            "window update beyond the limit",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
        (
            "window update of an idle stream",
            frame(WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1]),
        ),
        ("reset of stream 0", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("reset of an idle stream", frame(RST_STREAM, 0, 7, &[0; 4])),
        ("short reset", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("priority on stream 0", frame(PRIORITY, 0, 0, &[0; 5])),
        (
            "push by a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        ("goaway on a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("frame beyond 16 KiB", frame(DATA, 0, 1, &[0; 16_385])),
    ];
    for (name, frames) in rows {
        let answer = talk(&door, PREFACE, &frames).await;
        let ended = answer
            .iter()
            .any(|(kind, _)| [GOAWAY, RST_STREAM, CLOSED].contains(kind));
        assert!(ended, "{name}: {answer:?}");
    }
    for preface in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
    ] {
        let answer = talk(&door, preface, &[]).await;
        assert!(
            answer
                .iter()
                .all(|(kind, _)| [GOAWAY, CLOSED].contains(kind))
                && !answer.is_empty(),
            "{answer:?}"
        );
    }
    assert_eq!(seen.try_recv().ok(), None);
    assert_eq!(door.get("/?identifier=user-1").await.status, StatusCode::OK);
}

/// CVE-2023-44487: streams that are opened and reset at once. The connection ends long before the requests do.
#[tokio::test]
async fn streams_that_are_reset_at_once_end_their_connection() {
    let (door, _seen) = witnessed().await;
    let head = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
    ]);
    let mut frames = Vec::new();
    for stream in (1..20_001).step_by(2) {
        frames.extend(frame(HEADERS, WHOLE, stream, &head));
        frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let answer = talk(&door, PREFACE, &frames).await;
    assert!(
        answer
            .iter()
            .any(|(kind, _)| [GOAWAY, CLOSED].contains(kind)),
        "{answer:?}"
    );
    assert_eq!(door.get("/?identifier=user-1").await.status, StatusCode::OK);
}
