//! What either side may be sent by the other, changed at random: see the crate `fuzz`. A guest is hostile, and a host of another version may
//! say anything new.

use ::fuzz::allocation::within;
use ::fuzz::{Choices, Target};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::exec::{self, ExecEnd, ExecRequest, FromCommand, Inbox, ToCommand, WindowSize};
use wire::frame::{self, FrameError};
use wire::{ContainerSpec, Ending, Exit, GuestMessage, HostMessage, Identity, Stream};

/// Of a run without `CABANA_FUZZ_SECONDS`.
const INPUTS: u64 = 20_000;

/// Parts of messages, and what breaks parsers of JSON.
const WORDS: &[&str] = &[
    "\"type\":",
    "\"renew\"",
    "\"start\"",
    "\"stop\"",
    "\"graceMs\":",
    "\"hello\"",
    "\"output\"",
    "\"exited\"",
    "\"failed\"",
    "\"code\":",
    "\"signal\":",
    "\"seed\":",
    "\"argv\":",
    "null",
    "-1",
    "18446744073709551616",
    "1e999",
    "\"\\ud800\"",
    "{}",
    "[]",
    "[[[[[[[[[[[[[[[[",
    "}",
    ",",
    "\u{0}",
];

/// A reader that gives bytes in pieces of changing length, as a stream does.
struct Pieces<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.length = self.length % 7 + 1;
        let count = self.length.min(buffer.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

/// Reads a body; what can be read means the same when it is said again, and comes through a stream as it is.
fn reads<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) -> bool {
    let length = u32::try_from(body.len()).expect("a short body");
    let framed = [&length.to_le_bytes(), body].concat();
    let through = |length| {
        let mut stream = Pieces {
            bytes: &framed,
            length,
        };
        frame::read_frame::<M>(&mut stream)
    };
    // The parts of a message are owned, and an empty text of three bytes is a value of 24.
    let limit = 64 * body.len() as u64 + (64 << 10);
    match within(limit, || frame::decode::<M>(body)) {
        Ok(message) => {
            let again = frame::encode(&message).expect("what was read can be said");
            let again = frame::decode::<M>(&again[4..]).expect("what was said can be read");
            assert_eq!(again, message);
            let streamed = through(body.len()).expect("the same through a stream");
            assert_eq!(streamed, message);
            true
        }
        Err(error) => {
            assert!(matches!(error, FrameError::Malformed { .. }));
            assert!(through(body.len()).is_err());
            false
        }
    }
}

fn body(message: &impl Serialize) -> Vec<u8> {
    let mut frame = frame::encode(message).expect("a good message");
    frame.split_off(4)
}

#[test]
fn fuzz_messages_of_the_host() {
    let identity = Identity {
        seed: vec![7; Identity::SEED_BYTES],
        unix_time_ns: u64::MAX,
        hostname: "a-b.c".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
    };
    let spec = ContainerSpec {
        argv: vec!["/bin/true".into(), "-x".into()],
        env: vec!["A=b".into()],
        working_dir: "/".into(),
        user: "0:0".into(),
        stop_signal: "SIGTERM".into(),
        target_port: 8080,
    };
    let messages = [
        HostMessage::Renew(Box::new(identity)),
        HostMessage::Continue,
        HostMessage::Start(Box::new(spec)),
        HostMessage::Freeze,
        HostMessage::Stop { grace_ms: 1 },
    ];
    Target::new("messages_of_the_host")
        .seeds(messages.iter().map(body))
        .words(WORDS)
        .run(INPUTS, reads::<HostMessage>);
}

#[test]
fn fuzz_messages_of_the_guest() {
    let messages = [
        GuestMessage::Hello {
            version: 3,
            uptime_us: 1,
        },
        GuestMessage::Renewed,
        GuestMessage::Started { pid: 7 },
        GuestMessage::Ready,
        GuestMessage::Frozen,
        GuestMessage::Output {
            stream: Stream::Stderr,
            line: "a line".into(),
        },
        GuestMessage::Exited(Ending {
            exit: Exit::Signal(9),
            out_of_memory: true,
        }),
        GuestMessage::Failed {
            message: "why".into(),
        },
    ];
    Target::new("messages_of_the_guest")
        .seeds(messages.iter().map(body))
        .words(WORDS)
        .run(INPUTS, reads::<GuestMessage>);
}

/// Frames of a stream that is cut anywhere, either side's: the first byte of an input says where.
fn frames<M: PartialEq + std::fmt::Debug>(
    input: &[u8],
    next: fn(&mut Inbox) -> Result<Option<M>, FrameError>,
) -> bool {
    let mut choices = Choices::new(input);
    let mut length = usize::from(choices.byte()) + 1;
    let bytes = choices.rest();
    let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut inbox = Inbox::default();
        let mut found = Vec::new();
        for piece in pieces {
            inbox.push(piece);
            loop {
                match next(&mut inbox) {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(_) => return (found, false),
                }
            }
        }
        (found, inbox.is_empty())
    };
    let whole = all(&mut std::iter::once(bytes));
    let mut rest = bytes;
    let mut pieces = std::iter::from_fn(|| {
        length = length * 5 % 257;
        let (now, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        (!now.is_empty()).then_some(now)
    });
    assert_eq!(all(&mut pieces).0, whole.0);
    whole.1 && !whole.0.is_empty()
}

#[test]
fn fuzz_frames_to_a_command() {
    let size = WindowSize {
        rows: 24,
        columns: 80,
    };
    let request = ExecRequest {
        argv: vec!["sh".into()],
        terminal: Some(size),
        stdin: true,
        ..ExecRequest::default()
    };
    let frames_of_it = [
        ToCommand::Request(Box::new(request)),
        ToCommand::Stdin(b"input".to_vec()),
        ToCommand::Resize(size),
        ToCommand::CloseStdin,
    ];
    let stream: Vec<u8> = frames_of_it
        .iter()
        .flat_map(|frame| frame.encode().unwrap())
        .collect();
    Target::new("frames_to_a_command")
        .seeds([[&[3], &stream[..]].concat()])
        .words(WORDS)
        .run(INPUTS, |input| frames(input, Inbox::next_to_command));
}

#[test]
fn fuzz_frames_from_a_command() {
    let frames_of_it = [
        FromCommand::Stdout(b"output".to_vec()),
        FromCommand::Stderr(vec![0; 200]),
        FromCommand::End(ExecEnd::failed(exec::CANNOT_START, "why")),
    ];
    let stream: Vec<u8> = frames_of_it
        .iter()
        .flat_map(|frame| frame.encode().unwrap())
        .collect();
    Target::new("frames_from_a_command")
        .seeds([[&[3], &stream[..]].concat()])
        .words(WORDS)
        .run(INPUTS, |input| frames(input, Inbox::next_from_command));
}
