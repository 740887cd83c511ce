//! What goes through the front door comes out as it went in, both ways and while it is going.

use std::sync::LazyLock;

use bytes::Bytes;
use e2e::client::{self, Answer, BoxError, Connection, within};
use e2e::{Session, TestAppliance};
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Response, Version};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

e2e::tests! {
    Shared: [
        every_method_and_its_body_reach_the_container,
        path_query_and_headers_arrive_byte_for_byte,
        token_never_reaches_the_container,
        answer_of_the_container_comes_back_as_it_is,
        server_sent_events_arrive_while_they_are_made,
        request_body_is_echoed_before_it_has_ended_on_http_1_and_2,
        client_that_expects_100_continue_gets_it,
        websocket_messages_come_back,
        sixty_four_mebibytes_go_up_unchanged,
        sixty_four_mebibytes_come_down_unchanged,
        requests_share_one_http_2_connection,
        client_that_hangs_up_in_a_download_leaves_the_session_as_it_was,
    ];
}

const LARGE: usize = 64 << 20;
/// SHA-256 of the first [`LARGE`] bytes of the pattern.
const LARGE_SHA256: &str = "98dc891b284e4d84ac25b0c0a24fdbe39a7f0dbd643ad5e8aa06e02fc6258254";
const EVENT: &[u8] = b"id: 0\ndata: event 0\n\n";
/// Byte `n` of the pattern is `n % 251`, in the demo server too. Blocks follow each other without a seam.
static BLOCK: LazyLock<Bytes> = LazyLock::new(|| (0..251).cycle().take(251 * 256).collect());

fn every_method_and_its_body_reach_the_container(host: &TestAppliance) {
    let session = host.shared_session();
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND",
    ] {
        let body = if method == "GET" { "" } else { "some bytes" };
        let echo = session
            .call(method.parse().unwrap(), "/echo?x=1", body)
            .json();
        assert_eq!(echo["method"], method);
        assert_eq!(echo["path"], "/echo");
        assert_eq!(echo["query"], "x=1&identifier=shared");
        assert_eq!(echo["bodyBytes"], body.len(), "{echo}");
        let digest: String = Sha256::digest(body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(echo["bodySha256"], digest);
    }
    let head = session.call(Method::HEAD, "/echo", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers["content-type"], "application/json");
}

/// Sends bytes on a connection of their own and reads until the appliance closes it.
fn exchange(host: &TestAppliance, request: Vec<u8>) -> String {
    host.block_on(async {
        let mut tls = host.client().tls(&["http/1.1"]).await;
        tls.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        within("the end of the answer", tls.read_to_end(&mut answer))
            .await
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    })
}

fn path_query_and_headers_arrive_byte_for_byte(host: &TestAppliance) {
    let session = host.shared_session();
    session.boot_id();
    let path = "/raw/a//b;c=d/%7Euser/..%2fx/%e9?q=1+2%20&identifier=shared&empty&=x&a=b?c/d";
    let base = e2e::pool::endpoint("shared");
    let mut request =
        format!("GET {base}{path} HTTP/1.1\r\nHost: {}\r\n", host.address()).into_bytes();
    request.extend_from_slice(
        format!(
            "Authorization: {}\r\nConnection: close\r\n",
            session.authorization()
        )
        .as_bytes(),
    );
    let headers: [&[u8]; 5] = [
        b"X-Odd-CASE: two  spaces,\tand a tab",
        b"x-twice: first",
        b"X-Twice: second",
        b"Cookie: a=b; c=\"d e\"; %3D",
        b"X-Latin: caf\xe9 \xff",
    ];
    for header in headers {
        request.extend_from_slice(header);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let answer = exchange(host, request);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let arrived = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(
        arrived.lines().next(),
        Some(&*format!("GET {path} HTTP/1.1"))
    );
    let lines: Vec<&str> = arrived.lines().collect();
    for header in headers {
        let header = String::from_utf8_lossy(header);
        assert!(
            lines.contains(&&*header),
            "{header:?} is missing in\n{arrived}"
        );
    }
    // Order matters among lines of one name (RFC 9110 §5.3) and of no others.
    let place = |line: &str| lines.iter().position(|found| *found == line);
    assert!(
        place("x-twice: first") < place("X-Twice: second"),
        "the order of\n{arrived}"
    );
}

fn token_never_reaches_the_container(host: &TestAppliance) {
    let session = host.shared_session();
    let arrived = session.get("/raw").text();
    assert!(
        arrived.starts_with("GET /raw?identifier=shared HTTP/1.1\r\n"),
        "{arrived}"
    );
    assert!(
        !arrived.to_lowercase().contains("authorization"),
        "{arrived}"
    );
    assert!(!arrived.contains(host.token()), "{arrived}");
}

fn answer_of_the_container_comes_back_as_it_is(host: &TestAppliance) {
    let session = host.shared_session();
    let missing = session.get("/nowhere");
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("no such endpoint"), "{missing:#?}");
    assert!(
        !missing.headers.contains_key("x-ms-error-code"),
        "the platform claims the container's error"
    );
    assert_eq!(
        session.call(Method::PUT, "/files/%C3%A9%20a", "x").status,
        201
    );
    let deleted = session.call(Method::DELETE, "/files/%C3%A9%20a", "");
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
}

fn server_sent_events_arrive_while_they_are_made(host: &TestAppliance) {
    let session = host.shared_session();
    host.block_on(async {
        let mut connection = session.client().http1().await;
        // The second event is a day away: what is read here was not held back for it.
        let request = session
            .request(Method::GET, "/sse?count=2&intervalMs=86400000")
            .body(client::empty())
            .unwrap();
        let response = connection.send(request).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = response.into_body();
        assert_eq!(read(&mut events, EVENT.len()).await, EVENT);
    });
    assert_eq!(session.get("/").status, 200);
}

/// Reads at least so many bytes, or to the end.
async fn read(body: &mut Incoming, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let Some(frame) = within("the next part of the answer", body.frame()).await else {
            break;
        };
        if let Ok(data) = frame.expect("the answer goes on").into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    bytes
}

fn request_body_is_echoed_before_it_has_ended_on_http_1_and_2(host: &TestAppliance) {
    let session = host.shared_session();
    host.block_on(async {
        echo_in_steps(&session, session.client().http1().await).await;
        echo_in_steps(&session, session.client().http2().await).await;
    });
}

async fn echo_in_steps(session: &Session<'_>, mut connection: Connection) {
    let (parts, arriving) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(arriving, async |mut arriving| {
        let part = arriving.recv().await?;
        Some((Ok::<_, BoxError>(Frame::data(part)), arriving))
    });
    let request = session
        .request(Method::POST, "/echo-stream")
        .body(StreamBody::new(body).boxed_unsync())
        .unwrap();
    parts.send(Bytes::from_static(b"first")).await.unwrap();
    let response = connection.send(request).await;
    assert_eq!(response.status(), 200);
    let mut echo = response.into_body();
    assert_eq!(read(&mut echo, 5).await, b"first");
    parts.send(Bytes::from_static(b"second")).await.unwrap();
    assert_eq!(read(&mut echo, 6).await, b"second");
    drop(parts);
    assert_eq!(
        read(&mut echo, 1).await,
        b"",
        "the echo ends when the request does"
    );
}

fn client_that_expects_100_continue_gets_it(host: &TestAppliance) {
    let session = host.shared_session();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        session.target("/upload"),
        host.address(),
        session.authorization()
    );
    let answer = host.block_on(async {
        let mut tls = host.client().tls(&["http/1.1"]).await;
        tls.write_all(head.as_bytes()).await.unwrap();
        let mut interim = [0; 25];
        within("100 Continue", tls.read_exact(&mut interim))
            .await
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&interim),
            "HTTP/1.1 100 Continue\r\n\r\n"
        );
        tls.write_all(b"abc").await.unwrap();
        let mut answer = Vec::new();
        within("the end of the answer", tls.read_to_end(&mut answer))
            .await
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"bytes\":3"),
        "{answer:?}"
    );
}

fn websocket_messages_come_back(host: &TestAppliance) {
    let session = host.shared_session();
    host.block_on(async {
        let tls = session.client().tls(&["http/1.1"]).await;
        let url = format!("wss://{}{}", host.address(), session.target("/ws"));
        let mut request = url.into_client_request().unwrap();
        request
            .headers_mut()
            .insert(AUTHORIZATION, session.authorization().parse().unwrap());
        let opening = within(
            "the WebSocket",
            tokio_tungstenite::client_async(request, tls),
        )
        .await;
        let (mut socket, response) = opening.expect("the upgrade is forwarded");
        assert_eq!(response.status(), 101);
        let large: Bytes = BLOCK.iter().copied().cycle().take(1 << 20).collect();
        for message in [
            Message::text("hello"),
            Message::binary(large),
            Message::text(""),
            Message::text("bye"),
        ] {
            socket.send(message.clone()).await.unwrap();
            let back = within("the echo", socket.next()).await.unwrap().unwrap();
            assert!(
                back == message,
                "{} bytes came back as {} other ones",
                message.len(),
                back.len()
            );
        }
        socket.close(None).await.unwrap();
        let last = within("the close", socket.next()).await.unwrap().unwrap();
        assert!(last.is_close(), "{last:?}");
    });
}

fn sixty_four_mebibytes_go_up_unchanged(host: &TestAppliance) {
    let session = host.shared_session();
    let blocks = stream::unfold(LARGE, async |left| {
        let length = left.min(BLOCK.len());
        (length > 0).then(|| {
            (
                Ok::<_, BoxError>(Frame::data(BLOCK.slice(..length))),
                left - length,
            )
        })
    });
    let request = session
        .request(Method::POST, "/upload")
        .body(StreamBody::new(blocks).boxed_unsync())
        .unwrap();
    let upload = host.block_on(session.send(request)).json();
    assert_eq!(upload["bytes"], LARGE);
    assert_eq!(upload["sha256"], LARGE_SHA256);
}

fn sixty_four_mebibytes_come_down_unchanged(host: &TestAppliance) {
    let session = host.shared_session();
    let download = async |query: &str| -> Response<Incoming> {
        let request = session
            .request(Method::GET, &format!("/download?{query}"))
            .body(client::empty())
            .unwrap();
        session.client().http1().await.send(request).await
    };
    host.block_on(async {
        let response = download(&format!("bytes={LARGE}")).await;
        assert_eq!(response.headers()["content-length"], *LARGE.to_string());
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = within("the next part of the download", body.frame()).await {
            let Ok(data) = frame.unwrap().into_data() else {
                continue;
            };
            assert_pattern(length, &data);
            length += data.len();
        }
        assert_eq!(length, LARGE);

        let chunked = Answer::collect(download("bytes=1000000&chunked=1").await).await;
        assert_eq!(chunked.headers["transfer-encoding"], "chunked");
        assert_eq!(chunked.body.len(), 1_000_000);
        assert_pattern(0, &chunked.body);
    });
}

/// Asserts that `data` is the pattern from `offset` on.
fn assert_pattern(offset: usize, data: &[u8]) {
    let mut at = offset;
    for piece in data.chunks(BLOCK.len() / 2) {
        let start = at % 251;
        assert!(
            *piece == BLOCK[start..start + piece.len()],
            "the bytes from {at} on are others"
        );
        at += piece.len();
    }
}

fn requests_share_one_http_2_connection(host: &TestAppliance) {
    let session = host.shared_session();
    host.block_on(async {
        let Connection::Http2(sender) = session.client().http2().await else {
            panic!("this is HTTP/1.1")
        };
        let get = |path: &str| -> Request<client::Body> {
            session
                .request(Method::GET, path)
                .body(client::empty())
                .unwrap()
        };
        let send = async |path: &str| {
            let response = sender
                .clone()
                .send_request(get(path))
                .await
                .expect("the request is answered");
            Answer::collect(response).await
        };
        // The slow one is answered last, so the others have overtaken it on the same connection.
        let (slow, echo, download) = within("three answers", async {
            tokio::join!(
                send("/slow?ms=500"),
                send("/echo?a=b"),
                send("/download?bytes=1000000")
            )
        })
        .await;
        assert_eq!(slow.text(), "slow, but here\n");
        assert_eq!(
            (echo.version, echo.json()["query"].as_str()),
            (Version::HTTP_2, Some("a=b&identifier=shared"))
        );
        assert_eq!(download.body.len(), 1_000_000);
        assert_pattern(0, &download.body);
        assert!(
            !download.headers.contains_key("connection"),
            "{:?}",
            download.headers
        );
    });
}

fn client_that_hangs_up_in_a_download_leaves_the_session_as_it_was(host: &TestAppliance) {
    let session = host.shared_session();
    let boot = session.boot_id();
    host.block_on(async {
        let request = session
            .request(Method::GET, "/download?bytes=1000000000000")
            .body(client::empty())
            .unwrap();
        let mut connection = session.client().http1().await;
        let mut body = connection.send(request).await.into_body();
        assert!(read(&mut body, 100_000).await.len() >= 100_000);
    });
    assert_eq!(session.boot_id(), boot);
}
