//! The last lines that a container or a kernel wrote, bounded.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is kept of a console.
const RING_BYTES: usize = 64 << 10;
/// A longer line is cut, so that one cannot push all others out.
pub const MAX_LINE_BYTES: usize = 16 << 10;

/// Lines in the order they came; the oldest go first when there are too many bytes.
#[derive(Debug, Default)]
pub struct Ring {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Ring {
    pub fn push(&mut self, line: String) {
        self.bytes += cost(&line);
        self.lines.push_back(line);
        while self.bytes > RING_BYTES {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= cost(&oldest);
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// An empty line takes room too.
fn cost(line: &str) -> usize {
    line.len() + size_of::<String>()
}

/// Cuts a line to [`MAX_LINE_BYTES`] and replaces control characters, which could drive a terminal.
pub fn tame(line: &str) -> String {
    let mut cut = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(cut) {
        cut -= 1;
    }
    line[..cut]
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// The last lines of the serial console, which a worker writes to `file`.
pub fn serial_lines(file: &File) -> Vec<String> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let start = length.saturating_sub(RING_BYTES as u64);
    let mut bytes = vec![0; RING_BYTES];
    let mut filled = 0;
    // A read error ends the text here; there is nobody who could do better with it.
    while let Ok(count @ 1..) = file.read_at(&mut bytes[filled..], start + filled as u64) {
        filled += count;
    }
    let text = String::from_utf8_lossy(&bytes[..filled]);
    text.lines()
        .map(|line| tame(line.trim_end_matches('\r')))
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ring_keeps_the_newest_lines_within_its_bytes() {
        let mut ring = Ring::default();
        for number in 0..100_000 {
            ring.push(format!("line {number}"));
        }
        let lines = ring.lines();
        assert_eq!(lines.last().unwrap(), "line 99999");
        assert!(lines.iter().map(String::len).sum::<usize>() <= RING_BYTES);
        assert!(lines.len() > 1000);
        let mut ring = Ring::default();
        (0..100_000).for_each(|_| ring.push(String::new()));
        assert!(ring.lines().len() <= RING_BYTES / size_of::<String>());
    }

    #[test]
    fn line_is_cut_between_characters_and_cannot_drive_a_terminal() {
        let long = format!("a{}", "π".repeat(MAX_LINE_BYTES));
        assert!(tame(&long).len() <= MAX_LINE_BYTES);
        assert_eq!(tame("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }

    #[test]
    fn serial_console_gives_its_last_lines() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..20_000 {
            write!(file, "line {number}\r\n").unwrap();
        }
        let lines = serial_lines(&file);
        assert_eq!(lines.last().unwrap(), "line 19999");
        assert!(lines.len() < 20_000);
        assert!(serial_lines(&tempfile::tempfile().unwrap()).is_empty());
    }
}
