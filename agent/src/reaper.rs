//! The one owner of `waitpid`.
//!
//! A `SIGCHLD` becomes a byte in a socket pair that the loop watches; the loop then takes every
//! child that has ended. PID 1 so reaps orphans of any depth; an ordinary process declares itself
//! their subreaper.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use wire::Exit;

/// A signal as something to read.
pub struct SignalPipe(UnixStream);

impl SignalPipe {
    /// Collects the given signals, see `libc::SIG*`.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        for &signal in signals {
            // The handler does one `send` that never blocks: a full pipe has woken the loop.
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self(reader))
    }

    /// Empties the pipe, so that the next signal wakes the loop again. Answers whether there was one.
    pub fn clear(&mut self) -> bool {
        let mut bytes = [0; 64];
        let mut any = false;
        while matches!(self.0.read(&mut bytes), Ok(n) if n > 0) {
            any = true;
        }
        any
    }
}

impl AsFd for SignalPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What one look for ended children found.
pub enum Reaped {
    /// This child ended; look again.
    Child(Pid, Exit),
    /// The rest still runs.
    NoneEnded,
    /// There is no child left.
    NoChildren,
}

/// Takes one child that has ended.
pub fn reap() -> io::Result<Reaped> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Some(exit) = exit_of(status) {
                    return Ok(Reaped::Child(pid, exit));
                }
            }
            Ok(None) => return Ok(Reaped::NoneEnded),
            Err(Errno::CHILD) => return Ok(Reaped::NoChildren),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `None` for a child that only stopped or continued.
fn exit_of(status: WaitStatus) -> Option<Exit> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Exit::Code(code)),
        (None, Some(signal)) => Some(Exit::Signal(signal)),
        (None, None) => None,
    }
}

/// Kills every child of this process. Their orphans become our children in turn: call it again
/// whenever one was reaped.
pub fn kill_children() {
    let Ok(children) = std::fs::read_to_string("/proc/thread-self/children") else {
        return; // A kernel without CONFIG_PROC_CHILDREN: only the process group is killed.
    };
    for pid in children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
    {
        if let Some(pid) = Pid::from_raw(pid) {
            // A child that ended meanwhile is a zombie until the loop reaps it, so its number is
            // not somebody else's yet.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
