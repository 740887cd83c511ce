//! Logs of a process of which there are many.
//!
//! The subscriber that the other processes use keeps tables of some ten kilobytes, which would be
//! paid for by every session. This one keeps a level and a format. It knows no spans, and no filter
//! but a bare level.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Filter; what the other processes know beyond a bare level is in their `telemetry`.
pub const FILTER_VARIABLE: &str = "CABANA_LOG";
/// `json` or `text`.
pub const FORMAT_VARIABLE: &str = "CABANA_LOG_FORMAT";

/// Starts logging for this process. A filter that is more than a level counts as the default.
pub fn start() {
    let level = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|filter| filter.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    // A second start (tests in one process) keeps the first one's subscriber.
    let _ = tracing::subscriber::set_global_default(Lines {
        level,
        json: is_json(),
    });
}

/// From now on a panic is one line of the log. Rust's own message is followed by a list of calls where the environment asks for one, and
/// to make that it reads the program and the mappings of the process by their paths, which no worker may.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "{panic}");
    }));
}

pub fn is_json() -> bool {
    std::env::var(FORMAT_VARIABLE).is_ok_and(|format| format == "json")
}

#[derive(Debug)]
struct Lines {
    level: LevelFilter,
    json: bool,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        // stderr may be closed; there is no better place to say it. One write, one line.
        let _ = std::io::stderr().write_all(self.line(event).as_bytes());
    }

    // Spans are not enabled, so nobody has one.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Lines {
    /// In the form of the other processes' lines.
    fn line(&self, event: &Event<'_>) -> String {
        let (level, target) = (event.metadata().level(), event.metadata().target());
        let now = Time(SystemTime::now());
        if self.json {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let (level, target) = (quoted(level.as_str()), quoted(target));
            let fields = fields.0;
            format!(
                "{{\"timestamp\":\"{now}\",\"level\":{level},\"fields\":{{{fields}}},\"target\":{target}}}\n"
            )
        } else {
            let mut text = Text(format!("{now} {level:>5} {target}:"));
            event.record(&mut text);
            text.0.push('\n');
            text.0
        }
    }
}

/// As `2026-01-31T23:59:59.123456Z`: RFC 3339 in UTC.
struct Time(SystemTime);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = date(since.as_secs() / 86_400);
        let second = since.as_secs() % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let micros = since.subsec_micros();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

/// Year, month and day of a day since 1970, by `civil_from_days` of
/// <https://howardhinnant.github.io/date_algorithms.html>: years begin in March there, so that a leap day comes last.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + u64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// The message and then ` name=value` for each field.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// Members of a JSON object.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0 += &quoted(field.name());
        self.0.push(':');
        self.0 += &quoted(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// As [`Lines`], but into memory.
    struct Kept {
        lines: Lines,
        text: Arc<Mutex<String>>,
    }

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.lines.enabled(metadata)
        }
        fn event(&self, event: &Event<'_>) {
            let line = self.lines.line(event);
            self.text.lock().unwrap().push_str(&line);
        }
        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            self.lines.new_span(attributes)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    fn logged(json: bool) -> String {
        let text = Arc::<Mutex<String>>::default();
        let level = LevelFilter::INFO;
        let kept = Kept {
            lines: Lines { level, json },
            text: Arc::clone(&text),
        };
        tracing::subscriber::with_default(kept, || {
            let error = std::io::Error::other("torn");
            tracing::warn!(device = "block", %error, "request {} failed", 7);
            tracing::debug!("too fine");
        });
        text.lock().unwrap().clone()
    }

    #[test]
    fn line_has_time_level_message_and_fields_and_lower_levels_have_none() {
        let target = module_path!();
        let line = logged(false);
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            format!(" WARN {target}: request 7 failed device=\"block\" error=torn\n")
        );
        let line: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["fields"]["message"], "request 7 failed");
        assert_eq!(line["fields"]["device"], "block");
        assert_eq!(line["fields"]["error"], "torn");
    }

    #[test]
    fn time_is_written_as_the_calendar_has_it() {
        // As `date --utc --date=@SECONDS` prints them: leap days, ends of years, a century without a leap day.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(7);
            assert_eq!(Time(time).to_string(), expected);
        }
    }
}
