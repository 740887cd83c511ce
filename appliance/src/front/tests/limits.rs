//! What a client may take, and what it is told when it wants more.

use super::*;

/// Long enough for an honest client on a busy machine, short enough for a test.
const SHORT: Duration = Duration::from_millis(300);

fn server() -> Arc<FakeLauncher> {
    FakeLauncher::new(http_server(|_, request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        match request.into_body().collect().await {
            Ok(_) if path == "/never" => std::future::pending().await,
            _ if path == "/endless" => silence(),
            _ => say("done").await,
        }
    }))
}

/// An answer that has begun and has nothing to say.
fn silence() -> Response<Any> {
    let (feed, body) = fed();
    tokio::spawn(async move { feed.closed().await });
    Response::new(body)
}

async fn door(change: impl FnOnce(&mut FrontLimits)) -> Door {
    let mut limits = FrontLimits::default();
    change(&mut limits);
    Door::open_within(server(), limits).await
}

#[tokio::test]
async fn long_urls_and_heads_are_refused_in_our_own_words_over_both_protocols() {
    let door = door(|limits| limits.header_bytes = 4096).await;
    let long = "a".repeat(20_000);
    let cases = [
        (
            "url",
            format!("/{long}?identifier=user-1"),
            "",
            0,
            "414 RequestUrlTooLong",
        ),
        (
            "one header",
            "/?identifier=user-1".into(),
            &long[..5000],
            1,
            "431 RequestHeadersTooLarge",
        ),
        (
            "many headers",
            "/?identifier=user-1".into(),
            "v",
            150,
            "431 RequestHeadersTooLarge",
        ),
    ];
    for (name, tail, value, count, expected) in cases {
        for two in [false, true] {
            let mut request = door.request("GET", &tail, empty());
            for number in 0..count {
                let header: header::HeaderName = format!("x-{number}").parse().unwrap();
                request.headers_mut().insert(header, value.parse().unwrap());
            }
            let got = if two {
                request.headers_mut().remove(header::HOST);
                let uri = format!("https://localhost{}", request.uri());
                *request.uri_mut() = uri.parse().unwrap();
                Got::read(
                    in_time(door.http2().await.send_request(request))
                        .await
                        .unwrap(),
                )
                .await
            } else {
                door.send(request).await
            };
            assert_eq!(got.code(), expected, "{name}, HTTP/2: {two}");
        }
    }
}

#[tokio::test]
async fn longer_bodies_than_allowed_are_refused_with_and_without_a_length() {
    let door = door(|limits| limits.body_bytes = Some(1000)).await;
    let got = door
        .send(door.request("POST", "/?identifier=user-1", text(vec![0; 1000])))
        .await;
    assert_eq!(got.status, StatusCode::OK);
    let got = door
        .send(door.request("POST", "/?identifier=user-1", text(vec![0; 1001])))
        .await;
    assert_eq!(got.code(), "413 PayloadTooLarge");
    let (feed, body) = fed();
    tokio::spawn(async move {
        // No more than needed: who goes on sending after the answer sees a broken connection before it.
        for _ in 0..11 {
            feed.send(Bytes::from_static(&[0; 100])).await.unwrap();
        }
        feed.closed().await;
    });
    let got = door
        .send(door.request("POST", "/?identifier=user-1", body))
        .await;
    assert_eq!(got.code(), "413 PayloadTooLarge");
}

#[tokio::test]
async fn client_that_does_not_send_its_body_is_told_so() {
    let door = door(|limits| limits.stall = SHORT).await;
    let (feed, body) = fed();
    feed.send(Bytes::from_static(b"a little")).await.unwrap();
    let got = door
        .send(door.request("POST", "/?identifier=user-1", body))
        .await;
    assert_eq!(got.code(), "408 RequestBodyTimeout");
}

#[tokio::test]
async fn requests_of_one_session_and_of_one_token_are_counted_while_they_are_open() {
    for (code, change) in [
        (
            "429 SessionRequestLimitReached",
            (|limits| limits.requests_per_session = 1) as fn(&mut FrontLimits),
        ),
        ("429 TokenRequestLimitReached", |limits| {
            limits.requests_per_token = 1
        }),
    ] {
        let door = door(change).await;
        let token = format!("Bearer {}", door.token());
        let request = |path: &str| {
            let mut request = door.request("GET", &format!("{path}?identifier=user-1"), empty());
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, token.parse().unwrap());
            request
        };
        let open = in_time(door.http1().await.send_request(request("/endless")))
            .await
            .unwrap();
        let got = door.send(request("/")).await;
        assert_eq!(got.code(), code);
        assert_eq!(got.headers["retry-after"], "1");
        drop(open);
        // The end of a client is noticed a moment later.
        let served = async {
            while door.send(request("/")).await.status != StatusCode::OK {
                tokio::task::yield_now().await;
            }
        };
        in_time(served).await;
    }
}

#[tokio::test]
async fn request_has_an_end_when_one_is_set() {
    let door = door(|limits| limits.request = Some(SHORT)).await;
    assert_eq!(
        door.get("/never?identifier=user-1").await.code(),
        "504 RequestTimeLimitReached"
    );
    let request = door.request("GET", "/endless?identifier=user-1", empty());
    let answer = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    assert!(in_time(answer.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed_and_idle_streams_are_not() {
    let door = door(|limits| {
        (limits.head, limits.idle, limits.stall) = (SHORT, SHORT, SHORT);
    })
    .await;
    let request = door.request("GET", "/endless?identifier=user-1", empty());
    let mut stream = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    // Slow-loris: a head that never ends.
    let answer = door
        .raw(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a: ")
        .await;
    assert_eq!(answer, "");
    let mut idle = door.http2().await;
    in_time(async {
        while idle.ready().await.is_ok() {
            tokio::time::sleep(SHORT).await
        }
    })
    .await;
    let silent = tokio::time::timeout(SHORT * 3, stream.body_mut().frame()).await;
    assert!(
        silent.is_err(),
        "a stream without events is left alone: {silent:?}"
    );
}

#[tokio::test]
async fn connections_of_one_address_are_counted() {
    let door = door(|limits| limits.connections_per_address = 2).await;
    let (_one, mut two) = (door.http1().await, door.http1().await);
    let mut third = TcpStream::connect(door.address).await.unwrap();
    assert_eq!(in_time(third.read(&mut [0])).await.unwrap(), 0);
    let request = door.request("GET", "/?identifier=user-1", empty());
    assert_eq!(
        in_time(two.send_request(request)).await.unwrap().status(),
        StatusCode::OK
    );
}
