//! Bytes go through as they come.

use super::*;

pub const WEBSOCKET: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "websocket")];

/// Answers with the head of the request as it was on the wire.
async fn mirror(mut stream: UnixStream) {
    loop {
        let head = read_head(&mut stream).await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-MiXeD: Yes\r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn head_is_what_the_client_sent_except_for_what_is_ours() {
    let door = Door::open(FakeLauncher::new(raw_server(mirror))).await;
    let request = format!(
        "GET {BASE}/a//b/%2e%2E/?x=%20&identifier=user-1&y HTTP/1.1\r\nhost: localhost:8443\r\n\
         AuthoriZation: Bearer {}\r\nX-CuStOm: One\r\nx-custom: two\r\nX-Forwarded-For: 6.6.6.6\r\n\
         Forwarded: for=6.6.6.6\r\nKeep-Alive: 5\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\r\n",
        door.token()
    );
    let answer = door.raw(request.as_bytes()).await;
    assert!(answer.contains("\r\nX-MiXeD: Yes\r\n"), "{answer}");
    let head = answer.split_once("\r\n\r\n").unwrap().1;
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(
        lines.remove(0),
        "GET /a//b/%2e%2E/?x=%20&identifier=user-1&y HTTP/1.1"
    );
    lines.sort_unstable();
    let expected = [
        "X-CuStOm: One",
        "host: localhost:8443",
        "x-custom: two",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: localhost:8443",
        "x-forwarded-proto: https",
    ];
    let lowered = |line: &str| match line.split_once(':') {
        // We wrote these; their case is ours.
        Some((name, value)) if name.to_ascii_lowercase().starts_with("x-forwarded") => {
            format!("{}:{value}", name.to_ascii_lowercase())
        }
        _ => line.to_owned(),
    };
    let mut lines: Vec<_> = lines.into_iter().map(lowered).collect();
    lines.sort_unstable();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn any_method_and_its_body_pass_over_both_protocols() {
    let door = Door::with(|_, request: Request<Incoming>| async move {
        let method = request.method().clone();
        let host = request.headers().get(header::HOST).cloned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let host = String::from_utf8_lossy(host.as_ref().map_or(b"-", |host| host.as_bytes()))
            .into_owned();
        say(format!(
            "{method} {host} {}",
            String::from_utf8_lossy(&body)
        ))
        .await
    })
    .await;
    let mut second = door.http2().await;
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X-OWN",
    ] {
        let expected = format!("{method} localhost body");
        let request = door.request(method, "/?identifier=user-1", text("body"));
        assert_eq!(door.send(request).await.body, expected);
        let mut request = door.request(method, "", text("body"));
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = format!("https://localhost{BASE}/?identifier=user-1")
            .parse()
            .unwrap();
        let got = Got::read(in_time(second.send_request(request)).await.unwrap()).await;
        assert_eq!(got.body, expected, "HTTP/2");
    }
    let head = door
        .send(door.request("HEAD", "/?identifier=user-1", empty()))
        .await;
    assert_eq!(
        (head.status, &head.headers["content-length"]),
        (StatusCode::OK, &"15".parse().unwrap())
    );
}

#[tokio::test]
async fn each_event_of_a_stream_arrives_before_the_next_is_sent() {
    let (feeds, mut feed) = mpsc::channel(1);
    let door = Door::with(move |_, _| {
        let feeds = feeds.clone();
        async move {
            let (feed, body) = fed();
            feeds.send(feed).await.unwrap();
            let mut response = Response::new(body);
            let kind = header::HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    })
    .await;
    let request = door.request("GET", "/sse?identifier=user-1", empty());
    let response = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    let feed = in_time(feed.recv()).await.unwrap();
    let mut events = response.into_body();
    for n in 0..5 {
        let event = Bytes::from(format!("data: {n}\n\n"));
        feed.send(event.clone()).await.unwrap();
        let frame = in_time(events.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
    drop(feed);
    assert!(in_time(events.frame()).await.is_none());
}

#[tokio::test]
async fn upload_of_64_mib_is_never_held_and_arrives_whole() {
    const CHUNK: usize = 256 << 10;
    const CHUNKS: usize = 256;
    let (go, may_read) = watch::channel(false);
    let door = Door::with(move |_, request: Request<Incoming>| {
        let mut may_read = may_read.clone();
        async move {
            may_read.wait_for(|go| *go).await.unwrap();
            let (mut body, mut length) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                length += frame.unwrap().into_data().map_or(0, |data| data.len());
            }
            say(length.to_string()).await
        }
    })
    .await;
    let (feed, body) = fed();
    let mut client = door.http1().await;
    let answer = tokio::spawn(client.send_request(door.request("POST", "/?identifier=user", body)));
    let chunk = Bytes::from(vec![7; CHUNK]);
    let mut sent = 0;
    // The container reads nothing yet, so everything on the way must fill up and hold the client.
    while let Ok(fed) = tokio::time::timeout(Duration::from_secs(2), feed.send(chunk.clone())).await
    {
        fed.unwrap();
        sent += 1;
        assert!(
            sent < CHUNKS / 2,
            "{} MiB are held on the way",
            (sent * CHUNK) >> 20
        );
    }
    go.send(true).unwrap();
    for _ in sent..CHUNKS {
        in_time(feed.send(chunk.clone())).await.unwrap();
    }
    drop(feed);
    let got = Got::read(in_time(answer).await.unwrap().unwrap()).await;
    assert_eq!(got.body, (CHUNKS * CHUNK).to_string());
}

#[tokio::test]
async fn download_is_sent_as_fast_as_the_client_reads() {
    let (feeds, mut feed) = mpsc::channel(1);
    let door = Door::with(move |_, _| {
        let feeds = feeds.clone();
        async move {
            let (feed, body) = fed();
            feeds.send(feed).await.unwrap();
            Response::new(body)
        }
    })
    .await;
    let request = door.request("GET", "/?identifier=user-1", empty());
    let response = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    let feed = in_time(feed.recv()).await.unwrap();
    let chunk = Bytes::from(vec![7; 256 << 10]);
    let mut sent = 0;
    while let Ok(fed) = tokio::time::timeout(Duration::from_secs(2), feed.send(chunk.clone())).await
    {
        fed.unwrap();
        sent += 1;
        assert!(sent < 128, "{sent} chunks are held on the way");
    }
    drop(feed);
    let body = in_time(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(body.len(), sent * chunk.len());
}

#[tokio::test]
async fn upgrade_becomes_a_tunnel_that_holds_the_session() {
    let door = Door::with(|_, mut request: Request<Incoming>| async move {
        let asked = request.headers()[header::UPGRADE].clone();
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let mut stream = TokioIo::new(upgraded);
            let mut bytes = [0; 4];
            while stream.read_exact(&mut bytes).await.is_ok() {
                bytes.make_ascii_uppercase();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let upgrade = header::HeaderValue::from_static("upgrade");
        response.headers_mut().insert(header::CONNECTION, upgrade);
        response.headers_mut().insert(header::UPGRADE, asked);
        response
    })
    .await;
    let mut request = door.request("GET", "/ws?identifier=user-1", empty());
    for (name, value) in WEBSOCKET {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut client = door.http1().await;
    let mut response = in_time(client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()[header::UPGRADE], "websocket");
    let upgraded = in_time(hyper::upgrade::on(&mut response)).await.unwrap();
    let mut stream = TokioIo::new(upgraded);
    for _ in 0..3 {
        stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        in_time(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"PING");
    }
    // The session goes: the tunnel must end, not hang.
    in_time(door.pools.delete("alpha".parse().unwrap()))
        .await
        .unwrap();
    drop(stream);
}

#[tokio::test]
async fn container_that_does_not_upgrade_answers_as_usual() {
    let door = Door::with(|_, _| say("plain")).await;
    let mut request = door.request("GET", "/?identifier=user-1", empty());
    for (name, value) in WEBSOCKET {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let got = door.send(request).await;
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"plain"[..]));
}

#[tokio::test]
async fn continue_is_said_when_the_container_reads_and_not_to_a_stranger() {
    let door = Door::with(|_, request: Request<Incoming>| async move {
        assert!(!request.headers().contains_key(header::EXPECT));
        say(request.into_body().collect().await.unwrap().to_bytes()).await
    })
    .await;
    let head = |token: &str| {
        format!(
            "POST {BASE}/?identifier=user-1 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             expect: 100-continue\r\nconnection: close\r\ncontent-length: 4\r\n\r\n"
        )
    };
    let mut stream = door.tls("localhost", None).await;
    stream
        .write_all(head(&door.token()).as_bytes())
        .await
        .unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"body").await.unwrap();
    let mut answer = String::new();
    let _ = in_time(stream.read_to_string(&mut answer)).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("body"),
        "{answer}"
    );

    let refused = door.raw(head("bad").as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
}

#[tokio::test]
async fn trailers_of_the_container_reach_the_client() {
    let door = Door::open(FakeLauncher::new(raw_server(
        |mut stream: UnixStream| async move {
            let head = read_head(&mut stream).await;
            assert!(
                head.to_ascii_lowercase().contains("\r\nte: trailers\r\n"),
                "{head}"
            );
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
            3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_u8().await;
        },
    )))
    .await;
    let mut request = door.request("GET", "", empty());
    request.headers_mut().remove(header::HOST);
    request
        .headers_mut()
        .insert(header::TE, "trailers".parse().unwrap());
    *request.uri_mut() = format!("https://localhost{BASE}/?identifier=user-1")
        .parse()
        .unwrap();
    let response = in_time(door.http2().await.send_request(request))
        .await
        .unwrap();
    let collected = in_time(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "6");
    assert_eq!(collected.to_bytes(), "abc");
}

#[tokio::test]
async fn cookies_split_by_http2_arrive_as_one() {
    let door = Door::open(FakeLauncher::new(raw_server(mirror))).await;
    let mut request = door.request("GET", "", empty());
    request.headers_mut().remove(header::HOST);
    for cookie in ["a=1", "b=2"] {
        request
            .headers_mut()
            .append(header::COOKIE, cookie.parse().unwrap());
    }
    *request.uri_mut() = format!("https://localhost{BASE}/?identifier=user-1")
        .parse()
        .unwrap();
    let got = Got::read(
        in_time(door.http2().await.send_request(request))
            .await
            .unwrap(),
    )
    .await;
    let head = String::from_utf8(got.body.to_vec())
        .unwrap()
        .to_ascii_lowercase();
    assert!(head.contains("\r\ncookie: a=1; b=2\r\n"), "{head}");
}

/// A container whose first connection ends while the second request is on it.
fn forgetful() -> (Server, mpsc::Receiver<String>) {
    let (seen, requests) = mpsc::channel(8);
    let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let server = raw_server(move |mut stream: UnixStream| {
        let (seen, served) = (seen.clone(), Arc::clone(&served));
        async move {
            let first = served.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            for n in 0.. {
                let head = read_head(&mut stream).await;
                seen.send(head.lines().next().unwrap().to_owned())
                    .await
                    .unwrap();
                if first && n == 1 {
                    return;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    (server, requests)
}

#[tokio::test]
async fn request_lost_on_a_kept_connection_is_sent_again_only_if_that_is_harmless() {
    for (method, expected) in [("GET", StatusCode::OK), ("POST", StatusCode::BAD_GATEWAY)] {
        let (server, mut seen) = forgetful();
        let door = Door::open(FakeLauncher::new(server)).await;
        assert_eq!(
            door.get("/one?identifier=user-1").await.status,
            StatusCode::OK
        );
        let got = door
            .send(door.request(method, "/two?identifier=user-1", empty()))
            .await;
        assert_eq!(got.status, expected, "{method}");
        if expected == StatusCode::BAD_GATEWAY {
            assert_eq!(got.code(), "502 SessionUnreachable");
        }
        drop(door);
        let mut times = 0;
        while let Ok(request) = seen.try_recv() {
            times += usize::from(request.contains("/two"));
        }
        assert_eq!(times, if method == "GET" { 2 } else { 1 }, "{method}");
    }
}

#[tokio::test]
async fn connection_to_the_container_is_used_again() {
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let inner = http_server(|_, _| say("ok"));
    let counted = Arc::clone(&connections);
    let server: Server = Arc::new(move |number, stream| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        inner(number, stream);
    });
    let door = Door::open(FakeLauncher::new(server)).await;
    let mut client = door.http1().await;
    for _ in 0..10 {
        client.ready().await.unwrap();
        let request = door.request("GET", "/?identifier=user-1", empty());
        let got = Got::read(in_time(client.send_request(request)).await.unwrap()).await;
        assert_eq!(got.body, "ok");
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// Like many small servers: one connection at a time, each until it is closed.
#[tokio::test]
async fn server_of_one_connection_at_a_time_serves_requests_at_once() {
    let (streams, mut queue) = mpsc::unbounded_channel::<UnixStream>();
    tokio::spawn(async move {
        while let Some(mut stream) = queue.recv().await {
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                if head.is_empty() {
                    break;
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .unwrap();
            }
        }
    });
    let door = Door::open(FakeLauncher::new(Arc::new(move |_, stream| {
        streams.send(stream).unwrap()
    })))
    .await;
    let gets = [(); 3].map(|()| door.get("/?identifier=user-1"));
    let [first, second, third] = gets;
    let (first, second, third) = tokio::join!(first, second, third);
    for got in [first, second, third] {
        assert_eq!(got.body, "ok");
    }
}

#[tokio::test]
async fn answer_that_breaks_off_is_not_made_to_look_whole() {
    let door = Door::open(FakeLauncher::new(raw_server(
        |mut stream: UnixStream| async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
            stream.write_all(answer).await.unwrap();
        },
    )))
    .await;
    let request = door.request("GET", "/?identifier=user-1", empty());
    let response = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(in_time(response.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn container_that_answers_nonsense_or_nothing_is_unreachable() {
    for answer in [
        "",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ] {
        let door = Door::open(FakeLauncher::new(raw_server(
            move |mut stream: UnixStream| async move {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            },
        )))
        .await;
        let got = door.get("/?identifier=user-1").await;
        assert_eq!(got.code(), "502 SessionUnreachable", "{answer:?}");
    }
}
