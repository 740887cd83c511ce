//! One repository of one registry, spoken to by the OCI distribution protocol.
//!
//! ```text
//! GET /v2/<repository>/manifests/<tag or digest>     bounded, in memory
//! GET /v2/<repository>/blobs/<digest>                a stream, from any place on
//! ```
//!
//! # Trust
//! A registry is a stranger: nothing of unknown length is read whole, and a digest is compared by whoever
//! reads. Credentials go to the registry that they are for and to the token server that it names over
//! TLS; a redirect to another host takes none along. Messages hold no address that a redirect led to: such
//! addresses are signed, and as good as a password.
//!
//! # Not here
//! Trying again: `patience`. Proxies: the environment is not asked for any.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::{Mutex, OnceCell};

use super::auth::{Challenge, Credentials, Secret, bearer};
use super::name::{Reference, RegistryHost};
use super::patience::Trouble;
use super::settings::{Mirror, Registries};
use super::tls;
use super::transport::{self, broken, may_follow, scheme, unreachable};
use crate::images::digest::Digest;
use crate::images::error::{ImageError, printable};

/// Real ones have a few KiB.
const TOKEN_ANSWER_BYTES: usize = 256 << 10;
/// An attempt that waits longer does not look alive.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
const DIGEST_HEADER: &str = "docker-content-digest";

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or an index, as it came; its digest is its own.
#[derive(Debug)]
pub struct Document {
    pub digest: Digest,
    pub media_type: Option<String>,
    pub bytes: Vec<u8>,
}

/// A blob, or the rest of one.
pub struct BlobStream {
    /// Where it begins; 0 unless the registry can do better.
    pub from: u64,
    response: Response,
    host: RegistryHost,
}

/// A repository that can be read.
pub struct Repository {
    host: RegistryHost,
    repository: String,
    /// With TLS or without; asked once.
    scheme: OnceCell<&'static str>,
    credentials: Option<Credentials>,
    registries: Arc<Registries>,
    http: reqwest::Client,
    /// What the registry accepted last.
    authorization: Mutex<Option<Secret>>,
}

impl Repository {
    /// Where the images of `reference` are: its registry's mirrors, then itself. Credentials of another
    /// registry are not used.
    pub async fn all_of(
        reference: &Reference,
        credentials: Option<&Credentials>,
        registries: &Arc<Registries>,
    ) -> Result<Vec<Self>, ImageError> {
        let mut all = Vec::new();
        for Mirror { host, prefix } in registries.of(&reference.host).mirrors {
            let repository = format!("{prefix}{}", reference.repository);
            match Self::open(host.clone(), repository, None, registries).await {
                Ok(mirror) => all.push(mirror),
                Err(error) => tracing::warn!(mirror = %host, "mirror left out: {error}"),
            }
        }
        let credentials = credentials
            .filter(|held| held.server == reference.host)
            .cloned();
        let host = reference.host.clone();
        all.push(Self::open(host, reference.repository.clone(), credentials, registries).await?);
        Ok(all)
    }

    async fn open(
        host: RegistryHost,
        repository: String,
        credentials: Option<Credentials>,
        registries: &Arc<Registries>,
    ) -> Result<Self, ImageError> {
        let tls = tls::config(&host, registries.of(&host).ca_file).await?;
        let http = transport::client(tls, registries);
        let http = http.map_err(|error| unreachable(&host, &error).into_error())?;
        Ok(Self {
            scheme: match registries.may_be_plain(&host) {
                true => OnceCell::new(),
                false => OnceCell::new_with(Some("https")),
            },
            host,
            repository,
            credentials,
            registries: Arc::clone(registries),
            http,
            authorization: Mutex::default(),
        })
    }

    pub fn host(&self) -> &RegistryHost {
        &self.host
    }

    /// The manifest or index of this tag or digest.
    pub async fn manifest(&self, version: &str, limit: u64) -> Result<Document, Trouble> {
        let mut response = self
            .read(Method::GET, "manifests", version, HeaderMap::new())
            .await?;
        let media_type = text(response.headers(), header::CONTENT_TYPE.as_str());
        let media_type =
            media_type.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_owned());
        let told = told_digest(response.headers());
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = self.whole(&mut response, limit).await?.ok_or_else(|| {
            let message = format!(
                "The manifest in {} is longer than {limit} bytes, the limit",
                self.host
            );
            ImageError::too_large(message)
        })?;
        let digest = Digest::of(&bytes);
        let asked = version.parse::<Digest>().ok();
        if let Some(other) = [asked, told]
            .into_iter()
            .flatten()
            .find(|other| *other != digest)
        {
            return Err(ImageError::corrupt(format!(
                "The manifest that {} sent should be {other} but is {digest}",
                self.host
            ))
            .into());
        }
        Ok(Document {
            digest,
            media_type,
            bytes,
        })
    }

    /// What a tag means now, if the registry says so without sending it.
    pub async fn manifest_digest(&self, version: &str) -> Result<Option<Digest>, Trouble> {
        let response = self
            .read(Method::HEAD, "manifests", version, HeaderMap::new())
            .await?;
        Ok(told_digest(response.headers()))
    }

    /// A blob from this place on, or from its start if the registry cannot do that.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<BlobStream, Trouble> {
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(header::RANGE, range);
        }
        let response = self
            .read(Method::GET, "blobs", digest.as_str(), headers)
            .await?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT => start_of_range(response.headers()).ok_or_else(|| {
                Trouble::passing(format!(
                    "{} sent a part of a layer and not which",
                    self.host
                ))
            })?,
            _ => 0,
        };
        Ok(BlobStream {
            from,
            response,
            host: self.host.clone(),
        })
    }

    /// Asks; answers 401 once with what it wants to see.
    async fn read(
        &self,
        method: Method,
        kind: &str,
        name: &str,
        headers: HeaderMap,
    ) -> Result<Response, Trouble> {
        let ask = || scheme(&self.http, &self.host);
        let scheme = self.scheme.get_or_try_init(ask).await?;
        let (api, repository) = (self.host.api(), &self.repository);
        let url = format!("{scheme}://{api}/v2/{repository}/{kind}/{name}");
        let sent = self.authorization.lock().await.clone();
        let mut response = self.send(&method, &url, &headers, sent.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorize(&response, sent.as_ref()).await?;
            response = self
                .send(&method, &url, &headers, Some(&authorization))
                .await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // The range began at or after the end: begin again.
            StatusCode::RANGE_NOT_SATISFIABLE => Err(Trouble::FromTheStart),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized().into()),
            StatusCode::NOT_FOUND => {
                let host = &self.host;
                let name = printable(name.as_bytes());
                let message = if kind == "blobs" {
                    format!("{host}/{repository} lacks a part of the image, {name}")
                } else if name.contains(':') {
                    format!("{host}/{repository} has no image {name}")
                } else {
                    format!(
                        "{host}/{repository} has no image with the tag {name}, or there is no such repository"
                    )
                };
                Err(ImageError::not_found(message).into())
            }
            status => Err(self.refused(status, response.headers())),
        }
    }

    async fn send(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        authorization: Option<&Secret>,
    ) -> Result<Response, Trouble> {
        let mut request = self
            .http
            .request(method.clone(), url)
            .headers(headers.clone())
            .header(
                header::ACCEPT,
                if url.contains("/manifests/") {
                    MANIFEST_TYPES
                } else {
                    "*/*"
                },
            );
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, sensitive(authorization)?);
        }
        request
            .send()
            .await
            .map_err(|error| unreachable(&self.host, &error))
    }

    /// What the challenge of `refused` asks for. Of many requests that are refused at once, one asks.
    async fn authorize(
        &self,
        refused: &Response,
        sent: Option<&Secret>,
    ) -> Result<Secret, Trouble> {
        let mut held = self.authorization.lock().await;
        if let Some(fresh) = held.as_ref()
            && sent != Some(fresh)
        {
            return Ok(fresh.clone());
        }
        let headers = refused.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = Challenge::of(headers.iter().filter_map(|value| value.to_str().ok()));
        let fresh = match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(credentials)) => credentials.basic(),
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                _,
            ) => self.token(&realm, service, scope).await?,
            _ => return Err(self.unauthorized().into()),
        };
        *held = Some(fresh.clone());
        Ok(fresh)
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<Secret, Trouble> {
        let unusable = |why: &str| {
            let message = format!(
                "{} names a token server that cannot be used: {why}",
                self.host
            );
            Trouble::Lasting(ImageError::unreachable(message))
        };
        let mut url: Url = realm
            .parse()
            .map_err(|_| unusable("its address is not understood"))?;
        if !may_follow(&url, &self.registries) {
            return Err(unusable("it does not speak HTTPS"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &scope);
        let mut request = self.http.get(url);
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, sensitive(&credentials.basic())?);
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| unreachable(&self.host, &error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.unauthorized().into());
            }
            status => return Err(self.refused(status, response.headers())),
        }
        let answer = self.whole(&mut response, TOKEN_ANSWER_BYTES).await?;
        answer
            .and_then(|answer| bearer(&answer))
            .ok_or_else(|| unusable("it sends no token"))
    }

    /// The whole body; `None` if it is longer than `limit`.
    async fn whole(
        &self,
        response: &mut Response,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(None) => return Ok(Some(bytes)),
                Ok(Some(chunk)) if chunk.len() > limit - bytes.len() => return Ok(None),
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Err(error) => return Err(broken(&self.host, error)),
            }
        }
    }

    fn unauthorized(&self) -> ImageError {
        let (host, repository) = (&self.host, &self.repository);
        ImageError::unauthorized(match &self.credentials {
            Some(credentials) => format!(
                "{host} does not let user {} pull {repository}: check user name and password, and that the repository exists",
                printable(credentials.username.as_bytes())
            ),
            None => format!(
                "{host} wants user name and password for {repository}, or there is no such repository; give --registry-server {host}, --registry-username and --registry-password"
            ),
        })
    }

    /// For an answer that is neither success nor about rights or names.
    fn refused(&self, status: StatusCode, headers: &HeaderMap) -> Trouble {
        let message = format!("{} answers {status}", self.host);
        let passes = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            );
        if !passes {
            return Trouble::Lasting(ImageError::unreachable(message));
        }
        let seconds =
            text(headers, header::RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
        Trouble::Passing {
            error: ImageError::unreachable(message),
            after: seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER)),
        }
    }
}

impl BlobStream {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, Trouble> {
        self.response
            .chunk()
            .await
            .map_err(|error| broken(&self.host, error))
    }
}

pub fn sensitive(secret: &Secret) -> Result<HeaderValue, ImageError> {
    let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| {
        ImageError::unauthorized("What the registry wants as authorization cannot be sent")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

pub fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, DIGEST_HEADER)?.parse().ok()
}

/// The place after `bytes ` in a Content-Range.
pub fn start_of_range(headers: &HeaderMap) -> Option<u64> {
    let range = text(headers, header::CONTENT_RANGE.as_str())?;
    range
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}
