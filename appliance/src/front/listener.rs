//! Accepts connections and serves HTTP on them.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Front;
use super::limit::Gauge;
use super::paced::{Activity, Paced};
use super::tls::CHALLENGE_PROTOCOL;
use crate::config::{FrontLimits, LONGEST_HEAD};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// So many headers are always read, so that there is an answer of ours to too many.
const HEADERS: usize = 200;
const MAX_STREAMS: u32 = 256;
/// A client that vanished without a word is noticed after this.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests may go on after the shutdown began.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// When accepting fails (no more descriptors), waiting is better than spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` becomes true, then lets open requests finish within the deadline.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    front: Arc<Front>,
    mut shutdown: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let rules = front.limits.rules.clone();
    // More wait in the kernel's queue.
    let places = Arc::new(Semaphore::new(rules.connections));
    let addresses = Gauge::new(rules.connections_per_address);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stopped(&mut shutdown) => break,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                // Before TLS nothing can be said, and a handshake is what costs most.
                let Some(of_address) = addresses.take(peer.ip()) else {
                    tracing::debug!(%peer, "too many connections from one address");
                    continue;
                };
                let (acceptor, front) = (acceptor.clone(), Arc::clone(&front));
                let shutdown = shutdown.clone();
                connections.spawn(async move {
                    let _places = (place, of_address);
                    connection(stream, peer, acceptor, front, shutdown).await;
                });
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept connections"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
        tracing::warn!(
            open = connections.len(),
            "connections were still busy and are cut"
        );
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

/// Resolves when the process is to end, also when nobody is left to say so.
pub async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    front: Arc<Front>,
    mut shutdown: watch::Receiver<bool>,
) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "cannot tune a connection"
        );
    }
    let rules = &front.limits.rules;
    let (stall, idle) = (rules.stall, rules.idle);
    let shake = acceptor.accept(Paced::new(stream, stall));
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await {
        Ok(Ok(stream)) => stream,
        // Scanners and clients that do not trust the CA: nothing an operator must act on.
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() == Some(CHALLENGE_PROTOCOL) {
        // The ACME server has seen what it came for, and nothing may follow (RFC 8737 §3).
        let mut stream = stream;
        let _ = tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.shutdown()).await;
        return;
    }
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let builder = builder(http2, rules);
    let activity = Activity::new();
    let requests = activity.clone();
    let service = service_fn(move |request| {
        let (front, busy) = (Arc::clone(&front), requests.request());
        async move { Ok::<_, std::convert::Infallible>(front.handle(request, peer.ip(), busy).await) }
    });
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut shutdown) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = activity.idle_for(idle) => {
            serving.as_mut().graceful_shutdown();
            // Who does not take leave is cut.
            tokio::time::timeout(PROBE_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}

/// The protocol is the one that was agreed in the handshake, never guessed from the first bytes.
pub(super) fn builder(http2: bool, rules: &FrontLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(rules.head)
        .max_headers(rules.header_count.max(HEADERS))
        .max_buf_size(LONGEST_HEAD)
        .preserve_header_case(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_TIMEOUT);
    if http2 {
        builder.http2_only()
    } else {
        builder.http1_only()
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_TIMEOUT / 2)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
