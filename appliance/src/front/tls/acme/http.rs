//! HTTPS as it is spoken with ACME servers: with the host's certificates and those that the operator names, names looked up as
//! everywhere in the appliance, and a limit for everything.

use std::error::Error as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use reqwest::redirect::Policy;

use crate::exit::chain;
use crate::images::registry::{HostResolver, trusting};

/// One answer, whole. Some servers make the certificate while one waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A chain is a few kilobytes.
const MAX_BYTES: usize = 1 << 20;

/// Speaks for the ACME crate.
pub struct Client(reqwest::Client);

impl Client {
    /// Made for each order: what an operator changes in the certificates counts for the next.
    pub async fn open(ca_file: Option<PathBuf>) -> Result<Self, String> {
        let tls = tokio::task::spawn_blocking(move || trusting(ca_file.as_deref())).await;
        let tls = tls.map_err(|error| error.to_string())??;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(HostResolver))
            .no_proxy()
            .https_only(true)
            .redirect(Policy::none())
            .timeout(ANSWER_LIMIT)
            .build();
        client.map(Self).map_err(|error| chain(&error))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let sent = send(&client, request).await;
            sent.map_err(|cause| instant_acme::Error::Other(cause.into()))
        })
    }
}

async fn send(
    client: &reqwest::Client,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, String> {
    let (parts, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let host = parts.uri.host().unwrap_or_default().to_owned();
    let unreachable = |error: reqwest::Error| {
        let cause = error
            .source()
            .map_or_else(|| "no answer in time".to_owned(), chain);
        format!("cannot reach {host}: {cause}")
    };
    let request = client
        .request(parts.method, parts.uri.to_string())
        .headers(parts.headers)
        .body(body);
    let mut answer = request.send().await.map_err(unreachable)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
        if bytes.len() + chunk.len() > MAX_BYTES {
            return Err(format!("{host} sends more than {MAX_BYTES} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = answer.status();
    std::mem::swap(response.headers_mut(), answer.headers_mut());
    Ok(response.into())
}
