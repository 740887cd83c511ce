//! Asks once.
//!
//! Whatever answers is the container's, and hostile: a try takes no longer than its timeout, reads no more than
//! [`HEAD_BYTES`] and [`BODY_BYTES`] and keeps none of it, and everything of it is dropped with
//! its future. What goes wrong is told in one short line without control characters.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Check, Probe, Scheme};
use crate::exit::chain;
use crate::pool::launcher::BoxFuture;

/// Reaches a port of the container; the stream is one that the container has accepted.
pub type Connect<'a> = dyn Fn(u16) -> BoxFuture<'a, io::Result<UnixStream>> + Sync + 'a;

/// Longest head of an answer.
const HEAD_BYTES: usize = 16 << 10;
/// Longest body of an answer.
const BODY_BYTES: usize = 1 << 20;
/// Longest text that is told of what was asked, or of what came.
const TEXT_CHARS: usize = 160;
const USER_AGENT: &str = "cabana-probe";

/// One try. In an error: what was asked, and what came.
pub async fn ask(connect: &Connect<'_>, probe: &Probe) -> Result<(), String> {
    let limit = Duration::from_secs(probe.timeout_seconds.max(1).into());
    let came = match timeout(limit, try_once(connect, &probe.check)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(came)) => came,
        Err(_) => {
            let seconds = limit.as_secs();
            let unit = if seconds == 1 { "second" } else { "seconds" };
            format!("was not answered within {seconds} {unit}")
        }
    };
    Err(format!("{} {}", tame(&describe(&probe.check)), tame(&came)))
}

fn describe(check: &Check) -> String {
    match check {
        Check::TcpSocket { port } => format!("a connection to port {port}"),
        Check::HttpGet {
            scheme, path, port, ..
        } => {
            // Cut here, so that the port is always told.
            let path = tame(path);
            let secure = match scheme {
                Scheme::Http => "",
                Scheme::Https => " over TLS",
            };
            format!("GET {path} on port {port}{secure}")
        }
    }
}

async fn try_once(connect: &Connect<'_>, check: &Check) -> Result<(), String> {
    let connected = |port| async move {
        let stream = connect(port).await;
        stream.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => "was refused".to_owned(),
            _ => format!("failed: {}", chain(&error)),
        })
    };
    match check {
        Check::TcpSocket { port } => connected(*port).await.map(drop),
        Check::HttpGet {
            scheme,
            host,
            path,
            port,
            headers,
        } => {
            let request = request(*scheme, host.as_deref(), path, *port, headers)
                .map_err(|why| format!("cannot be asked: {why}"))?;
            let stream = connected(*port).await?;
            match scheme {
                Scheme::Http => get(stream, request).await,
                Scheme::Https => {
                    let name = server_name(host.as_deref());
                    let config = tls_config().map_err(|error| format!("failed: {error}"))?;
                    let stream = TlsConnector::from(config).connect(name, stream).await;
                    let stream = stream.map_err(|error| format!("failed in TLS: {error}"))?;
                    get(stream, request).await
                }
            }
        }
    }
}

fn request(
    scheme: Scheme,
    host: Option<&str>,
    path: &str,
    port: u16,
    own: &[(String, String)],
) -> Result<Request<Empty<Bytes>>, String> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = format!("{slash}{path}");
    let uri = Uri::try_from(&target).map_err(|_| "its path cannot stand in a request")?;
    let mut headers = HeaderMap::new();
    for (name, value) in own {
        let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
        let (Ok(name), Ok(value)) = parsed else {
            return Err(format!("its header {name:?} cannot stand in a request"));
        };
        headers.append(name, value);
    }
    let host = HeaderValue::try_from(host_header(scheme, host, port))
        .map_err(|_| "its host cannot stand in a request")?;
    headers.entry(header::HOST).or_insert(host);
    for (name, value) in [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
        let value = HeaderValue::from_static(value);
        headers.entry(name).or_insert(value);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The port is left out when it is the scheme's own (RFC 9110 section 7.2), and when it is given already.
fn host_header(scheme: Scheme, host: Option<&str>, port: u16) -> String {
    let host = host.filter(|host| !host.is_empty()).unwrap_or("localhost");
    let usual = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    if port == usual || host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    }
}

/// GET, and a healthy answer to its end.
async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("was not answered in HTTP/1.1: {}", chain(&error));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status().as_u16();
        if !(200..400).contains(&status) {
            return Err(format!("was answered with status {status}"));
        }
        let dropped = drop_body(answer.into_body()).await;
        dropped.map_err(|why| format!("was answered with status {status}, but {why}"))
    };
    // How it ended is told to the request that was on it, which may have to read what came before.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = answered => result,
        never = driven => never,
    }
}

async fn drop_body(mut body: Incoming) -> Result<(), String> {
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its body broke off: {}", chain(&error)))?;
        taken += frame.data_ref().map_or(0, Bytes::len);
        if taken > BODY_BYTES {
            return Err(format!("its body is longer than {BODY_BYTES} bytes"));
        }
    }
    Ok(())
}

/// A name that is no DNS name cannot be asked for in TLS.
fn server_name(host: Option<&str>) -> ServerName<'static> {
    let host = host.and_then(|host| host.split(':').next());
    let named = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    named.unwrap_or_else(|| std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST).into())
}

/// Made once, by the first probe that needs it.
fn tls_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(unverified::AnyCertificate(schemes)))
        .with_no_client_auth();
    // Containers of different tenants have the same name here: none may see another one's ticket.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// As in Kubernetes, the certificate is not verified. It could prove nothing: the stream ends in the
/// container by itself, and the certificate is the container's own.
mod unverified {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub struct AnyCertificate(pub Vec<SignatureScheme>);

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.clone()
        }
    }
}

/// Cuts a text, and replaces what could drive a terminal.
fn tame(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(TEXT_CHARS).map(harmless).collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
