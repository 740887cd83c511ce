//! SIGTERM, SIGINT and SIGHUP as bytes in sockets, so that `poll` sees them.
//!
//! SIGTERM is what a service manager sends, also when it only starts the service anew: another appliance is expected. SIGINT and SIGHUP
//! come from a terminal, and who sits there wants an end of everything.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::protocol::Ending;

/// The read ends. Handlers stay for the life of the process.
#[derive(Debug)]
pub struct Signals {
    stop: UnixStream,
    detach: UnixStream,
}

impl Signals {
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            stop: caught(&[SIGINT, SIGHUP])?,
            detach: caught(&[SIGTERM])?,
        })
    }

    pub fn fd(&self, how: Ending) -> BorrowedFd<'_> {
        match how {
            Ending::Stop => self.stop.as_fd(),
            Ending::Detach => self.detach.as_fd(),
        }
    }

    /// How many of one meaning came since the last call.
    pub fn take(&mut self, how: Ending) -> usize {
        let stream = match how {
            Ending::Stop => &mut self.stop,
            Ending::Detach => &mut self.detach,
        };
        let mut bytes = [0; 64];
        stream.read(&mut bytes).unwrap_or(0)
    }
}

fn caught(signals: &[i32]) -> io::Result<UnixStream> {
    let (stream, writer) = UnixStream::pair()?;
    stream.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(stream)
}
