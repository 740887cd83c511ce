//! Logs of a process of which there are many.
//!
//! The subscriber that the other processes use keeps tables of some ten kilobytes, which would be
//! paid for by every session. This one keeps a level and a format. It knows no spans, and no filter
//! but a bare level.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{FILTER_VARIABLE, is_json};

/// Starts logging for this process. A filter that is more than a level counts as the default.
pub fn start_small() {
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
        let now = jiff::Timestamp::now();
        if self.json {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let level = level.as_str();
            let line = serde_json::json!({
                "timestamp": now.to_string(), "level": level, "fields": fields.0, "target": target,
            });
            format!("{line}\n")
        } else {
            let mut text = Text(format!("{now:.6} {level:>5} {target}:"));
            event.record(&mut text);
            text.0.push('\n');
            text.0
        }
    }
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

#[derive(Default)]
struct Fields(serde_json::Map<String, serde_json::Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.0.insert(field.name().to_owned(), text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

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
        time.parse::<jiff::Timestamp>().unwrap();
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
}
