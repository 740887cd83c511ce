//! What the pool asks of its container: names, ranges and defaults of Kubernetes, as
//! `Microsoft.App/sessionPools` has them.

use std::ops::RangeInclusive;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use super::raw::{Raw, dotted, invalid, missing, unsupported, wrong};
use crate::front::refusal::Refusal;
use crate::openapi::schema::{Described, integer, list, nullable, object, text, word};
use crate::pool::probe::{Check, Probe, Probes, Scheme};

/// The cloud service says 1 to 60, and means 0 by nothing.
const INITIAL_DELAY_SECONDS: RangeInclusive<u32> = 0..=60;
const PERIOD_SECONDS: RangeInclusive<u32> = 1..=240;
const TIMEOUT_SECONDS: RangeInclusive<u32> = 1..=240;
/// The cloud service says 1 to 10, and its own documentation uses 30.
const FAILURE_THRESHOLD: RangeInclusive<u32> = 1..=1000;
const GRACE_SECONDS: RangeInclusive<u64> = 0..=3600;
const DEFAULT_PERIOD_SECONDS: u32 = 10;
const DEFAULT_TIMEOUT_SECONDS: u32 = 1;
const DEFAULT_FAILURE_THRESHOLD: u32 = 3;
/// As Kubernetes has it for probes of these kinds.
const SUCCESS_THRESHOLD: u32 = 1;

const STARTUP: &str = "Startup";
const LIVENESS: &str = "Liveness";

/// About the connection and not the question; the probe itself says these.
const NOT_FOR_PROBES: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The probes in the list at `path`.
pub fn read(raw: &Raw<'_>, path: &str) -> Result<Probes, Refusal> {
    let mut probes = Probes::default();
    for path in raw.items(path, "a list of probes")? {
        if raw.get(&path).is_none_or(|item| !item.is_object()) {
            let found = raw.get(&path).unwrap_or(&Value::Null);
            return Err(wrong(&path, "an object", found));
        }
        let kind_path = format!("{path}/type");
        let kind = raw.required_text(&kind_path)?;
        let place = if kind.eq_ignore_ascii_case(STARTUP) {
            &mut probes.startup
        } else if kind.eq_ignore_ascii_case(LIVENESS) {
            &mut probes.liveness
        } else {
            let expected = format!("{LIVENESS:?} or {STARTUP:?}");
            return Err(wrong(&kind_path, &expected, &kind.into()));
        };
        if place.is_some() {
            let message = format!(
                "{} is {kind:?} again; there may be one probe of each type",
                dotted(&kind_path)
            );
            return Err(invalid(&kind_path, message));
        }
        *place = Some(probe(raw, &path)?);
    }
    Ok(probes)
}

fn probe(raw: &Raw<'_>, path: &str) -> Result<Probe, Refusal> {
    let number = |name: &str, range, default| -> Result<u32, Refusal> {
        let number = raw.small(&format!("{path}/{name}"), range)?;
        Ok(number.unwrap_or(default))
    };
    let success = format!("{path}/successThreshold");
    if let Some(value) = raw.get(&success)
        && value.as_u64() != Some(SUCCESS_THRESHOLD.into())
    {
        return Err(wrong(&success, &SUCCESS_THRESHOLD.to_string(), value));
    }
    let grace = format!("{path}/terminationGracePeriodSeconds");
    Ok(Probe {
        check: check(raw, path)?,
        initial_delay_seconds: number("initialDelaySeconds", INITIAL_DELAY_SECONDS, 0)?,
        period_seconds: number("periodSeconds", PERIOD_SECONDS, DEFAULT_PERIOD_SECONDS)?,
        timeout_seconds: number("timeoutSeconds", TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS)?,
        failure_threshold: number(
            "failureThreshold",
            FAILURE_THRESHOLD,
            DEFAULT_FAILURE_THRESHOLD,
        )?,
        success_threshold: SUCCESS_THRESHOLD,
        termination_grace_seconds: raw.integer(&grace, GRACE_SECONDS)?,
    })
}

fn check(raw: &Raw<'_>, path: &str) -> Result<Check, Refusal> {
    let (http, tcp) = (format!("{path}/httpGet"), format!("{path}/tcpSocket"));
    match (raw.get(&http), raw.get(&tcp)) {
        (Some(value), None) if value.is_object() => http_get(raw, &http),
        (None, Some(value)) if value.is_object() => tcp_socket(raw, &tcp),
        (Some(value), None) => Err(wrong(&http, "an object", value)),
        (None, Some(value)) => Err(wrong(&tcp, "an object", value)),
        (Some(_), Some(_)) => {
            let message = format!("{} must have httpGet or tcpSocket, not both", dotted(path));
            Err(invalid(path, message))
        }
        (None, None) => Err(missing(path, "httpGet or tcpSocket")),
    }
}

fn tcp_socket(raw: &Raw<'_>, path: &str) -> Result<Check, Refusal> {
    let host = format!("{path}/host");
    if raw.get(&host).is_some() {
        let message = format!(
            "{} is not supported by this version: a probe connects to the container of its session",
            dotted(&host)
        );
        return Err(unsupported(&host, message));
    }
    let port = raw.required_port(&format!("{path}/port"))?;
    Ok(Check::TcpSocket { port })
}

fn http_get(raw: &Raw<'_>, path: &str) -> Result<Check, Refusal> {
    Ok(Check::HttpGet {
        scheme: scheme(raw, &format!("{path}/scheme"))?,
        host: host(raw, &format!("{path}/host"))?,
        path: target(raw, &format!("{path}/path"))?,
        port: raw.required_port(&format!("{path}/port"))?,
        headers: headers(raw, &format!("{path}/httpHeaders"))?,
    })
}

fn scheme(raw: &Raw<'_>, path: &str) -> Result<Scheme, Refusal> {
    match raw.text(path)? {
        None => Ok(Scheme::default()),
        Some(text) if text.eq_ignore_ascii_case("HTTP") => Ok(Scheme::Http),
        Some(text) if text.eq_ignore_ascii_case("HTTPS") => Ok(Scheme::Https),
        Some(text) => Err(wrong(path, "\"HTTP\" or \"HTTPS\"", &text.into())),
    }
}

/// It becomes a header, so it must not be able to become two.
fn host(raw: &Raw<'_>, path: &str) -> Result<Option<String>, Refusal> {
    let Some(text) = raw.text(path)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.parse::<Authority>() {
        Ok(host) if !host.as_str().contains('@') => Ok(Some(text)),
        _ => Err(wrong(path, "a host name or address", &text.into())),
    }
}

/// It becomes the first line of a request, so it must not be able to become more.
fn target(raw: &Raw<'_>, path: &str) -> Result<String, Refusal> {
    let Some(text) = raw.text(path)?.filter(|text| !text.is_empty()) else {
        return Ok("/".to_owned());
    };
    // A fragment is cut off when it is parsed.
    match text.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == text && text.starts_with('/') => Ok(text),
        _ => {
            let expected = "a path that begins with \"/\", with what is not plain encoded";
            Err(wrong(path, expected, &text.into()))
        }
    }
}

fn headers(raw: &Raw<'_>, path: &str) -> Result<Vec<(String, String)>, Refusal> {
    let header = |path: &String| {
        let (name_path, value_path) = (format!("{path}/name"), format!("{path}/value"));
        let name = raw.required_text(&name_path)?;
        match name.parse::<HeaderName>() {
            Ok(parsed) if !NOT_FOR_PROBES.contains(&parsed) => {}
            Ok(_) => {
                let expected = "a header that is not about the connection";
                return Err(wrong(&name_path, expected, &name.into()));
            }
            Err(_) => return Err(wrong(&name_path, "the name of a header", &name.into())),
        }
        let value = raw
            .text(&value_path)?
            .ok_or_else(|| missing(&value_path, "the value of the header"))?;
        let plain = |value: &str| value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if HeaderValue::from_str(&value).is_err() || !plain(&value) {
            let expected = "printable ASCII characters";
            return Err(wrong(&value_path, expected, &value.into()));
        }
        Ok((name, value))
    };
    let items = raw.items(path, "a list of {name, value}")?;
    items.iter().map(header).collect()
}

/// For the OpenAPI document.
pub fn schema() -> Described {
    let wide = |range: RangeInclusive<u32>| u64::from(*range.start())..=u64::from(*range.end());
    let number = |about, range, default: u32| {
        nullable(integer(about, wide(range)).default(Some(default.into())))
    };
    let port = || integer("The container's", 1..=u64::from(u16::MAX));
    let header = object("A header")
        .property("name", text("Its name"))
        .required("name")
        .property("value", text("Its value"))
        .required("value");
    let http = object("GET; a status from 200 to 399 is good")
        .property("port", port())
        .required("port")
        .property(
            "path",
            nullable(text("Begins with a slash").default(Some("/".into()))),
        )
        .property("host", nullable(text("The Host header")))
        .property(
            "scheme",
            nullable(word("The certificate is not verified", &["HTTP", "HTTPS"])),
        )
        .property("httpHeaders", nullable(list("Sent along", header)));
    let tcp = object("A connection that is accepted is good")
        .property("port", port())
        .required("port");
    let probe = object("What the container is asked, in the words of Kubernetes")
        .property("type", word("Each at most once", &[LIVENESS, STARTUP]))
        .required("type")
        .property("httpGet", nullable(http))
        .property("tcpSocket", nullable(tcp))
        .property(
            "initialDelaySeconds",
            number("Before the first", INITIAL_DELAY_SECONDS, 0),
        )
        .property(
            "periodSeconds",
            number(
                "From one to the next",
                PERIOD_SECONDS,
                DEFAULT_PERIOD_SECONDS,
            ),
        )
        .property(
            "timeoutSeconds",
            number("For the answer", TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS),
        )
        .property(
            "failureThreshold",
            number(
                "In a row, until it counts",
                FAILURE_THRESHOLD,
                DEFAULT_FAILURE_THRESHOLD,
            ),
        )
        .property(
            "successThreshold",
            number(
                "In a row",
                SUCCESS_THRESHOLD..=SUCCESS_THRESHOLD,
                SUCCESS_THRESHOLD,
            ),
        )
        .property(
            "terminationGracePeriodSeconds",
            nullable(integer("For the container to end in", GRACE_SECONDS)),
        );
    list("A startup probe, a liveness probe, both or none", probe)
        .max_items(Some(2))
        .into()
}

/// The list, without what nobody said and nobody needs to know. `None`: there are no probes.
pub fn render(probes: &Probes) -> Option<Value> {
    let named = [(STARTUP, &probes.startup), (LIVENESS, &probes.liveness)];
    let list: Vec<_> = named
        .into_iter()
        .filter_map(|(kind, probe)| Some(render_probe(kind, probe.as_ref()?)))
        .collect();
    (!list.is_empty()).then(|| list.into())
}

fn render_probe(kind: &str, probe: &Probe) -> Value {
    let mut value = json!({
        "type": kind,
        "initialDelaySeconds": probe.initial_delay_seconds,
        "periodSeconds": probe.period_seconds,
        "timeoutSeconds": probe.timeout_seconds,
        "failureThreshold": probe.failure_threshold,
        "successThreshold": probe.success_threshold,
    });
    if let Some(grace) = probe.termination_grace_seconds {
        value["terminationGracePeriodSeconds"] = grace.into();
    }
    match &probe.check {
        Check::TcpSocket { port } => value["tcpSocket"] = json!({ "port": port }),
        Check::HttpGet {
            scheme,
            host,
            path,
            port,
            headers,
        } => {
            let mut get = json!({ "scheme": scheme, "path": path, "port": port });
            if let Some(host) = host {
                get["host"] = host.as_str().into();
            }
            if !headers.is_empty() {
                let headers = headers
                    .iter()
                    .map(|(name, value)| json!({ "name": name, "value": value }));
                get["httpHeaders"] = headers.collect();
            }
            value["httpGet"] = get;
        }
    }
    value
}
