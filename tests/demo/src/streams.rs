//! Bodies that are long, slow or both ways at once.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::time::sleep;

use crate::reply::{self, BoxError, Reply};
use crate::{echo, pattern, query};

/// Server-sent events: `count` of them, one every `intervalMs`.
pub fn events(request: &Request<Incoming>) -> Reply {
    let (count, interval) = match (
        query::number(request, "count", 5_u64),
        query::number(request, "intervalMs", 100),
    ) {
        (Ok(count), Ok(interval)) => (count, Duration::from_millis(interval)),
        (Err(refusal), _) | (_, Err(refusal)) => return *refusal,
    };
    let events = stream::iter(0..count).then(move |n| async move {
        if n > 0 {
            sleep(interval).await;
        }
        Bytes::from(format!("id: {n}\ndata: event {n}\n\n"))
    });
    let mut reply = Response::new(body(events));
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply
}

/// Swallows a body and answers with its length and digest.
pub async fn upload(request: Request<Incoming>) -> Reply {
    match echo::measure(request.into_body()).await {
        Ok((length, digest)) => reply::json(&json!({ "bytes": length, "sha256": digest })),
        Err(e) => reply::problem(
            StatusCode::BAD_REQUEST,
            &format!("the body ended early: {e}"),
        ),
    }
}

/// `bytes` of the pattern, with a length, or in chunks when `chunked=1`.
pub fn download(request: &Request<Incoming>) -> Reply {
    let total = match query::number(request, "bytes", 0_u64) {
        Ok(total) => total,
        Err(refusal) => return *refusal,
    };
    let chunks = stream::unfold((pattern::block(), total), |(block, left)| async move {
        // The last block may be shorter, so the length always fits.
        let length = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        (length > 0).then(|| (block.slice(..length), (block, left - length as u64)))
    });
    let mut reply = Response::new(body(chunks));
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if query::parameter(request, "chunked").as_deref() != Some("1") {
        reply.headers_mut().insert(CONTENT_LENGTH, total.into());
    }
    reply
}

/// Sends every piece of the request back as it arrives, trailers included.
pub fn echo(request: Request<Incoming>) -> Reply {
    Response::new(request.into_body().map_err(BoxError::from).boxed_unsync())
}

/// Answers after `ms` milliseconds.
pub async fn slow(request: &Request<Incoming>) -> Reply {
    match query::number(request, "ms", 1000_u64) {
        Ok(ms) => {
            sleep(Duration::from_millis(ms)).await;
            reply::text("slow, but here\n")
        }
        Err(refusal) => *refusal,
    }
}

fn body(chunks: impl Stream<Item = Bytes> + Send + 'static) -> reply::Body {
    StreamBody::new(chunks.map(|chunk| Ok::<_, BoxError>(Frame::data(chunk)))).boxed_unsync()
}
