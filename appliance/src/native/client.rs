//! A customer's application, and an operator.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::DEADLINE;

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/default";

type Sender = SendRequest<Full<Bytes>>;
type Dialled = TlsStream<TcpStream>;
/// Resolves with the head of the answer.
type Answering = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

/// Where a pool is for an operator.
pub fn pool(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.App/sessionPools/{name}")
}

/// Where a pool is for its users.
pub fn endpoint(name: &str) -> String {
    format!("{GROUP}/sessionPools/{name}")
}

/// The administration socket.
pub struct Admin<'a>(pub &'a Path);

impl Admin<'_> {
    pub async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let answer = self.exchange(method, path, body.into(), "wait").await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Begins a change of a resource, without waiting for it. Gives the id of its operation.
    pub async fn begin(&self, method: &str, path: &str, body: impl Into<Bytes>) -> String {
        let answer = self.exchange(method, path, body.into(), "respond-async");
        let answer = answer.await;
        assert!(answer.status().is_success(), "{answer:?}");
        let url = answer.headers()["azure-asyncoperation"].to_str().unwrap();
        let path = url.split('?').next().unwrap();
        path.rsplit('/').next().unwrap().to_owned()
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        prefer: &str,
    ) -> Response<Incoming> {
        let stream = UnixStream::connect(self.0).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header("prefer", prefer)
            .body(Full::new(body))
            .unwrap();
        let answer = tokio::time::timeout(DEADLINE, sender.send_request(request));
        answer.await.expect("no answer").unwrap()
    }
}

/// Keeps its connections.
pub struct Client {
    address: SocketAddr,
    config: ClientConfig,
    token: String,
    idle: Mutex<Vec<Sender>>,
}

/// An answer that has come to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
    /// From the request to the head of the answer, on a connection that was there.
    pub first_byte: Duration,
}

impl Client {
    pub fn new(address: SocketAddr, ca: &Path, token: String) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            address,
            config,
            token,
            idle: Mutex::default(),
        }
    }

    /// `tail` begins after the pool.
    pub async fn send(&self, method: &str, pool: &str, tail: &str) -> hyper::Result<Answer> {
        let request = self.request(method, pool, tail, Full::default());
        let kept = self.idle.lock().unwrap().pop();
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await,
        };
        let begun = Instant::now();
        let answer = tokio::time::timeout(DEADLINE, sender.send_request(request));
        let (parts, body) = answer.await.expect("no answer")?.into_parts();
        let first_byte = begun.elapsed();
        let body = body.collect().await?.to_bytes();
        if sender.ready().await.is_ok() {
            self.idle.lock().unwrap().push(sender);
        }
        Ok(Answer {
            status: parts.status.as_u16(),
            body,
            first_byte,
        })
    }

    /// On a connection of its own, with a body that is made while it is sent. Gives the head of the answer.
    pub async fn stream<B>(
        &self,
        version: Version,
        method: &str,
        pool: &str,
        tail: &str,
        body: B,
    ) -> Response<Incoming>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
    {
        let (answer, _) = self.begin(version, method, pool, tail, body).await;
        let answer = tokio::time::timeout(DEADLINE, answer);
        answer.await.expect("no answer").unwrap()
    }

    /// The same before there is an answer, with the socket, which ends when it is shut down as it does when a client ends.
    pub async fn begin<B>(
        &self,
        version: Version,
        method: &str,
        pool: &str,
        tail: &str,
        body: B,
    ) -> (Answering, OwnedFd)
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
    {
        let mut request = self.request(method, pool, tail, body);
        let protocol: &[u8] = match version {
            Version::HTTP_2 => b"h2",
            _ => b"http/1.1",
        };
        let stream = self.dial(&[protocol]).await;
        let socket = stream.inner().get_ref().0.as_fd();
        let socket = socket.try_clone_to_owned().unwrap();
        if version == Version::HTTP_2 {
            let target = format!("https://localhost{}", request.uri());
            *request.uri_mut() = target.parse().unwrap();
            let handshake = http2::handshake(TokioExecutor::new(), stream);
            let (mut sender, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            let answer = async move { sender.send_request(request).await };
            return (Box::pin(answer), socket);
        }
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let answer = async move { sender.send_request(request).await };
        (Box::pin(answer), socket)
    }

    /// Opens a WebSocket.
    pub async fn websocket(&self, pool: &str, tail: &str) -> WebSocketStream<Dialled> {
        let url = format!("wss://localhost{}{tail}", endpoint(pool));
        let mut request = url.into_client_request().unwrap();
        let bearer = format!("Bearer {}", self.token).parse().unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        let stream = self.dial(&[]).await.into_inner();
        let opened = tokio_tungstenite::client_async(request, stream);
        let opened = tokio::time::timeout(DEADLINE, opened).await;
        opened.expect("no answer").unwrap().0
    }

    fn request<B>(&self, method: &str, pool: &str, tail: &str, body: B) -> Request<B> {
        Request::builder()
            .method(method)
            .uri(format!("{}{tail}", endpoint(pool)))
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(body)
            .unwrap()
    }

    /// Asks the session of this identifier.
    pub async fn get(&self, pool: &str, path: &str, identifier: &str) -> hyper::Result<Answer> {
        self.send("GET", pool, &format!("{path}?identifier={identifier}"))
            .await
    }

    /// Opens connections that later requests find.
    pub async fn prepare(&self, connections: usize) {
        for _ in 0..connections {
            let sender = self.connect().await;
            self.idle.lock().unwrap().push(sender);
        }
    }

    async fn connect(&self) -> Sender {
        let (sender, connection) = http1::handshake(self.dial(&[]).await).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// With these protocols of HTTP to choose from, or without a choice.
    async fn dial(&self, protocols: &[&[u8]]) -> TokioIo<Dialled> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        TokioIo::new(connector.connect(name, stream).await.unwrap())
    }
}
