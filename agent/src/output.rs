//! The container's standard output and error, cut into lines.
//!
//! Memory is bounded: nothing is read while the control stream has a backlog, so a container that
//! writes faster than the host reads waits in its own `write`, as it would on any full pipe. When
//! the container ends, what it wrote before is still in the pipe and is taken out without regard
//! to the backlog ([`OutputPipe::drain`]); a pipe is bounded too.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use wire::{GuestMessage, Stream};

use crate::poller::{Poller, Readiness, Token};

/// The longest line that is sent; a longer one goes out in pieces.
pub const MAX_LINE_BYTES: usize = 16 << 10;
/// Bytes taken from a pipe in one call.
const CHUNK: usize = 16 << 10;

/// One of the two output pipes.
pub struct OutputPipe {
    stream: Stream,
    /// `None` after the last writer has gone.
    pipe: Option<OwnedFd>,
    readable: bool,
    lines: LineCutter,
}

impl OutputPipe {
    /// `pipe` does not block.
    pub fn new(stream: Stream, pipe: OwnedFd) -> Self {
        Self {
            stream,
            pipe: Some(pipe),
            readable: false,
            lines: LineCutter::default(),
        }
    }

    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) => poller.watch_edge(pipe, Token::Output(self.stream)),
            None => Ok(()),
        }
    }

    pub fn on_event(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
    }

    /// Whether there may be something to read.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Sends what there is while `sink` takes it. `sink` answers whether there is room for more.
    pub fn pump(&mut self, sink: &mut impl FnMut(GuestMessage) -> bool) {
        let mut room = true;
        while room && self.readable {
            if self.read_chunk(CHUNK, &mut |message| room = sink(message)) == 0 {
                self.readable = false;
            }
        }
    }

    /// Sends everything that was written until now, the last line even if it has no end.
    pub fn drain(&mut self, sink: &mut impl FnMut(GuestMessage)) {
        self.catch_up(sink);
        self.lines.finish(&mut emit(self.stream, sink));
    }

    /// Sends everything that was written until now, but for a line whose end is still to come.
    pub fn catch_up(&mut self, sink: &mut impl FnMut(GuestMessage)) {
        let waiting = self.pipe.as_ref().map_or(Ok(0), rustix::io::ioctl_fionread);
        let mut left = usize::try_from(waiting.unwrap_or(0)).unwrap_or(usize::MAX);
        while left > 0 {
            match self.read_chunk(left.min(CHUNK), sink) {
                0 => break,
                n => left -= n,
            }
        }
    }

    /// How many bytes were read; 0 when there are none now, or never again.
    fn read_chunk(&mut self, limit: usize, sink: &mut impl FnMut(GuestMessage)) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        let mut chunk = [0; CHUNK];
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut chunk[..limit])) {
            Ok(n) if n > 0 => {
                self.lines.push(&chunk[..n], &mut emit(self.stream, sink));
                n
            }
            Err(Errno::AGAIN) => 0,
            // The end, and a pipe cannot fail in any other way.
            Ok(_) | Err(_) => {
                self.pipe = None;
                self.lines.finish(&mut emit(self.stream, sink));
                0
            }
        }
    }
}

fn emit(stream: Stream, sink: &mut impl FnMut(GuestMessage)) -> impl FnMut(&[u8]) {
    move |line| {
        sink(GuestMessage::Output {
            stream,
            line: String::from_utf8_lossy(line).into_owned(),
        });
    }
}

/// Cuts bytes into lines of at most [`MAX_LINE_BYTES`].
#[derive(Default)]
struct LineCutter {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl LineCutter {
    fn push(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.partial.extend_from_slice(&bytes[..end]);
                emit(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
                self.partial.clear();
                bytes = &bytes[end + 1..];
            } else if room == 0 {
                self.send_piece(emit);
            } else {
                let taken = window.len().min(room);
                self.partial.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
            }
        }
    }

    /// Sends a full buffer; a character that continues behind it is kept for the next piece.
    fn send_piece(&mut self, emit: &mut impl FnMut(&[u8])) {
        let end = match std::str::from_utf8(&self.partial) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.partial.len(),
        };
        emit(&self.partial[..end]);
        self.partial.drain(..end);
    }

    fn finish(&mut self, emit: &mut impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            emit(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut cutter = LineCutter::default();
        for chunk in chunks {
            cutter.push(chunk, &mut |line| lines.push(line.to_vec()));
        }
        cutter.finish(&mut |line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines_are_the_same_wherever_the_chunks_end() {
        let text = b"one\n\r\ntwo\r\n\nthree";
        let expected: [&[u8]; 5] = [b"one", b"", b"two", b"", b"three"];
        for end in 0..=text.len() {
            assert_eq!(cut(&[&text[..end], &text[end..]]), expected, "cut at {end}");
        }
    }

    #[test]
    fn line_of_exactly_the_limit_is_one_line() {
        let mut text = vec![b'x'; MAX_LINE_BYTES];
        text.push(b'\n');
        assert_eq!(cut(&[&text]), [&text[..MAX_LINE_BYTES]]);
        assert_eq!(
            cut(&[&text[..MAX_LINE_BYTES], &text[MAX_LINE_BYTES..]]).len(),
            1
        );
    }

    #[test]
    fn line_above_the_limit_goes_out_in_pieces_that_do_not_split_a_character() {
        let mut text = vec![b'x'; MAX_LINE_BYTES - 1];
        text.extend_from_slice("\u{e9}tail".as_bytes());
        let lines = cut(&[&text]);
        assert_eq!(
            lines,
            [&text[..MAX_LINE_BYTES - 1], "\u{e9}tail".as_bytes()]
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_at_the_limit() {
        let lines = cut(&[&[0xff; 3 * MAX_LINE_BYTES]]);
        assert_eq!(
            lines.iter().map(Vec::len).collect::<Vec<_>>(),
            [MAX_LINE_BYTES; 3]
        );
    }

    fn pipe() -> (OutputPipe, OwnedFd) {
        use rustix::pipe::PipeFlags;
        let (reader, writer) =
            rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (OutputPipe::new(Stream::Stdout, reader), writer)
    }

    #[test]
    fn drain_takes_what_was_written_and_does_not_wait_for_the_end() {
        let (mut output, writer) = pipe();
        rustix::io::write(&writer, b"a\nb").unwrap();
        let mut lines = Vec::new();
        output.drain(&mut |message| lines.push(message));
        let line = |line: &str| GuestMessage::Output {
            stream: Stream::Stdout,
            line: line.to_owned(),
        };
        assert_eq!(lines, [line("a"), line("b")]);
    }

    #[test]
    fn catching_up_leaves_a_line_whole_that_has_no_end_yet() {
        let (mut output, writer) = pipe();
        let mut lines = Vec::new();
        for text in ["a\nb", "c\n"] {
            rustix::io::write(&writer, text.as_bytes()).unwrap();
            output.catch_up(&mut |message| lines.push(message));
        }
        let line = |line: &str| GuestMessage::Output {
            stream: Stream::Stdout,
            line: line.to_owned(),
        };
        assert_eq!(lines, [line("a"), line("bc")]);
    }

    #[test]
    fn pump_stops_reading_when_the_sink_is_full() {
        let (mut output, writer) = pipe();
        rustix::io::write(&writer, &[b'\n'; CHUNK]).unwrap();
        rustix::io::write(&writer, b"later\n").unwrap();
        output.on_event(Readiness {
            readable: true,
            writable: false,
            ended: false,
        });
        let mut lines = 0;
        output.pump(&mut |_| {
            lines += 1;
            false
        });
        assert_eq!(lines, CHUNK);
        output.pump(&mut |_| {
            lines += 1;
            true
        });
        assert_eq!(lines, CHUNK + 1);
    }
}
