//! What outlives a restart: the account at the ACME server, and the certificate. Each is one file, so that its parts are
//! exchanged together, and both are for the appliance's user only.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::{TlsError, read, write};

const FOLDER: &str = "acme";
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.json";
const SECRET: u32 = 0o600;

/// The folder.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

/// A certificate, and of which server it is.
#[derive(Serialize, Deserialize)]
pub struct KeptCertificate {
    pub directory: String,
    /// In PEM, as the key.
    pub chain: String,
    pub key: String,
}

#[derive(Deserialize)]
struct KeptAccount {
    directory: String,
    credentials: AccountCredentials,
}

#[derive(Serialize)]
struct NewAccount<'a> {
    directory: &'a str,
    credentials: &'a AccountCredentials,
}

impl Kept {
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let folder = dir.join(FOLDER);
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.map_err(|source| TlsError::File {
            attempt: "create",
            path: folder.clone(),
            source,
        })?;
        Ok(Self(folder))
    }

    /// The account at this server. One at another is none.
    pub fn account(&self, directory: &str) -> Result<Option<AccountCredentials>, TlsError> {
        let kept: Option<KeptAccount> = self.load(ACCOUNT)?;
        let kept = kept.filter(|kept| kept.directory == directory);
        Ok(kept.map(|kept| kept.credentials))
    }

    pub fn save_account(
        &self,
        directory: &str,
        credentials: &AccountCredentials,
    ) -> Result<(), TlsError> {
        self.save(
            ACCOUNT,
            &NewAccount {
                directory,
                credentials,
            },
        )
    }

    pub fn forget_account(&self) -> Result<(), TlsError> {
        let path = self.0.join(ACCOUNT);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(TlsError::File {
                attempt: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    pub fn certificate(&self) -> Result<Option<KeptCertificate>, TlsError> {
        self.load(CERTIFICATE)
    }

    pub fn save_certificate(&self, certificate: &KeptCertificate) -> Result<(), TlsError> {
        self.save(CERTIFICATE, certificate)
    }

    /// What cannot be understood can be had anew, so it is none.
    fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, TlsError> {
        let path = self.0.join(name);
        let text = match read(&path) {
            Ok(text) => text,
            Err(TlsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let parsed = serde_json::from_str(&text);
        if parsed.is_err() {
            tracing::warn!(path = %path.display(), "the file is damaged and not used");
        }
        Ok(parsed.ok())
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<(), TlsError> {
        let path = self.0.join(name);
        let text = serde_json::to_string(value).map_err(|error| TlsError::File {
            attempt: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        write(&path, &text, SECRET)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// As the crate writes it.
    fn account() -> AccountCredentials {
        let (_, key) = instant_acme::Key::generate_pkcs8().unwrap();
        use base64::Engine as _;
        let key = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(key.secret_pkcs8_der());
        let text = serde_json::json!({ "id": "i", "key_pkcs8": key, "directory": "d" });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn files_are_the_owners_only_and_an_account_is_of_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        assert!(kept.account("https://a").unwrap().is_none());
        assert!(kept.certificate().unwrap().is_none());
        kept.save_account("https://a", &account()).unwrap();
        let certificate = KeptCertificate {
            directory: "https://a".to_owned(),
            chain: "c".to_owned(),
            key: "k".to_owned(),
        };
        kept.save_certificate(&certificate).unwrap();
        let folder = dir.path().join(FOLDER);
        for (path, mode) in [
            (folder.clone(), 0o700),
            (folder.join(ACCOUNT), 0o600),
            (folder.join(CERTIFICATE), 0o600),
        ] {
            let is = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(is, mode, "{}", path.display());
        }
        let again = Kept::open(dir.path()).unwrap();
        assert!(again.account("https://a").unwrap().is_some());
        assert!(again.account("https://b").unwrap().is_none());
        assert_eq!(again.certificate().unwrap().unwrap().key, "k");
        again.forget_account().unwrap();
        again.forget_account().unwrap();
        assert!(again.account("https://a").unwrap().is_none());
    }

    #[test]
    fn damaged_file_is_none_and_one_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let path = dir.path().join(FOLDER).join(CERTIFICATE);
        fs::write(&path, "{\"directory\": 3").unwrap();
        assert!(kept.certificate().unwrap().is_none());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(kept.certificate().is_err());
    }
}
