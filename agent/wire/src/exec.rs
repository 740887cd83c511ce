//! What travels on a stream to [`port::EXEC`](crate::port::EXEC): one command of an operator.
//!
//! A frame is four bytes of length (little endian), then that many bytes: one that says what kind it
//! is, and the rest. The first frame of the host is the request, the last one of the guest says how the
//! command ended. Output is bytes as the command wrote them, so only the request and the end are JSON.
//!
//! The host's end of the stream is the operator's interest: when it closes, the command is ended.

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameError};

/// The longest request; it holds a command line and some variables.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// The most bytes of input or output in one frame.
pub const MAX_DATA_BYTES: usize = 32 << 10;
/// The longest body of a frame, its kind included.
const MAX_BODY_BYTES: usize = 1 + MAX_REQUEST_BYTES;
/// Length and kind.
const HEAD_BYTES: usize = 5;
/// The longest frame, its length included.
pub const MAX_FRAME_BYTES: usize = 4 + MAX_BODY_BYTES;

/// The exit code of a command that could not be started.
pub const CANNOT_START: u8 = 125;
/// The exit code of one whose program exists and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The exit code of one whose program does not exist.
pub const NOT_FOUND: u8 = 127;
/// Added to the number of a signal that ended a command, as shells do.
const SIGNALLED: i32 = 128;

/// What to execute. What is absent is as the container's own process has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecRequest {
    /// The program and its arguments. Never empty.
    pub argv: Vec<String>,
    /// `NAME=value`, added to the environment of the container.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// An absolute path that exists.
    pub working_dir: Option<String>,
    /// Give it a terminal of this size; standard error is then the same as standard output.
    pub terminal: Option<WindowSize>,
    /// Whether input will follow. Otherwise the command finds none.
    pub stdin: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecEnd {
    /// What a shell would report: the exit status, or 128 and the signal.
    pub code: u8,
    /// Why it was not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl ExecEnd {
    /// Of a command that ran.
    pub fn of(exit: crate::Exit) -> Self {
        let code = match exit {
            crate::Exit::Code(code) => code & 0xff,
            crate::Exit::Signal(signal) => SIGNALLED + signal,
        };
        Self {
            code: u8::try_from(code).unwrap_or(u8::MAX),
            message: None,
        }
    }

    /// Of a command that did not.
    pub fn failed(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: Some(message.into()),
        }
    }
}

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToCommand {
    /// The first frame, and never again.
    Request(Box<ExecRequest>),
    /// Input.
    Stdin(Vec<u8>),
    /// No more input will come.
    CloseStdin,
    /// The operator's window has another size.
    Resize(WindowSize),
    /// A frame of a newer host; ignored.
    Unknown,
}

/// What the guest sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromCommand {
    /// What the command wrote to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// What it wrote to its standard error.
    Stderr(Vec<u8>),
    /// The last frame: all output was sent before.
    End(ExecEnd),
    /// A frame of a newer agent; ignored.
    Unknown,
}

/// The first byte of a body. The numbers never change.
mod kind {
    pub const REQUEST: u8 = 0;
    pub const STDIN: u8 = 1;
    pub const CLOSE_STDIN: u8 = 2;
    pub const RESIZE: u8 = 3;
    pub const STDOUT: u8 = 16;
    pub const STDERR: u8 = 17;
    pub const END: u8 = 18;
}

impl ToCommand {
    /// The frame, ready to be sent.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Request(request) => with_json(kind::REQUEST, request),
            Self::Stdin(bytes) => with_bytes(kind::STDIN, bytes),
            Self::CloseStdin | Self::Unknown => with_bytes(kind::CLOSE_STDIN, &[]),
            Self::Resize(WindowSize { rows, columns }) => {
                let [[a, b], [c, d]] = [rows.to_le_bytes(), columns.to_le_bytes()];
                with_bytes(kind::RESIZE, &[a, b, c, d])
            }
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match (kind, body) {
            (kind::REQUEST, _) => Self::Request(frame::decode(body)?),
            (kind::STDIN, _) => Self::Stdin(body.to_vec()),
            (kind::CLOSE_STDIN, _) => Self::CloseStdin,
            (kind::RESIZE, [a, b, c, d, ..]) => Self::Resize(WindowSize {
                rows: u16::from_le_bytes([*a, *b]),
                columns: u16::from_le_bytes([*c, *d]),
            }),
            _ => Self::Unknown,
        })
    }
}

impl FromCommand {
    /// The frame, ready to be sent.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Stdout(bytes) => with_bytes(kind::STDOUT, bytes),
            Self::Stderr(bytes) => with_bytes(kind::STDERR, bytes),
            Self::End(end) => with_json(kind::END, end),
            Self::Unknown => with_bytes(u8::MAX, &[]),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match kind {
            kind::STDOUT => Self::Stdout(body.to_vec()),
            kind::STDERR => Self::Stderr(body.to_vec()),
            kind::END => Self::End(frame::decode(body)?),
            _ => Self::Unknown,
        })
    }
}

fn with_json<T: Serialize>(kind: u8, value: &T) -> Result<Vec<u8>, FrameError> {
    let body =
        serde_json::to_vec(value).map_err(|source| FrameError::Malformed { length: 0, source })?;
    with_bytes(kind, &body)
}

fn with_bytes(kind: u8, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let length = 1 + bytes.len();
    let too_long = FrameError::TooLong { length };
    let prefix = match u32::try_from(length) {
        Ok(prefix) if length <= MAX_BODY_BYTES => prefix,
        _ => return Err(too_long),
    };
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend_from_slice(&prefix.to_le_bytes());
    frame.push(kind);
    frame.extend_from_slice(bytes);
    Ok(frame)
}

/// Puts frames together from bytes as they come. It holds no more than it was given last and the
/// beginning of one frame.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// What lies before it was given out.
    taken: usize,
}

impl Inbox {
    /// Takes bytes in. To stay within bounds, take every frame out first.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame of a host; `None` until it is whole.
    pub fn next_to_command(&mut self) -> Result<Option<ToCommand>, FrameError> {
        self.next_with(ToCommand::decode)
    }

    /// The next frame of a guest; `None` until it is whole.
    pub fn next_from_command(&mut self) -> Result<Option<FromCommand>, FrameError> {
        self.next_with(FromCommand::decode)
    }

    /// Bytes that are no whole frame yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.taken
    }

    fn next_with<M>(
        &mut self,
        decode: impl FnOnce(u8, &[u8]) -> Result<M, FrameError>,
    ) -> Result<Option<M>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some((prefix, body)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > MAX_BODY_BYTES || length == 0 {
            return Err(FrameError::TooLong { length });
        }
        let (Some(body), Some(&kind)) = (body.get(1..length), body.first()) else {
            return Ok(None);
        };
        let limit = match kind {
            kind::STDIN | kind::STDOUT | kind::STDERR => MAX_DATA_BYTES,
            _ => MAX_REQUEST_BYTES,
        };
        if body.len() > limit {
            return Err(FrameError::TooLong { length });
        }
        let message = decode(kind, body)?;
        self.taken += 4 + length;
        if self.taken == self.bytes.len() {
            // An idle stream keeps no memory.
            *self = Self::default();
        }
        Ok(Some(message))
    }
}

/// The head of a frame with `length` bytes of output, for a sender that has read them behind it.
pub fn output_head(stream: crate::Stream, length: usize) -> [u8; HEAD_BYTES] {
    let kind = match stream {
        crate::Stream::Stdout => kind::STDOUT,
        crate::Stream::Stderr => kind::STDERR,
    };
    let prefix = u32::try_from(1 + length).unwrap_or(u32::MAX).to_le_bytes();
    [prefix[0], prefix[1], prefix[2], prefix[3], kind]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> ExecRequest {
        ExecRequest {
            argv: vec!["/bin/sh".into(), "-c".into(), "echo π".into()],
            env: vec!["A=b".into()],
            user: Some("app".into()),
            working_dir: None,
            terminal: Some(WindowSize {
                rows: 24,
                columns: 80,
            }),
            stdin: true,
        }
    }

    fn to_command() -> Vec<ToCommand> {
        vec![
            ToCommand::Request(Box::new(request())),
            ToCommand::Stdin(vec![0, 255, b'\n']),
            ToCommand::Stdin(vec![]),
            ToCommand::Resize(WindowSize {
                rows: 1,
                columns: 65_535,
            }),
            ToCommand::CloseStdin,
        ]
    }

    #[test]
    fn frames_are_the_same_wherever_the_chunks_end() {
        let sent = to_command();
        let bytes: Vec<u8> = sent.iter().flat_map(|it| it.encode().unwrap()).collect();
        for size in 1..=bytes.len() {
            let (mut inbox, mut got) = (Inbox::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                inbox.push(chunk);
                while let Some(frame) = inbox.next_to_command().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, sent, "in chunks of {size}");
            assert!(inbox.is_empty() && inbox.bytes.capacity() == 0);
        }
    }

    #[test]
    fn output_and_end_survive_the_wire() {
        let sent = [
            FromCommand::Stdout(b"\xff\0".to_vec()),
            FromCommand::Stderr(vec![7; MAX_DATA_BYTES]),
            FromCommand::End(ExecEnd::failed(NOT_FOUND, "no such file")),
            FromCommand::End(ExecEnd::of(crate::Exit::Signal(9))),
        ];
        let mut inbox = Inbox::default();
        for frame in &sent {
            inbox.push(&frame.encode().unwrap());
            assert_eq!(inbox.next_from_command().unwrap().as_ref(), Some(frame));
        }
        let head = output_head(crate::Stream::Stderr, 3);
        assert_eq!(
            [&head[..], b"abc"].concat(),
            FromCommand::Stderr(b"abc".to_vec()).encode().unwrap()
        );
    }

    #[test]
    fn end_is_what_a_shell_reports() {
        let code = |exit| ExecEnd::of(exit).code;
        assert_eq!(code(crate::Exit::Code(0)), 0);
        assert_eq!(code(crate::Exit::Code(255)), 255);
        assert_eq!(code(crate::Exit::Signal(9)), 137);
        assert_eq!(code(crate::Exit::Signal(15)), 143);
        assert_eq!(code(crate::Exit::Signal(i32::from(u8::MAX))), 255);
    }

    #[test]
    fn length_above_the_limit_is_refused_before_the_body_comes() {
        let refused = |length: u32, kind: u8, body: usize| {
            let mut inbox = Inbox::default();
            inbox.push(&length.to_le_bytes());
            inbox.push(&[kind]);
            inbox.push(&vec![0; body]);
            matches!(inbox.next_to_command(), Err(FrameError::TooLong { .. }))
        };
        let limit = u32::try_from(MAX_BODY_BYTES).unwrap();
        assert!(refused(limit + 1, kind::REQUEST, 0));
        assert!(refused(u32::MAX, kind::STDIN, 0));
        assert!(refused(0, kind::STDIN, 0), "a frame has a kind");
        let data = u32::try_from(MAX_DATA_BYTES).unwrap();
        assert!(refused(data + 2, kind::STDIN, MAX_DATA_BYTES + 1));
        assert!(!refused(data + 1, kind::STDIN, MAX_DATA_BYTES));
        ToCommand::Stdin(vec![0; MAX_REQUEST_BYTES + 1])
            .encode()
            .unwrap_err();
    }

    #[test]
    fn frame_of_a_newer_peer_is_unknown_and_not_an_error() {
        let mut inbox = Inbox::default();
        inbox.push(&with_bytes(99, b"whatever").unwrap());
        assert_eq!(inbox.next_to_command().unwrap(), Some(ToCommand::Unknown));
        inbox.push(&with_bytes(99, b"whatever").unwrap());
        assert_eq!(
            inbox.next_from_command().unwrap(),
            Some(FromCommand::Unknown)
        );
    }

    #[test]
    fn request_of_a_newer_host_keeps_what_this_agent_knows() {
        let newer = br#"{"argv":["id"],"colour":"red"}"#;
        let mut inbox = Inbox::default();
        inbox.push(&with_bytes(kind::REQUEST, newer).unwrap());
        let expected = ExecRequest {
            argv: vec!["id".into()],
            ..ExecRequest::default()
        };
        assert_eq!(
            inbox.next_to_command().unwrap(),
            Some(ToCommand::Request(Box::new(expected)))
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_are_not_kept(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut inbox = Inbox::default();
            for chunk in chunks {
                inbox.push(&chunk);
                while let Ok(Some(_)) = inbox.next_from_command() {}
                if inbox.next_from_command().is_err() {
                    break;
                }
                prop_assert!(inbox.bytes.len() <= MAX_FRAME_BYTES + 200);
            }
        }
    }
}
