//! A request must mean the same to the front door and to the container, and nobody may slip a
//! second one through: each row is sent as it stands, and what containers got is counted.

use super::*;

/// What somebody tries to slip through; `TOKEN` becomes a good one.
const SECOND: &str = "GET BASE/stolen?identifier=user-1 HTTP/1.1\r\nhost: localhost\r\n\
    authorization: Bearer TOKEN\r\n\r\n";

/// A container that tells what it gets: request line, framing headers, body.
fn witness() -> (Server, mpsc::UnboundedReceiver<String>) {
    let (seen, reports) = mpsc::unbounded_channel();
    let server = http_server(move |_, request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let framing = |name| {
                request
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            let (length, coding) = (
                framing(header::CONTENT_LENGTH),
                framing(header::TRANSFER_ENCODING),
            );
            let body = request.into_body().collect().await;
            let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            let body = body.unwrap_or_else(|_| "broken".into());
            seen.send(format!(
                "{line} length={length:?} coding={coding:?} body={body}"
            ))
            .unwrap();
            say("seen").await
        }
    });
    (server, reports)
}

/// Sends a request line, a good token, `lines` and `body`, and reads until the front door closes the
/// connection. Gives the statuses and what containers got.
async fn attempt(line: &str, lines: &str, body: &str) -> (String, Vec<String>) {
    let (server, mut reports) = witness();
    let door = Door::open(FakeLauncher::new(server)).await;
    let request = format!("{line}\r\nauthorization: Bearer TOKEN\r\n{lines}\r\n{body}");
    let request = request
        .replace("BASE", BASE)
        .replace("TOKEN", &door.token());
    let answer = door.raw(request.as_bytes()).await;
    in_time(door.pools.delete("alpha".parse().unwrap()))
        .await
        .unwrap();
    let statuses: Vec<_> = answer
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|part| part.get(..3).unwrap_or(part).to_owned())
        .collect();
    let mut seen = Vec::new();
    while let Ok(report) = reports.try_recv() {
        seen.push(report);
    }
    (statuses.join(" "), seen)
}

#[tokio::test]
async fn malformed_requests_are_refused_and_never_forwarded() {
    let post = "POST BASE/?identifier=user-1 HTTP/1.1";
    let host = "host: localhost\r\n";
    for (name, line, lines) in [
        (
            "two lengths",
            post,
            "host: localhost\r\ncontent-length: 3\r\ncontent-length: 4\r\n",
        ),
        (
            "list of lengths",
            post,
            "host: localhost\r\ncontent-length: 3, 3\r\n",
        ),
        (
            "signed length",
            post,
            "host: localhost\r\ncontent-length: +3\r\n",
        ),
        (
            "negative length",
            post,
            "host: localhost\r\ncontent-length: -1\r\n",
        ),
        (
            "huge length",
            post,
            "host: localhost\r\ncontent-length: 99999999999999999999\r\n",
        ),
        (
            "hexadecimal length",
            post,
            "host: localhost\r\ncontent-length: 0x3\r\n",
        ),
        (
            "folded header",
            post,
            "host: localhost\r\nx-a: b\r\n c\r\ncontent-length: 0\r\n",
        ),
        (
            "folded coding",
            post,
            "host: localhost\r\ntransfer-encoding:\r\n chunked\r\n",
        ),
        (
            "space before colon",
            post,
            "host: localhost\r\ncontent-length : 3\r\n",
        ),
        (
            "tab before colon",
            post,
            "host: localhost\r\ntransfer-encoding\t: chunked\r\n",
        ),
        (
            "space before name",
            post,
            " content-length: 3\r\nhost: localhost\r\n",
        ),
        ("zero byte in value", post, "host: localhost\r\nx-a: \0\r\n"),
        (
            "carriage return in value",
            post,
            "host: localhost\r\nx-a: b\rtransfer-encoding: chunked\r\n",
        ),
        (
            "coding that is not chunked",
            post,
            "host: localhost\r\ntransfer-encoding: xchunked\r\n",
        ),
        (
            "coding before chunked",
            post,
            "host: localhost\r\ntransfer-encoding: gzip, chunked\r\n",
        ),
        (
            "chunked twice",
            post,
            "host: localhost\r\ntransfer-encoding: chunked, chunked\r\n",
        ),
        (
            "chunked in two lines",
            post,
            "host: localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        ),
        (
            "chunked not last",
            post,
            "host: localhost\r\ntransfer-encoding: chunked, identity\r\n",
        ),
        (
            "quoted chunked",
            post,
            "host: localhost\r\ntransfer-encoding: \"chunked\"\r\n",
        ),
        (
            "coding in HTTP/1.0",
            "POST BASE/?identifier=user-1 HTTP/1.0",
            "host: localhost\r\ntransfer-encoding: chunked\r\n",
        ),
        ("no host", post, ""),
        ("two hosts", post, "host: localhost\r\nhost: localhost\r\n"),
        ("host with user", post, "host: a@localhost\r\n"),
        ("host with path", post, "host: localhost/x\r\n"),
        (
            "target with another host",
            "POST https://evil.example/BASE/?identifier=user-1 HTTP/1.1",
            host,
        ),
        (
            "target with a user",
            "POST https://a@localhost/BASE/?identifier=user-1 HTTP/1.1",
            host,
        ),
        ("tunnel", "CONNECT localhost:443 HTTP/1.1", host),
        ("star", "OPTIONS * HTTP/1.1", host),
        (
            "space in target",
            "POST BASE/a b?identifier=user-1 HTTP/1.1",
            host,
        ),
        ("two spaces", "POST  BASE/?identifier=user-1 HTTP/1.1", host),
        (
            "unknown version",
            "POST BASE/?identifier=user-1 HTTP/1.2",
            host,
        ),
        ("HTTP/2 on the wire", "PRI * HTTP/2.0", host),
    ] {
        let (statuses, seen) = attempt(line, lines, &format!("0\r\n\r\n{SECOND}")).await;
        let refused = statuses.get(..1) == Some("4");
        assert!(refused, "{name}: answered {statuses:?}");
        assert_eq!(seen, [""; 0], "{name}");
    }
}

/// RFC 9112 section 6.3: chunked wins, the length is dropped, and the connection is closed after it.
#[tokio::test]
async fn length_beside_chunked_never_frames_and_ends_the_connection() {
    for lines in [
        "host: localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n",
        "host: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "host: localhost\r\ntransfer-encoding: Chunked\r\ncontent-length: 400\r\n",
    ] {
        let body = format!("3\r\nabc\r\n0\r\n\r\n{SECOND}");
        let (statuses, seen) = attempt("POST BASE/?identifier=user-1 HTTP/1.1", lines, &body).await;
        assert_eq!(statuses, "200", "{lines:?}");
        let expected = "POST /?identifier=user-1 length=None coding=Some(\"chunked\") body=abc";
        assert_eq!(seen, [expected], "{lines:?}");
    }
}

#[tokio::test]
async fn broken_chunks_break_the_request_and_what_follows_is_not_one() {
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\r\n",
    ] {
        let lines = "host: localhost\r\ntransfer-encoding: chunked\r\n";
        let line = "POST BASE/?identifier=user-1 HTTP/1.1";
        let (statuses, seen) = attempt(line, lines, &format!("{body}{SECOND}")).await;
        assert!(!statuses.contains("200"), "{body:?}: answered {statuses:?}");
        let whole = seen
            .iter()
            .filter(|report| !report.ends_with("body=broken"))
            .count();
        assert_eq!(whole, 0, "{body:?}: {seen:?}");
    }
}

#[tokio::test]
async fn harmless_oddities_pass_with_their_framing_made_plain() {
    let line = "POST BASE/?identifier=user-1 HTTP/1.1\r\nconnection: close";
    for (lines, body, expected) in [
        (
            "host: localhost\r\ncontent-length: 3\r\n",
            "abc",
            "length=Some(\"3\") coding=None body=abc",
        ),
        (
            "host: localhost\r\ncontent-length: 3\r\ncontent-length: 3\r\n",
            "abc",
            "length=Some(\"3\") coding=None body=abc",
        ),
        (
            "host: localhost\r\ncontent-length: 003\r\n",
            "abc",
            "coding=None body=abc",
        ),
        (
            "host: localhost\r\ntransfer-encoding: CHUNKED\r\n",
            "3;x=y\r\nabc\r\n0\r\n\r\n",
            "length=None coding=Some(\"chunked\") body=abc",
        ),
        (
            "HOST: LOCALHOST\r\nconnection: content-length\r\ncontent-length: 3\r\n",
            "abc",
            "length=Some(\"3\") coding=None body=abc",
        ),
        ("host: localhost\r\n", "", "body="),
    ] {
        let (statuses, seen) = attempt(line, lines, body).await;
        assert_eq!(statuses, "200", "{lines:?}");
        assert_eq!(seen.len(), 1, "{lines:?}: {seen:?}");
        assert!(seen[0].ends_with(expected), "{lines:?}: {seen:?}");
    }
    let absolute = "POST https://localhostBASE/?identifier=user-1 HTTP/1.1\r\nconnection: close";
    let (statuses, seen) = attempt(absolute, "host: localhost\r\n", "").await;
    assert_eq!((statuses.as_str(), seen.len()), ("200", 1));
    assert!(seen[0].starts_with("POST /?identifier=user-1 "), "{seen:?}");
}

/// An upgrade to cleartext HTTP/2 would let further requests pass unseen.
#[tokio::test]
async fn upgrade_to_h2c_is_not_passed_on() {
    let (server, mut heads) = {
        let (seen, heads) = mpsc::unbounded_channel();
        let server = raw_server(move |mut stream: UnixStream| {
            let seen = seen.clone();
            async move {
                seen.send(read_head(&mut stream).await).unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        (server, heads)
    };
    let door = Door::open(FakeLauncher::new(server)).await;
    let mut request = door.request("GET", "/?identifier=user-1", empty());
    for (name, value) in [
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(door.send(request).await.status, StatusCode::OK);
    let head = in_time(heads.recv()).await.unwrap().to_ascii_lowercase();
    for gone in ["upgrade", "h2c", "http2-settings", "connection"] {
        assert!(!head.contains(gone), "{head}");
    }
}
