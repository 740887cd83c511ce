//! A certificate and key of the operator's, read again when they change.
//!
//! Whether they have is seen by `stat`, which follows links: what renews certificates often exchanges a link. While only
//! one of the two is new they do not fit together; then the old pair is served until they do.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::sign::CertifiedKey;

use super::{TlsError, certified_files};

/// What tells a file from what it was: where it is, when it was written, how long it is. `None`: it cannot be seen.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The two files.
#[derive(Debug)]
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// As they were when they were last read, whatever came of it.
    read: Mutex<[Stamp; 2]>,
}

impl Files {
    pub fn new(certificate: &Path, key: &Path) -> Self {
        Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            read: Mutex::new([None; 2]),
        }
    }

    /// Whether they are others than when they were read.
    pub fn have_changed(&self) -> bool {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) != self.stamps()
    }

    /// Reads them.
    pub fn load(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        // Before they are read: what changes meanwhile is read again.
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = self.stamps();
        certified_files(&self.certificate, &self.key)
    }

    fn stamps(&self) -> [Stamp; 2] {
        [&self.certificate, &self.key].map(|path| {
            let seen = std::fs::metadata(path).ok()?;
            let written = (seen.mtime(), seen.mtime_nsec());
            Some((seen.dev(), seen.ino(), written.0, written.1, seen.len()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::ServedCertificate;

    /// A new pair in PEM.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn served(certificate: &ServedCertificate) -> Vec<u8> {
        let current = certificate.base();
        current.end_entity_cert().unwrap().to_vec()
    }

    #[test]
    fn certificate_is_exchanged_when_both_files_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let put = |path, text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, path).unwrap();
        };
        let (first, second) = (pair(), pair());
        put(&certificate, &first.0);
        put(&key, &first.1);
        let serving = ServedCertificate::of_files(&certificate, &key).unwrap();
        let before = served(&serving);
        serving.renew_base().unwrap();
        assert_eq!(served(&serving), before);
        // Half of it: they do not fit together. It is said once, and the old pair is served.
        put(&certificate, &second.0);
        let error = serving.renew_base().unwrap_err().to_string();
        assert!(
            error.contains("cert.pem") && error.contains("key.pem"),
            "{error}"
        );
        serving.renew_base().unwrap();
        assert_eq!(served(&serving), before);
        put(&key, &second.1);
        serving.renew_base().unwrap();
        assert_ne!(served(&serving), before);
        // Gone: as it was.
        let after = served(&serving);
        fs::remove_file(&key).unwrap();
        serving.renew_base().unwrap_err();
        serving.renew_base().unwrap();
        assert_eq!(served(&serving), after);
    }

    #[test]
    fn files_that_are_no_pair_are_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let (one, other) = (pair(), pair());
        let refused = |cert: &str, secret: &str| {
            fs::write(&certificate, cert).unwrap();
            fs::write(&key, secret).unwrap();
            let error = ServedCertificate::of_files(&certificate, &key).unwrap_err();
            let line = crate::exit::chain(&error);
            assert!(!line.contains("PRIVATE"), "{line}");
            line
        };
        assert!(refused(&one.0, &other.1).contains("cannot be used"));
        assert!(refused("", &one.1).contains("no certificate"));
        assert!(refused(&one.0, "nothing").contains("cannot be used"));
        fs::remove_file(&key).unwrap();
        let error = ServedCertificate::of_files(&certificate, &key).unwrap_err();
        assert!(error.to_string().contains("key.pem"), "{error}");
    }
}
