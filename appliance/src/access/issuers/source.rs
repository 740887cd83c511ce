//! Reading the keys of an issuer: from a file, or by OpenID Connect Discovery. Everything has a limit.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::keyset::MAX_BYTES;
use super::settings::may_be_asked;
use crate::exit::chain;
use crate::images::registry::{HostResolver, trusting};

/// One answer of an issuer, whole. Its callers wait so long at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Why there are no keys. For the log; it holds addresses of the configuration and of discovery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(String);

impl SourceError {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// When a file was changed, as far as can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    modified: Option<SystemTime>,
    length: u64,
    /// Another file under the same name.
    inode: u64,
}

/// What a file holds, unless it is still this version.
pub async fn read_file(
    path: &Path,
    known: Option<&Version>,
) -> Result<Option<(Vec<u8>, Version)>, SourceError> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |error: std::io::Error| SourceError(format!("{}: {error}", path.display()));
    let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
    let version = Version {
        modified: metadata.modified().ok(),
        length: metadata.len(),
        inode: metadata.ino(),
    };
    if known == Some(&version) {
        return Ok(None);
    }
    if !metadata.is_file() {
        return Err(SourceError(format!("{} is not a file", path.display())));
    }
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let mut file = file.take(MAX_BYTES as u64 + 1);
    file.read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(SourceError(format!(
            "{} is longer than {MAX_BYTES} bytes",
            path.display()
        )));
    }
    Ok(Some((bytes, version)))
}

/// The part of a discovery document that we need (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

/// The key set of the issuer with this name.
pub async fn discover(name: &str, ca_file: Option<PathBuf>) -> Result<Vec<u8>, SourceError> {
    let client = client(ca_file).await?;
    let address = format!(
        "{}/.well-known/openid-configuration",
        name.strip_suffix('/').unwrap_or(name)
    );
    let document = get(&client, &address).await?;
    let found: Discovered = serde_json::from_slice(&document)
        .map_err(|_| SourceError(format!("{address} is not a discovery document")))?;
    // Section 4.3: or another issuer could give itself out for this one.
    if found.issuer != name {
        return Err(SourceError(format!(
            "{address} is the discovery document of another issuer"
        )));
    }
    get(&client, &found.jwks_uri).await
}

/// Made for each use: what an operator changes in the certificates counts for the next.
async fn client(ca_file: Option<PathBuf>) -> Result<reqwest::Client, SourceError> {
    let tls = tokio::task::spawn_blocking(move || trusting(ca_file.as_deref())).await;
    let tls = tls
        .map_err(|error| SourceError(error.to_string()))?
        .map_err(SourceError)?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(HostResolver))
        .no_proxy()
        .redirect(Policy::none())
        .timeout(ANSWER_LIMIT)
        .user_agent(concat!("cabana/", env!("CARGO_PKG_VERSION")))
        .build();
    client.map_err(|error| SourceError(chain(&error)))
}

async fn get(client: &reqwest::Client, address: &str) -> Result<Vec<u8>, SourceError> {
    let url: Url = address
        .parse()
        .map_err(|_| SourceError(format!("{address:?} is not an address")))?;
    // As it was understood: what is left of an address that a stranger wrote is fit for a log.
    let address = url.to_string();
    if !may_be_asked(&url) {
        return Err(SourceError(format!("{address:?} is without TLS")));
    }
    let unreachable = |error: reqwest::Error| {
        let cause = error
            .source()
            .map_or_else(|| "no answer in time".to_owned(), chain);
        SourceError(format!("cannot reach {address}: {cause}"))
    };
    let mut response = client.get(url).send().await.map_err(unreachable)?;
    if response.status() != StatusCode::OK {
        let status = response.status().as_u16();
        return Err(SourceError(format!("{address} answers {status}")));
    }
    let body = bounded(&mut response).await.map_err(unreachable)?;
    body.ok_or_else(|| SourceError(format!("{address} sends more than {MAX_BYTES} bytes")))
}

async fn bounded(response: &mut Response) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}
