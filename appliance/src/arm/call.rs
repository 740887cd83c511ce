//! What all calls have in common: how their bodies are read and how they are answered.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::front::answer::{AnswerBody, RequestLog};
use crate::front::refusal::{Code, OPERATION_ID_HEADER, Refusal};

/// Longest JSON body. A pool's settings must reach the agent in one frame, which is not much longer.
pub const MAX_JSON_BYTES: usize = 1 << 20;

/// A successful answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Option<Value>,
}

impl Reply {
    pub fn new(status: StatusCode, body: Option<Value>) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body,
        }
    }

    pub fn ok(body: Value) -> Self {
        Self::new(StatusCode::OK, Some(body))
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The whole answer. What it says is true for a moment, so nobody on the way may keep it.
    pub fn into_response(self, operation: &str, mut log: RequestLog) -> Response<AnswerBody> {
        log.status = self.status;
        log.complete = true;
        let mut headers = self.headers;
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(operation) = HeaderValue::from_str(operation) {
            headers.insert(OPERATION_ID_HEADER, operation);
        }
        let body = match self.body {
            Some(body) => {
                let kind = HeaderValue::from_static("application/json");
                headers.insert(header::CONTENT_TYPE, kind);
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let mut response = Response::new(AnswerBody::own(body, Some(log)));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

/// The method, if it is one of these.
pub fn allow<'a, B>(request: &'a Request<B>, methods: &[Method]) -> Result<&'a Method, Refusal> {
    if methods.contains(request.method()) {
        return Ok(request.method());
    }
    let allowed: Vec<_> = methods.iter().map(Method::as_str).collect();
    let message = format!("{} is not supported here", request.method());
    Err(Refusal::new(Code::MethodNotAllowed, message).header(header::ALLOW, &allowed.join(", ")))
}

pub async fn read_json(request: Request<Incoming>) -> Result<Value, Refusal> {
    let body = Limited::new(request.into_body(), MAX_JSON_BYTES)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                let message = format!("The body is longer than {MAX_JSON_BYTES} bytes");
                Refusal::new(Code::PayloadTooLarge, message)
            } else {
                let cause = anyhow::anyhow!("{error}");
                Refusal::new(Code::InvalidRequestContent, "The body broke off").cause(cause)
            }
        })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| {
        let message = format!("The body is not JSON: {error}");
        Refusal::new(Code::InvalidRequestContent, message)
    })
}

pub fn nothing_here() -> Refusal {
    Refusal::new(Code::ResourceNotFound, "Nothing is served here")
}

/// The parameter of a query string, percent-decoded.
pub fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    let decode =
        |text| crate::front::percent_decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
    pairs
        .filter(|(key, _)| *key == name)
        .find_map(|(_, value)| decode(value))
}
