//! TLS: whose certificate is served, and what it is exchanged for while connections are open.
//!
//! - `own`: of a private CA that is made at first start.
//! - `files`: the operator's, read again when they change.

mod files;
mod own;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use files::Files;
pub use own::names;

/// HTTP/2 first: that is the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Our own ends after a year; a day sooner or later does not matter.
const OWN_CHECK: Duration = Duration::from_secs(24 * 3600);
/// Two calls of `stat`. Who has exchanged a certificate does not wait longer to see it.
const FILES_CHECK: Duration = Duration::from_secs(10);

/// Why the certificates could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("Cannot {attempt} {path}")]
    File {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{path} is not what this appliance wrote; put it back, or move both ca.pem and ca.key away to make a new CA"
    )]
    Authority { path: PathBuf },
    #[error("Cannot make the {what} certificate")]
    Make {
        what: &'static str,
        source: rcgen::Error,
    },
    #[error("The certificate {certificate} and the key {key} cannot be used")]
    Use {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("TLS cannot be used")]
    Protocol { source: rustls::Error },
}

/// Where the certificate comes from.
#[derive(Debug)]
enum Source {
    Own { dir: PathBuf, names: Vec<String> },
    Files(Files),
}

/// The certificate that is served, exchangeable while connections are open.
#[derive(Debug)]
pub struct ServedCertificate {
    source: Source,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServedCertificate {
    /// One of our own CA: uses what is in `dir`, or makes it. Blocks.
    pub fn prepare(dir: &Path, names: Vec<String>) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(own::ensure(dir, &names, Timestamp::now())?);
        let dir = dir.to_owned();
        Ok(Arc::new(Self {
            source: Source::Own { dir, names },
            current,
        }))
    }

    /// The operator's. Blocks.
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let files = Files::new(certificate, key);
        let current = RwLock::new(files.load()?);
        Ok(Arc::new(Self {
            source: Source::Files(files),
            current,
        }))
    }

    /// How often [`Self::renew`] should be called.
    pub fn check_every(&self) -> Duration {
        match self.source {
            Source::Own { .. } => OWN_CHECK,
            Source::Files(_) => FILES_CHECK,
        }
    }

    /// Exchanges the certificate if its end is near, or if its files have changed. If that fails, the one that is served
    /// stays. Blocks.
    pub fn renew(&self) -> Result<(), TlsError> {
        let certificate = match &self.source {
            Source::Own { dir, names } => own::ensure(dir, names, Timestamp::now())?,
            Source::Files(files) if files.have_changed() => {
                let certificate = files.load()?;
                tracing::info!("the certificate was exchanged");
                certificate
            }
            Source::Files(_) => return Ok(()),
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certificate;
        Ok(())
    }

    /// The configuration of the listener.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Protocol { source })?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(config)
    }
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.current.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// A certificate, with those that lead to its CA behind it, and its key; both in PEM.
fn certified(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let of = |source| TlsError::Use {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    };
    let unusable = |error: &dyn std::error::Error| of(rustls::Error::General(error.to_string()));
    let chain = CertificateDer::pem_slice_iter(read(certificate)?.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(&error))?;
    if chain.is_empty() {
        let message = "there is no certificate in PEM in the file";
        return Err(of(rustls::Error::General(message.to_owned())));
    }
    let key =
        PrivateKeyDer::from_pem_slice(read(key)?.as_bytes()).map_err(|error| unusable(&error))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(of)?;
    let certificate = CertifiedKey::new(chain, key);
    certificate.keys_match().map_err(of)?;
    Ok(Arc::new(certificate))
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        attempt: "read",
        path: path.to_owned(),
        source,
    })
}
