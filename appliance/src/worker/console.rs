//! What a container or a kernel wrote: the last lines of it, bounded, and whoever follows.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use wire::Stream;

use crate::pool::unix_millis;

/// What is kept of a console.
const RING_BYTES: usize = 64 << 10;
/// What is kept of one that is followed, so that a burst is not lost before its reader wakes up.
const FOLLOWED_BYTES: usize = 1 << 20;
/// A longer line is cut, so that one cannot push all others out.
pub const MAX_LINE_BYTES: usize = 16 << 10;
/// Lines that a reader gets at once.
const BATCH: usize = 256;

/// One line of a container, as it came: whoever shows it to a person tames it.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// When the host got it, as milliseconds since the Unix epoch: the guest's clock is the guest's.
    pub at_ms: u64,
    pub stream: Stream,
    pub text: String,
}

impl Line {
    /// An empty line takes room too.
    fn cost(&self) -> usize {
        self.text.len() + size_of::<Self>()
    }
}

/// What a reader of a [`Log`] gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    Line(Arc<Line>),
    /// So many lines were gone before the reader came to them.
    Dropped(u64),
}

/// The lines of a container. Any number of readers costs no more than one.
#[derive(Debug)]
pub struct Log {
    ring: Mutex<Ring>,
    /// The number of the line that comes next; the sender goes when there will be none.
    next: Mutex<Option<watch::Sender<u64>>>,
    changed: watch::Receiver<u64>,
}

/// Lines in the order they came; the oldest go first when there are too many bytes.
#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// The number of the first line that is kept.
    first: u64,
    followers: usize,
}

impl Ring {
    fn trim(&mut self) {
        let limit = if self.followers > 0 {
            FOLLOWED_BYTES
        } else {
            RING_BYTES
        };
        while self.bytes > limit {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.cost();
            self.first += 1;
        }
    }

    fn next(&self) -> u64 {
        self.first + self.lines.len() as u64
    }
}

impl Default for Log {
    fn default() -> Self {
        let (next, changed) = watch::channel(0);
        Self {
            ring: Mutex::default(),
            next: Mutex::new(Some(next)),
            changed,
        }
    }
}

impl Log {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sender(&self) -> MutexGuard<'_, Option<watch::Sender<u64>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a line.
    pub fn push(&self, stream: Stream, text: &str) {
        let line = Arc::new(Line {
            at_ms: unix_millis(),
            stream,
            text: cut(text).to_owned(),
        });
        let next = {
            let mut ring = self.ring();
            ring.bytes += line.cost();
            ring.lines.push_back(line);
            ring.trim();
            ring.next()
        };
        if let Some(sender) = &*self.sender() {
            let _ = sender.send(next);
        }
    }

    /// No line will come any more.
    pub fn close(&self) {
        self.sender().take();
    }

    /// The last lines, tamed.
    pub fn lines(&self) -> Vec<String> {
        self.ring()
            .lines
            .iter()
            .map(|line| tame(&line.text))
            .collect()
    }

    /// Reads the last `tail` lines, or all that are kept, and with `follow` those that come later.
    pub fn read(self: &Arc<Self>, tail: Option<usize>, follow: bool) -> LogReader {
        let mut ring = self.ring();
        ring.followers += usize::from(follow);
        let kept = ring.lines.len();
        let skipped = kept - tail.unwrap_or(kept).min(kept);
        LogReader {
            next: ring.first + skipped as u64,
            until: (!follow).then(|| ring.next()),
            follows: follow,
            changed: self.changed.clone(),
            log: Arc::clone(self),
        }
    }
}

/// Reads a [`Log`] at its own pace.
#[derive(Debug)]
pub struct LogReader {
    log: Arc<Log>,
    next: u64,
    /// Where it ends, once that is known.
    until: Option<u64>,
    follows: bool,
    changed: watch::Receiver<u64>,
}

impl LogReader {
    /// Some lines, as soon as there are any; `None` at the end.
    pub async fn next(&mut self) -> Option<Vec<Entry>> {
        loop {
            let entries = self.take();
            if !entries.is_empty() {
                return Some(entries);
            }
            if self.until.is_some() {
                return None;
            }
            // Looked at before it is waited for, so a line that came meanwhile is not missed; and once more after the
            // end, for those that came right before it.
            if self.changed.changed().await.is_err() {
                self.until = Some(u64::MAX);
            }
        }
    }

    fn take(&mut self) -> Vec<Entry> {
        let ring = self.log.ring();
        let mut entries = Vec::new();
        if self.until.is_some_and(|until| self.next >= until) {
            return entries;
        }
        if self.next < ring.first {
            entries.push(Entry::Dropped(ring.first - self.next));
            self.next = ring.first;
        }
        let from = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
        let lines = ring.lines.iter().skip(from).take(BATCH);
        let room = self
            .until
            .map_or(u64::MAX, |until| until.saturating_sub(self.next));
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let before = entries.len();
        entries.extend(lines.take(room).cloned().map(Entry::Line));
        self.next += (entries.len() - before) as u64;
        entries
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        if self.follows {
            let mut ring = self.log.ring();
            ring.followers -= 1;
            ring.trim();
        }
    }
}

/// The beginning of a line, at most [`MAX_LINE_BYTES`] of it.
fn cut(line: &str) -> &str {
    let mut cut = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(cut) {
        cut -= 1;
    }
    &line[..cut]
}

/// Cuts a line to [`MAX_LINE_BYTES`] and replaces control characters, which could drive a terminal.
pub fn tame(line: &str) -> String {
    cut(line)
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

    fn log() -> Arc<Log> {
        Arc::new(Log::default())
    }

    fn texts(entries: &[Entry]) -> Vec<String> {
        let text = |entry: &Entry| match entry {
            Entry::Line(line) => line.text.clone(),
            Entry::Dropped(count) => format!("{count} dropped"),
        };
        entries.iter().map(text).collect()
    }

    async fn all(mut reader: LogReader) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(entries) = reader.next().await {
            lines.extend(texts(&entries));
        }
        lines
    }

    #[test]
    fn log_keeps_the_newest_lines_within_its_bytes() {
        let log = log();
        for number in 0..100_000 {
            log.push(Stream::Stdout, &format!("line {number}"));
        }
        let lines = log.lines();
        assert_eq!(lines.last().unwrap(), "line 99999");
        assert!(lines.iter().map(String::len).sum::<usize>() <= RING_BYTES);
        assert!(lines.len() > 500, "{}", lines.len());
        (0..100_000).for_each(|_| log.push(Stream::Stderr, ""));
        assert!(log.lines().len() <= RING_BYTES / size_of::<Line>());
    }

    #[tokio::test]
    async fn reader_gets_the_last_lines_with_their_stream_and_time_and_then_an_end() {
        let log = log();
        let before = unix_millis();
        log.push(Stream::Stdout, "one");
        log.push(Stream::Stderr, "two\u{1b}[2J");
        let mut reader = log.read(None, false);
        log.push(Stream::Stdout, "too late");
        let entries = reader.next().await.unwrap();
        let [Entry::Line(one), Entry::Line(two)] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!((one.stream, two.stream), (Stream::Stdout, Stream::Stderr));
        assert_eq!(two.text, "two\u{1b}[2J", "taming is for who shows it");
        assert!((before..=unix_millis()).contains(&one.at_ms));
        assert_eq!(reader.next().await, None);
        assert_eq!(all(log.read(Some(1), false)).await, ["too late"]);
        assert!(all(log.read(Some(0), false)).await.is_empty());
    }

    #[tokio::test]
    async fn follower_gets_every_line_and_an_end_when_the_guest_is_gone() {
        let log = log();
        log.push(Stream::Stdout, "old");
        let mut reader = log.read(Some(0), true);
        let writer = Arc::clone(&log);
        let writing = tokio::spawn(async move {
            for number in 0..5000 {
                writer.push(Stream::Stdout, &number.to_string());
                if number % 1000 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            writer.close();
        });
        let mut lines = Vec::new();
        while let Some(entries) = reader.next().await {
            lines.extend(texts(&entries));
        }
        writing.await.unwrap();
        let expected: Vec<_> = (0..5000).map(|number: u32| number.to_string()).collect();
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn follower_that_is_too_slow_is_told_how_many_lines_it_missed() {
        let log = log();
        let mut reader = log.read(None, true);
        let long = "x".repeat(1000);
        for _ in 0..10_000 {
            log.push(Stream::Stdout, &long);
        }
        assert!(log.ring().bytes <= FOLLOWED_BYTES);
        let first = reader.next().await.unwrap();
        let Entry::Dropped(dropped) = first[0] else {
            panic!("{:?}", first[0]);
        };
        log.close();
        let mut got = first.len() as u64 - 1;
        while let Some(entries) = reader.next().await {
            got += entries.len() as u64;
        }
        assert_eq!(dropped + got, 10_000);
        drop(reader);
        let kept = log.ring().bytes;
        assert!(
            kept <= RING_BYTES,
            "nobody follows, and {kept} bytes are kept"
        );
    }

    #[test]
    fn line_is_cut_between_characters_and_cannot_drive_a_terminal() {
        let long = format!("a{}", "π".repeat(MAX_LINE_BYTES));
        assert!(tame(&long).len() <= MAX_LINE_BYTES);
        assert_eq!(tame("a\u{1b}[2Jb\tc\u{9b}"), "a\u{fffd}[2Jb\tc\u{fffd}");
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
