//! An appliance on another host: its HTTPS port, with a token.
//!
//! # Trust
//! The token goes to the host that the operator named and nowhere else: redirects are not followed, and the
//! address of an operation counts only if it is on that host.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};
use serde_json::Value;

use super::{Payload, refusal};
use crate::exit::{Exit, Failure, chain};
use crate::images::registry::{HostResolver, trusting};

const OPERATION: &str = "azure-asyncoperation";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at an operation, where the appliance does not say.
const PAUSE: Duration = Duration::from_secs(1);
/// No operation of a pool takes longer: its image must come, and one guest of it must start.
const OPERATION_LIMIT: Duration = Duration::from_secs(3600);
/// Longest answer that is read: a list of all sessions of a large pool is a few MiB.
const ANSWER_BYTES: usize = 64 << 20;

/// Where an appliance answers: `https://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = "an address like https://HOST:8443, without a path, is needed";
        let url: Url = text.parse().map_err(|_| rule.to_owned())?;
        let plain = url.username().is_empty() && url.password().is_none();
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if url.scheme() == "https" && url.host_str().is_some() && plain && bare {
            Ok(Self(url))
        } else {
            Err(rule.to_owned())
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// An appliance, and who is asking.
#[derive(Clone)]
pub struct Remote {
    pub endpoint: Endpoint,
    pub token: String,
    pub ca_file: Option<PathBuf>,
}

/// Whether a call returns when what it asked for is done, or when it is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Done,
    Begun,
}

impl Remote {
    /// One request, and what came of it. An answer without a body is `null`.
    pub fn call(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
        wait: Wait,
    ) -> Result<Value, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::of(Exit::Failed, &error))?;
        runtime.block_on(async {
            let caller = Caller::new(self).await?;
            let url = caller.place(path)?;
            let body = match payload {
                Payload::Nothing => None,
                Payload::Json(body) => Some(body),
                Payload::File(_) => {
                    let line =
                        "Archives are imported on the appliance's own host, without --endpoint";
                    return Err(Failure::new(Exit::Usage, line));
                }
            };
            let answer = caller.send(method.clone(), url.clone(), body).await?;
            // Resource manager takes the deletion of nothing for done. Whoever types the name of a pool wants to know.
            if method == Method::DELETE && answer.status == StatusCode::NO_CONTENT {
                let what = path.split('?').next().unwrap_or(path);
                let line = format!("The resource '{what}' was not found (ResourceNotFound)");
                return Err(Failure::new(Exit::Failed, line));
            }
            match wait {
                Wait::Begun => Ok(answer.body),
                Wait::Done => caller.finish(&method, url, answer).await,
            }
        })
    }
}

/// An answer that was read.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

struct Caller<'a> {
    remote: &'a Remote,
    http: reqwest::Client,
}

impl<'a> Caller<'a> {
    async fn new(remote: &'a Remote) -> Result<Self, Failure> {
        let ca_file = remote.ca_file.clone();
        let tls = tokio::task::spawn_blocking(move || trusting(ca_file.as_deref()))
            .await
            .map_err(|error| Failure::of(Exit::Failed, &error))?
            .map_err(|line| Failure::new(Exit::Usage, line))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(HostResolver))
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("cabana/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::of(Exit::Failed, &error))?;
        Ok(Self { remote, http })
    }

    /// An address on the appliance: a path, or one that it named itself.
    fn place(&self, address: &str) -> Result<Url, Failure> {
        let endpoint = &self.remote.endpoint.0;
        endpoint
            .join(address)
            .ok()
            .filter(|url| url.origin() == endpoint.origin())
            .ok_or_else(|| {
                let line = format!(
                    "The appliance at {} sends elsewhere, where the token is not sent",
                    self.remote.endpoint
                );
                Failure::new(Exit::Failed, line)
            })
    }

    async fn send(&self, method: Method, url: Url, body: Option<Value>) -> Result<Answer, Failure> {
        let mut request = self.http.request(method, url);
        request = request.bearer_auth(&self.remote.token);
        if let Some(body) = body {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = self.read(response).await?;
        if !status.is_success() {
            let exit = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Permission,
                _ => Exit::Failed,
            };
            return Err(Failure::new(exit, refusal(status, &bytes)));
        }
        let body = match &bytes[..] {
            [] => Value::Null,
            // Some answers of the front door are a line of text.
            text => serde_json::from_slice(text)
                .unwrap_or_else(|_| String::from_utf8_lossy(text).into_owned().into()),
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|error| self.unreachable(&error))? {
                Some(chunk) if bytes.len() + chunk.len() <= ANSWER_BYTES => {
                    bytes.extend_from_slice(&chunk);
                }
                Some(_) => {
                    let line = format!("The answer is longer than {ANSWER_BYTES} bytes");
                    return Err(Failure::new(Exit::Failed, line));
                }
                None => return Ok(bytes),
            }
        }
    }

    /// Follows a long-running operation as ARM describes it, up to the resource that came of it.
    async fn finish(&self, method: &Method, url: Url, answer: Answer) -> Result<Value, Failure> {
        let named = |name: &str| {
            let value = answer.headers.get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let deadline = Instant::now() + OPERATION_LIMIT;
        if let Some(operation) = named(OPERATION) {
            let operation = self.place(&operation)?;
            let mut pause = pause(&answer.headers);
            loop {
                self.rest(pause, deadline).await?;
                let seen = self.send(Method::GET, operation.clone(), None).await?;
                pause = self::pause(&seen.headers);
                match ended(&seen.body) {
                    None => {}
                    Some(Err(line)) => return Err(Failure::new(Exit::Failed, line)),
                    Some(Ok(())) if *method == Method::DELETE => return Ok(Value::Null),
                    Some(Ok(())) => return Ok(self.send(Method::GET, url, None).await?.body),
                }
            }
        }
        let (mut answer, mut location) = (answer, None);
        while answer.status == StatusCode::ACCEPTED {
            let named = answer.headers.get(header::LOCATION);
            let named = named.and_then(|value| value.to_str().ok());
            let place = match (named, location.take()) {
                (Some(named), _) => self.place(named)?,
                (None, Some(known)) => known,
                (None, None) => break,
            };
            self.rest(pause(&answer.headers), deadline).await?;
            answer = self.send(Method::GET, place.clone(), None).await?;
            location = Some(place);
        }
        Ok(answer.body)
    }

    async fn rest(&self, pause: Duration, deadline: Instant) -> Result<(), Failure> {
        if Instant::now() + pause > deadline {
            let line =
                "It is not done after an hour, and goes on; `cabana sessionpool show` says how far";
            return Err(Failure::new(Exit::Failed, line));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = match error.source() {
            Some(cause) => chain(cause),
            None => "no answer".to_owned(),
        };
        let line = format!("No appliance answers at {}: {cause}", self.remote.endpoint);
        let hint = match cause.contains("UnknownIssuer") {
            true => "; name the file of its CA with --ca-file or CABANA_CA_FILE",
            false => "",
        };
        Failure::new(Exit::Unavailable, format!("{line}{hint}"))
    }
}

/// `None`: it goes on.
fn ended(operation: &Value) -> Option<Result<(), String>> {
    match operation["status"].as_str() {
        Some("Succeeded") => Some(Ok(())),
        Some("Failed" | "Canceled") => {
            let body = operation.to_string();
            Some(Err(refusal(StatusCode::OK, body.as_bytes())))
        }
        _ => None,
    }
}

fn pause(headers: &HeaderMap) -> Duration {
    let value = headers.get(header::RETRY_AFTER);
    let seconds = value.and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(PAUSE, Duration::from_secs)
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
