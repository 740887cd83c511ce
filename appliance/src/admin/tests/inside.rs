//! Looking into sessions, with an agent of ours as an ordinary process in place of a guest.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hyper::upgrade::Upgraded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::exec::{ExecEnd, ExecRequest, FromCommand, Inbox, ToCommand};
use wire::{ContainerSpec, GuestMessage, HostMessage, Identity, Stream};

use super::*;
use crate::pool::{Identifier, Lease};

const SESSION: &str = "user/1?";
const ESCAPED: &str = "user%2F1%3F";

/// An agent whose container sleeps.
struct Agent {
    process: Child,
    control: BlockingStream,
    folder: tempfile::TempDir,
}

impl Agent {
    /// `None` where it was not built: it is another package's program.
    fn start() -> Option<Self> {
        let program = std::env::current_exe().unwrap();
        let program = program.parent().unwrap().parent().unwrap().join("agent");
        if !program.exists() {
            eprintln!(
                "SKIPPED: there is no {} (cargo build -p agent)",
                program.display()
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let mut process = Command::new(program)
            .arg("--socket")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let mut control = BlockingStream::connect(&socket).unwrap();
        control.write_all(b"LISTEN 1024\n").unwrap();
        control.read_exact(&mut [0; "OK 1024\n".len()]).unwrap();
        let mut this = Self {
            process,
            control,
            folder,
        };
        let identity = Identity {
            seed: vec![0; Identity::SEED_BYTES],
            unix_time_ns: 0,
            hostname: "s".into(),
            machine_id: "0".repeat(32),
            boot_id: "c0ffee00-1111-4222-8333-444444444444".into(),
        };
        this.send(&HostMessage::Renew(Box::new(identity)));
        this.send(&HostMessage::Start(Box::new(ContainerSpec {
            argv: vec!["/bin/sleep".into(), "1000".into()],
            target_port: 1,
            ..ContainerSpec::default()
        })));
        while !matches!(
            wire::read_frame(&mut this.control).unwrap(),
            GuestMessage::Started { .. }
        ) {}
        Some(this)
    }

    fn send(&mut self, message: &HostMessage) {
        wire::write_frame(&mut self.control, message).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // In order, so that it takes its container with it.
        let _ = wire::write_frame(&mut self.control, &HostMessage::Stop { grace_ms: 0 });
        let _ = self.control.shutdown(std::net::Shutdown::Write);
        let _ = self.process.wait();
    }
}

impl Office {
    /// With the pool `alpha` and a session that is used by nobody.
    async fn with_session(&self) {
        let (status, made) = self.put(&format!("{GROUP}/alpha"), &resource()).await;
        assert_eq!(status, 201, "{made}");
        drop(self.claim().await);
    }

    async fn claim(&self) -> Lease {
        let (_, pool) = self.pools.get(&"alpha".parse().unwrap()).unwrap();
        let identifier: Identifier = SESSION.parse().unwrap();
        pool.claim(identifier).await.ok().unwrap()
    }

    async fn send(&self, request: http::request::Builder) -> Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = request.header("host", "localhost");
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await;
        answer.expect("no answer").unwrap()
    }

    async fn exec(&self, request: ExecRequest) -> Exec {
        let call = Request::post(format!("{GROUP}/alpha/sessions/{ESCAPED}/exec"))
            .header("connection", "upgrade")
            .header("upgrade", "cabana-exec");
        let answer = self.send(call).await;
        assert_eq!(answer.status(), 101, "{answer:?}");
        let stream = hyper::upgrade::on(answer).await.unwrap();
        let mut exec = Exec {
            stream: TokioIo::new(stream),
            inbox: Inbox::default(),
        };
        exec.send(&ToCommand::Request(Box::new(request))).await;
        exec
    }

    /// All lines of a log, which must end.
    async fn logs(&self, query: &str) -> Vec<Value> {
        let call = Request::get(format!("{GROUP}/alpha/sessions/{ESCAPED}/logs{query}"));
        let answer = self.send(call).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        let body = tokio::time::timeout(DEADLINE, answer.into_body().collect());
        lines(&body.await.expect("no end").unwrap().to_bytes())
    }
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The operator's end of a command.
struct Exec {
    stream: TokioIo<Upgraded>,
    inbox: Inbox,
}

impl Exec {
    async fn send(&mut self, frame: &ToCommand) {
        let frame = frame.encode().unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn next(&mut self) -> Option<FromCommand> {
        loop {
            if let Some(frame) = self.inbox.next_from_command().unwrap() {
                return Some(frame);
            }
            let mut chunk = vec![0; 64 << 10];
            let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut chunk));
            match read.await.expect("silence").unwrap() {
                0 => return None,
                count => self.inbox.push(&chunk[..count]),
            }
        }
    }

    async fn outcome(&mut self) -> (Vec<u8>, ExecEnd) {
        let mut out = Vec::new();
        loop {
            match self.next().await {
                Some(FromCommand::Stdout(bytes)) => out.extend(bytes),
                Some(FromCommand::End(end)) => return (out, end),
                other => panic!("{other:?} behind {}", String::from_utf8_lossy(&out)),
            }
        }
    }
}

fn script(text: &str) -> ExecRequest {
    ExecRequest {
        argv: ["/bin/sh", "-c", text].map(str::to_owned).into(),
        stdin: true,
        ..ExecRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_is_run_beside_the_container_and_megabytes_pass_both_ways() {
    let Some(agent) = Agent::start() else { return };
    let office = Office::open().await;
    office.launcher.serve_commands_with(&agent.socket());
    office.with_session().await;
    let (out, end) = office
        .exec(script("echo here; exit 3"))
        .await
        .outcome()
        .await;
    assert_eq!((out.as_slice(), end.code), (&b"here\n"[..], 3));

    let mut exec = office.exec(script("exec cat")).await;
    let sent: Vec<u8> = (0..10u32 << 20)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let (mut from, mut to) = tokio::io::split(exec.stream);
    let bytes = sent.clone();
    let sending = tokio::spawn(async move {
        for chunk in bytes.chunks(wire::exec::MAX_DATA_BYTES) {
            let frame = ToCommand::Stdin(chunk.to_vec()).encode().unwrap();
            to.write_all(&frame).await.unwrap();
        }
        to.write_all(&ToCommand::CloseStdin.encode().unwrap())
            .await
            .unwrap();
        to
    });
    let mut got = Vec::new();
    let end = loop {
        match exec.inbox.next_from_command().unwrap() {
            Some(FromCommand::Stdout(bytes)) => got.extend(bytes),
            Some(FromCommand::End(end)) => break end,
            Some(other) => panic!("{other:?}"),
            None => {
                let mut chunk = vec![0; 64 << 10];
                let count = from.read(&mut chunk).await.unwrap();
                assert_ne!(count, 0, "cut off");
                exec.inbox.push(&chunk[..count]);
            }
        }
    };
    assert!(
        got == sent && end.code == 0,
        "{} bytes came back",
        got.len()
    );
    sending.await.unwrap();
    assert_eq!(
        office.launcher.launched(),
        1,
        "no session is begun by looking"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_is_ended_when_its_operator_hangs_up() {
    let Some(agent) = Agent::start() else { return };
    let office = Office::open().await;
    office.launcher.serve_commands_with(&agent.socket());
    office.with_session().await;
    let mut exec = office.exec(script("echo $$; exec sleep 1000")).await;
    let Some(FromCommand::Stdout(pid)) = exec.next().await else {
        panic!("no output");
    };
    let process = PathBuf::from("/proc").join(String::from_utf8(pid).unwrap().trim());
    assert!(process.exists());
    drop(exec);
    let gone = async {
        while process.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, gone)
        .await
        .expect("it goes on");
}

#[tokio::test]
async fn nothing_is_looked_into_that_is_not_there_and_nothing_is_begun() {
    let office = Office::open().await;
    let path = |pool: &str, identifier: &str, call: &str| {
        format!("{GROUP}/{pool}/sessions/{identifier}/{call}")
    };
    let (status, error) = office
        .call("GET", &path("alpha", "user-1", "logs"), "")
        .await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("ResourceNotFound"))
    );
    office.put(&format!("{GROUP}/alpha"), &resource()).await;
    let refused = async |method: &str, path: String, status: u16, word: &str| {
        let (got, error) = office.call(method, &path, "").await;
        let text = error.to_string();
        assert!(
            got == status && text.contains(word),
            "{method} {path}: {got} {text}"
        );
    };
    refused(
        "GET",
        path("alpha", "user-1", "logs"),
        400,
        "There is no session \\\"user-1\\\" in session pool \\\"alpha\\\"",
    )
    .await;
    refused(
        "GET",
        path("alpha", "abc", "logs"),
        400,
        "4 to 128 characters",
    )
    .await;
    refused("POST", path("alpha", "user-1", "logs"), 405, "POST").await;
    refused("GET", path("alpha", "user-1", "exec"), 405, "GET").await;
    refused(
        "POST",
        path("alpha", "user-1", "exec"),
        400,
        "Upgrade: cabana-exec",
    )
    .await;
    refused(
        "GET",
        path("alpha", "user-1", "elsewhere"),
        404,
        "Nothing is served here",
    )
    .await;
    let exec = Request::post(path("alpha", "user-1", "exec"))
        .header("connection", "upgrade")
        .header("upgrade", "cabana-exec");
    let answer = office.send(exec).await;
    assert_eq!(answer.status(), 400);
    let code = &answer.headers()["x-ms-error-code"];
    assert_eq!(code, "SessionWithIdentifierNotFound");
    assert_eq!(office.launcher.launched(), 0);
    // A guest that does not listen for commands is told apart from one that is not there.
    drop(office.claim().await);
    let exec = Request::post(path("alpha", ESCAPED, "exec"))
        .header("connection", "upgrade")
        .header("upgrade", "cabana-exec");
    let answer = office.send(exec).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.headers()["x-ms-error-code"], "SessionUnreachable");
    let tail = format!("{}?tail=some", path("alpha", ESCAPED, "logs"));
    refused("GET", tail, 400, "number of lines").await;
}

#[tokio::test]
async fn log_tells_lines_with_stream_and_time_tamed_unless_asked_for_raw() {
    let office = Office::open().await;
    office.with_session().await;
    let log = office.launcher.log(0);
    log.push(Stream::Stdout, "first");
    log.push(Stream::Stderr, "\u{1b}[31mred\u{9b}");
    let all = office.logs("").await;
    assert_eq!(
        (&all[0]["line"], &all[0]["stream"]),
        (&json!("first"), &json!("stdout"))
    );
    let red = json!("\u{fffd}[31mred\u{fffd}");
    assert_eq!(
        (&all[1]["line"], &all[1]["stream"]),
        (&red, &json!("stderr"))
    );
    let time: jiff::Timestamp = all[0]["time"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().as_second() - time.as_second() < 60);
    let raw = office.logs("?raw=true&tail=1").await;
    assert_eq!(raw.len(), 1);
    assert_eq!(raw[0]["line"], "\u{1b}[31mred\u{9b}");
    assert!(office.logs("?tail=0").await.is_empty());
}

#[tokio::test]
async fn log_is_followed_until_the_guest_is_gone() {
    let office = Office::open().await;
    office.with_session().await;
    let log = office.launcher.log(0);
    log.push(Stream::Stdout, "old");
    log.push(Stream::Stdout, "last");
    let call = format!("{GROUP}/alpha/sessions/{ESCAPED}/logs?follow=true&tail=1");
    let mut body = office.send(Request::get(call)).await.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await;
        let frame = frame.expect("nothing comes")?;
        Some(lines(&frame.unwrap().into_data().unwrap()))
    };
    assert_eq!(next().await.unwrap()[0]["line"], "last");
    log.push(Stream::Stderr, "new");
    assert_eq!(next().await.unwrap()[0]["line"], "new");
    log.close();
    assert_eq!(next().await, None);
}
