//! The agent's ends of a command's standard input, output and error. None of them ever blocks.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use wire::Stream;
use wire::exec::{MAX_DATA_BYTES, WindowSize};

use super::child::Given;
use crate::container::{enter, output_pipe};
use crate::poller::{ExecPart, Poller, Readiness, Token};

/// Ctrl-D: a terminal's end of input (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;
/// What a terminal can hold when its command has ended: the kernel's limit for its buffers
/// (`TTYB_DEFAULT_MEM_LIMIT` of `drivers/tty/tty_buffer.c`), and some.
const TERMINAL_BYTES: usize = 1 << 20;

/// See the module documentation.
pub struct Stdio {
    kind: Kind,
    /// Input that was not taken yet.
    held: Vec<u8>,
    input_over: bool,
    /// What may still be read of each output, once the command has ended: others may hold on to the other end and write
    /// for ever.
    left: Option<[usize; 2]>,
}

enum Kind {
    Pipes {
        input: Option<End>,
        outputs: [Option<End>; 2],
    },
    /// Not there yet, or gone.
    Terminal(Option<End>),
}

struct End {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
}

impl End {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            readable: true,
            writable: true,
        }
    }
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(Stream, usize),
    Nothing,
}

impl Stdio {
    /// Pipes, and the other ends of them.
    pub fn pipes(with_input: bool, (id, poller): (u32, &Poller)) -> io::Result<(Self, Given)> {
        let failed = |error: crate::attempt::SetupError| io::Error::other(error);
        let (input, our_input) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&our_input, true)?;
        let (our_output, output) = output_pipe().map_err(failed)?;
        let (our_error, error) = output_pipe().map_err(failed)?;
        poller.watch_edge(&our_output, Token::Exec(id, ExecPart::Stdout))?;
        poller.watch_edge(&our_error, Token::Exec(id, ExecPart::Stderr))?;
        // Without input it finds an end at once.
        let our_input = with_input.then_some(our_input);
        if let Some(our_input) = &our_input {
            poller.watch_edge(our_input, Token::Exec(id, ExecPart::Stdin))?;
        }
        let ours = Self {
            kind: Kind::Pipes {
                input: our_input.map(End::new),
                outputs: [Some(End::new(our_output)), Some(End::new(our_error))],
            },
            held: Vec::new(),
            input_over: !with_input,
            left: None,
        };
        let theirs = Given::Pipes {
            input,
            output,
            error,
        };
        Ok((ours, theirs))
    }

    /// A terminal, which comes with [`Stdio::set_terminal`].
    pub fn terminal() -> Self {
        Self {
            kind: Kind::Terminal(None),
            held: Vec::new(),
            input_over: false,
            left: None,
        }
    }

    pub fn set_terminal(&mut self, fd: OwnedFd, (id, poller): (u32, &Poller)) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        poller.watch_edge(&fd, Token::Exec(id, ExecPart::Stdout))?;
        self.kind = Kind::Terminal(Some(End::new(fd)));
        Ok(())
    }

    pub fn note(&mut self, part: ExecPart, readiness: Readiness) {
        let end = match (&mut self.kind, part) {
            (Kind::Pipes { input, .. }, ExecPart::Stdin) => input,
            (Kind::Pipes { outputs, .. }, ExecPart::Stderr) => &mut outputs[1],
            (Kind::Pipes { outputs, .. }, _) => &mut outputs[0],
            (Kind::Terminal(end), _) => end,
        };
        if let Some(end) = end {
            end.readable |= readiness.readable;
            end.writable |= readiness.writable;
        }
    }

    pub fn resize(&self, size: WindowSize) {
        if let Kind::Terminal(Some(end)) = &self.kind {
            // It fails only when the terminal is gone.
            let _ = enter::set_size(&end.fd, size);
        }
    }

    fn input(&mut self) -> Option<&mut End> {
        match &mut self.kind {
            Kind::Pipes { input, .. } => input.as_mut(),
            Kind::Terminal(end) => end.as_mut(),
        }
    }

    /// Takes input, as much of it as one frame has.
    pub fn give(&mut self, bytes: &[u8]) {
        if !self.input_over {
            self.held.extend_from_slice(bytes);
            self.send_held();
        }
    }

    /// No more will come.
    pub fn close_input(&mut self) {
        if matches!(self.kind, Kind::Terminal(_)) {
            // Twice: the first may only end a line that was begun.
            self.give(&[END_OF_INPUT; 2]);
        }
        self.input_over = true;
        self.send_held();
    }

    /// Whether input waits that the command does not take.
    pub fn is_full(&self) -> bool {
        !self.held.is_empty()
    }

    /// Passes on what is held, as far as it is taken.
    pub fn send_held(&mut self) {
        while !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let Some(end) = self.input() else {
                // The terminal is still to come, or nobody will ever read this.
                if matches!(self.kind, Kind::Terminal(None)) && self.left.is_none() {
                    self.held = held;
                }
                return;
            };
            let written = match end.writable {
                true => rustix::io::write(&end.fd, &held),
                false => Err(Errno::AGAIN),
            };
            match written {
                Ok(count) if count == held.len() => {}
                Ok(count) => self.held = held[count..].to_vec(),
                Err(Errno::INTR) => self.held = held,
                Err(Errno::AGAIN) => {
                    end.writable = false;
                    self.held = held;
                    return;
                }
                // It reads no more; output may well go on.
                Err(_) => self.lose_input(),
            }
        }
        if self.input_over
            && let Kind::Pipes { input, .. } = &mut self.kind
        {
            *input = None;
        }
    }

    fn lose_input(&mut self) {
        self.input_over = true;
        if let Kind::Pipes { input, .. } = &mut self.kind {
            *input = None;
        }
    }

    /// Reads from whichever output has something, the one that is asked first taking turns.
    pub fn read(&mut self, buffer: &mut [u8], error_first: bool) -> Read {
        let order = if error_first { [1, 0] } else { [0, 1] };
        for index in order {
            let count = self.read_from(index, buffer);
            if count > 0 {
                let stream = [Stream::Stdout, Stream::Stderr][index];
                return Read::Bytes(stream, count);
            }
        }
        Read::Nothing
    }

    fn read_from(&mut self, index: usize, buffer: &mut [u8]) -> usize {
        let left = self.left.map_or(usize::MAX, |left| left[index]);
        // One without a reader on the other end fails to be read, and may get one again.
        let may_come_back = matches!(self.kind, Kind::Terminal(_)) && self.left.is_none();
        let slot = match (&mut self.kind, index) {
            (Kind::Pipes { outputs, .. }, index) => &mut outputs[index],
            (Kind::Terminal(end), 0) => end,
            (Kind::Terminal(_), _) => return 0,
        };
        let Some(end) = slot.as_mut().filter(|end| end.readable && left > 0) else {
            return 0;
        };
        let limit = buffer.len().min(MAX_DATA_BYTES).min(left);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&end.fd, &mut buffer[..limit]));
        match read {
            Ok(count) if count > 0 => {
                if let Some(left) = &mut self.left {
                    left[index] -= count;
                }
                count
            }
            Err(Errno::AGAIN) => {
                end.readable = false;
                0
            }
            Err(Errno::IO) if may_come_back => {
                end.readable = false;
                0
            }
            // The end, and a pipe cannot fail in any other way.
            Ok(_) | Err(_) => {
                *slot = None;
                0
            }
        }
    }

    /// The command has ended: what it wrote before is what is left to be read.
    pub fn finish(&mut self) {
        let waiting = |end: &Option<End>| {
            let count = end
                .as_ref()
                .map_or(Ok(0), |end| rustix::io::ioctl_fionread(&end.fd));
            usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX)
        };
        let left = match &mut self.kind {
            Kind::Pipes { outputs, input } => {
                *input = None;
                for end in outputs.iter_mut().flatten() {
                    end.readable = true;
                }
                [waiting(&outputs[0]), waiting(&outputs[1])]
            }
            // How much is on its way to a terminal's reader nobody tells.
            Kind::Terminal(end) => {
                if let Some(end) = end {
                    end.readable = true;
                }
                [TERMINAL_BYTES, 0]
            }
        };
        self.held = Vec::new();
        self.input_over = true;
        self.left = Some(left);
    }
}
