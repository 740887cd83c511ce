//! One command: a stream from the host, a process, and the bytes between them.
//!
//! Memory is bounded in both directions. Output is read only when the frame before it was sent, so a command that
//! writes faster than the operator reads waits in its own `write`. Frames of the host are taken only when the input of
//! the one before was taken, so an operator that sends faster than the command reads waits, too.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use rustix::process::Pid;
use wire::Exit;
use wire::exec::{
    CANNOT_START, ExecEnd, ExecRequest, FromCommand, Inbox, MAX_DATA_BYTES, ToCommand, output_head,
};

use super::Around;
use super::child::{Child, Given, News};
use super::stdio::{Read, Stdio};
use crate::poller::{ExecPart, Poller, Readiness, Token};

/// How long a stream may be open without a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a command may go on after it was told that the operator has gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);
/// How long the host may take to close a stream on which everything was said.
const FAREWELL: Duration = Duration::from_secs(5);
/// Steps before another command gets its turn.
const STEPS_PER_TURN: usize = 32;
/// Of a terminal, when nobody says. As other container tools have it.
const DEFAULT_TERM: &str = "TERM=xterm";

/// Bytes of one read, with the head of a frame before them.
pub const BUFFER_BYTES: usize = HEAD_BYTES + MAX_DATA_BYTES;
const HEAD_BYTES: usize = 5;

/// See the module documentation.
pub struct Exec {
    id: u32,
    /// `None` when the operator has gone.
    client: Option<OwnedFd>,
    ready: Readiness,
    inbox: Inbox,
    /// Sent in part; at most one frame.
    outbox: Vec<u8>,
    step: Step,
    deadline: Option<Instant>,
}

enum Step {
    /// The request is still to come.
    Asking,
    Running(Box<Live>),
    /// Everything was said.
    Closing,
    /// To be forgotten.
    Over,
}

struct Live {
    child: Child,
    stdio: Stdio,
    /// How it ended; told behind its last output.
    end: Option<ExecEnd>,
    error_first: bool,
    killed: bool,
}

/// How far [`Exec::advance`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Until everything would block.
    All,
    /// Until its turn was used up.
    Turn,
}

impl Exec {
    pub fn new(id: u32, client: OwnedFd, poller: &Poller, now: Instant) -> io::Result<Self> {
        poller
            .watch_edge(&client, Token::Exec(id, ExecPart::Client))
            .or_else(|_| poller.watch_edge_as(&client, Token::Exec(id, ExecPart::Client)))?;
        Ok(Self {
            id,
            client: Some(client),
            ready: Readiness {
                readable: true,
                writable: true,
                ended: false,
            },
            inbox: Inbox::default(),
            outbox: Vec::new(),
            step: Step::Asking,
            deadline: Some(now + REQUEST_LIMIT),
        })
    }

    pub fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    pub fn is_running(&self) -> bool {
        matches!(self.step, Step::Running(_))
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub fn note(&mut self, part: ExecPart, readiness: Readiness, poller: &Poller) {
        match (part, &mut self.step) {
            (ExecPart::Client, _) => {
                self.ready.readable |= readiness.readable;
                self.ready.writable |= readiness.writable;
            }
            (ExecPart::Channel, Step::Running(live)) => {
                let news = live.child.on_channel();
                self.on_news(news, poller);
            }
            (_, Step::Running(live)) => live.stdio.note(part, readiness),
            (_, _) => {}
        }
    }

    pub fn on_reaped(&mut self, pid: Pid, exit: Exit, poller: &Poller) {
        if let Step::Running(live) = &mut self.step {
            let news = live.child.on_reaped(pid, exit);
            self.on_news(news, poller);
        }
    }

    fn on_news(&mut self, news: Vec<News>, poller: &Poller) {
        let (id, gone) = (self.id, self.client.is_none());
        let Step::Running(live) = &mut self.step else {
            return;
        };
        for news in news {
            match news {
                News::Terminal(_) if gone => {}
                // The command ends for want of a terminal, and says so itself.
                News::Terminal(fd) => drop(live.stdio.set_terminal(fd, (id, poller))),
                News::Ended(end) => {
                    live.stdio.finish();
                    live.end = Some(end);
                }
            }
        }
        if gone && live.end.is_some() {
            self.step = Step::Over;
        }
    }

    pub fn on_time(&mut self, now: Instant) {
        if self.deadline.is_none_or(|at| now < at) {
            return;
        }
        self.deadline = None;
        match &mut self.step {
            Step::Asking | Step::Closing => self.step = Step::Over,
            Step::Running(live) => {
                live.killed = true;
                live.child.kill();
            }
            Step::Over => {}
        }
    }

    /// The container has ended, and takes this with it.
    pub fn kill(&mut self) {
        if let Step::Running(live) = &mut self.step {
            live.killed = true;
            live.child.kill();
        }
    }

    /// Moves what can be moved.
    pub fn advance(&mut self, around: &Around<'_>, buffer: &mut [u8], now: Instant) -> Moved {
        for _ in 0..STEPS_PER_TURN {
            self.flush(now);
            let sent = self.outbox.is_empty() && self.send_output(buffer, now);
            let taken = self.take(around, buffer, now);
            if self.client.is_none() || self.is_over() || !(sent || taken) {
                return Moved::All;
            }
        }
        Moved::Turn
    }

    fn flush(&mut self, now: Instant) {
        while !self.outbox.is_empty() {
            match self.send_bytes(0, now) {
                0 => return,
                sent => drop(self.outbox.drain(..sent)),
            }
        }
        self.outbox = Vec::new(); // gives the memory back
    }

    /// Sends from the outbox; 0 when nothing can be sent now.
    fn send_bytes(&mut self, from: usize, now: Instant) -> usize {
        let (Some(client), true) = (&self.client, self.ready.writable) else {
            return 0;
        };
        let bytes = &self.outbox[from..];
        match rustix::io::retry_on_intr(|| rustix::net::send(client, bytes, SendFlags::NOSIGNAL)) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => {
                self.ready.writable = false;
                0
            }
            Err(_) => {
                self.hang_up(now);
                0
            }
        }
    }

    /// One frame of output, or the end behind the last. Whether there was one.
    fn send_output(&mut self, buffer: &mut [u8], now: Instant) -> bool {
        let Step::Running(live) = &mut self.step else {
            return false;
        };
        if !self.ready.writable {
            return false;
        }
        match live.stdio.read(&mut buffer[HEAD_BYTES..], live.error_first) {
            Read::Bytes(stream, count) => {
                live.error_first = stream == wire::Stream::Stdout;
                buffer[..HEAD_BYTES].copy_from_slice(&output_head(stream, count));
                self.outbox.extend_from_slice(&buffer[..HEAD_BYTES + count]);
                self.flush(now);
                true
            }
            Read::Nothing => match live.end.take() {
                Some(end) => {
                    self.say_end(end, now);
                    true
                }
                None => false,
            },
        }
    }

    /// Says how it ended, and that nothing follows.
    fn say_end(&mut self, mut end: ExecEnd, now: Instant) {
        // What cannot be sent is a text of the container's that was too long when escaped.
        let frame = FromCommand::End(end.clone()).encode().or_else(|_| {
            end.message = None;
            FromCommand::End(end).encode()
        });
        self.outbox.extend(frame.unwrap_or_default());
        self.step = Step::Closing;
        // An operator that still reads is waited for.
        self.deadline = None;
        self.flush(now);
    }

    /// Takes what the host sends. Whether there was something.
    fn take(&mut self, around: &Around<'_>, buffer: &mut [u8], now: Instant) -> bool {
        if let Step::Running(live) = &mut self.step {
            live.stdio.send_held();
            if live.stdio.is_full() {
                self.look_for_the_end(now);
                return false;
            }
        }
        if matches!(self.step, Step::Closing) && self.outbox.is_empty() {
            self.say_goodbye();
            self.deadline.get_or_insert(now + FAREWELL);
        }
        match self.inbox.next_to_command() {
            Ok(Some(frame)) => {
                self.on_frame(frame, around, now);
                true
            }
            Ok(None) => self.receive(buffer, now),
            // No host of ours says such a thing.
            Err(_) => {
                self.hang_up(now);
                false
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8], now: Instant) -> bool {
        let (Some(client), true) = (&self.client, self.ready.readable) else {
            return false;
        };
        match rustix::io::retry_on_intr(|| rustix::io::read(client, &mut *buffer)) {
            Ok(count) if count > 0 => {
                self.inbox.push(&buffer[..count]);
                true
            }
            Err(Errno::AGAIN) => {
                self.ready.readable = false;
                false
            }
            Ok(_) | Err(_) => {
                self.hang_up(now);
                false
            }
        }
    }

    /// An operator that has gone is noticed although its last bytes cannot be taken. An empty send asks without
    /// sending.
    fn look_for_the_end(&mut self, now: Instant) {
        let Some(client) = &self.client else { return };
        match rustix::net::send(client, &[], SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.hang_up(now),
        }
    }

    fn on_frame(&mut self, frame: ToCommand, around: &Around<'_>, now: Instant) {
        match (frame, &mut self.step) {
            (ToCommand::Request(request), Step::Asking) => self.start(&request, around, now),
            (ToCommand::Stdin(bytes), Step::Running(live)) => live.stdio.give(&bytes),
            (ToCommand::CloseStdin, Step::Running(live)) => live.stdio.close_input(),
            (ToCommand::Resize(size), Step::Running(live)) => live.stdio.resize(size),
            // Behind the end, or of a newer host.
            (_, Step::Running(_) | Step::Closing | Step::Over) | (ToCommand::Unknown, _) => {}
            (_, Step::Asking) => self.hang_up(now),
        }
    }

    fn start(&mut self, request: &ExecRequest, around: &Around<'_>, now: Instant) {
        match self.spawn(request, around) {
            Ok(live) => {
                self.deadline = None;
                self.step = Step::Running(Box::new(live));
            }
            Err(message) => self.say_end(ExecEnd::failed(CANNOT_START, message), now),
        }
    }

    fn spawn(&self, request: &ExecRequest, around: &Around<'_>) -> Result<Live, String> {
        around.may_start()?;
        if request.argv.is_empty() {
            return Err("There is no command to execute".into());
        }
        let place = around.place.as_ref().map_err(|why| (*why).to_owned())?;
        let hostname = around.hostname.clone()?.to_owned();
        let mut spec = place.spec.clone();
        spec.argv.clone_from(&request.argv);
        if request.terminal.is_some() && !spec.env.iter().any(|entry| entry.starts_with("TERM=")) {
            spec.env.push(DEFAULT_TERM.into());
        }
        spec.env.extend(request.env.iter().cloned());
        if let Some(user) = &request.user {
            spec.user.clone_from(user);
        }
        if let Some(directory) = &request.working_dir {
            spec.working_dir.clone_from(directory);
        }
        let at = (self.id, around.poller);
        let spawn = || {
            let (stdio, given) = match request.terminal {
                Some(_) => (Stdio::terminal(), Given::Terminal),
                None => Stdio::pipes(request.stdin, at)?,
            };
            let order = (spec, hostname, request.terminal);
            let child = Child::spawn(*place, &order, given, at)?;
            Ok::<_, io::Error>(Live {
                child,
                stdio,
                end: None,
                error_first: false,
                killed: false,
            })
        };
        spawn().map_err(|error| format!("The agent cannot start a process: {error}"))
    }

    fn say_goodbye(&self) {
        if let Some(client) = &self.client {
            // Again on every call, which does no harm.
            let _ = rustix::net::shutdown(client, Shutdown::Write);
        }
    }

    /// The operator has gone: the command is told, and gets a moment.
    fn hang_up(&mut self, now: Instant) {
        self.client = None;
        self.outbox = Vec::new();
        self.inbox = Inbox::default();
        match &mut self.step {
            Step::Running(live) if live.end.is_none() && !live.child.is_over() => {
                // Closing a terminal hangs up whoever is in front of it, and a pipe's writer learns it, too.
                live.stdio = Stdio::terminal();
                live.child.hang_up();
                if !live.killed {
                    self.deadline = Some(now + HANG_UP_GRACE);
                }
            }
            _ => self.step = Step::Over,
        }
    }
}
