//! The container: one process, from its preparation to its end.
//!
//! The states and their order are in [`Phase`]; what each event means is decided here, what is
//! told to the host in [`crate::supervisor`].

mod command;
pub mod enter;
pub mod exec;
mod freezer;
mod identity;
mod launch;
mod memory;
pub mod passing;
pub mod root;
mod signal;
pub mod stage;
mod user;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use wire::{ContainerSpec, Ending, Exit, Identity, Stream};

use crate::attempt::{Attempt, SetupError, chain};
use crate::cli::StageOptions;
use crate::output::OutputPipe;
use crate::poller::{Poller, Token};
use crate::reaper;
use freezer::Freezer;
use identity::View;

/// A failure text longer than this is cut.
const MAX_FAILURE_BYTES: u64 = 8 << 10;

/// The container and the process that becomes it.
pub struct Container {
    phase: Phase,
    pid: Pid,
    /// To the stage; closed by `exec`.
    channel: UnixStream,
    options: StageOptions,
    /// What it was started with.
    spec: ContainerSpec,
    /// The process itself, whoever has its number; while it runs.
    process: Option<OwnedFd>,
    /// Where an isolated container sees who its guest is; there once it is prepared.
    view: Option<View>,
    /// `None` when it has no control group of its own.
    freezer: Option<Freezer>,
    stop_signal: Signal,
    /// Why it will not start.
    failure: Option<String>,
    stdout: OutputPipe,
    stderr: OutputPipe,
}

/// Where a container runs, and as what.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub options: &'a StageOptions,
    pub spec: &'a ContainerSpec,
    pub process: BorrowedFd<'a>,
}

/// What has happened to it so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The stage makes namespaces and mounts.
    Preparing,
    /// The stage waits to be told what to become.
    Prepared,
    /// The stage was told.
    Starting,
    /// The stage has become the container.
    Running,
    /// It will not start; the process is about to end.
    Failed,
    /// There is no process any more.
    Ended,
}

/// What an event about the container means to the host.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    Started(Pid),
    Failed(String),
    Exited(Ending),
}

impl Container {
    /// Starts the stage.
    pub fn prepare(options: &StageOptions, poller: &Poller) -> Result<Self, SetupError> {
        if let Some(cgroup) = &options.cgroup {
            memory::end_as_one(cgroup)?;
        }
        let (channel, theirs) = UnixStream::pair().attempt(|| "make a socket pair".into())?;
        channel
            .set_nonblocking(true)
            .attempt(|| "make a socket non-blocking".into())?;
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let stdio = [theirs.into(), their_stdout, their_stderr];
        let forked = exec::fork_stage(options.isolate, stdio)
            .attempt(|| "start the process of the container".into());
        let Some(pid) = forked? else {
            stage::run(options);
        };
        let container = Self {
            phase: Phase::Preparing,
            // The reaper waits for it, whichever way it ends.
            pid,
            channel,
            options: options.clone(),
            spec: ContainerSpec::default(),
            process: None,
            view: None,
            freezer: options.cgroup.clone().map(Freezer::new),
            stop_signal: Signal::TERM,
            failure: None,
            stdout: OutputPipe::new(Stream::Stdout, stdout),
            stderr: OutputPipe::new(Stream::Stderr, stderr),
        };
        container
            .watch(poller)
            .attempt(|| "watch the process of the container".into())?;
        Ok(container)
    }

    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.watch_edge(&self.channel, Token::Stage)?;
        self.stdout.watch(poller)?;
        self.stderr.watch(poller)
    }

    /// Whether the stage is still busy with what does not depend on a container.
    pub fn is_preparing(&self) -> bool {
        self.phase == Phase::Preparing
    }

    /// Whether the stage waits, and nothing of a container has run yet.
    pub fn is_prepared(&self) -> bool {
        self.phase == Phase::Prepared
    }

    pub fn is_over(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether there is output to be sent: not before [`News::Started`].
    pub fn has_output(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Ended)
            && (self.stdout.is_readable() || self.stderr.is_readable())
    }

    pub fn is_isolated(&self) -> bool {
        self.options.isolate
    }

    pub fn output(&mut self, stream: Stream) -> &mut OutputPipe {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    pub fn outputs(&mut self) -> [&mut OutputPipe; 2] {
        [&mut self.stdout, &mut self.stderr]
    }

    /// Why it will not start, or did not.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Gives it the names of its guest, whether it runs already or not. Without isolation there is
    /// nothing that it does not share with the machine.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), SetupError> {
        match &self.view {
            None => Ok(()),
            Some(view) if self.is_prepared() => view.set(identity),
            Some(view) => view.set_again(identity),
        }
    }

    /// Begins to freeze it. Answers whether everything in it has stopped already; if not,
    /// [`Container::on_freezer`] will say so.
    pub fn freeze(&mut self, poller: &Poller) -> Result<bool, SetupError> {
        match &mut self.freezer {
            Some(freezer) => freezer.freeze(poller),
            None => Err(io::Error::from(io::ErrorKind::Unsupported))
                .attempt(|| "freeze a container that has no control group".into()),
        }
    }

    /// Whether everything in it has just stopped.
    pub fn on_freezer(&mut self) -> Result<bool, SetupError> {
        self.freezer.as_mut().map_or(Ok(false), Freezer::on_event)
    }

    pub fn thaw(&mut self) -> Result<(), SetupError> {
        self.freezer.as_mut().map_or(Ok(()), Freezer::thaw)
    }

    /// Where it is, for a command that is to run beside it. An error says why there is nothing to run beside.
    pub fn place(&self) -> Result<Place<'_>, &'static str> {
        if self.freezer.as_ref().is_some_and(Freezer::is_on) {
            return Err("The container is frozen");
        }
        match (self.phase, &self.process) {
            (Phase::Running, Some(process)) => Ok(Place {
                options: &self.options,
                spec: &self.spec,
                process: process.as_fd(),
            }),
            (Phase::Ended | Phase::Failed, _) => Err("The container has ended"),
            _ => Err("The container has not started"),
        }
    }

    /// Tells the stage what to become.
    pub fn start(&mut self, spec: &ContainerSpec, hostname: &str) -> Option<News> {
        if self.phase != Phase::Prepared {
            let started = || "The container was started before".to_owned();
            return Some(News::Failed(self.failure.clone().unwrap_or_else(started)));
        }
        let Some(stop_signal) = signal::parse(&spec.stop_signal) else {
            self.kill();
            return Some(self.fail(format!("Unknown stop signal {:?}", spec.stop_signal)));
        };
        self.stop_signal = stop_signal;
        self.spec = spec.clone();
        if let Err(error) = self.send(spec, hostname) {
            self.kill();
            return Some(self.fail(format!("Cannot tell the container's process: {error}")));
        }
        self.phase = Phase::Starting;
        None
    }

    /// The stage reads at once and to the end, so this may block.
    fn send(&mut self, spec: &ContainerSpec, hostname: &str) -> io::Result<()> {
        let mut frames = wire::frame::encode(spec).map_err(io::Error::other)?;
        frames.extend(wire::frame::encode(&hostname).map_err(io::Error::other)?);
        self.channel.set_nonblocking(false)?;
        self.channel.write_all(&frames)?;
        self.channel.set_nonblocking(true)
    }

    fn fail(&mut self, message: String) -> News {
        self.phase = Phase::Failed;
        self.failure = Some(message.clone());
        News::Failed(message)
    }

    /// The stage says something, or has closed the channel.
    pub fn on_stage(&mut self) -> Option<News> {
        if self.phase == Phase::Preparing {
            match View::receive(&self.channel) {
                Ok(Some((stage::PREPARED, view))) if view.is_some() == self.options.isolate => {
                    if let Some(Err(error)) = view.as_ref().map(View::share_host_name) {
                        return Some(self.fail(chain(&error)));
                    }
                    self.view = view;
                    self.phase = Phase::Prepared;
                }
                Ok(Some((code, None))) if code != stage::PREPARED => {
                    return Some(self.read_failure());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Ok(_) | Err(_) => return Some(self.fail("The container's process ended".into())),
            }
        }
        if self.phase != Phase::Starting {
            return None;
        }
        let mut byte = [0];
        match self.channel.read(&mut byte) {
            Ok(1) => Some(self.read_failure()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(_) | Err(_) => {
                self.phase = Phase::Running;
                // It cannot have been reaped: that is done by this very thread.
                self.process = pidfd_open(self.pid, PidfdFlags::empty()).ok();
                Some(News::Started(self.pid))
            }
        }
    }

    /// The exit code was read; the text is in the socket already, or is just being written.
    fn read_failure(&mut self) -> News {
        let mut text = Vec::new();
        let read = self.channel.set_nonblocking(false).and_then(|()| {
            (&self.channel)
                .take(MAX_FAILURE_BYTES)
                .read_to_end(&mut text)
        });
        if let Err(error) = read {
            return self.fail(format!(
                "The container did not start, for an unknown reason: {error}"
            ));
        }
        self.fail(String::from_utf8_lossy(&text).into_owned())
    }

    /// A child of the agent ended. Orphans of the container are among them.
    pub fn on_reaped(&mut self, pid: Pid, exit: Exit) -> Option<News> {
        if !self.options.isolate && self.phase == Phase::Ended {
            reaper::kill_children();
        }
        if pid != self.pid || self.phase == Phase::Ended {
            return None;
        }
        let exit = match self.phase {
            Phase::Running => Some(exit),
            // Killed by us, because it was told something impossible.
            Phase::Failed if matches!(exit, Exit::Signal(_)) => {
                Some(Exit::Code(i32::from(launch::CANNOT_START)))
            }
            Phase::Failed => Some(exit),
            Phase::Preparing | Phase::Prepared | Phase::Starting | Phase::Ended => None,
        };
        self.phase = Phase::Ended;
        self.process = None;
        if !self.options.isolate {
            // With a namespace of its own, its PID 1 took everything with it.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            reaper::kill_children();
        }
        let cgroup = self.options.cgroup.as_deref();
        exit.map(|exit| {
            News::Exited(Ending {
                exit,
                out_of_memory: cgroup.is_some_and(|cgroup| memory::has_run_out(cgroup, exit)),
            })
        })
    }

    /// Asks it to end. What has not started or is frozen is ended at once: the one has nothing to finish,
    /// and the other may not run.
    pub fn stop(&mut self) {
        match self.phase {
            Phase::Running if self.freezer.as_ref().is_some_and(Freezer::is_on) => self.kill(),
            Phase::Running
                if self.options.isolate && signal::is_lost_on_init(self.pid, self.stop_signal) =>
            {
                self.kill();
            }
            Phase::Running => self.send_signal(self.stop_signal),
            Phase::Preparing | Phase::Prepared | Phase::Starting => self.kill(),
            Phase::Failed | Phase::Ended => {}
        }
    }

    /// Ends it and everything it has started.
    pub fn kill(&mut self) {
        self.send_signal(Signal::KILL);
        if !self.options.isolate && self.phase == Phase::Running {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// It fails only when the process has ended, and then the reaper says so.
    fn send_signal(&self, signal: Signal) {
        if self.phase != Phase::Ended {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }
}

/// A pipe whose reading end does not block.
pub fn output_pipe() -> Result<(OwnedFd, OwnedFd), SetupError> {
    let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        fcntl_setfd(&writer, FdFlags::CLOEXEC)?;
        Ok((reader, writer))
    };
    make().attempt(|| "make a pipe".into())
}

#[cfg(test)]
impl Container {
    /// As [`Container::prepared`], but its stage has not said yet that it is.
    pub fn preparing(pid: Pid) -> (Self, UnixStream) {
        let (container, theirs) = Self::prepared(pid);
        let phase = Phase::Preparing;
        (Self { phase, ..container }, theirs)
    }

    /// One whose stage is `pid` and waits to be told what to become, at the other end of the
    /// channel that comes with it.
    pub fn prepared(pid: Pid) -> (Self, UnixStream) {
        let (channel, theirs) = UnixStream::pair().unwrap();
        channel.set_nonblocking(true).unwrap();
        let output = |stream| OutputPipe::new(stream, output_pipe().unwrap().0);
        let container = Self {
            phase: Phase::Prepared,
            pid,
            channel,
            options: StageOptions {
                root: None,
                isolate: false,
                cgroup: None,
            },
            spec: ContainerSpec::default(),
            process: None,
            view: None,
            freezer: None,
            stop_signal: Signal::TERM,
            failure: None,
            stdout: output(Stream::Stdout),
            stderr: output(Stream::Stderr),
        };
        (container, theirs)
    }
}
