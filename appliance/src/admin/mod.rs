//! The administration API: HTTP on a Unix socket that only its owner may open.
//!
//! There is no token here: who may open the socket may do everything. Pools have the shape of
//! `Microsoft.App/sessionPools`; images, goldens, tokens and health are our own.

mod changes;
mod drain;
mod goldens;
mod images;
mod inside;
mod keeper;
mod listener;
mod pools;
mod properties;
mod resource;
mod sessions;
mod tokens;
mod vault;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::Notify;

pub use changes::Changes;
pub use goldens::{GoldenService, GoldenSummary};
pub use images::{ImageService, ImageSummary, ImportOrder, PullOrder};
pub use inside::EXEC_PROTOCOL;
pub use keeper::{ImageHold, ImageKeeper, KeptImage, RemovedImage};
pub use listener::{bind, serve};
pub use properties::Rules;
pub use vault::{KEY_BYTES as VAULT_KEY_BYTES, Vault};

use crate::access::Authority;
use crate::front::answer::{AnswerBody, RequestLog, refuse};
use crate::front::refusal::{Code, OPERATION_ID_HEADER, Refusal};
use crate::pool::Pools;

/// Longest JSON body. A pool's settings must reach the agent in one frame, which is not much longer.
const MAX_JSON_BYTES: usize = 1 << 20;

/// Answers requests on the administration socket.
pub struct Admin {
    pub pools: Pools,
    pub authority: Arc<Authority>,
    pub images: Arc<dyn ImageService>,
    pub keeper: Arc<dyn ImageKeeper>,
    pub goldens: Arc<dyn GoldenService>,
    pub rules: Rules,
    pub endpoints: Endpoints,
    pub changes: Changes,
    /// What the secrets of pools are sealed with.
    pub vault: Vault,
    /// Told when an operator asks for the end of everything.
    pub stop: Arc<Notify>,
}

/// Where sessions are reached.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// With scheme and port.
    pub host: String,
    pub domain: Option<String>,
    pub port: u16,
}

impl Endpoints {
    /// The base address of a pool's sessions: by host name if there is a domain, else by path.
    pub fn of(&self, subscription: &str, resource_group: &str, pool: &str) -> String {
        match &self.domain {
            Some(domain) if self.port == 443 => format!("https://{pool}.{domain}"),
            Some(domain) => format!("https://{pool}.{domain}:{}", self.port),
            None => format!(
                "{}/subscriptions/{subscription}/resourceGroups/{resource_group}/sessionPools/{pool}",
                self.host
            ),
        }
    }
}

/// A successful answer.
struct Reply {
    status: StatusCode,
    body: Option<Value>,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Some(body),
        }
    }
}

impl Admin {
    /// Answers one request; always with an answer, never with an error.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let mut log = RequestLog::new(request.method().clone(), request.version());
        let trace = log.trace.clone();
        if let Some(place) = inside::Place::of(request.uri().path()) {
            return self.look_inside(request, &place, log).await;
        }
        if request.uri().path() == images::PULL {
            return self.pull_image(request, log).await;
        }
        match self.answer(request).await {
            Ok(reply) => {
                log.status = reply.status;
                log.complete = true;
                let (parts, body) = reply_parts(reply, &trace);
                Response::from_parts(parts, AnswerBody::own(body, Some(log)))
            }
            Err(refusal) => refuse(refusal, &trace, log),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/healthz" => {
                allow(&request, &[Method::GET])?;
                Ok(Reply::ok(
                    json!({ "status": "ok", "endpoint": self.endpoints.host }),
                ))
            }
            "/stop" => {
                allow(&request, &[Method::POST])?;
                tracing::info!("asked to stop");
                self.stop.notify_one();
                Ok(Reply {
                    status: StatusCode::ACCEPTED,
                    body: None,
                })
            }
            "/drain" => match *allow(&request, &[Method::GET, Method::POST, Method::DELETE])? {
                Method::POST => self.drain(&read_json(request).await?).await,
                Method::DELETE => self.end_drain().await,
                _ => Ok(Reply::ok(self.draining().await)),
            },
            "/tokens" => {
                allow(&request, &[Method::POST])?;
                self.create_token(&read_json(request).await?)
            }
            "/images" => match *allow(&request, &[Method::GET, Method::POST])? {
                Method::POST => self.import_image(request).await,
                _ => Ok(self.list_images().await),
            },
            "/goldens" => {
                allow(&request, &[Method::GET])?;
                Ok(self.list_goldens())
            }
            _ => match path.strip_prefix("/images/") {
                Some(reference) => self.image_call(request, reference).await,
                None => self.pool_call(request, &path).await,
            },
        }
    }
}

fn reply_parts(reply: Reply, trace: &str) -> (http::response::Parts, Bytes) {
    let mut response = Response::new(());
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    if let Ok(trace) = trace.parse() {
        headers.insert(OPERATION_ID_HEADER, trace);
    }
    let body = match reply.body {
        Some(body) => {
            headers.insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("application/json"),
            );
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    (response.into_parts().0, body)
}

/// The method, if it is one of these.
fn allow<'a, B>(request: &'a Request<B>, methods: &[Method]) -> Result<&'a Method, Refusal> {
    if methods.contains(request.method()) {
        return Ok(request.method());
    }
    let allowed: Vec<_> = methods.iter().map(Method::as_str).collect();
    let message = format!("{} is not supported here", request.method());
    Err(Refusal::new(Code::MethodNotAllowed, message).header(header::ALLOW, &allowed.join(", ")))
}

async fn read_json(request: Request<Incoming>) -> Result<Value, Refusal> {
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

fn nothing_here() -> Refusal {
    Refusal::new(Code::ResourceNotFound, "Nothing is served here")
}

/// The parameter of a query string, percent-decoded.
fn query_value(query: Option<&str>, name: &str) -> Option<String> {
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

/// Longest life of a token.
const MAX_TOKEN_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
