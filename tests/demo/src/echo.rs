//! `/echo` and `/headers`: what the server made of a request.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::reply::{self, Reply};

/// Method, path, query, headers, and length and digest of the body, which is not kept.
pub async fn echo(request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let headers: Vec<Value> = head
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), latin1(value)]))
        .collect();
    let (length, digest) = match measure(body).await {
        Ok(measured) => measured,
        Err(e) => {
            return reply::problem(
                StatusCode::BAD_REQUEST,
                &format!("the body ended early: {e}"),
            );
        }
    };
    reply::json(&json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": headers,
        "bodyBytes": length,
        "bodySha256": digest,
    }))
}

/// Header names and values; a repeated header is an array.
pub fn headers_as_object(headers: &HeaderMap) -> Value {
    let mut object = Map::new();
    for name in headers.keys() {
        let mut values: Vec<Value> = headers
            .get_all(name)
            .iter()
            .map(|value| latin1(value).into())
            .collect();
        let value = if values.len() == 1 {
            values.remove(0)
        } else {
            Value::Array(values)
        };
        object.insert(name.as_str().to_owned(), value);
    }
    Value::Object(object)
}

/// Length and SHA-256 of a body, read as it arrives.
pub async fn measure(mut body: Incoming) -> hyper::Result<(u64, String)> {
    let mut length = 0;
    let mut digest = Sha256::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            length += data.len() as u64;
            digest.update(data);
        }
    }
    Ok((length, hex(&digest.finalize())))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Header values are bytes; one character per byte loses none of them.
fn latin1(value: &HeaderValue) -> String {
    value.as_bytes().iter().copied().map(char::from).collect()
}
