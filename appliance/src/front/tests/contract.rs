//! What a caller is told: tokens, pools, identifiers, starts, limits.

use super::*;
use crate::pool::testing::Plan;
use crate::store::EnvVar;

async fn number(number: usize, _: Request<Incoming>) -> Response<Any> {
    say(number.to_string()).await
}

#[tokio::test]
async fn request_with_token_and_identifier_reaches_the_container() {
    let door = Door::with(number).await;
    let got = door.get("/?identifier=user-1").await;
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"0"[..]));
    assert!(got.headers.contains_key("operation-id"));
}

#[tokio::test]
async fn every_call_needs_a_token_that_fits() {
    let door = Door::with(number).await;
    let other = crate::access::testing::authority().await;
    let stranger = other.sign(&executor(&[]), DEADLINE).unwrap().token;
    let reader = door.token_for(&Grant::of(Role::Reader));
    let elsewhere = door.token_for(&executor(&["beta"]));
    for (value, expected, says) in [
        (None, "401 Unauthorized", "Authorization header is missing"),
        (
            Some("Basic eDp5".to_owned()),
            "401 Unauthorized",
            "Bearer <token>",
        ),
        (
            Some("Bearer nonsense".to_owned()),
            "401 Unauthorized",
            "malformed",
        ),
        (
            Some(format!("Bearer {stranger}")),
            "401 Unauthorized",
            "not signed by this appliance",
        ),
        (
            Some(format!("Bearer {reader}")),
            "403 Forbidden",
            "session-executor",
        ),
        (
            Some(format!("Bearer {elsewhere}")),
            "403 Forbidden",
            "alpha",
        ),
    ] {
        let mut request = door.request("GET", "/?identifier=user-1", empty());
        request.headers_mut().remove(header::AUTHORIZATION);
        if let Some(value) = value {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let got = door.send(request).await;
        assert_eq!(got.code(), expected);
        assert!(got.message().contains(says), "{}", got.message());
        let challenged = got.headers.contains_key(header::WWW_AUTHENTICATE);
        assert_eq!(challenged, got.status == StatusCode::UNAUTHORIZED);
    }
    assert_eq!(
        door.launcher.launched(),
        0,
        "a refused caller must not start anything"
    );
}

#[tokio::test]
async fn token_bound_to_a_pool_opens_that_pool_and_does_not_tell_of_others() {
    let door = Door::with(number).await;
    let bound = format!("Bearer {}", door.token_for(&executor(&["alpha"])));
    let ask = |pool: &str| {
        let uri = BASE.replace("alpha", pool) + "/?identifier=user-1";
        let request = Request::builder()
            .uri(uri)
            .header(header::HOST, "localhost");
        door.send(
            request
                .header(header::AUTHORIZATION, &bound)
                .body(empty())
                .unwrap(),
        )
    };
    assert_eq!(ask("alpha").await.status, StatusCode::OK);
    // Whether it exists or not.
    assert_eq!(ask("beta").await.code(), "403 Forbidden");
}

#[tokio::test]
async fn token_bound_to_groups_does_not_tell_of_pools_in_others() {
    let door = Door::with(number).await;
    let elsewhere = Grant {
        resource_groups: vec!["other".into()],
        ..executor(&[])
    };
    let here = Grant {
        resource_groups: vec!["Default".into()],
        ..executor(&[])
    };
    let ask = async |grant: &Grant, host: &str, uri: &str| {
        let request = Request::builder().uri(uri).header(header::HOST, host);
        let token = format!("Bearer {}", door.token_for(grant));
        let request = request.header(header::AUTHORIZATION, token);
        let got = door.send(request.body(empty()).unwrap()).await;
        (got.code(), got.message())
    };
    let by_host = |pool: &str| format!("{pool}.cabana.example");
    let uri = "/?identifier=user-1";
    // By host name the group is known from the pool alone: no word about whether there is one.
    let (code, message) = ask(&elsewhere, &by_host("alpha"), uri).await;
    assert_eq!(code, "403 Forbidden");
    let (absent, same) = ask(&elsewhere, &by_host("gamma"), uri).await;
    assert_eq!((absent, same.replace("gamma", "alpha")), (code, message));
    // By path as well, under its own group and under that of the pool.
    let path = BASE.to_owned() + uri;
    assert_eq!(ask(&elsewhere, "localhost", &path).await.0, "403 Forbidden");
    let moved = path.replace("default", "other");
    let expected = "404 SessionPoolNotFound";
    assert_eq!(ask(&elsewhere, "localhost", &moved).await.0, expected);
    assert_eq!(door.launcher.launched(), 0);
    for (host, uri) in [(by_host("alpha"), uri), ("localhost".into(), &path)] {
        let token = format!("Bearer {}", door.token_for(&here));
        let request = Request::builder().uri(uri).header(header::HOST, host);
        let request = request.header(header::AUTHORIZATION, token);
        let got = door.send(request.body(empty()).unwrap()).await;
        assert_eq!(got.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn many_bad_tokens_from_an_address_do_not_lock_a_good_one_out() {
    let door = Door::with(number).await;
    let bad = || {
        let mut request = door.request("GET", "/?identifier=user-1", empty());
        let value = "Bearer nonsense".parse().unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, value);
        request
    };
    let mut sender = door.http1().await;
    // One is forgiven each second, so this ends, however slow the machine.
    let limited = loop {
        let got = Got::read(in_time(sender.send_request(bad())).await.unwrap()).await;
        if got.status != StatusCode::UNAUTHORIZED {
            break got;
        }
    };
    assert_eq!(limited.code(), "429 TooManyFailedAttempts");
    assert_eq!(limited.headers[header::RETRY_AFTER], "1");
    // A new connection of the neighbour behind the same address.
    let good = door.get("/?identifier=user-1").await;
    assert_eq!(good.status, StatusCode::OK);
}

#[tokio::test]
async fn bad_addresses_and_identifiers_are_named() {
    let door = Door::with(number).await;
    for (uri, expected) in [
        (format!("{BASE}/"), "400 SessionRequestValidationFailed"),
        (
            format!("{BASE}/?identifier=abc"),
            "400 SessionRequestValidationFailed",
        ),
        (
            format!("{BASE}/?identifier=a%20bcd"),
            "400 SessionRequestValidationFailed",
        ),
        (
            format!("{BASE}/?identifier=user&identifier=user"),
            "400 SessionRequestValidationFailed",
        ),
        (
            format!("{BASE}/.management/executions?identifier=user"),
            "400 SessionRequestNotSupported",
        ),
        (
            BASE.replace("alpha", "gamma") + "/?identifier=user",
            "404 SessionPoolNotFound",
        ),
        (
            BASE.replace("default", "other") + "/?identifier=user",
            "404 SessionPoolNotFound",
        ),
        ("/".to_owned(), "404 ResourceNotFound"),
    ] {
        let mut request = door.request("GET", "/", empty());
        *request.uri_mut() = uri.parse().unwrap();
        let got = door.send(request).await;
        assert_eq!(got.code(), expected, "{uri}");
        if expected.ends_with("ValidationFailed") {
            assert_eq!(got.json()["error"]["target"], "identifier");
        }
    }
    assert_eq!(door.launcher.launched(), 0);
}

#[tokio::test]
async fn first_requests_at_once_with_one_identifier_make_one_session() {
    let door = Door::with(number).await;
    door.launcher
        .gate
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut client = door.http2().await;
    let mut answers = Vec::new();
    for _ in 0..16 {
        let mut request = door.request("GET", "/?identifier=user-1", empty());
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = format!("https://localhost{BASE}/?identifier=user-1")
            .parse()
            .unwrap();
        client.ready().await.unwrap();
        answers.push(tokio::spawn(client.send_request(request)));
    }
    door.launcher.wait_alive(1).await;
    door.launcher.gate.add_permits(100);
    for answer in answers {
        let got = Got::read(in_time(answer).await.unwrap().unwrap()).await;
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"0"[..]));
    }
    assert_eq!(door.launcher.launched(), 1);
}

#[tokio::test]
async fn identifiers_have_sessions_of_their_own_until_the_pool_is_full() {
    let door = Door::with(number).await;
    let mut seen = Vec::new();
    for user in ["user-1", "USER-1", "user%2D1", "user-2"] {
        seen.push(door.get(&format!("/?identifier={user}")).await.body);
    }
    assert_eq!(seen, ["0", "1", "0", "2"]);
    let full = door.get("/?identifier=user-3").await;
    assert_eq!(full.code(), "429 MaxConcurrentSessionsReached");
    let wait: u64 = full.headers[header::RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=300).contains(&wait), "{wait}");
}

#[tokio::test]
async fn start_that_fails_is_told_with_its_last_lines_and_never_as_full() {
    let door = Door::with(number).await;
    door.launcher.plan(Plan::ExitAtStart(vec![
        "first".into(),
        "no such file: app.py".into(),
    ]));
    let got = door.get("/?identifier=user-1").await;
    assert_eq!(got.code(), "503 SessionStartFailed");
    assert!(got.message().contains("exit status 3"), "{}", got.message());
    assert!(
        got.message().ends_with("first\nno such file: app.py"),
        "{}",
        got.message()
    );
    door.launcher.plan(Plan::Refuse("no memory left".into()));
    let got = door.get("/?identifier=user-2").await;
    assert_eq!(got.code(), "503 SessionStartFailed");
    assert!(
        got.message().contains("no memory left"),
        "{}",
        got.message()
    );
}

#[tokio::test]
async fn pool_form_by_host_name_goes_to_the_same_sessions() {
    let door = Door::with(number).await;
    assert_eq!(door.get("/?identifier=user-1").await.body, "0");
    let stream = door.tls("alpha.cabana.example", Some("http/1.1")).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = door.request("GET", "/", empty());
    *request.uri_mut() = "/?identifier=user-1".parse().unwrap();
    request
        .headers_mut()
        .insert(header::HOST, "alpha.cabana.example:8443".parse().unwrap());
    let got = Got::read(in_time(sender.send_request(request)).await.unwrap()).await;
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"0"[..]));
}

#[tokio::test]
async fn operation_id_of_the_client_is_repeated_if_it_is_harmless() {
    let door = Door::with(number).await;
    for (sent, repeated) in [
        ("my-operation-7", true),
        ("a b", false),
        (&*"x".repeat(65), false),
    ] {
        let mut request = door.request("GET", "/", empty());
        request
            .headers_mut()
            .insert("operation-id", sent.parse().unwrap());
        let got = door.send(request).await;
        assert_eq!(got.headers["operation-id"] == sent, repeated, "{sent}");
    }
}

#[tokio::test]
async fn deleted_pool_ends_its_sessions_and_is_not_found() {
    let door = Door::with(number).await;
    door.get("/?identifier=user-1").await;
    door.get("/?identifier=user-2").await;
    assert_eq!(door.launcher.alive(), 2);
    assert!(
        in_time(door.pools.delete("alpha".parse().unwrap()))
            .await
            .unwrap()
    );
    assert_eq!(door.launcher.alive(), 0);
    assert_eq!(
        door.get("/?identifier=user-1").await.code(),
        "404 SessionPoolNotFound"
    );
}

#[tokio::test]
async fn changed_pool_makes_new_sessions_of_its_new_revision() {
    let door = Door::with(number).await;
    let name: crate::pool::PoolName = "alpha".parse().unwrap();
    let before = door.pools.get(&name).unwrap().0;
    let again = PoolRecord {
        max_sessions: 5,
        ..(*before).clone()
    };
    door.pools
        .put(PoolRecord {
            revision: uuid::Uuid::new_v4(),
            ..again
        })
        .await
        .unwrap();
    assert_eq!(
        door.pools.get(&name).unwrap().0.revision,
        before.revision,
        "same template"
    );
    let env = vec![EnvVar {
        name: "NEW".into(),
        value: "1".into(),
        secret_ref: None,
    }];
    let changed = PoolRecord {
        env,
        revision: uuid::Uuid::new_v4(),
        ..(*before).clone()
    };
    door.pools.put(changed).await.unwrap();
    assert_ne!(door.pools.get(&name).unwrap().0.revision, before.revision);
}

#[tokio::test]
async fn stop_lets_open_requests_finish_and_accepts_no_more() {
    let (entered, mut has_entered) = mpsc::channel(1);
    let (release, released) = watch::channel(false);
    let door = Door::with(move |_, _| {
        let (entered, mut released) = (entered.clone(), released.clone());
        async move {
            entered.send(()).await.unwrap();
            released.wait_for(|go| *go).await.unwrap();
            say("done").await
        }
    })
    .await;
    let mut client = door.http1().await;
    let answer =
        tokio::spawn(client.send_request(door.request("GET", "/?identifier=user", empty())));
    in_time(has_entered.recv()).await.unwrap();
    door.shutdown.send(true).unwrap();
    // The listener is closed before anything else happens.
    while TcpStream::connect(door.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.send(true).unwrap();
    let got = Got::read(in_time(answer).await.unwrap().unwrap()).await;
    assert_eq!(got.body, "done");
    in_time(door.served).await.unwrap();
}

/// What all tests of this process log; the subscriber of a process can be set only once.
static LINES: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());

struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn log_has_one_line_per_request_and_no_secret_in_it() {
    let lines = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| Lines);
    lines.with_max_level(tracing::Level::DEBUG).init();
    let door = Door::with(number).await;
    let token = door.token();
    let mut request = door.request(
        "POST",
        "/private-path?identifier=secret-user",
        text("payload-x"),
    );
    request
        .headers_mut()
        .insert("x-private", "header-x".parse().unwrap());
    let got = door.send(request).await;
    let twice = door
        .get("/private-path?identifier=secret-user&identifier=secret-user")
        .await;
    // A line is written when its answer has gone out, which all have when the listener has ended.
    door.shutdown.send(true).unwrap();
    in_time(door.served).await.unwrap();
    let text = String::from_utf8(LINES.lock().unwrap().clone()).unwrap();
    let own: Vec<_> = text
        .lines()
        .filter(|line| line.contains("cabana::"))
        .collect();
    for secret in [
        "secret-user",
        &token,
        "private-path",
        "payload-x",
        "header-x",
    ] {
        let leak = own.iter().find(|line| line.contains(secret));
        assert!(leak.is_none(), "{secret:?} is in the log: {leak:?}");
    }
    for (got, says) in [
        (got, "status=200"),
        (twice, "code=\"SessionRequestValidationFailed\""),
    ] {
        let trace = got.headers["operation-id"].to_str().unwrap();
        let line: Vec<_> = own.iter().filter(|line| line.contains(trace)).collect();
        assert_eq!(line.len(), 1, "{line:?}");
        assert!(
            line[0].contains(": request ") && line[0].contains(says),
            "{line:?}"
        );
    }
}
