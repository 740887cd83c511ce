//! The process of a command: how it starts, and how it is ended.
//!
//! The agent starts a helper ([`crate::container::enter`]) and never waits for it: whatever the container has put in its
//! way holds up this one command. The helper of an isolated container leaves a child behind, which becomes the
//! command, and the agent reaps it as it reaps every orphan.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use wire::Exit;
use wire::exec::{CANNOT_START, ExecEnd};

use crate::cli::ENTER_ARGUMENT;
use crate::container::{Place, enter, passing};
use crate::poller::{ExecPart, Poller, Token};

/// A failure text longer than this is cut.
const MAX_FAILURE_BYTES: usize = 8 << 10;
/// Read from the helper in one call.
const CHUNK: usize = 4096;

/// The processes of one command.
pub struct Child {
    /// Our own child, with a number that cannot be another's until it is reaped.
    helper: Pid,
    /// The command; the helper itself when there is no namespace to fork into.
    command: Option<Pid>,
    isolated: bool,
    /// `None` when nothing more is to be heard.
    channel: Option<UnixStream>,
    /// What the helper is still to be told.
    orders: Vec<u8>,
    step: Step,
}

enum Step {
    /// The helper is on its way.
    Entering,
    /// It has left a child in the container.
    Forked,
    /// It said why there will be no command; the text may go on.
    Failing {
        code: u8,
        text: Vec<u8>,
    },
    Running,
    Over,
}

/// What has become of a command.
#[derive(Debug)]
pub enum News {
    /// The agent's end of its terminal.
    Terminal(OwnedFd),
    Ended(ExecEnd),
}

/// The descriptors that a command is to have.
pub enum Given {
    Pipes {
        input: OwnedFd,
        output: OwnedFd,
        error: OwnedFd,
    },
    /// It makes a terminal itself.
    Terminal,
}

impl Child {
    /// Starts the helper.
    pub fn spawn(
        place: Place<'_>,
        order: &enter::Order,
        given: Given,
        (id, poller): (u32, &Poller),
    ) -> io::Result<Self> {
        let orders = wire::frame::encode(order).map_err(io::Error::other)?;
        let (channel, theirs) = UnixStream::pair()?;
        channel.set_nonblocking(true)?;
        poller.watch_edge(&channel, Token::Exec(id, ExecPart::Channel))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(ENTER_ARGUMENT)
            .args(place.options.arguments())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut passed = Vec::new();
        let input = match given {
            Given::Terminal => None,
            Given::Pipes {
                input,
                output,
                error,
            } => {
                command.stdout(output).stderr(error);
                Some(input)
            }
        };
        passed.extend(input.as_ref().map(AsFd::as_fd));
        if place.options.isolate {
            passed.push(place.process);
        }
        // One byte into an empty socket.
        passing::send(&channel, 0, &passed)?;
        let helper = Pid::from_child(&command.spawn()?);
        Ok(Self {
            helper,
            command: None,
            isolated: place.options.isolate,
            channel: Some(channel),
            orders,
            step: Step::Entering,
        })
    }

    /// The helper can be told more, or says something.
    pub fn on_channel(&mut self) -> Vec<News> {
        self.send_orders();
        let mut news = Vec::new();
        loop {
            let Some(channel) = &self.channel else {
                return news;
            };
            let mut chunk = [0; CHUNK];
            match passing::receive(channel, &mut chunk) {
                Ok((0, _)) => {
                    self.channel = None;
                    news.extend(self.on_end());
                }
                Ok((count, descriptors)) => {
                    let mut descriptors = descriptors.into_iter();
                    for &byte in &chunk[..count] {
                        news.extend(self.on_byte(byte, &mut descriptors));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                Err(_) => self.channel = None,
            }
        }
    }

    fn send_orders(&mut self) {
        while let (Some(channel), false) = (&self.channel, self.orders.is_empty()) {
            match rustix::net::send(channel, &self.orders, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.orders.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It has ended, and the reaper says so.
                Err(_) => self.orders.clear(),
            }
        }
        self.orders = Vec::new();
    }

    fn on_byte(
        &mut self,
        byte: u8,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Option<News> {
        match (&mut self.step, byte) {
            (Step::Entering, enter::TERMINAL) => return descriptors.next().map(News::Terminal),
            (Step::Entering, enter::FORKED) => {
                self.step = Step::Forked;
                // Asked of the kernel: from here on the container's root may speak through this socket.
                self.command = child_of(self.helper);
                if let Some(channel) = &self.channel {
                    // The helper waits for this, so that it can be asked for its child.
                    let _ = rustix::net::shutdown(channel, Shutdown::Write);
                }
            }
            (Step::Entering | Step::Forked, code) => {
                self.step = Step::Failing {
                    code: code.max(CANNOT_START),
                    text: Vec::new(),
                };
            }
            (Step::Failing { text, .. }, byte) => {
                text.push(byte);
                if text.len() == MAX_FAILURE_BYTES {
                    self.channel = None;
                    return self.on_end();
                }
            }
            (Step::Running | Step::Over, _) => {}
        }
        None
    }

    /// The socket is closed: by `exec`, or because nobody is left.
    fn on_end(&mut self) -> Option<News> {
        match &mut self.step {
            Step::Entering if !self.isolated => {
                self.command = Some(self.helper);
                self.step = Step::Running;
                None
            }
            Step::Entering => Some(self.over(lost())),
            Step::Forked => {
                self.step = Step::Running;
                None
            }
            Step::Failing { code, text } => {
                let end = ExecEnd::failed(*code, String::from_utf8_lossy(text));
                Some(self.over(end))
            }
            Step::Running | Step::Over => None,
        }
    }

    fn over(&mut self, end: ExecEnd) -> News {
        self.step = Step::Over;
        News::Ended(end)
    }

    /// A child of the agent ended. Whether it was one of this command's, and what that means.
    pub fn on_reaped(&mut self, pid: Pid, exit: Exit) -> Vec<News> {
        let (is_helper, is_command) = (pid == self.helper, Some(pid) == self.command);
        if !is_helper && !is_command {
            return Vec::new();
        }
        // What it said before comes first.
        let mut news = self.on_channel();
        let ended = matches!(self.step, Step::Over);
        if Some(pid) == self.command && !ended {
            // A failure whose text is cut off by the container is a failure all the same.
            let end = match &self.step {
                Step::Failing { code, text } => {
                    ExecEnd::failed(*code, String::from_utf8_lossy(text))
                }
                _ => ExecEnd::of(exit),
            };
            news.push(self.over(end));
        } else if is_helper && self.command.is_none() && !ended {
            news.push(self.over(lost()));
        }
        if Some(pid) == self.command {
            // Its number may be another's from now on.
            self.command = None;
        }
        news
    }

    /// Whether no process of it is left that the agent knows.
    pub fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// Tells it, as a terminal would, that nobody is there any more.
    pub fn hang_up(&self) {
        match self.command {
            Some(command) => {
                signal(command, Signal::HUP);
                // One that was stopped could not end.
                signal(command, Signal::CONT);
            }
            None => self.kill(),
        }
    }

    /// Ends it, and everything that is still in its process group.
    pub fn kill(&self) {
        match self.command {
            Some(command) => signal(command, Signal::KILL),
            None if !self.is_over() => signal(self.helper, Signal::KILL),
            None => {}
        }
    }
}

/// The group does not exist before the command has made it, and then it is the process alone.
fn signal(process: Pid, signal: Signal) {
    if kill_process_group(process, signal).is_err() {
        let _ = kill_process(process, signal);
    }
}

fn lost() -> ExecEnd {
    ExecEnd::failed(
        CANNOT_START,
        "The command's process ended before it had started",
    )
}

fn child_of(process: Pid) -> Option<Pid> {
    let pid = process.as_raw_pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().next()?.parse().ok()?;
    Pid::from_raw(child)
}
