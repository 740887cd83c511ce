//! Logs: lines on stderr, as text or as JSON. Never a token, an identifier or a payload.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use worker::telemetry::{FILTER_VARIABLE, FORMAT_VARIABLE};

const DEFAULT_FILTER: &str = "info,sled=warn,hyper=warn,rustls=warn";

/// Starts logging for this process. A filter that cannot be read is reported and replaced.
pub fn start() {
    let wanted = std::env::var(FILTER_VARIABLE).ok();
    let filter = wanted.as_deref().map(EnvFilter::try_new);
    let bad = matches!(filter, Some(Err(_)));
    let filter = filter
        .and_then(Result::ok)
        .unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // A second start (tests in one process) keeps the first one's subscriber.
    let _ = if worker::telemetry::is_json() {
        lines.json().try_init()
    } else {
        lines.try_init()
    };
    if bad {
        tracing::warn!("{FILTER_VARIABLE} is not a log filter; using {DEFAULT_FILTER}");
    }
}
