//! Keeps the bytes of the current request as they came off the wire.
//!
//! An HTTP library lower-cases header names and forgets white space. A test that asks whether a
//! proxy changed anything needs what was really sent: `/raw` answers with it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// More than any request head that the server accepts; what follows is dropped.
const LIMIT: usize = 64 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection that remembers what was read since the last answer began.
pub struct Recorder {
    stream: TcpStream,
    recording: Recording,
}

#[derive(Clone, Default)]
pub struct Recording(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    bytes: Vec<u8>,
    /// The next byte that arrives belongs to a new request.
    answered: bool,
}

impl Recorder {
    pub fn new(stream: TcpStream) -> (Self, Recording) {
        let recording = Recording::default();
        (
            Self {
                stream,
                recording: recording.clone(),
            },
            recording,
        )
    }
}

impl Recording {
    /// The head of the current request, its last empty line included.
    pub fn head(&self) -> Bytes {
        self.with(|recorded| {
            let bytes = &recorded.bytes;
            let end = bytes
                .windows(END_OF_HEAD.len())
                .position(|window| window == END_OF_HEAD);
            Bytes::copy_from_slice(
                &bytes[..end.map_or(bytes.len(), |start| start + END_OF_HEAD.len())],
            )
        })
    }

    fn read(&self, new: &[u8]) {
        self.with(|recorded| {
            if recorded.answered {
                *recorded = Recorded::default();
            }
            let room = LIMIT - recorded.bytes.len();
            recorded
                .bytes
                .extend_from_slice(&new[..new.len().min(room)]);
        });
    }

    fn wrote(&self) {
        self.with(|recorded| recorded.answered = true);
    }

    fn with<T>(&self, f: impl FnOnce(&mut Recorded) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Recorder {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        if !new.is_empty() {
            self.recording.read(new);
        }
        polled
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.recording.wrote();
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.recording.wrote();
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
