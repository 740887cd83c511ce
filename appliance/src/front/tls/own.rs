//! TLS with a private CA that is made at first start.
//!
//! `ca.pem` is what clients trust; `ca.key` never leaves the host. The server's certificate is made
//! anew when the names change, when it comes close to its end, or when its files do not fit
//! together; the CA never is, because clients hold copies of it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{TlsError, certified_files, read, write};
use crate::dns_name::is_dns_name;

const CA_YEARS: i64 = 10;
/// What browsers accept at most.
const SERVER_DAYS: i64 = 397;
const RENEW_DAYS_BEFORE: i64 = 30;

/// What `server.pem` was made for. Kept beside it, so that nothing here parses certificates.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    names: Vec<String>,
    not_after: String,
    /// SHA-256 of `ca.pem` and `server.pem`.
    files: String,
}

/// The certificate that clients trust, as it was made.
pub fn authority(dir: &Path) -> Result<String, TlsError> {
    read(&dir.join("ca.pem"))
}

/// The names that the certificate is for: this host, and the pools of `domain`.
pub fn names(domain: Option<&str>, listen: IpAddr) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    if is_dns_name(&host) {
        names.push(host);
    }
    if let Some(domain) = domain {
        names.extend([domain.to_owned(), format!("*.{domain}")]);
    }
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.sort();
    names.dedup();
    names
}

/// Uses what is in `dir`, or makes it; makes it anew when its end is near. Blocks.
pub fn ensure(dir: &Path, names: &[String], now: Timestamp) -> Result<Arc<CertifiedKey>, TlsError> {
    fs::create_dir_all(dir).map_err(|source| TlsError::File {
        attempt: "create",
        path: dir.to_owned(),
        source,
    })?;
    let ca = ensure_ca(dir, now)?;
    if is_current(dir, names, now)
        && let Ok(certificate) = load(dir)
    {
        return Ok(certificate);
    }
    make_server(dir, names, &ca, now)?;
    load(dir)
}

fn ensure_ca(dir: &Path, now: Timestamp) -> Result<KeyPair, TlsError> {
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    match (cert_path.exists(), key_path.exists()) {
        (true, true) => {
            let key = KeyPair::from_pem(&read(&key_path)?);
            let key = key.map_err(|_| TlsError::Authority { path: key_path })?;
            // The certificate is not parsed, but it must be there and of this key.
            let certificate = CertificateDer::from_pem_slice(read(&cert_path)?.as_bytes());
            let fits =
                certificate.is_ok_and(|certificate| contains(&certificate, key.public_key_raw()));
            if fits {
                Ok(key)
            } else {
                Err(TlsError::Authority { path: cert_path })
            }
        }
        (true, false) => Err(TlsError::Authority { path: key_path }),
        // A key without certificate is what a crash between the two writes below leaves.
        (false, _) => {
            let failed = |source| TlsError::Make { what: "CA", source };
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
            let mut params = ca_params(&key);
            set_validity(&mut params, now, 365 * CA_YEARS);
            let certificate = params.self_signed(&key).map_err(failed)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            write(&cert_path, &certificate.pem(), 0o644)?;
            Ok(key)
        }
    }
}

/// The same for the same key, so that the issuer's name can be had without parsing `ca.pem`. Part of
/// the key is in the name: a client may trust the CAs of several appliances.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let id: String = Sha256::digest(key.public_key_raw())[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Cabana private CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn make_server(dir: &Path, names: &[String], ca: &KeyPair, now: Timestamp) -> Result<(), TlsError> {
    let failed = |source| TlsError::Make {
        what: "server",
        source,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Cabana");
    params.subject_alt_names = names
        .iter()
        .map(|name| san(name))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, SERVER_DAYS);
    let issuer = Issuer::new(ca_params(ca), ca);
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    write(&dir.join("server.key"), &key.serialize_pem(), 0o600)?;
    write(&dir.join("server.pem"), &certificate.pem(), 0o644)?;
    let made = Made {
        names: names.to_vec(),
        not_after: (now + (SERVER_DAYS * 24).hours()).to_string(),
        files: fingerprint(dir)?,
    };
    // Last: without it the two files above are made again.
    write(
        &dir.join("server.json"),
        &serde_json::to_string(&made).unwrap_or_default(),
        0o644,
    )
}

fn is_current(dir: &Path, names: &[String], now: Timestamp) -> bool {
    let made = read(&dir.join("server.json")).ok();
    let made = made.and_then(|text| serde_json::from_str::<Made>(&text).ok());
    made.is_some_and(|made| {
        let renew_at = now + (RENEW_DAYS_BEFORE * 24).hours();
        made.names == names
            && made
                .not_after
                .parse::<Timestamp>()
                .is_ok_and(|not_after| not_after > renew_at)
            && fingerprint(dir).is_ok_and(|files| files == made.files)
    })
}

fn load(dir: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    certified_files(&dir.join("server.pem"), &dir.join("server.key"))
}

fn san(name: &str) -> Result<SanType, rcgen::Error> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

/// From yesterday, since clocks differ, for so many days.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let midnight = |days: i64| {
        let date = (now + (days * 24).hours()).to_zoned(TimeZone::UTC).date();
        let [month, day] = [date.month(), date.day()].map(|part| u8::try_from(part).unwrap_or(1));
        date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = midnight(-1);
    params.not_after = midnight(days);
}

fn fingerprint(dir: &Path) -> Result<String, TlsError> {
    let mut digest = Sha256::new();
    for file in ["ca.pem", "server.pem"] {
        digest.update(read(&dir.join(file))?);
    }
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::ServedCertificate;
    use super::*;

    fn some_names() -> Vec<String> {
        names(Some("cabana.example"), IpAddr::from([192, 0, 2, 7]))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn names_cover_this_host_the_domain_and_the_address() {
        let names = some_names();
        for name in [
            "localhost",
            "127.0.0.1",
            "::1",
            "cabana.example",
            "*.cabana.example",
            "192.0.2.7",
        ] {
            assert!(
                names.iter().any(|have| have == name),
                "{name} is not in {names:?}"
            );
        }
    }

    #[test]
    fn keys_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        ServedCertificate::prepare(dir.path(), some_names()).unwrap();
        let modes = ["ca.key", "server.key", "ca.pem"].map(|file| mode(&dir.path().join(file)));
        assert_eq!(modes, [0o600, 0o600, 0o644]);
    }

    #[test]
    fn second_start_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        ServedCertificate::prepare(dir.path(), some_names()).unwrap();
        let files = ["ca.pem", "ca.key", "server.pem", "server.key"];
        let before = files.map(|file| read(&dir.path().join(file)).unwrap());
        ServedCertificate::prepare(dir.path(), some_names()).unwrap();
        assert_eq!(
            files.map(|file| read(&dir.path().join(file)).unwrap()),
            before
        );
    }

    #[test]
    fn server_certificate_is_made_anew_for_other_names_near_its_end_and_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let make = |names: &[String], now| {
            ensure(dir.path(), names, now).unwrap();
            read(&dir.path().join("server.pem")).unwrap()
        };
        let first = make(&some_names(), now);
        let ca = read(&dir.path().join("ca.pem")).unwrap();
        assert_eq!(
            make(
                &some_names(),
                now + ((SERVER_DAYS - RENEW_DAYS_BEFORE - 1) * 24).hours()
            ),
            first
        );
        let renewed = make(
            &some_names(),
            now + ((SERVER_DAYS - RENEW_DAYS_BEFORE) * 24).hours(),
        );
        assert_ne!(renewed, first);
        let renamed = make(&names(None, IpAddr::from([0, 0, 0, 0])), now);
        assert_ne!(renamed, renewed);
        fs::write(dir.path().join("server.pem"), "not a certificate").unwrap();
        assert!(make(&names(None, IpAddr::from([0, 0, 0, 0])), now).contains("BEGIN CERTIFICATE"));
        assert_eq!(
            read(&dir.path().join("ca.pem")).unwrap(),
            ca,
            "clients hold copies of the CA"
        );
    }

    #[test]
    fn ca_that_lost_its_key_or_has_another_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        ServedCertificate::prepare(dir.path(), some_names()).unwrap();
        let key = dir.path().join("ca.key");
        let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        fs::write(&key, other.serialize_pem()).unwrap();
        let error = ServedCertificate::prepare(dir.path(), some_names()).unwrap_err();
        assert!(matches!(error, TlsError::Authority { .. }), "{error}");
        fs::remove_file(&key).unwrap();
        let error = ServedCertificate::prepare(dir.path(), some_names()).unwrap_err();
        assert!(matches!(error, TlsError::Authority { .. }), "{error}");
    }
}
