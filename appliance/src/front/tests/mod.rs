//! The front door over real TLS on loopback. Containers are HTTP servers in this process.

mod authority;
mod contract;
mod endings;
mod forwarding;
mod frames;
mod fuzz;
mod limits;
mod management;
mod resources;
mod smuggling;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::ServedCertificate;
use super::{Front, Limits, listener, tls};
use crate::access::{Authority, Grant, Role};
use crate::config::FrontLimits;
use crate::pool::Pools;
use crate::pool::testing::{FakeLauncher, Server};
use crate::store::PoolRecord;
use crate::store::tests::pool as record;

/// No single step of a test takes longer, on any machine.
const DEADLINE: Duration = Duration::from_secs(30);
const BASE: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/default/sessionPools/alpha";

/// For the sessions of these pools.
fn executor(pools: &[&str]) -> Grant {
    Grant {
        pools: pools.iter().map(|name| name.parse().unwrap()).collect(),
        ..Grant::of(Role::SessionExecutor)
    }
}

type Any = BoxBody<Bytes, hyper::Error>;

/// A front door with one pool, `alpha`, of three sessions.
struct Door {
    address: SocketAddr,
    trusted: RootCertStore,
    authority: Arc<Authority>,
    launcher: Arc<FakeLauncher>,
    pools: Pools,
    shutdown: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Door {
    async fn open(launcher: Arc<FakeLauncher>) -> Self {
        Self::open_within(launcher, FrontLimits::default()).await
    }

    async fn open_within(launcher: Arc<FakeLauncher>, limits: FrontLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names = tls::names(Some("cabana.example"), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let certificate = ServedCertificate::prepare(dir.path(), names).unwrap();
        let pools = Pools::open(launcher.tools()).await.unwrap();
        pools
            .put(PoolRecord {
                max_sessions: 3,
                ..record("alpha")
            })
            .await
            .unwrap();
        let authority = Arc::new(crate::access::testing::authority().await);
        let arm = crate::arm::testing::arm(&launcher, &pools, Some("cabana.example")).await;
        let front = Arc::new(Front {
            pools: pools.clone(),
            authority: Arc::clone(&authority),
            arm: arm.clone(),
            domain: Some("cabana.example".into()),
            limits: Limits::new(limits),
            certificate: Arc::clone(&certificate),
        });
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (shutdown, stop) = watch::channel(false);
        let config = Arc::new(certificate.server_config().unwrap());
        let served = tokio::spawn(listener::serve(socket, config, front, stop));
        let mut trusted = RootCertStore::empty();
        let ca = std::fs::read(dir.path().join("ca.pem")).unwrap();
        trusted
            .add(CertificateDer::from_pem_slice(&ca).unwrap())
            .unwrap();
        Self {
            address,
            trusted,
            authority,
            launcher,
            pools,
            shutdown,
            served,
            _dir: dir,
        }
    }

    /// With containers that answer by `service`.
    async fn with<F, A>(service: F) -> Self
    where
        F: Fn(usize, Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Any>> + Send + 'static,
    {
        Self::open(FakeLauncher::new(http_server(service))).await
    }

    async fn tls(&self, name: &str, protocol: Option<&str>) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.trusted.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocol
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Any> {
        let stream = self.tls("localhost", Some("http/1.1")).await;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Any> {
        let stream = self.tls("localhost", Some("h2")).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn token(&self) -> String {
        self.token_for(&Grant::of(Role::SessionExecutor))
    }

    fn token_for(&self, grant: &Grant) -> String {
        let ttl = Duration::from_secs(600);
        self.authority.sign(grant, ttl).unwrap().token
    }

    /// A request to the pool with a good token; `tail` begins after the pool.
    fn request(&self, method: &str, tail: &str, body: Any) -> Request<Any> {
        Request::builder()
            .method(method)
            .uri(format!("{BASE}{tail}"))
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token()))
            .body(body)
            .unwrap()
    }

    async fn get(&self, tail: &str) -> Got {
        self.send(self.request("GET", tail, empty())).await
    }

    async fn send(&self, request: Request<Any>) -> Got {
        let response = in_time(self.http1().await.send_request(request))
            .await
            .unwrap();
        Got::read(response).await
    }

    /// Sends bytes and reads until the front door closes the connection.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.tls("localhost", None).await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A missing close_notify is an error, and of no interest here.
        let _ = in_time(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A whole answer.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = in_time(body.collect()).await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    /// The code of an error, after checking what is the same for all errors.
    fn code(&self) -> String {
        let allowed = [
            "content-type",
            "content-length",
            "date",
            "x-ms-error-code",
            "operation-id",
            "www-authenticate",
            "retry-after",
            "connection",
        ];
        for name in self.headers.keys() {
            assert!(
                allowed.contains(&name.as_str()),
                "header {name} on an error"
            );
        }
        let error = &self.json()["error"];
        let code = error["code"].as_str().unwrap();
        assert_eq!(self.headers["x-ms-error-code"], code);
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty())
        );
        assert_eq!(error["traceId"].as_str().unwrap().len(), 32);
        format!("{} {code}", self.status.as_u16())
    }

    fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("it takes too long")
}

/// Containers that speak HTTP/1.1 as a server should.
fn http_server<F, A>(service: F) -> Server
where
    F: Fn(usize, Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Any>> + Send + 'static,
{
    Arc::new(move |number, stream: UnixStream| {
        let service = service.clone();
        let answer = service_fn(move |request| {
            let answered = service(number, request);
            async { Ok::<_, std::convert::Infallible>(answered.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), answer)
            .with_upgrades();
        tokio::spawn(connection);
    })
}

/// Containers that get the bare stream.
fn raw_server<F, A>(serve: F) -> Server
where
    F: Fn(UnixStream) -> A + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |_, stream| {
        tokio::spawn(serve(stream));
    })
}

/// Reads up to the empty line.
async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = in_time(stream.read_u8()).await.unwrap_or_else(|_| {
            panic!(
                "the stream ended after {:?}",
                String::from_utf8_lossy(&head)
            )
        });
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

fn empty() -> Any {
    text("")
}

fn text(text: impl Into<Bytes>) -> Any {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

async fn say(what: impl Into<Bytes>) -> Response<Any> {
    Response::new(text(what))
}

/// A body that is fed from elsewhere.
struct Fed(mpsc::Receiver<Bytes>);

fn fed() -> (mpsc::Sender<Bytes>, Any) {
    let (feed, body) = mpsc::channel(1);
    (feed, Fed(body).boxed())
}

impl Body for Fed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
