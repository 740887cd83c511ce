//! Carries one request to a session's container and its answer back, as it comes: no body is ever
//! held, in either direction.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use http::header;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::timeout_at;

use super::answer::{AnswerBody, Hold, RequestLog, refuse};
use super::headers;
use super::refusal::{Code, OPERATION_ID_HEADER, Refusal};
use crate::pool::{BodyError, BodyLimits, Connection, Lease, RequestBody, Upstream};

/// A request that is cleared to go to a session.
pub struct Outgoing {
    pub request: Request<Incoming>,
    pub lease: Lease,
    pub target: PathAndQuery,
    /// Host and port as the client named them.
    pub host: String,
    pub peer: IpAddr,
    /// What the answer carries as its `operation-id`.
    pub operation: String,
    pub body_limits: BodyLimits,
}

/// Sends the request and returns the answer as soon as its head is there. The lease lives until the
/// answer has been sent to its end, or the tunnel is closed.
pub async fn forward(outgoing: Outgoing, mut log: RequestLog) -> Response<AnswerBody> {
    let Outgoing {
        mut request,
        lease,
        target,
        host,
        peer,
        operation,
        body_limits,
    } = outgoing;
    let upgrade = headers::upgrade_wanted(request.headers(), request.version());
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let request = prepare(request, target, &host, peer, upgrade, body_limits);
    let upstream = Arc::clone(&lease.upstream);
    let sending = send(&upstream, request);
    let sent = match log.takes.deadline {
        Some(deadline) => timeout_at(deadline, sending).await.unwrap_or_else(|_| {
            let message = "The container did not answer in the time that a request may take";
            Err(Refusal::new(Code::RequestTimeLimitReached, message))
        }),
        None => sending.await,
    };
    let (mut response, mut connection) = match sent {
        Ok(answered) => answered,
        Err(refusal) => return refuse(refusal, &operation, log),
    };
    log.status = response.status();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_side) = client_side else {
            let message = "The container changed the protocol without being asked to";
            let refusal = Refusal::new(Code::SessionUnreachable, message);
            return refuse(refusal, &operation, log);
        };
        let container_side = hyper::upgrade::on(&mut response);
        connection.detach();
        tokio::spawn(tunnel(client_side, container_side, lease, log));
        let (parts, _) = response.into_parts();
        let body = AnswerBody::own(bytes::Bytes::new(), None);
        return Response::from_parts(answer_head(parts, true, &operation), body);
    }
    let (parts, body) = response.into_parts();
    let body = AnswerBody::from_container(
        body,
        Hold {
            lease,
            upstream,
            connection,
        },
        log,
    );
    Response::from_parts(answer_head(parts, false, &operation), body)
}

/// The request as the container gets it. Extensions stay: they carry the spelling of header names.
fn prepare(
    request: Request<Incoming>,
    target: PathAndQuery,
    host: &str,
    peer: IpAddr,
    upgrade: Option<HeaderValue>,
    limits: BodyLimits,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    headers::to_container(&mut parts.headers, peer, host, upgrade);
    parts.uri = Uri::from(target);
    parts.version = Version::HTTP_11;
    let ended = body.is_end_stream();
    if !ended && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // Said, not left to the client: for GET it would otherwise send no body at all.
        parts.headers.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
    Request::from_parts(parts, RequestBody::new(body, limits))
}

type Answered = (Response<Incoming>, Connection);

/// Sends on a kept connection if there is one. The container may have closed it at this very moment:
/// then the request is sent once more on a new one, if it was not sent at all, or if sending it twice
/// is the same as sending it once (RFC 9110 section 9.2.2) and nothing of a body is lost.
async fn send(
    upstream: &Arc<Upstream>,
    request: Request<RequestBody>,
) -> Result<Answered, Refusal> {
    let mut connection = connect(upstream.connection()).await?;
    let reused = connection.reused;
    let copy = (reused && is_replayable(&request)).then(|| copy_of(&request));
    let mut failed = match connection.send(request).await {
        Ok(response) => return Ok((response, connection)),
        Err(failed) => failed,
    };
    let again = if reused {
        failed.take_message().or(copy)
    } else {
        None
    };
    let Some(again) = again else {
        return Err(broken(failed.into_error()));
    };
    let mut connection = connect(upstream.new_connection()).await?;
    match connection.send(again).await {
        Ok(response) => Ok((response, connection)),
        Err(failed) => Err(broken(failed.into_error())),
    }
}

async fn connect(
    connecting: impl Future<Output = std::io::Result<Connection>>,
) -> Result<Connection, Refusal> {
    let message = "The container does not accept connections on its target port any more";
    connecting
        .await
        .map_err(|error| Refusal::new(Code::SessionUnreachable, message).cause(error))
}

fn broken(error: hyper::Error) -> Refusal {
    let body = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    let (code, message) = if let Some(BodyError::TooLong) = body {
        (
            Code::PayloadTooLarge,
            "The body of the request is longer than this host takes",
        )
    } else if let Some(BodyError::Stalled) = body {
        (
            Code::RequestBodyTimeout,
            "The container waits for the body of the request, and the client does not send it",
        )
    } else if error.is_parse() {
        (
            Code::SessionUnreachable,
            "The container's answer is not HTTP",
        )
    } else if error.is_body_write_aborted() || error.is_user() {
        // The client's doing: it broke off, or its chunks are malformed.
        (
            Code::InvalidRequestContent,
            "The body of the request broke off",
        )
    } else {
        (
            Code::SessionUnreachable,
            "The container closed the connection before it answered",
        )
    };
    Refusal::new(code, message).cause(error)
}

fn is_replayable(request: &Request<RequestBody>) -> bool {
    let idempotent = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::PUT,
        Method::DELETE,
    ];
    request.body().is_end_stream()
        && idempotent.contains(request.method())
        && !request.headers().contains_key(header::UPGRADE)
}

fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

fn answer_head(
    mut parts: http::response::Parts,
    switching: bool,
    operation: &str,
) -> http::response::Parts {
    let upgrade = if switching {
        parts.headers.get(header::UPGRADE).cloned()
    } else {
        None
    };
    headers::strip_hop_by_hop(&mut parts.headers);
    if switching {
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(upgrade) = upgrade {
            parts.headers.insert(header::UPGRADE, upgrade);
        }
    }
    add_operation(&mut parts.headers, operation);
    parts.version = Version::HTTP_11;
    parts
}

fn add_operation(headers: &mut HeaderMap, operation: &str) {
    if let Ok(operation) = HeaderValue::from_str(operation) {
        headers.entry(OPERATION_ID_HEADER).or_insert(operation);
    }
}

/// Joins the two connections until both directions have ended.
async fn tunnel(client: OnUpgrade, container: OnUpgrade, lease: Lease, mut log: RequestLog) {
    let joined = async {
        let (client, container) =
            tokio::try_join!(client, container).context("changing the protocol")?;
        let (mut client, mut container) = (TokioIo::new(client), TokioIo::new(container));
        let copied = tokio::io::copy_bidirectional(&mut client, &mut container).await;
        let (_, out) = copied.context("the tunnel broke off")?;
        anyhow::Ok(out)
    };
    let joined = match log.takes.deadline {
        Some(deadline) => timeout_at(deadline, joined)
            .await
            .unwrap_or_else(|_| Err(BodyError::OutOfTime.into())),
        None => joined.await,
    };
    match joined {
        Ok(bytes_out) => {
            log.bytes_out = bytes_out;
            log.complete = true;
        }
        Err(error) => log.cause = Some(error),
    }
    drop(lease);
}
