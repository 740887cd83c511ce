//! What a certificate says of itself, for people and for the decision when to have the next one.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;

/// Who exchanges certificates by hand has so long to do it.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// A certificate that lives shorter is not warned of all its life, but in its last fifth.
const WARN_SHARE: i32 = 5;
/// Longest text of a stranger that is repeated.
const LONGEST_NAME: usize = 300;

/// What can be read in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub subject: String,
    /// DNS names in lower case, and addresses.
    pub names: Vec<String>,
    pub issuer: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Of the whole certificate, as `openssl x509 -fingerprint -sha256` has it.
    pub sha256: String,
}

impl Facts {
    /// Of the certificate itself, not of those behind it.
    pub fn of(certificate: &CertifiedKey) -> Result<Self, String> {
        let der = certificate.end_entity_cert().map_err(|e| e.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
        let names = parsed.subject_alternative_name();
        let names = names.map_err(|error| error.to_string())?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let validity = parsed.validity();
        let moment = |at: &x509_parser::time::ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|error| error.to_string())
        };
        Ok(Self {
            subject: plain(&parsed.subject().to_string()),
            names: names.iter().filter_map(name).collect(),
            issuer: plain(&parsed.issuer().to_string()),
            not_before: moment(&validity.not_before)?,
            not_after: moment(&validity.not_after)?,
            sha256: fingerprint(der),
        })
    }

    /// Whether a client that asks for this name may believe it.
    pub fn is_for(&self, name: &str) -> bool {
        self.names
            .iter()
            .any(|have| have.eq_ignore_ascii_case(name))
    }

    pub fn life(&self) -> SignedDuration {
        self.not_after.duration_since(self.not_before)
    }

    /// What an operator must know of its end, if that is near.
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        const DAY: SignedDuration = SignedDuration::from_hours(24);
        let left = self.not_after.duration_since(now);
        let end = self.not_after;
        if left <= SignedDuration::ZERO {
            return Some(format!("it has expired at {end}"));
        }
        let days = left.as_secs() / DAY.as_secs();
        (left < WARN_BEFORE.min(self.life() / WARN_SHARE)).then(|| match days {
            0 => format!("it expires at {end}, in less than a day"),
            1 => format!("it expires at {end}, in 1 day"),
            days => format!("it expires at {end}, in {days} days"),
        })
    }

    pub fn json(&self, source: &str, now: Timestamp) -> Value {
        json!({
            "source": source,
            "names": self.names,
            "subject": self.subject,
            "issuer": self.issuer,
            "notBefore": self.not_before.to_string(),
            "notAfter": self.not_after.to_string(),
            "sha256": self.sha256,
            "warning": self.warning(now),
        })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(plain(&name.to_ascii_lowercase())),
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
            .ok()
            .map(|address| address.to_string()),
        _ => None,
    }
}

/// Fit for a line of a log and for a terminal, whoever wrote it.
pub fn plain(text: &str) -> String {
    let kept = text.chars().take(LONGEST_NAME);
    kept.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn fingerprint(der: &[u8]) -> String {
    let bytes = Sha256::digest(der);
    let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// Lets something be said once in a while.
#[derive(Debug, Default)]
pub struct Reminder(Option<Timestamp>);

impl Reminder {
    /// Whether it is time again.
    pub fn is_due(&mut self, now: Timestamp, every: Duration) -> bool {
        let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::MAX);
        let due = self.0.is_none_or(|last| now.duration_since(last) >= every);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::Arc;

    use jiff::ToSpan as _;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::super::certified;
    use super::*;

    pub fn moment(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A certificate for these names that begins at a day and lives for so many.
    pub fn issued(names: &[&str], from: &str, days: i64) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "Some\nbody");
        let day = |at: Timestamp| {
            let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
            let [month, day] = [date.month(), date.day()].map(|part| u8::try_from(part).unwrap());
            rcgen::date_time_ymd(date.year().into(), month, day)
        };
        let from = moment(from);
        params.not_before = day(from);
        params.not_after = day(from + (days * 24).hours());
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn some(names: &[&str], from: &str, days: i64) -> (Arc<CertifiedKey>, Facts) {
        let (certificate, key) = issued(names, from, days);
        let certificate = certified(&certificate, &key).unwrap();
        let facts = Facts::of(&certificate).unwrap();
        (certificate, facts)
    }

    #[test]
    fn certificate_is_read_as_openssl_reads_it() {
        let names = ["A.example", "*.b.example", "192.0.2.7", "2001:db8::1"];
        let (_, facts) = some(&names, "2026-01-01T00:00:00Z", 90);
        let read = ["a.example", "*.b.example", "192.0.2.7", "2001:db8::1"];
        assert_eq!(facts.names, read);
        assert!(facts.is_for("A.EXAMPLE") && !facts.is_for("c.example"));
        assert_eq!(facts.not_before, moment("2026-01-01T00:00:00Z"));
        assert_eq!(facts.not_after, moment("2026-04-01T00:00:00Z"));
        // Self-signed, and a stranger's line break is none in a log.
        assert_eq!(facts.subject, facts.issuer);
        assert!(facts.subject.contains("CN=Some body"), "{}", facts.subject);
        assert_eq!(facts.sha256.len(), 32 * 3 - 1);
    }

    #[test]
    fn end_is_warned_of_in_the_last_two_weeks_and_for_short_lives_in_the_last_fifth() {
        let (_, year) = some(&["a"], "2026-01-01T00:00:00Z", 365);
        let warned = |facts: &Facts, at: &str| facts.warning(moment(at));
        assert_eq!(warned(&year, "2026-12-18T00:00:00Z"), None);
        let line = warned(&year, "2026-12-18T00:00:01Z").unwrap();
        assert!(line.ends_with("in 13 days"), "{line}");
        let line = warned(&year, "2026-12-31T12:00:00Z").unwrap();
        assert!(line.ends_with("in less than a day"), "{line}");
        let line = warned(&year, "2027-01-01T00:00:00Z").unwrap();
        assert!(line.contains("has expired"), "{line}");
        let (_, week) = some(&["a"], "2026-01-01T00:00:00Z", 10);
        assert_eq!(warned(&week, "2026-01-09T00:00:00Z"), None);
        assert!(warned(&week, "2026-01-09T00:00:01Z").is_some());
    }

    #[test]
    fn reminder_comes_once_in_its_time() {
        let mut reminder = Reminder::default();
        let now = moment("2026-01-01T00:00:00Z");
        let day = Duration::from_secs(86_400);
        assert!(reminder.is_due(now, day));
        assert!(!reminder.is_due(now + 23.hours(), day));
        assert!(reminder.is_due(now + 24.hours(), day));
    }
}
