//! Requests that come to no good end: the container goes away, or the client. The other side is told, and nothing is left.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::watch;

use super::*;

const POOL: &str = "endings";
/// More than any buffer on the way holds, so that everybody is in the midst of it.
const ENDLESS: u64 = 1 << 40;
/// Of a body that the container takes, and of one that it sends back and nobody takes.
const LARGE: u64 = 4 << 20;
const SMALL: u64 = 64 << 10;
const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];
/// Rounds of requests that break off in one test: what each of them left behind would be seen.
const ROUNDS: usize = 16;

/// A body that never ends, and says how much of it was taken.
struct Endless(watch::Sender<u64>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PIECE: [u8; 16 << 10] = [0; 16 << 10];
        self.0.send_modify(|taken| *taken += PIECE.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

/// Sends a body, and is gone when so much of it was taken.
async fn upload_and_go_away(client: &Client, version: Version, tail: &str, bytes: u64) {
    let (taken, mut seen) = watch::channel(0);
    let (answer, socket) = client
        .begin(version, "POST", POOL, tail, Endless(taken))
        .await;
    tokio::spawn(answer);
    let seen = seen.wait_for(|taken| *taken >= bytes);
    let seen = tokio::time::timeout(DEADLINE, seen).await;
    seen.expect("the body is not taken").unwrap();
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
}

/// The session's container: its process, and the port that it listens on.
async fn container(client: &Client) -> (u32, u16) {
    let told = async |path| -> Value {
        let answer = client.get(POOL, path, "user").await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    };
    let (identity, environment) = (told("/id").await, told("/env").await);
    let pid = identity["pid"].as_u64().unwrap().try_into().unwrap();
    (pid, environment["PORT"].as_str().unwrap().parse().unwrap())
}

/// The process that started it, which is the agent.
fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

/// Connections to a port of loopback that whoever listens there has not closed, after proc_pid_net(5).
fn connections(port: u16) -> usize {
    const LISTEN: &str = "0A";
    const TIME_WAIT: &str = "06";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{port:04X}");
    let states = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == local).then(|| fields.nth(1))?
    });
    states
        .filter(|state| ![LISTEN, TIME_WAIT].contains(state))
        .count()
}

fn sockets(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

/// An answer that has begun and goes on, over each protocol, with a length and without one.
async fn downloads(client: &Client) -> Vec<(&'static str, Response<Incoming>)> {
    let mut begun = Vec::new();
    for (how, chunked) in [("with a length", 0), ("in chunks", 1)] {
        let tail = format!("/download?bytes={ENDLESS}&chunked={chunked}&identifier=user");
        let body = Empty::<Bytes>::new();
        for version in VERSIONS {
            let answer = client.stream(version, "GET", POOL, &tail, body);
            begun.push((how, answer.await));
        }
    }
    for (how, answer) in &mut begun {
        assert_eq!(answer.status(), 200, "{how}");
        let piece = answer.frame().await.unwrap().unwrap();
        assert!(!piece.into_data().unwrap().is_empty());
    }
    begun
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_that_is_killed_in_the_midst_of_answers_breaks_them_off_and_ends_its_session() {
    let Some(native) = Native::start("container_gone").await else {
        return;
    };
    native.pool(POOL, 1, 0).await;
    let client = native.client().await;
    let (first, _) = container(&client).await;
    let begun = downloads(&client).await;
    let session = native.sessions(POOL).await[0].clone();
    assert_eq!(session["openRequests"], begun.len(), "{session}");
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    for (how, answer) in begun {
        let version = answer.version();
        let read = async {
            let mut body = answer.into_body();
            loop {
                match body.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => panic!("{version:?}, {how}: it looks as if it were whole"),
                }
            }
        };
        let error = tokio::time::timeout(DEADLINE, read).await;
        let error = format!("{:?}", error.expect("it never ends"));
        // Over HTTP/1.1 the connection ends, without the farewell of TLS.
        let wanted = match version {
            Version::HTTP_2 => "Reset(",
            _ => "UnexpectedEof",
        };
        assert!(error.contains(wanted), "{version:?}, {how}: {error}");
    }
    // The only place of the pool is free for the identifier's next session, which is another one.
    let answer = client.get(POOL, "/", "user").await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(container(&client).await.0, first);
    let sessions = native.sessions(POOL).await;
    assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");
    assert_ne!(sessions[0]["session"], session["session"]);
    assert_eq!(sessions[0]["openRequests"], 0, "{sessions}");
    let counts = native.counts(POOL).await;
    assert_eq!(
        (&counts["allocated"], &counts["draining"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(native.warden.children(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_away_in_the_midst_are_noticed_by_the_container_and_leave_nothing() {
    let Some(native) = Native::start("client_gone").await else {
        return;
    };
    native.pool(POOL, 1, 0).await;
    let client = native.client().await;
    let (container, port) = container(&client).await;
    let agent = parent(container);
    drop(client);
    let client = native.client().await;
    let alone = || connections(port) == 0;
    native.until("nobody is connected", alone).await;
    let held = || (sockets(native.process.id()), sockets(agent));
    let before = held();
    for _ in 0..ROUNDS {
        drop(downloads(&client).await);
        native.until("downloads are noticed", alone).await;
        for version in VERSIONS {
            // Answered at its end, which does not come; and answered while it goes on, with nobody who reads.
            for (tail, bytes) in [("/upload", LARGE), ("/echo-stream", SMALL)] {
                let target = format!("{tail}?identifier=user");
                upload_and_go_away(&client, version, &target, bytes).await;
                let what = format!("a client of {tail} over {version:?} is noticed");
                native.until(&what, alone).await;
            }
        }
    }
    let closed = || {
        let (appliance, agent) = held();
        appliance <= before.0 && agent <= before.1
    };
    native
        .until("everybody has closed their sides", closed)
        .await;
    let sessions = native.sessions(POOL).await;
    assert_eq!(sessions[0]["openRequests"], 0, "{sessions}");
    assert_eq!(self::container(&client).await.0, container);
}
