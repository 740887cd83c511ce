//! `[tls]`: a certificate of the operator's own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::images::{table, wrong};

/// Files in PEM, read by the appliance's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// With those that lead to its CA behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `None`: the appliance makes its own.
pub fn files(value: Option<toml::Value>) -> Result<Option<TlsFiles>, ConfigError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let (mut certificate, mut key) = (None, None);
    for (name, value) in table("tls", Some(value.clone()))? {
        let place = match name.as_str() {
            "certificate" => &mut certificate,
            "key" => &mut key,
            _ => return Err(wrong("tls", "certificate and key", &name.into())),
        };
        let path = value.as_str().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| wrong(&format!("tls.{name}"), "an absolute path", &value))?;
        *place = Some(PathBuf::from(path));
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
        _ => Err(wrong("tls", "certificate and key, both", &value)),
    }
}
