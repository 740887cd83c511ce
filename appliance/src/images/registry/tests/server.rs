//! A registry in this process, on loopback, that can be told to misbehave.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::images::digest::Digest;
use crate::images::testing::gzip;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const USER: &str = "user";
pub const PASSWORD: &str = "correct horse";
const TOKEN: &str = "the-token";
/// `user:correct horse`.
const BASIC: &str = "Basic dXNlcjpjb3JyZWN0IGhvcnNl";

/// What a request gets instead of its answer.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(StatusCode),
    /// The connection ends after so many bytes of the answer.
    Cut(usize),
    /// Nothing comes after so many bytes of the answer, and the connection stays.
    Stall(usize),
    /// Other bytes of the same kind.
    Body(Vec<u8>),
    /// A `Location` elsewhere.
    Redirect(String),
    /// As a server that does not know ranges.
    NoRange,
    /// As if the token were no good any more.
    Expired,
    /// The answer waits until this is notified.
    Hold(Arc<tokio::sync::Notify>),
}

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Everybody,
    Basic,
    /// With a token that the server itself gives, to whom it knows.
    Bearer,
    /// With a token that everybody gets.
    Anonymous,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET /v2/...`.
    pub line: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

type Faults = Box<dyn FnMut(&str) -> Option<Fault> + Send>;

struct State {
    address: SocketAddr,
    access: Access,
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    faults: Faults,
    token: Vec<u8>,
    seen: Vec<Seen>,
}

#[derive(Clone)]
pub struct TestRegistry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl TestRegistry {
    pub async fn start(access: Access) -> Self {
        Self::serve(access, None).await
    }

    pub async fn start_tls(access: Access, tls: TlsAcceptor) -> Self {
        Self::serve(access, Some(tls)).await
    }

    async fn serve(access: Access, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            address,
            access,
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            faults: Box::new(|_| None),
            token: json!({ "token": TOKEN }).to_string().into(),
            seen: Vec::new(),
        };
        let registry = Self {
            address,
            state: Arc::new(Mutex::new(state)),
        };
        let served = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (registry, tls) = (served.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => registry.connection(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                registry.connection(stream).await;
                            }
                        }
                    }
                });
            }
        });
        registry
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| {
            let registry = self.clone();
            async move { Ok::<_, Infallible>(registry.answer(&request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        let _ = connection
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Puts an image there, under a tag and its digest.
    pub fn put(&self, repository: &str, tag: &str, image: &TestImage) {
        let mut state = self.state.lock().unwrap();
        for version in [tag, image.digest.as_str()] {
            let manifest = (image.media_type.to_owned(), image.manifest.clone());
            state
                .manifests
                .insert(format!("{repository}/{version}"), manifest);
        }
        for blob in &image.blobs {
            state
                .blobs
                .insert(Digest::of(blob).to_string(), blob.clone());
        }
    }

    /// From now on each request is shown to this first, as `GET /v2/...`.
    pub fn fail(&self, faults: impl FnMut(&str) -> Option<Fault> + Send + 'static) {
        self.state.lock().unwrap().faults = Box::new(faults);
    }

    /// What its token server answers to who may come.
    pub fn token(&self, answer: Vec<u8>) {
        self.state.lock().unwrap().token = answer;
    }

    /// What came since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    /// How many requests came since the last call whose lines have this in them.
    pub fn count(&self, part: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.line.contains(part))
            .count()
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let line = format!("{} {}", request.method(), request.uri());
        let value = |name| {
            let value = request.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let (authorization, range) = (value(header::AUTHORIZATION), value(header::RANGE));
        let (fault, response) = {
            let mut state = self.state.lock().unwrap();
            let seen = Seen {
                line: line.clone(),
                authorization,
                range,
            };
            state.seen.push(seen.clone());
            let fault = (state.faults)(&line);
            (
                fault.clone(),
                state.answer(request.uri().path(), &seen, fault),
            )
        };
        if let Some(Fault::Hold(until)) = fault {
            until.notified().await;
        }
        response
    }
}

impl State {
    fn answer(&self, path: &str, seen: &Seen, fault: Option<Fault>) -> Response<Body> {
        match &fault {
            Some(Fault::Status(status)) => return plain(*status, Vec::new()),
            Some(Fault::Redirect(to)) => {
                let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, Vec::new());
                answer
                    .headers_mut()
                    .insert(header::LOCATION, to.parse().unwrap());
                return answer;
            }
            _ => {}
        }
        if path == "/token" {
            return match self.access == Access::Anonymous
                || seen.authorization.as_deref() == Some(BASIC)
            {
                true => plain(StatusCode::OK, self.token.clone()),
                false => plain(StatusCode::UNAUTHORIZED, b"{}".to_vec()),
            };
        }
        if !self.lets_in(seen) || matches!(fault, Some(Fault::Expired)) {
            let challenge = match self.access {
                Access::Basic => "Basic realm=\"test\"".to_owned(),
                _ => format!(
                    "Bearer realm=\"http://{}/token\",service=\"test\"",
                    self.address
                ),
            };
            let mut answer = plain(StatusCode::UNAUTHORIZED, b"{}".to_vec());
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            return answer;
        }
        let Some((kind, body)) = self.find(path) else {
            return plain(StatusCode::NOT_FOUND, b"{}".to_vec());
        };
        let mut body = body.to_vec();
        if let Some(Fault::Body(other)) = &fault {
            body.clone_from(other);
        }
        let total = body.len();
        let from = seen.range.as_deref().and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
        let mut answer = match from {
            Some(from) if !matches!(fault, Some(Fault::NoRange)) => {
                if from >= total {
                    return plain(StatusCode::RANGE_NOT_SATISFIABLE, Vec::new());
                }
                let mut answer = plain(StatusCode::PARTIAL_CONTENT, body[from..].to_vec());
                let range = format!("bytes {from}-{}/{total}", total - 1);
                answer
                    .headers_mut()
                    .insert(header::CONTENT_RANGE, range.parse().unwrap());
                answer
            }
            _ => plain(StatusCode::OK, body),
        };
        if seen.line.starts_with("HEAD") {
            *answer.body_mut() = Body::default();
        }
        if !kind.is_empty() {
            let (_, bytes) = self.find(path).unwrap();
            answer
                .headers_mut()
                .insert(header::CONTENT_TYPE, kind.parse().unwrap());
            let digest = Digest::of(bytes).to_string();
            answer
                .headers_mut()
                .insert("docker-content-digest", digest.parse().unwrap());
        }
        match fault {
            Some(Fault::Cut(after)) => answer.body_mut().cut = Some(after),
            Some(Fault::Stall(after)) => {
                answer.body_mut().cut = Some(after);
                answer.body_mut().stalls = true;
            }
            _ => {}
        }
        answer
    }

    fn lets_in(&self, seen: &Seen) -> bool {
        let expected = match self.access {
            Access::Everybody => return true,
            Access::Basic => BASIC.to_owned(),
            Access::Bearer | Access::Anonymous => format!("Bearer {TOKEN}"),
        };
        seen.authorization.as_ref() == Some(&expected)
    }

    fn find(&self, path: &str) -> Option<(&str, &[u8])> {
        if path == "/v2/" {
            return Some(("", b"{}"));
        }
        let path = path.strip_prefix("/v2/")?;
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return self.blobs.get(digest).map(|blob| ("", blob.as_slice()));
        }
        let (repository, version) = path.split_once("/manifests/")?;
        let manifest = self.manifests.get(&format!("{repository}/{version}"));
        manifest.map(|(kind, bytes)| (kind.as_str(), bytes.as_slice()))
    }
}

fn plain(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let length = body.len();
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_LENGTH, length);
    response
        .body(Body {
            rest: body.into(),
            ..Body::default()
        })
        .unwrap()
}

/// Bytes in pieces; an error after some of them if it is to be cut, or nothing more.
#[derive(Default)]
pub struct Body {
    rest: Bytes,
    cut: Option<usize>,
    stalls: bool,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        const PIECE: usize = 64 << 10;
        if self.cut == Some(0) && self.stalls {
            // Who waits hears of the connection's end from the connection.
            return Poll::Pending;
        }
        if self.cut == Some(0) {
            return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())));
        }
        let most = self
            .rest
            .len()
            .min(PIECE)
            .min(self.cut.unwrap_or(usize::MAX));
        if most == 0 {
            return Poll::Ready(None);
        }
        let piece = self.rest.split_to(most);
        self.cut = self.cut.map(|cut| cut - most);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// An image as a registry has it.
#[derive(Debug, Clone)]
pub struct TestImage {
    pub digest: Digest,
    pub media_type: &'static str,
    pub manifest: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
}

impl TestImage {
    /// Of layers as they are stored and as they are unpacked.
    pub fn of(media_type: &'static str, layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let docker = media_type == DOCKER_MANIFEST;
        let (config_type, layer_type) = match docker {
            true => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            false => (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
        };
        let diff_ids: Vec<_> = layers.iter().map(|(_, plain)| Digest::of(plain)).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/run"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let entries: Vec<_> = layers
            .iter()
            .map(|(stored, _)| descriptor(layer_type, stored))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(config_type, &config),
            "layers": entries,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut blobs = vec![config];
        blobs.extend(layers.iter().map(|(stored, _)| stored.clone()));
        Self {
            digest: Digest::of(&manifest),
            media_type,
            manifest,
            blobs,
        }
    }

    /// Of one gzip layer with one file, and incompressible ballast.
    pub fn simple(text: &str, ballast: usize) -> Self {
        let plain = layer(text, ballast);
        Self::of(OCI_MANIFEST, &[(gzip(&plain), plain)])
    }

    /// An index of images, each for an architecture.
    pub fn index(entries: &[(&TestImage, &str)]) -> Self {
        let entries: Vec<_> = entries
            .iter()
            .map(|(image, architecture)| {
                let mut entry = descriptor(image.media_type, &image.manifest);
                entry["platform"] = json!({ "os": "linux", "architecture": architecture });
                entry
            })
            .collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        Self {
            digest,
            media_type: OCI_INDEX,
            manifest,
            blobs: Vec::new(),
        }
    }

    /// The bytes of its first layer.
    pub fn layer(&self) -> &[u8] {
        &self.blobs[1]
    }

    pub fn layer_digest(&self) -> Digest {
        Digest::of(self.layer())
    }
}

/// A tar with the file `/text` and noise of so many bytes.
pub fn layer(text: &str, ballast: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: nothing that gzip could shorten.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(ballast / 8)
    .flatten()
    .collect();
    crate::images::testing::Layer::new()
        .file("text", text.as_bytes())
        .file("noise", &noise)
        .finish()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

/// Polls until it is so.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Duration::from_secs(60);
    let poll = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(deadline, poll)
        .await
        .expect("it never came to that");
}
