//! The port on which HTTP-01 is answered. Without TLS there is nothing else to be had on it: a redirection would let
//! clients go on sending their tokens in the clear first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::challenges::Challenges;

/// RFC 8555 §8.3.
const PREFIX: &str = "/.well-known/acme-challenge/";
/// The servers of a CA look from a handful of places. More connections wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Each is for one short request.
const LONGEST: Duration = Duration::from_secs(10);
const MAX_HEAD: usize = 8 << 10;
/// When accepting fails (no more descriptors), waiting is better than spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until `shutdown` becomes true.
pub async fn serve_plain(
    listener: TcpListener,
    challenges: Arc<Challenges>,
    mut shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.map_err(std::io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, place)) => {
                let challenges = Arc::clone(&challenges);
                connections.spawn(async move {
                    let _place = place;
                    // Strangers' mistakes are nothing that an operator must act on.
                    let _ = tokio::time::timeout(LONGEST, connection(stream, challenges)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for HTTP-01");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, challenges: Arc<Challenges>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &challenges);
        async move { Ok::<_, Infallible>(answer) }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(method: &Method, path: &str, challenges: &Challenges) -> Response<Full<Bytes>> {
    let token = path
        .strip_prefix(PREFIX)
        .filter(|_| matches!(*method, Method::GET | Method::HEAD));
    let found = token.and_then(|token| challenges.answer(token));
    let (status, content_type, body) = match found {
        Some(answer) => (StatusCode::OK, "application/octet-stream", answer),
        None => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "Nothing is served here without TLS\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_challenges_that_wait_is_answered() {
        let challenges = Arc::new(Challenges::default());
        let _proof = challenges.answer_with("token", "token.thumb");
        let status = |method, path| answer(&method, path, &challenges).status();
        let path = "/.well-known/acme-challenge/token";
        assert_eq!(status(Method::GET, path), StatusCode::OK);
        for (method, path) in [
            (Method::POST, path),
            (Method::GET, "/.well-known/acme-challenge/other"),
            (Method::GET, "/.well-known/acme-challenge/"),
            (Method::GET, "/.well-known/acme-challenge/../token"),
            (Method::GET, "/token"),
            (Method::GET, "/"),
        ] {
            assert_eq!(status(method, path), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
