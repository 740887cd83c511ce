//! HTTPS as a customer's application speaks it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::HOST;
use hyper::http::request;
use hyper::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than any session takes to start, shorter than the limit of a test.
pub const DEADLINE: Duration = Duration::from_secs(90);

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Connects to one appliance, whose private CA it trusts, and nobody else's.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
}

/// A connection of either version. Requests on it look the same.
pub enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// An answer that has arrived completely.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// `ca`: the certificate that the appliance made at its first start.
    pub fn new(address: SocketAddr, ca: &Path) -> Self {
        let certificate = CertificateDer::from_pem_file(ca)
            .unwrap_or_else(|e| panic!("cannot read {}: {e}", ca.display()));
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate)
            .expect("the appliance's CA is a certificate");
        Self {
            address,
            roots: Arc::new(roots),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A TLS connection that offers these protocols by ALPN, and nothing above it.
    pub async fn tls(&self, protocols: &[&str]) -> TlsStream<TcpStream> {
        let connected = self.try_tls(protocols).await;
        connected.expect(
            "the appliance accepts connections, and its certificate is good for its address",
        )
    }

    /// The same, where the appliance may not be there.
    async fn try_tls(&self, protocols: &[&str]) -> io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::from(self.address.ip());
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        within("the TLS handshake", connecting).await
    }

    pub async fn http1(&self) -> Connection {
        let io = TokioIo::new(self.tls(&["http/1.1"]).await);
        let (sender, connection) = http1::handshake(io)
            .await
            .expect("an HTTP/1.1 connection needs no handshake");
        // How it ends is seen by the requests on it.
        tokio::spawn(connection.with_upgrades());
        Connection::Http1(sender)
    }

    /// One request on a connection of its own to an appliance that may end at any moment. `None`: it was not answered, or not to
    /// the end.
    pub async fn try_send(&self, request: Request<Body>) -> Option<Answer> {
        let io = TokioIo::new(self.try_tls(&["http/1.1"]).await.ok()?);
        let (sender, connection) = http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        let response = Connection::Http1(sender).try_send(request).await.ok()?;
        Answer::try_collect(response).await
    }

    pub async fn http2(&self) -> Connection {
        let tls = self.tls(&["h2", "http/1.1"]).await;
        assert_eq!(
            tls.get_ref().1.alpn_protocol(),
            Some(&b"h2"[..]),
            "the appliance does not choose HTTP/2"
        );
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
        let (sender, connection) = handshake.await.expect("the HTTP/2 preface is exchanged");
        tokio::spawn(connection);
        Connection::Http2(sender)
    }

    /// The start of a request. `target` is path and query.
    pub fn request(&self, method: Method, target: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("https://{}{target}", self.address))
    }

    /// One request on an HTTP/1.1 connection of its own.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        Answer::collect(self.http1().await.send(request).await).await
    }
}

impl Connection {
    /// Sends a request; answers when the head of the answer is here.
    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.try_send(request)
            .await
            .expect("the request is answered")
    }

    pub async fn try_send(
        &mut self,
        mut request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        let what = format!("an answer to {} {}", request.method(), request.uri().path());
        match self {
            Self::Http1(sender) => {
                to_origin_form(&mut request);
                within("a free connection", sender.ready()).await?;
                within(&what, sender.send_request(request)).await
            }
            Self::Http2(sender) => {
                within("a free connection", sender.ready()).await?;
                within(&what, sender.send_request(request)).await
            }
        }
    }
}

impl Answer {
    pub async fn collect(response: Response<Incoming>) -> Self {
        Self::try_collect(response)
            .await
            .expect("the answer is complete")
    }

    async fn try_collect(response: Response<Incoming>) -> Option<Self> {
        let (head, body) = response.into_parts();
        let body = within("the end of the answer", body.collect()).await.ok()?;
        Some(Self {
            status: head.status.as_u16(),
            version: head.version,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON of a successful answer.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:#?}");
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()))
    }

    /// Asserts the platform's error with this status and code, in its documented shape; answers it.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:#?}");
        let body: Value = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()));
        let error = &body["error"];
        assert_eq!(error["code"], code, "{body}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{body}"
        );
        assert!(
            error["traceId"].as_str().is_some_and(|id| !id.is_empty()),
            "{body}"
        );
        let header = |name: &str| {
            self.headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        assert_eq!(
            header("content-type").as_deref(),
            Some("application/json"),
            "{self:#?}"
        );
        assert_eq!(
            header("x-ms-error-code").as_deref(),
            Some(code),
            "{self:#?}"
        );
        assert!(header("operation-id").is_some(), "{self:#?}");
        error.clone()
    }
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Waits for something of the network, and says what did not come.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}

/// HTTP/1.1 names the host in a header and only path and query in the request line (RFC 9112 §3.2.1).
fn to_origin_form(request: &mut Request<Body>) {
    let uri = request.uri().clone();
    if let (Some(authority), Some(target)) = (uri.authority(), uri.path_and_query()) {
        let host = authority
            .as_str()
            .parse()
            .expect("an authority is a header value");
        request.headers_mut().entry(HOST).or_insert(host);
        *request.uri_mut() = target.as_str().parse().expect("path and query are a URI");
    }
}
