//! Drives the demo server over a real socket.

#![allow(
    clippy::unwrap_used,
    reason = "the whole file is tests; a panic is how they fail"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

/// Nothing here takes long; a read that waits for this long has found a bug.
const DEADLINE: Duration = Duration::from_secs(20);

struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    _data: TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Demo {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(env: &[(&str, &str)]) -> Self {
        let data = TempDir::new().unwrap();
        let mut child = command()
            .env("DATA_DIR", data.path())
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let line = next_line(&mut stdout);
        let address = line
            .strip_prefix("demo: listening on ")
            .expect(&line)
            .to_owned();
        Self {
            child,
            stdout,
            address,
            _data: data,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn request(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let length = body.len();
        write!(stream, "{method} {target} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        answer(stream)
    }

    fn get(&self, target: &str) -> Answer {
        self.request("GET", target, b"")
    }

    fn json(&self, method: &str, target: &str, body: &[u8]) -> Value {
        let answer = self.request(method, target, body);
        assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Fails when the test has ended the server already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.env_clear().env("PORT", "0").stdin(Stdio::null());
    command
}

fn next_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Reads until the server closes; bodies here have a length, never chunks.
fn answer(mut stream: impl Read) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("an answer has a head")
        + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head,
        body: bytes.split_off(end),
    }
}

#[test]
fn root_says_hello() {
    let demo = Demo::start();
    let answer = demo.get("/");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "Hello from Cabana\n")
    );
    assert_eq!(demo.get("/nowhere").status, 404);
    assert_eq!(demo.request("POST", "/", b"").status, 404);
}

#[test]
fn echo_reports_method_path_query_headers_and_body() {
    let demo = Demo::start();
    let echo = demo.json("PATCH", "/echo?a=1&b=%20", b"abc");
    assert_eq!(echo["method"], "PATCH");
    assert_eq!(echo["path"], "/echo");
    assert_eq!(echo["query"], "a=1&b=%20");
    assert_eq!(echo["bodyBytes"], 3);
    // The test vector of FIPS 180-2, appendix B.1.
    assert_eq!(
        echo["bodySha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert!(
        echo["headers"]
            .as_array()
            .unwrap()
            .contains(&serde_json::json!(["host", "demo"]))
    );
}

#[test]
fn headers_keep_every_byte_of_their_values() {
    let demo = Demo::start();
    let mut stream = demo.connect();
    stream.write_all(b"GET /headers HTTP/1.1\r\nHost: demo\r\nX-Bytes: \xe9\xff\r\nX-Two: 1\r\nX-Two: 2\r\nConnection: close\r\n\r\n").unwrap();
    let headers: Value = serde_json::from_slice(&answer(stream).body).unwrap();
    assert_eq!(headers["x-bytes"], "\u{e9}\u{ff}");
    assert_eq!(headers["x-two"], serde_json::json!(["1", "2"]));
}

#[test]
fn raw_answers_with_the_head_as_it_came_even_on_a_used_connection() {
    let demo = Demo::start();
    let mut stream = demo.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: first\r\n\r\n")
        .unwrap();
    let mut first = BufReader::new(stream.try_clone().unwrap());
    while next_line(&mut first) != "Hello from Cabana" {}
    let head = b"GET /raw HTTP/1.1\r\nhOsT:second\r\nX-Odd:   a  b\r\nConnection: close\r\n\r\n";
    stream.write_all(head).unwrap();
    let answer = answer(first);
    assert_eq!(answer.text(), String::from_utf8_lossy(head));
}

#[test]
fn env_id_and_random_describe_the_process() {
    let demo = Demo::start();
    assert_eq!(demo.json("GET", "/env", b"")["PORT"], "0");
    let id = demo.json("GET", "/id", b"");
    assert_eq!(id["pid"], demo.child.id());
    assert_eq!(id["bootId"].as_str().unwrap().len(), 36, "{id}");
    let [first, second] = [(); 2].map(|()| demo.get("/random").text());
    assert_eq!(first.len(), 64);
    assert_ne!(first, second);
}

#[test]
fn random_bytes_come_from_the_source_that_was_asked_for() {
    let demo = Demo::start();
    for source in ["getrandom", "urandom", "uuid", "vdso"] {
        let path = format!("/random?source={source}");
        let [first, second] = [(); 2].map(|()| demo.get(&path));
        // Kernels before 6.11 have no such function, and this test runs on any.
        if (source, first.status) == ("vdso", 501) {
            continue;
        }
        assert_eq!(first.status, 200, "{source}: {}", first.text());
        assert!(first.body.len() >= 36, "{source}: {}", first.text());
        assert_ne!(first.body, second.body, "{source}");
    }
    assert_eq!(demo.get("/random?source=dice").status, 400);
}

#[test]
fn stamp_is_one_for_the_life_of_the_process_and_keeps_a_note() {
    let demo = Demo::start();
    let before = demo.json("GET", "/stamp", b"");
    let after = demo.json("PUT", "/stamp", b"remember");
    assert_eq!(
        (&before["start"], &before["pid"]),
        (&after["start"], &after["pid"])
    );
    assert_eq!(
        (&before["note"], &after["note"]),
        (&"".into(), &"remember".into())
    );
    assert_eq!(demo.json("GET", "/stamp", b""), after);
    let other = Demo::start().json("GET", "/stamp", b"");
    assert_ne!(other["start"], before["start"]);
}

#[test]
fn clock_and_file_system_are_those_of_the_host() {
    let demo = Demo::start();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let before = now().unwrap().as_nanos();
    let clock = demo.json("GET", "/clock", b"");
    let told = u128::from(clock["unixNs"].as_u64().unwrap());
    assert!(
        (before..=now().unwrap().as_nanos()).contains(&told),
        "{clock}"
    );
    assert!(clock["monotonicNs"].as_u64().unwrap() > 0, "{clock}");

    let root = demo.json("GET", "/statvfs", b"");
    assert!(
        root["totalBytes"].as_u64() >= root["freeBytes"].as_u64(),
        "{root}"
    );
    assert_eq!(demo.get("/statvfs?path=/no/such/place").status, 404);
}

#[test]
fn first_sequence_number_is_told_to_whoever_may_know_it() {
    let demo = Demo::start();
    let answer = demo.get("/isn?from=0");
    // It takes CAP_NET_ADMIN to look.
    if answer.status != 403 {
        let told: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(told["sequence"].is_u64(), "{told}");
        assert!(
            told["beforeUnixNs"].as_u64() <= told["afterUnixNs"].as_u64(),
            "{told}"
        );
    }
}

#[test]
fn files_are_written_read_and_deleted() {
    let demo = Demo::start();
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    assert_eq!(demo.get("/files/dir/a.bin").status, 404);
    assert_eq!(
        demo.request("PUT", "/files/dir/a.bin", &content).status,
        201
    );
    assert_eq!(demo.get("/files/dir/a.bin").body, content);
    assert_eq!(demo.request("DELETE", "/files/dir/a.bin", b"").status, 204);
    assert_eq!(demo.get("/files/dir/a.bin").status, 404);
    assert_eq!(demo.get("/files/..%2f..%2fetc/passwd").status, 400);
}

#[test]
fn exec_answers_with_status_and_output() {
    let demo = Demo::start();
    let ran = demo.json(
        "POST",
        "/exec",
        br#"{"argv": ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]}"#,
    );
    assert_eq!(
        ran,
        serde_json::json!({ "code": 3, "stdout": "out\n", "stderr": "err\n" })
    );
    assert_eq!(
        demo.request("POST", "/exec", br#"{"argv": []}"#).status,
        400
    );
    assert_eq!(
        demo.request("POST", "/exec", br#"{"argv": ["/no/such/program"]}"#)
            .status,
        400
    );
}

#[test]
fn events_arrive_one_by_one() {
    let demo = Demo::start();
    let mut stream = demo.connect();
    // The last event is a day away, so what is read below was not held back for it.
    stream
        .write_all(b"GET /sse?count=2&intervalMs=86400000 HTTP/1.1\r\nHost: demo\r\n\r\n")
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut seen = String::new();
    while !seen.contains("data: event 0\n") {
        reader.read_line(&mut seen).unwrap();
    }
    assert!(seen.contains("text/event-stream"), "{seen}");
}

#[test]
fn downloads_have_the_pattern_and_the_length() {
    let demo = Demo::start();
    let length = 1_000_000;
    let expected: Vec<u8> = (0..251).cycle().take(length).collect();
    let answer = demo.get(&format!("/download?bytes={length}"));
    assert!(
        answer
            .head
            .to_lowercase()
            .contains(&format!("content-length: {length}\r\n")),
        "{}",
        answer.head
    );
    assert!(answer.body == expected, "the pattern is broken");
    let chunked = demo.get("/download?bytes=10&chunked=1");
    assert!(
        chunked
            .head
            .to_lowercase()
            .contains("transfer-encoding: chunked\r\n"),
        "{}",
        chunked.head
    );
    assert_eq!(demo.get("/download?bytes=many").status, 400);
}

#[test]
fn uploads_are_counted_and_hashed() {
    let demo = Demo::start();
    let upload = demo.json("POST", "/upload", b"abc");
    assert_eq!(upload["bytes"], 3);
    assert_eq!(
        upload["sha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn echo_stream_answers_before_the_request_has_ended() {
    let demo = Demo::start();
    let mut stream = demo.connect();
    stream.write_all(b"POST /echo-stream HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").unwrap();
    stream.write_all(b"5\r\nfirst\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while next_line(&mut reader) != "first" {}
    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "6\r\nsecond\r\n0\r\n\r\n");
}

#[tokio::test]
async fn websocket_sends_text_and_binary_back() {
    let demo = Demo::start();
    let stream = tokio::net::TcpStream::connect(&demo.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://demo/ws", stream)
        .await
        .unwrap();
    for message in [Message::text("hello"), Message::binary(vec![0, 255, 10])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    assert_eq!(demo.get("/ws").status, 400);
}

#[test]
fn stdout_writes_the_line_that_was_asked_for() {
    let mut demo = Demo::start();
    assert_eq!(demo.get("/stdout?text=one%20line").status, 204);
    assert_eq!(next_line(&mut demo.stdout), "one line");
}

#[test]
fn exit_and_crash_end_the_server_as_told() {
    let mut demo = Demo::start();
    demo.connect()
        .write_all(b"POST /exit?code=7 HTTP/1.1\r\nHost: demo\r\n\r\n")
        .unwrap();
    assert_eq!(demo.child.wait().unwrap().code(), Some(7));

    let mut demo = Demo::start();
    demo.connect()
        .write_all(b"POST /crash?signal=11 HTTP/1.1\r\nHost: demo\r\n\r\n")
        .unwrap();
    assert_eq!(demo.child.wait().unwrap().signal(), Some(11));
}

#[test]
fn sigterm_ends_the_server_with_success() {
    let mut demo = Demo::start();
    let pid = Pid::from_raw(demo.child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(demo.child.wait().unwrap().code(), Some(0));
    assert_eq!(next_line(&mut demo.stdout), "demo: ended by SIGTERM");
}

#[test]
fn exit_at_start_prints_three_lines_and_the_status() {
    let Output { status, stderr, .. } = command().env("EXIT_AT_START", "9").output().unwrap();
    assert_eq!(status.code(), Some(9));
    assert_eq!(String::from_utf8(stderr).unwrap().lines().count(), 3);
}

#[test]
fn a_bad_setting_is_named_in_one_line() {
    let Output { status, stderr, .. } = command().env("PORT", "http").output().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        String::from_utf8(stderr).unwrap(),
        "demo: PORT is not a number in range: \"http\"\n"
    );
}

#[test]
fn health_is_as_it_was_told_on_both_ports() {
    let mut demo = Demo::start_with(&[("DEMO_HEALTH_PORT", "0")]);
    let line = next_line(&mut demo.stdout);
    let first = demo.address.clone();
    let second = line
        .strip_prefix("demo: listening on ")
        .and_then(|line| line.strip_suffix(", too"))
        .expect(&line)
        .to_owned();
    assert_eq!(demo.get("/healthz").status, 200);
    assert_eq!(demo.request("POST", "/healthz?status=500", b"").status, 204);
    for address in [&second, &first] {
        demo.address.clone_from(address);
        assert_eq!(demo.get("/healthz").status, 500, "{address}");
        assert_eq!(demo.get("/").status, 200);
    }
    assert_eq!(demo.request("POST", "/healthz?status=20", b"").status, 400);
    assert_eq!(demo.request("POST", "/healthz", b"").status, 204);
    assert_eq!(demo.get("/healthz").status, 200);
}

#[test]
fn health_comes_when_its_time_has_come() {
    let demo = Demo::start_with(&[("DEMO_HEALTHY_AFTER_MS", "1000000")]);
    assert_eq!(demo.get("/healthz").status, 503);
    let begun = Instant::now();
    let demo = Demo::start_with(&[("DEMO_HEALTHY_AFTER_MS", "300")]);
    while demo.get("/healthz").status != 200 {
        assert!(begun.elapsed() < DEADLINE);
    }
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn server_that_hangs_accepts_and_never_answers() {
    let mut demo = Demo::start();
    assert_eq!(demo.request("POST", "/hang", b"").status, 204);
    assert_eq!(next_line(&mut demo.stdout), "demo: hanging on request");
    let mut stream = demo.connect();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
        .unwrap();
    let silence = stream.read(&mut [0]).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
}
