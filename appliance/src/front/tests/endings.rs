//! How requests end that do not come to a good end, and that one that is merely quiet does not end at all.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Longer than any limit on idleness, and than the pool's cooldown.
const QUIET: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_secs(1);
/// So often everything that has something to do gets a turn in each step; the runtime looks at its sockets meanwhile.
const TURNS: usize = 300;
/// Of clients that go away: what each of them left behind would be seen.
const ROUNDS: usize = 8;
const PIECE: &[u8] = &[0; 16 << 10];

/// Lets time pass, and everybody do what they want to do in it. tokio's paused clock runs ahead of sockets when nobody has
/// anything to do, so this always has.
async fn pass(time: Duration) {
    for _ in 0..time.as_secs() / STEP.as_secs() {
        tokio::time::advance(STEP).await;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }
}

/// Containers whose answers are fed by the test, without a length.
async fn fed_door() -> (Door, mpsc::Receiver<mpsc::Sender<Bytes>>) {
    let (feeds, feed) = mpsc::channel(1);
    let door = Door::with(move |_, _| {
        let feeds = feeds.clone();
        async move {
            let (feed, body) = fed();
            feeds.send(feed).await.unwrap();
            Response::new(body)
        }
    });
    (door.await, feed)
}

/// The default limits, and a pool with a cooldown of 300 seconds.
#[tokio::test]
async fn quiet_stream_goes_on_for_ten_minutes_and_its_session_is_not_idle_before_its_end() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let (door, mut feeds) = fed_door().await;
        let request = door.request("GET", "/events?identifier=user-1", empty());
        let response = match version {
            http::Version::HTTP_2 => in_time(door.http2().await.send_request(request)).await,
            _ => in_time(door.http1().await.send_request(request)).await,
        };
        let feed = in_time(feeds.recv()).await.unwrap();
        let mut events = response.unwrap().into_body();
        tokio::time::pause();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            pass(QUIET).await;
            feed.send(event.into()).await.unwrap();
            let frame = in_time(events.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
            assert_eq!((door.launcher.alive(), door.launcher.launched()), (1, 1));
        }
        drop(feed);
        let rest = in_time(events.collect()).await.unwrap().to_bytes();
        assert!(rest.is_empty(), "{version:?}");
        let cooldown = Duration::from_secs(record("alpha").cooldown_seconds);
        assert!(QUIET > cooldown);
        pass(cooldown - STEP * 2).await;
        assert_eq!(door.launcher.alive(), 1, "the clock began at the end");
        pass(STEP * 4).await;
        assert_eq!(door.launcher.alive(), 0, "{version:?}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn quiet_tunnel_goes_on_for_ten_minutes() {
    let door = Door::with(|_, mut request: Request<Incoming>| async move {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in forwarding::WEBSOCKET {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let mut request = door.request("GET", "/ws?identifier=user-1", empty());
    for (name, value) in forwarding::WEBSOCKET {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut response = in_time(door.http1().await.send_request(request))
        .await
        .unwrap();
    let upgraded = in_time(hyper::upgrade::on(&mut response)).await.unwrap();
    let mut stream = TokioIo::new(upgraded);
    tokio::time::pause();
    for _ in 0..2 {
        pass(QUIET).await;
        stream.write_all(b"still here?").await.unwrap();
        let mut answer = [0; 11];
        in_time(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"still here?");
    }
    assert_eq!((door.launcher.alive(), door.launcher.launched()), (1, 1));
}

#[tokio::test]
async fn chunked_answer_that_breaks_off_has_no_last_chunk_and_a_stream_is_reset() {
    let door = Door::open(FakeLauncher::new(raw_server(
        |mut stream: UnixStream| async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n";
            stream.write_all(answer).await.unwrap();
        },
    )))
    .await;
    let head = format!(
        "GET {BASE}/?identifier=user-1 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        door.token()
    );
    let answer = door.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("9\r\nonly this\r\n"), "{answer}");
    let request = door.request("GET", "/?identifier=user-1", empty());
    let response = in_time(door.http2().await.send_request(request))
        .await
        .unwrap();
    let mut body = response.into_body();
    let data = in_time(body.frame()).await.unwrap().unwrap();
    assert_eq!(data.into_data().unwrap(), "only this");
    let error = in_time(body.frame()).await.unwrap().unwrap_err();
    assert!(format!("{error:?}").contains("Reset("), "{error:?}");
}

/// Containers that send for ever at `/down`, and read to the end elsewhere. Counts their connections.
fn busy() -> (Server, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    let serve = http_server(|_, request: Request<Incoming>| async move {
        if request.uri().path() == "/down" {
            let (feed, body) = fed();
            tokio::spawn(async move { while feed.send(PIECE.into()).await.is_ok() {} });
            return Response::new(body);
        }
        match request.into_body().collect().await {
            Ok(_) => say("whole").await,
            Err(_) => say("broken").await,
        }
    });
    let server: Server = Arc::new(move |number, stream: UnixStream| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        serve(number, ours);
        let open = Arc::clone(&count);
        open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let (mut door, mut container) = (stream, theirs);
            let _ = tokio::io::copy_bidirectional(&mut door, &mut container).await;
            open.fetch_sub(1, Ordering::Relaxed);
        });
    });
    (server, open)
}

/// Shut down, it ends as it does when a client ends.
fn socket(stream: &TlsStream<TcpStream>) -> OwnedFd {
    let socket = stream.get_ref().0.as_fd();
    socket.try_clone_to_owned().unwrap()
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let wait = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, wait).await;
    assert!(waited.is_ok(), "it takes too long until {what}");
}

/// The tasks of this runtime are those of the front door, of the pool, of the containers and of the clients.
#[tokio::test]
async fn client_that_goes_away_in_the_midst_leaves_no_task_and_no_open_request() {
    let (server, open) = busy();
    let door = Door::open(FakeLauncher::new(server)).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert_eq!(door.get("/?identifier=user-1").await.body, "whole");
    let closed = || open.load(Ordering::Relaxed) == 0;
    until("the container has no connection", closed).await;
    let before = tasks();
    let (mut held, mut begun) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for path in ["/down", "/up"] {
            let tail = format!("{path}?identifier=user-1");
            let (feed, body) = fed();
            let (more, other) = fed();
            let stream = door.tls("localhost", Some("http/1.1")).await;
            let first = socket(&stream);
            let handshake = http1::handshake(TokioIo::new(stream));
            let (mut one, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            let stream = door.tls("localhost", Some("h2")).await;
            let second = socket(&stream);
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (mut two, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            let [request, again] = [body, other].map(|body| door.request("POST", &tail, body));
            let answers = [
                tokio::spawn(one.send_request(request)),
                tokio::spawn(two.send_request(again)),
            ];
            for feed in [feed, more] {
                for _ in 0..4 {
                    feed.send(PIECE.into()).await.unwrap();
                }
                // Not its end, which would be that of the body.
                held.push(feed);
            }
            until("both are served", || open.load(Ordering::Relaxed) == 2).await;
            for answer in answers {
                if path == "/down" {
                    let mut answer = in_time(answer).await.unwrap().unwrap();
                    assert!(in_time(answer.frame()).await.unwrap().is_ok());
                    begun.push(answer);
                }
            }
            for socket in [first, second] {
                rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
            }
            until(&format!("both of {path} are noticed"), closed).await;
        }
    }
    drop((held, begun));
    until("their tasks have ended", || tasks() <= before).await;
    let pool = door.pools.get(&record("alpha").name).unwrap().1;
    let session = pool.session("user-1".parse().unwrap()).await.unwrap();
    assert_eq!(session.open_requests, 0);
}
