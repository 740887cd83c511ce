//! Small answers.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Reply = Response<Body>;

pub fn text(text: &str) -> Reply {
    typed("text/plain; charset=utf-8", Bytes::from(text.to_owned()))
}

pub fn json(value: &Value) -> Reply {
    typed("application/json", Bytes::from(value.to_string()))
}

pub fn bytes(bytes: Bytes) -> Reply {
    typed("application/octet-stream", bytes)
}

/// An answer that says what was wrong with the request.
pub fn problem(status: StatusCode, message: &str) -> Reply {
    let mut reply = json(&json!({ "error": message }));
    *reply.status_mut() = status;
    reply
}

pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn typed(content_type: &'static str, content: Bytes) -> Reply {
    let mut reply = Response::new(full(content));
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
