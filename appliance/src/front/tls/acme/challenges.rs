//! Proofs that wait for the ACME server to look at them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

/// RFC 8737 §6.2.
pub const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// Those of all orders that are open.
#[derive(Debug, Default)]
pub struct Challenges {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By token.
    answers: HashMap<String, String>,
    /// By name.
    certificates: HashMap<String, Arc<CertifiedKey>>,
}

/// Takes a proof away again.
#[derive(Debug)]
pub struct Proof {
    of: Arc<Challenges>,
    token: Option<String>,
    name: Option<String>,
}

impl Challenges {
    /// For HTTP-01.
    pub fn answer_with(self: &Arc<Self>, token: &str, answer: &str) -> Proof {
        let answers = &mut self.lock().answers;
        answers.insert(token.to_owned(), answer.to_owned());
        Proof {
            of: Arc::clone(self),
            token: Some(token.to_owned()),
            name: None,
        }
    }

    /// For TLS-ALPN-01: a certificate of the name by nobody, with the digest in it (RFC 8737 §3).
    pub fn show(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Proof, String> {
        let certificate = certificate(name, digest)?;
        let certificates = &mut self.lock().certificates;
        certificates.insert(name.to_owned(), certificate);
        Ok(Proof {
            of: Arc::clone(self),
            token: None,
            name: Some(name.to_owned()),
        })
    }

    pub fn answer(&self, token: &str) -> Option<String> {
        self.lock().answers.get(token).cloned()
    }

    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.lock().certificates.get(&name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        let mut waiting = self.of.lock();
        if let Some(token) = &self.token {
            waiting.answers.remove(token);
        }
        if let Some(name) = &self.name {
            waiting.certificates.remove(name);
        }
    }
}

fn certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let failed = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new([name.to_owned()]).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let made = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
    let key = key.map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![made.der().clone()], key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_there_until_they_are_dropped() {
        let challenges = Arc::new(Challenges::default());
        let first = challenges.answer_with("token", "token.thumb");
        let second = challenges.show("a.example", &[7; 32]).unwrap();
        assert_eq!(challenges.answer("token").unwrap(), "token.thumb");
        assert!(challenges.answer("other").is_none());
        let shown = challenges.certificate("A.example").unwrap();
        // id-pe-acmeIdentifier, critical, an octet string in an octet string.
        let mut extension = vec![0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 1, 0x1f, 0x01, 0x01, 0xff];
        extension.extend([0x04, 0x22, 0x04, 0x20]);
        extension.extend([7; 32]);
        let der = shown.end_entity_cert().unwrap();
        assert!(
            der.windows(extension.len())
                .any(|window| window == extension)
        );
        drop((first, second));
        assert!(challenges.answer("token").is_none());
        assert!(challenges.certificate("a.example").is_none());
    }
}
