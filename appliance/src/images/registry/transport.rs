//! HTTP as it is spoken with registries: with TLS wherever that can be had, without proxies, and with errors that
//! hold no address.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use reqwest::Url;
use reqwest::redirect::Policy;
use rustls::ClientConfig;

use super::dns::HostResolver;
use super::name::RegistryHost;
use super::patience::Trouble;
use super::settings::Registries;
use crate::exit::chain;
use crate::images::error::ImageError;

/// Hub, cloud storage and back take two.
const MAX_REDIRECTS: usize = 5;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A stream from which nothing comes for so long is dead. A slow one is not.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// For one repository and what its registry leads to.
pub fn client(tls: ClientConfig, registries: &Arc<Registries>) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(HostResolver))
        .no_proxy()
        .redirect(redirects(Arc::clone(registries)))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        .user_agent(concat!("cabana/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// How a registry that may be spoken to without TLS wants to be spoken to. With TLS if it can.
pub async fn scheme(http: &reqwest::Client, host: &RegistryHost) -> Result<&'static str, Trouble> {
    let ping = |scheme: &str| http.get(format!("{scheme}://{}/v2/", host.api())).send();
    let error = match ping("https").await {
        Err(error) if error.is_connect() => error,
        // What else can go wrong is found out, and tried again, by the request that matters.
        _ => return Ok("https"),
    };
    match ping("http").await {
        // A server with TLS says 400 to plain HTTP: then its certificate was the matter.
        Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => Ok("http"),
        _ => Err(unreachable(host, &error)),
    }
}

fn redirects(registries: Arc<Registries>) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("it redirects too often")
        } else if may_follow(attempt.url(), &registries) {
            attempt.follow()
        } else {
            attempt.error("it redirects to an address without TLS")
        }
    })
}

pub fn may_follow(url: &Url, registries: &Registries) -> bool {
    let host = || {
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!("{}{port}", url.host_str().unwrap_or_default()).parse::<RegistryHost>()
    };
    match url.scheme() {
        "https" => true,
        "http" => host().is_ok_and(|host| registries.may_be_plain(&host)),
        _ => false,
    }
}

/// Without the address, which a redirect may have signed: the chain of causes says enough.
pub fn unreachable(host: &RegistryHost, error: &reqwest::Error) -> Trouble {
    let cause = match error.source() {
        Some(cause) => chain(cause),
        None if error.is_timeout() => "no answer in time".to_owned(),
        None => "the connection failed".to_owned(),
    };
    let error_of = ImageError::unreachable(format!("Cannot reach the registry {host}: {cause}"));
    match error.is_redirect() || error.is_builder() || is_mistrust(error) {
        true => Trouble::Lasting(error_of),
        false => error_of.into(),
    }
}

/// Whether the registry was reached and its certificate was no good.
fn is_mistrust(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

pub fn broken(host: &RegistryHost, error: reqwest::Error) -> Trouble {
    let cause = error.source().map_or_else(String::new, chain);
    let cause = if error.is_timeout() {
        "nothing came any more".to_owned()
    } else {
        cause
    };
    Trouble::passing(format!("The connection to {host} broke off: {cause}"))
}
