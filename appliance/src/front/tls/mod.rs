//! TLS: whose certificate is served, and what it is exchanged for while connections are open.
//!
//! - `served`: what the listener is given, and what people are told of it.
//! - `own`: of a private CA that is made at first start.
//! - `files`: the operator's, read again when they change.
//! - `acme`: of an ACME server, which is asked for the next one in time.
//! - `facts`: what a certificate says of itself.

mod acme;
mod facts;
mod files;
mod own;
mod served;

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub use acme::{CHALLENGE_PROTOCOL, Challenges, serve_plain};
pub use own::names;
pub use served::{RenewError, ServedCertificate};

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

/// Tells the time of day. Tests have one of their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub fn of_the_host() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// A certificate, with those that lead to its CA behind it, and its key; both in PEM.
fn certified(certificate: &str, key: &str) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let unusable = |error: &dyn std::error::Error| rustls::Error::General(error.to_string());
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(&error))?;
    if chain.is_empty() {
        let message = "there is no certificate in PEM in the file";
        return Err(rustls::Error::General(message.to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(&error))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let certificate = CertifiedKey::new(chain, key);
    certificate.keys_match()?;
    Ok(Arc::new(certificate))
}

fn certified_files(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    certified(&read(certificate)?, &read(key)?).map_err(|source| TlsError::Use {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        attempt: "read",
        path: path.to_owned(),
        source,
    })
}

/// Whole or not at all, and never readable by others for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let failed = |source| TlsError::File {
        attempt: "write",
        path: path.to_owned(),
        source,
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod testing {
    use jiff::SignedDuration;
    use tokio::time::Instant;

    use super::*;

    /// When simulated time begins.
    pub const BEGIN: &str = "2026-01-01T00:00:00Z";

    /// A clock that goes as tokio's does, which jumps when everybody sleeps.
    pub fn simulated() -> Clock {
        let began = Instant::now();
        Clock(Arc::new(move || {
            let passed = SignedDuration::try_from(began.elapsed()).unwrap();
            let begin: Timestamp = BEGIN.parse().unwrap();
            begin.checked_add(passed).unwrap()
        }))
    }
}
