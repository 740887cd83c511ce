//! `[limits]`: what the front door lets clients take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::images::{table, wrong};

/// What the front door lets clients take. Read from `[limits]`; the defaults are those that ship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontLimits {
    /// Names and values of a request's headers together.
    pub header_bytes: usize,
    pub header_count: usize,
    pub url_bytes: usize,
    /// From the first byte of a head to its last; with HTTP/1.1 also between two requests.
    pub head: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// How long a client may send nearly nothing of a body that the container waits for, and how long it may take nothing of
    /// an answer that waits for it.
    pub stall: Duration,
    pub connections: usize,
    pub connections_per_address: usize,
    pub requests_per_session: usize,
    pub requests_per_token: usize,
    /// `None`: any length.
    pub body_bytes: Option<u64>,
    /// Of a whole request, its answer included. `None`: any time.
    pub request: Option<Duration>,
}

impl Default for FrontLimits {
    fn default() -> Self {
        Self {
            // Cookies and tokens of real clients stay below 16 KiB; twice that is room.
            header_bytes: 32 << 10,
            // As in other servers.
            header_count: 100,
            // RFC 9110 section 4.1 wants 8000 at least.
            url_bytes: 16 << 10,
            head: Duration::from_secs(60),
            // Proxies in front keep theirs for about a minute; whoever closes last loses no request.
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(60),
            connections: 16_384,
            // A proxy in front, or an office behind one address, has many.
            connections_per_address: 4096,
            // The agent of a session joins 1008 streams.
            requests_per_session: 1000,
            // An application may serve all its users with one token.
            requests_per_token: 10_000,
            body_bytes: None,
            request: None,
        }
    }
}

/// No limit is larger: a thousand times the default of the largest.
const MOST: i64 = 1 << 24;
/// hyper takes heads of up to 64 KiB, request line included; what is longer has no answer in our shape.
pub const LONGEST_HEAD: usize = 64 << 10;
/// A day.
const LONGEST_SECONDS: i64 = 86_400;

/// The table; what is not said is as it ships.
pub fn limits(value: Option<toml::Value>) -> Result<FrontLimits, ConfigError> {
    const KNOWN: &str = "header_bytes, header_count, url_bytes, head_seconds, idle_seconds, stall_seconds, connections, \
         connections_per_address, requests_per_session, requests_per_token, body_mib or request_seconds";
    let mut limits = FrontLimits::default();
    for (name, value) in table("limits", value)? {
        let key = format!("limits.{name}");
        let number = |least: i64, most: i64| {
            let number = value.as_integer();
            let number = number.filter(|number| (least..=most).contains(number));
            let number = number.and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| {
                wrong(
                    &key,
                    &format!("a whole number from {least} to {most}"),
                    &value,
                )
            })
        };
        let seconds = || Ok(Duration::from_secs(number(1, LONGEST_SECONDS)? as u64));
        match name.as_str() {
            "header_bytes" => limits.header_bytes = number(1024, 48 << 10)?,
            "header_count" => limits.header_count = number(10, 1000)?,
            "url_bytes" => limits.url_bytes = number(256, 32 << 10)?,
            "head_seconds" => limits.head = seconds()?,
            "idle_seconds" => limits.idle = seconds()?,
            "stall_seconds" => limits.stall = seconds()?,
            "connections" => limits.connections = number(1, MOST)?,
            "connections_per_address" => limits.connections_per_address = number(1, MOST)?,
            "requests_per_session" => limits.requests_per_session = number(1, MOST)?,
            "requests_per_token" => limits.requests_per_token = number(1, MOST)?,
            "body_mib" => limits.body_bytes = Some((number(1, MOST)? as u64) << 20),
            "request_seconds" => limits.request = Some(seconds()?),
            _ => return Err(wrong(&key, KNOWN, &name.into())),
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FrontLimits, ConfigError> {
        limits(Some(toml::Value::Table(text.parse().unwrap())))
    }

    #[test]
    fn what_is_not_said_is_as_it_ships() {
        assert_eq!(limits(None).unwrap(), FrontLimits::default());
        let some = read("body_mib = 2\nrequest_seconds = 30\nconnections = 9").unwrap();
        assert_eq!(
            (some.body_bytes, some.request, some.connections),
            (Some(2 << 20), Some(Duration::from_secs(30)), 9)
        );
        assert_eq!(some.header_bytes, FrontLimits::default().header_bytes);
    }

    #[test]
    fn wrong_limit_is_one_line_that_names_its_key() {
        for (line, key) in [
            ("header_bytes = 65536", "limits.header_bytes"),
            ("header_count = 0", "limits.header_count"),
            ("stall_seconds = 0", "limits.stall_seconds"),
            ("body_mib = \"1Mi\"", "limits.body_mib"),
            ("conections = 3", "limits.conections"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{key}`")) && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
