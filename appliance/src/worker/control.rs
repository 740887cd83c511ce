//! The host end of a guest's control stream.
//!
//! Everything that arrives was written by a guest and may be hostile: frames are length-checked
//! before anything is allocated, and a stream that breaks the rules is given up.

use std::io::{self, Write as _};
use std::path::PathBuf;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;
use wire::frame::{checked_length, decode, encode};
use wire::{FrameError, GuestMessage, HostMessage};

use super::intake::Intake;

/// The longest answer of the worker's socket, `protocol` in the README.
pub const MAX_ANSWER_BYTES: usize = 32;
const CHUNK: usize = 16 << 10;

/// Why the control stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("Cannot reach the worker's socket")]
    Connect(#[source] io::Error),
    #[error("The control stream failed")]
    Stream(#[source] io::Error),
    #[error("The guest sent a bad frame")]
    Frame(#[source] FrameError),
    #[error("The worker's socket closed before the guest connected")]
    NeverConnected,
    /// The guest closed it or the worker is gone.
    #[error("The control stream closed")]
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `LISTEN` is sent and not answered.
    Waiting,
    Open,
    /// Nothing more will come.
    Lost,
}

/// One control stream. [`Control::next`] may be dropped at any await and called again.
#[derive(Debug)]
pub struct Control {
    socket: PathBuf,
    stream: Option<UnixStream>,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    intake: Intake,
}

impl Control {
    /// Connects to a worker that serves already.
    pub async fn open(socket: PathBuf) -> io::Result<Self> {
        let stream = UnixStream::connect(&socket).await?;
        Ok(Self {
            stream: Some(stream),
            output: greeting().into_bytes(),
            ..Self::new(socket)
        })
    }

    fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            stream: None,
            phase: Phase::Waiting,
            input: Vec::new(),
            output: Vec::new(),
            intake: Intake::new(Instant::now()),
        }
    }

    /// Asks for the stream at once, which the worker need not have begun to serve.
    pub fn connect(socket: PathBuf) -> io::Result<Self> {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
        stream.write_all(greeting().as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Some(UnixStream::from_std(stream)?),
            ..Self::new(socket)
        })
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Queues a message; [`Control::next`] writes it.
    pub fn send(&mut self, message: &HostMessage) -> Result<(), FrameError> {
        self.output.extend_from_slice(&encode(message)?);
        Ok(())
    }

    /// Waits for the guest again after [`ControlError::Closed`].
    pub fn again(&mut self) {
        *self = Self::new(std::mem::take(&mut self.socket));
    }

    /// The next message. After an error it waits for ever, unless told to try [`Control::again`].
    pub async fn next(&mut self) -> Result<GuestMessage, ControlError> {
        if self.phase == Phase::Lost {
            return std::future::pending().await;
        }
        let result = self.advance().await;
        if result.is_err() {
            self.phase = Phase::Lost;
            self.stream = None;
        }
        result
    }

    async fn advance(&mut self) -> Result<GuestMessage, ControlError> {
        if self.stream.is_none() {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(ControlError::Connect)?;
            self.stream = Some(stream);
            self.output.splice(0..0, greeting().into_bytes());
        }
        let Self {
            stream: Some(stream),
            phase,
            input,
            output,
            intake,
            ..
        } = self
        else {
            return Err(ControlError::Closed);
        };
        loop {
            if *phase == Phase::Waiting
                && let Some(end) = input.iter().position(|byte| *byte == b'\n')
            {
                check_answer(&input[..end])?;
                input.drain(..=end);
                *phase = Phase::Open;
            }
            if *phase == Phase::Waiting && input.len() > MAX_ANSWER_BYTES {
                return Err(ControlError::NeverConnected);
            }
            if *phase == Phase::Open
                && let Some(message) = take_frame(input)?
            {
                return Ok(message);
            }
            if let Some(pause) = intake.pause(Instant::now()) {
                // What the host has to say does not wait for that.
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    ready = stream.writable(), if !output.is_empty() => {
                        ready.map_err(ControlError::Stream)?;
                        write_some(stream, output)?;
                    }
                }
                continue;
            }
            let writes = if output.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = stream.ready(writes).await.map_err(ControlError::Stream)?;
            if ready.is_writable() && !output.is_empty() {
                write_some(stream, output)?;
            }
            let read = if ready.is_readable() {
                read_some(stream, input)?
            } else {
                None
            };
            intake.took(read.unwrap_or(0), Instant::now());
            if read == Some(0) {
                return Err(match phase {
                    Phase::Waiting => ControlError::NeverConnected,
                    Phase::Open | Phase::Lost => ControlError::Closed,
                });
            }
        }
    }
}

/// Asks for the guest's next connection to the control port.
fn greeting() -> String {
    format!("LISTEN {}\n", wire::port::CONTROL)
}

fn check_answer(line: &[u8]) -> Result<(), ControlError> {
    match line {
        [b'O', b'K', b' ', ..] if line.len() < MAX_ANSWER_BYTES => Ok(()),
        _ => Err(ControlError::NeverConnected),
    }
}

/// Removes one frame from the front of `input` if it is whole.
fn take_frame(input: &mut Vec<u8>) -> Result<Option<GuestMessage>, ControlError> {
    let Some((prefix, body)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = checked_length(*prefix).map_err(ControlError::Frame)?;
    let Some(body) = body.get(..length) else {
        return Ok(None);
    };
    let message = decode(body).map_err(ControlError::Frame)?;
    input.drain(..4 + length);
    Ok(Some(message))
}

/// Reads what is there; `Some(0)` is the end, `None` means not yet.
fn read_some(stream: &UnixStream, input: &mut Vec<u8>) -> Result<Option<usize>, ControlError> {
    let mut chunk = [0; CHUNK];
    match stream.try_read(&mut chunk) {
        Ok(count) => {
            input.extend_from_slice(&chunk[..count]);
            Ok(Some(count))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(0)),
        Err(error) => Err(ControlError::Stream(error)),
    }
}

fn write_some(stream: &UnixStream, output: &mut Vec<u8>) -> Result<(), ControlError> {
    match stream.try_write(output) {
        Ok(count) => {
            output.drain(..count);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        // The guest's last words may still be readable; the read decides.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            output.clear();
            Ok(())
        }
        Err(error) => Err(ControlError::Stream(error)),
    }
}
