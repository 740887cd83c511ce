//! A frame: four bytes of length (little endian), then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest body of a frame. A longer one is refused before anything is allocated for it.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the stream between two frames.
    #[error("The peer closed the stream")]
    Closed,
    /// The length field promises more than [`MAX_FRAME_BYTES`].
    #[error("A frame of {length} bytes is longer than the limit of {MAX_FRAME_BYTES}")]
    TooLong {
        /// What the length field said, or how long the message turned out to be.
        length: usize,
    },
    /// The body is not a message of the expected kind.
    #[error("A frame of {length} bytes does not hold a known message")]
    Malformed {
        /// Length of the body.
        length: usize,
        /// What the decoder did not like.
        source: serde_json::Error,
    },
    /// The stream failed, or ended inside a frame.
    #[error("Cannot read or write a frame")]
    Stream(#[source] io::Error),
}

/// Decodes a body that was read by other means (for example by an asynchronous reader).
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(body).map_err(|source| FrameError::Malformed {
        length: body.len(),
        source,
    })
}

/// Checks a length field before anything is allocated for the body.
pub fn checked_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        Err(FrameError::TooLong { length })
    } else {
        Ok(length)
    }
}

/// A whole frame, ready to be written in one call.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|source| FrameError::Malformed {
        length: frame.len(),
        source,
    })?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME_BYTES => {
            frame[..4].copy_from_slice(&prefix.to_le_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::TooLong { length }),
    }
}

/// Reads one frame and waits for it.
pub fn read_frame<M: DeserializeOwned>(stream: &mut impl Read) -> Result<M, FrameError> {
    let mut prefix = [0; 4];
    let mut got = 0;
    while got < prefix.len() {
        match stream.read(&mut prefix[got..]) {
            Ok(0) if got == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(FrameError::Stream(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Stream(error)),
        }
    }
    let mut body = vec![0; checked_length(prefix)?];
    stream.read_exact(&mut body).map_err(FrameError::Stream)?;
    decode(&body)
}

/// Writes one frame.
pub fn write_frame<M: Serialize>(stream: &mut impl Write, message: &M) -> Result<(), FrameError> {
    stream
        .write_all(&encode(message)?)
        .map_err(FrameError::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Exit, GuestMessage, Stream};
    use proptest::prelude::*;

    #[test]
    fn message_written_and_read_back_is_the_same() {
        let message = GuestMessage::Output {
            stream: Stream::Stderr,
            line: "π\u{0}\n".into(),
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &message).unwrap();
        assert_eq!(
            read_frame::<GuestMessage>(&mut bytes.as_slice()).unwrap(),
            message
        );
    }

    #[test]
    fn length_above_the_limit_is_refused_before_the_body_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        let error = read_frame::<GuestMessage>(&mut bytes.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { length } if length == u32::MAX as usize));
    }

    #[test]
    fn message_above_the_limit_is_refused_by_the_writer() {
        let message = GuestMessage::Output {
            stream: Stream::Stdout,
            line: "x".repeat(MAX_FRAME_BYTES),
        };
        assert!(matches!(encode(&message), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn stream_that_ends_between_frames_is_closed_and_inside_one_is_an_error() {
        let whole = encode(&GuestMessage::Exited(Exit::Code(3).into())).unwrap();
        for cut in 0..whole.len() {
            let error = read_frame::<GuestMessage>(&mut &whole[..cut]).unwrap_err();
            assert_eq!(
                matches!(error, FrameError::Closed),
                cut == 0,
                "cut at {cut}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = read_frame::<GuestMessage>(&mut bytes.as_slice());
        }
    }
}
