//! Whom to believe that it is the registry: the host's certificates, and those that the operator names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::name::RegistryHost;
use crate::images::error::ImageError;

/// Reads certificates anew: what an operator changes counts for the next pull.
pub async fn config(
    host: &RegistryHost,
    ca_file: Option<PathBuf>,
) -> Result<ClientConfig, ImageError> {
    let host = host.clone();
    let made = tokio::task::spawn_blocking(move || {
        trusting(ca_file.as_deref())
            .map_err(|cause| ImageError::unreachable(format!("{host}: {cause}")))
    });
    made.await
        .map_err(|error| ImageError::unreachable(format!("Cannot prepare TLS: {error}")))?
}

/// Trusts the host's certificates, and those in the file.
pub fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A host without certificates can still speak with those whose own are named.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        add(&mut roots, path)
            .map_err(|cause| format!("Cannot use ca_file {}: {cause}", path.display()))?;
    }
    // Said by name: a provider that another crate brings would never be chosen by chance.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let mut count = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        count += 1;
    }
    (count > 0)
        .then_some(())
        .ok_or_else(|| "it holds no certificate in PEM".to_owned())
}
