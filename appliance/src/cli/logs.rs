//! `cabana session logs`.

use std::io::{self, Write};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::args::SessionLogs;
use super::client::{self, Payload, broken, inside_path};
use crate::exit::{Exit, Failure};

pub fn logs(logs: &SessionLogs) -> Result<Exit, Failure> {
    let mut parameters = Vec::new();
    if let Some(tail) = logs.tail {
        parameters.push(("tail", tail.to_string()));
    }
    for (name, wanted) in [("follow", logs.follow), ("raw", logs.raw)] {
        if wanted {
            parameters.push((name, "true".to_owned()));
        }
    }
    let path = inside_path(&logs.target, "logs", &parameters);
    client::with_socket(&logs.connection.root, async |socket| {
        let mut body = client::stream(socket, Method::GET, &path, Payload::Nothing).await?;
        let mut lines = Lines::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(broken)?;
            let bytes = frame.into_data().unwrap_or_default();
            let shown = lines.push(&bytes, |line| show(line, logs));
            if let Err(error) = shown {
                return finished(error);
            }
        }
        Ok(Exit::Ok)
    })
}

/// Somebody who has read enough (`| head`) is no failure.
fn finished(error: io::Error) -> Result<Exit, Failure> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
        _ => Err(Failure::of(Exit::Failed, &error)),
    }
}

/// Cuts what comes into lines.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    pub fn push(
        &mut self,
        bytes: &Bytes,
        mut show: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                show(&self.partial)?;
                self.partial.clear();
            }
        }
        Ok(())
    }
}

fn show(line: &[u8], logs: &SessionLogs) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if logs.json {
        stdout.write_all(line)?;
        return stdout.flush();
    }
    let entry: Value = serde_json::from_slice(line).map_err(io::Error::other)?;
    let (text, is_error) = text(&entry, logs.timestamps);
    if is_error {
        io::stderr().write_all(text.as_bytes())
    } else {
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// A line for people, and whether it belongs on standard error.
fn text(entry: &Value, timestamps: bool) -> (String, bool) {
    if let Some(count) = entry["dropped"].as_u64() {
        let lines = if count == 1 { "line" } else { "lines" };
        return (
            format!("cabana: {count} {lines} dropped: they came faster than they were read\n"),
            true,
        );
    }
    let line = entry["line"].as_str().unwrap_or_default();
    let text = match entry["time"].as_str().filter(|_| timestamps) {
        Some(time) => format!("{time} {line}\n"),
        None => format!("{line}\n"),
    };
    (text, entry["stream"] == "stderr")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn line_goes_where_the_container_wrote_it() {
        let line =
            |stream| json!({ "time": "2026-01-02T03:04:05.678Z", "stream": stream, "line": "x" });
        assert_eq!(text(&line("stdout"), false), ("x\n".into(), false));
        assert_eq!(
            text(&line("stderr"), true),
            ("2026-01-02T03:04:05.678Z x\n".into(), true)
        );
    }

    #[test]
    fn lines_that_were_missed_are_counted() {
        let (text, is_error) = text(&json!({ "dropped": 12 }), false);
        assert!(text.starts_with("cabana: 12 lines dropped") && is_error);
    }

    #[test]
    fn lines_are_the_same_wherever_the_pieces_end() {
        let whole = b"{}\n{\"a\":1}\n";
        for end in 0..=whole.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for piece in [&whole[..end], &whole[end..]] {
                let piece = Bytes::copy_from_slice(piece);
                let keep = |line: &[u8]| {
                    got.push(line.to_vec());
                    Ok(())
                };
                lines.push(&piece, keep).unwrap();
            }
            assert_eq!(got, [&b"{}\n"[..], b"{\"a\":1}\n"], "cut at {end}");
        }
    }
}
