//! SIGTERM, SIGINT and SIGHUP as bytes in a socket, so that `poll` sees them.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The read end. Handlers stay for the life of the process.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
}

impl Signals {
    pub fn catch() -> io::Result<Self> {
        let (stream, writer) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self { stream })
    }

    /// How many came since the last call.
    pub fn take(&mut self) -> usize {
        let mut bytes = [0; 64];
        self.stream.read(&mut bytes).unwrap_or(0)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
