//! Asking an appliance: over the admin socket of this host, or at the HTTPS port of another.

mod address;
mod remote;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

pub use address::{escape, inside_path, management_path, pool_path, pools_path, session_path};
pub use remote::{Endpoint, Remote, Wait};

use crate::config::Paths;
use crate::exit::{Exit, Failure};

const CHUNK: usize = 256 << 10;
/// Chunks that are read ahead of the socket.
const CHUNKS: usize = 4;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is sent along.
pub enum Payload {
    Nothing,
    Json(Value),
    /// Streamed, with a progress bar where somebody watches.
    File(File),
}

/// Whose appliance is asked.
pub enum Whom {
    /// This host's, below a root.
    Local(PathBuf),
    /// Another host's.
    Remote(Remote),
}

impl Whom {
    /// One request about pools. Returns when what was asked for is done.
    pub fn call(&self, method: Method, path: &str, payload: Payload) -> Result<Value, Failure> {
        self.call_and(Wait::Done, method, path, payload)
    }

    /// As [`Self::call`], and perhaps does not wait until it is done.
    pub fn call_and(
        &self,
        wait: Wait,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<Value, Failure> {
        match self {
            Self::Local(root) => with_socket(root, async |socket| {
                let mut request = request(method, path, payload)?;
                if wait == Wait::Begun {
                    let prefer = http::HeaderValue::from_static("respond-async");
                    request.headers_mut().insert("prefer", prefer);
                }
                exchange(socket, request).await
            }),
            Self::Remote(remote) => remote.call(method, path, payload, wait),
        }
    }
}

/// One request to the appliance below `root`. An answer without a body is `null`.
pub fn call(root: &Path, method: Method, path: &str, payload: Payload) -> Result<Value, Failure> {
    with_socket(root, async |socket| {
        exchange(socket, request(method, path, payload)?).await
    })
}

/// Runs `work` with an appliance's socket, on this thread.
pub fn with_socket<T>(
    root: &Path,
    work: impl AsyncFnOnce(&Path) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let paths = Paths::under(root).map_err(|error| Failure::of(Exit::Usage, &error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of(Exit::Failed, &error))?;
    runtime.block_on(work(&paths.admin_socket))
}

/// A call whose answer comes bit by bit.
pub async fn stream(
    socket: &Path,
    method: Method,
    path: &str,
    payload: Payload,
) -> Result<Incoming, Failure> {
    let request = request(method, path, payload)?;
    let response = send(socket, request).await?;
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    Err(refused(response).await)
}

/// A call that changes the protocol of its connection.
pub async fn upgrade(
    socket: &Path,
    path: &str,
    protocol: &'static str,
) -> Result<TokioIo<Upgraded>, Failure> {
    let mut request = request(Method::POST, path, Payload::Nothing)?;
    let headers = request.headers_mut();
    let value = http::HeaderValue::from_static;
    headers.insert(http::header::CONNECTION, value("upgrade"));
    headers.insert(http::header::UPGRADE, value(protocol));
    let response = send(socket, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    Ok(TokioIo::new(upgraded))
}

async fn refused(response: Response<Incoming>) -> Failure {
    let status = response.status();
    match response.into_body().collect().await {
        Ok(body) => Failure::new(Exit::Failed, refusal(status, &body.to_bytes())),
        Err(error) => broken(error),
    }
}

pub fn broken(error: hyper::Error) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("The appliance broke off: {}", crate::exit::chain(&error)),
    )
}

/// Sends a request on a connection of its own, and waits for the head of the answer.
async fn send(socket: &Path, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| unreachable(socket, &error))?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(broken)?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(broken)
}

async fn exchange(socket: &Path, request: Request<Body>) -> Result<Value, Failure> {
    let response = send(socket, request).await?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    if status.is_success() {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&body).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("The appliance's answer is not JSON: {error}"),
            )
        });
    }
    Err(Failure::new(Exit::Failed, refusal(status, &body)))
}

fn request(method: Method, path: &str, payload: Payload) -> Result<Request<Body>, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost");
    let request = match payload {
        Payload::Nothing => request.body(full(Bytes::new())),
        Payload::Json(value) => request
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(full(value.to_string().into())),
        Payload::File(file) => {
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let request = request.header(http::header::CONTENT_TYPE, "application/x-tar");
            // A pipe has no length and goes in chunks.
            let request = match length {
                0 => request,
                length => request.header(http::header::CONTENT_LENGTH, length),
            };
            request.body(file_body(file, length))
        }
    };
    request.map_err(|error| Failure::of(Exit::Usage, &error))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads on a blocking thread, a few chunks ahead.
fn file_body(file: File, length: u64) -> Body {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || read_chunks(file, length, &sender));
    FileBody { chunks }.boxed_unsync()
}

struct FileBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.chunks
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

fn read_chunks(mut file: File, length: u64, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    let progress = progress(length);
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk);
        let chunk = match read {
            Ok(0) => break,
            Ok(count) => {
                chunk.truncate(count);
                progress.inc(count as u64);
                Ok(Bytes::from(chunk))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        // Nobody reads any more: the appliance has answered before the end.
        if chunks.blocking_send(chunk).is_err() || failed {
            break;
        }
    }
    progress.finish_and_clear();
}

fn progress(length: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "sending {wide_bar} {bytes}/{total_bytes} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        let line =
            format!("No permission for {socket}: run this as root or as the appliance's user");
        return Failure::new(Exit::Permission, line);
    }
    let line = format!(
        "No appliance answers at {socket} ({error}): start `cabana serve`, or name its --root"
    );
    Failure::new(Exit::Unavailable, line)
}

/// The message and code of an error body, or what there is of it.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    let one_line = |text: &str| text.replace(['\n', '\r'], " ");
    match (error["message"].as_str(), error["code"].as_str()) {
        (Some(message), Some(code)) => {
            let target = error["target"]
                .as_str()
                .map(|t| format!(", {t}"))
                .unwrap_or_default();
            format!("{} ({code}{target})", one_line(message))
        }
        (Some(message), None) => one_line(message),
        _ => format!("The appliance answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    /// Answers one request with `answer` and gives back what it read, up to `until`.
    async fn answer(listener: UnixListener, until: &str, answer: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(until) {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk).await.unwrap();
            assert_ne!(count, 0, "closed early: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(seen).unwrap()
    }

    fn reply(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    async fn exchanged(
        payload: Payload,
        until: &str,
        reply: &str,
    ) -> (Result<Value, Failure>, String) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::join!(
            exchange(
                &socket,
                request(Method::POST, "/images?name=x", payload).unwrap()
            ),
            answer(listener, until, reply)
        )
    }

    #[tokio::test]
    async fn file_is_sent_whole_with_its_length() {
        use std::io::{Seek as _, Write as _};
        let mut file = tempfile::tempfile().unwrap();
        let text = "x".repeat(CHUNK + 10) + "end of it";
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let ok = reply("200 OK", r#"{"name":"x"}"#);
        let (result, seen) = exchanged(Payload::File(file), "end of it", &ok).await;
        assert_eq!(result.unwrap()["name"], "x");
        assert!(seen.starts_with("POST /images?name=x HTTP/1.1"));
        assert!(seen.contains(&format!("content-length: {}\r\n", text.len())));
        assert!(seen.ends_with(&text));
    }

    #[tokio::test]
    async fn refusal_becomes_one_line_with_its_code() {
        let body = r#"{"error":{"code":"ImageNotFound","message":"No\nimage","traceId":"t"}}"#;
        let reply = reply("404 Not Found", body);
        let (result, _) = exchanged(Payload::Json(Value::Null), "null", &reply).await;
        let failure = result.unwrap_err();
        assert_eq!(
            (failure.exit, failure.line.as_str()),
            (Exit::Failed, "No image (ImageNotFound)")
        );
    }

    #[tokio::test]
    async fn answer_without_a_body_is_null() {
        let (result, _) = exchanged(Payload::Nothing, "\r\n\r\n", &reply("202 Accepted", "")).await;
        assert_eq!(result.unwrap(), Value::Null);
    }

    #[test]
    fn absent_appliance_is_exit_69_and_names_the_socket() {
        let root = tempfile::tempdir().unwrap();
        let failure = call(root.path(), Method::GET, "/", Payload::Nothing).unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(
            failure.line.contains("run/cabana/admin.sock"),
            "{}",
            failure.line
        );
    }

    #[test]
    fn missing_permission_is_exit_77() {
        let failure = unreachable(Path::new("/s"), &io::ErrorKind::PermissionDenied.into());
        assert_eq!(failure.exit, Exit::Permission);
    }
}
