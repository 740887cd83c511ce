//! Answers on stdout: aligned text for people, or what the flags want.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::args::{Format, Output};
use super::formats;
use crate::exit::{Exit, Failure};

/// How often the line moves.
const TICK: Duration = Duration::from_millis(100);

/// Prints `value` as the flags want it; by themselves, what `text` makes of it.
pub fn print<T: Serialize>(
    flags: &Output,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let failed = |error: &serde_json::Error| Failure::of(Exit::Failed, error);
    let format = match (flags.output, flags.json, &flags.query) {
        (Some(format), ..) => format,
        (None, false, None) => return write(&text(value)),
        (None, ..) => Format::Json,
    };
    if format == Format::Table && flags.query.is_none() {
        return write(&text(value));
    }
    let answer = serde_json::to_value(value).map_err(|error| failed(&error))?;
    let answer = match &flags.query {
        Some(query) => query.of(&answer)?,
        None => answer,
    };
    let text = match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&answer).map_err(|error| failed(&error))?;
            text + "\n"
        }
        Format::Table => formats::table(&answer),
        Format::Tsv => formats::tsv(&answer),
        Format::Yaml => formats::yaml(&answer).map_err(|line| Failure::new(Exit::Failed, line))?,
        Format::None => return Ok(()),
    };
    write(&text)
}

/// Prints text that has no other form. Somebody who has read enough (`| head`) is no failure: the command ends as it would have.
pub fn write(text: &str) -> Result<(), Failure> {
    match write_whole(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::of(Exit::Failed, &error))
        }
        _ => Ok(()),
    }
}

/// Prints what is of use only when all of it is read.
pub fn write_whole(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A line on stderr that says what is waited for, where somebody watches.
pub fn spinner() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(TICK);
    match style {
        Ok(style) => progress.with_style(style),
        Err(_) => progress,
    }
}

/// Columns as wide as their longest cell, two blanks between them.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .max()
            .unwrap_or(0)
            .max(header.get(column).map_or(0, |name| name.len()))
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), String::new()],
        ];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
    }
}
