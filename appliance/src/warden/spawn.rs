//! Starting a process of this same binary, or of the worker that is inside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use super::protocol::Status;
use super::{channel, proof};
use crate::telemetry::{FILTER_VARIABLE, FORMAT_VARIABLE};

/// The running file itself, even when an upgrade has put another one at its path.
pub const OURSELVES: &str = "/proc/self/exe";

/// What a child is for: the name of its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Appliance,
    Worker,
    ImageWorker,
}

impl Role {
    fn command(self) -> &'static str {
        match self {
            Self::Appliance => "appliance",
            Self::Worker => "worker",
            Self::ImageWorker => "image-worker",
        }
    }

    /// There is one worker per session, so each page that its allocator keeps counts. One arena is
    /// enough for threads that rarely allocate, large buffers go back to the kernel when they are
    /// freed, and so does the end of the heap (mallopt(3)).
    fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Worker => &[
                ("MALLOC_ARENA_MAX", "1"),
                ("MALLOC_MMAP_THRESHOLD_", "32768"),
                ("MALLOC_TOP_PAD_", "4096"),
                ("MALLOC_TRIM_THRESHOLD_", "8192"),
            ],
            Self::Appliance | Self::ImageWorker => &[],
        }
    }
}

/// A process with a descriptor that cannot come to mean another one, and our end of its socket.
#[derive(Debug)]
pub struct Process {
    /// Absent for one that an earlier warden has started.
    child: Option<Child>,
    pid: u32,
    pidfd: OwnedFd,
    /// `None` once the child has closed its end, and for one that is no child.
    pub socket: Option<OwnedFd>,
    /// Whether it may run when nobody holds it any more.
    outlives: bool,
}

impl Process {
    /// Starts `program` as `cabana <role>`, which is what `ps` shows. It does nothing before its first message, so there is time to put it
    /// where it belongs.
    ///
    /// No `pre_exec` and no ids: the standard library then uses `posix_spawn`, whose cost does not
    /// grow with the memory of this process. The child gives up its ids itself.
    pub fn spawn(program: &str, role: Role, stdout: Stdio) -> io::Result<Self> {
        Self::start(program, role.command(), role.environment(), stdout)
    }

    pub(super) fn start(
        program: &str,
        argument: &str,
        environment: &[(&str, &str)],
        stdout: Stdio,
    ) -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        let mut command = Command::new(program);
        command.arg0("cabana").arg(argument).env_clear();
        command.envs(environment.iter().copied());
        for name in [
            FILTER_VARIABLE,
            FORMAT_VARIABLE,
            "NO_COLOR",
            "RUST_BACKTRACE",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // A group of its own: Ctrl-C in a terminal is for the warden, which ends things in order.
        command
            .stdin(Stdio::from(theirs))
            .stdout(stdout)
            .process_group(0);
        let mut child = command.spawn()?;
        let pid = child.id();
        match proof::open(pid) {
            Ok(pidfd) => Ok(Self {
                child: Some(child),
                pid,
                pidfd,
                socket: Some(ours),
                outlives: false,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// One that an earlier warden has started, by the descriptor that it was proved with.
    pub fn found(pid: u32, pidfd: OwnedFd) -> Self {
        Self {
            child: None,
            pid,
            pidfd,
            socket: None,
            outlives: true,
        }
    }

    /// From now on it is worth something without us.
    pub fn outlive(&mut self) {
        self.outlives = true;
    }

    pub fn id(&self) -> u32 {
        self.pid
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its first message: what it is for and what it lives on. A new socket has room for it.
    pub fn send_first(
        &self,
        setup: &impl serde::Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(setup)?;
        match &self.socket {
            Some(socket) => channel::send(socket.as_fd(), &bytes, fds, true),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub fn kill(&self) {
        // Fails only when it is dead already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps it if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<Status>> {
        let Some(child) = &mut self.child else {
            // Its end is told to its parent only; what everybody sees is that it has come.
            return Ok(proof::has_ended(&self.pidfd).then_some(Status::Unknown));
        };
        Ok(child
            .try_wait()?
            .map(|status| match (status.code(), status.signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or(0)),
            }))
    }

    /// Waits for its end and reaps it.
    pub fn wait(&mut self) -> io::Result<()> {
        match &mut self.child {
            Some(child) => child.wait().map(drop),
            None => self.poll_end(None).map(drop),
        }
    }

    /// Waits for its end, but not for ever. Does not reap it.
    pub fn ends_within(&mut self, limit: Duration) -> io::Result<bool> {
        self.poll_end(Some(Instant::now() + limit))
    }

    fn poll_end(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec::try_from(left).unwrap_or_default());
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Process {
    /// Nothing that is of no use to anybody else is left running, on no way out.
    fn drop(&mut self) {
        if !self.outlives {
            self.kill();
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Timespec = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };

    #[test]
    fn child_sees_the_end_of_its_input_when_our_end_is_closed() {
        let mut process = Process::start("/bin/cat", "-", &[], Stdio::null()).unwrap();
        assert_eq!(process.try_wait().unwrap(), None);
        process.socket = None;
        let mut fds = [PollFd::new(&process.pidfd, PollFlags::IN)];
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&DEADLINE)).unwrap(),
            1,
            "it never ended"
        );
        assert_eq!(process.try_wait().unwrap(), Some(Status::Code(0)));
    }

    #[test]
    fn child_is_gone_when_its_handle_is_dropped() {
        let process = Process::start("/bin/cat", "-", &[], Stdio::null()).unwrap();
        let folder = format!("/proc/{}", process.id());
        assert!(std::path::Path::new(&folder).exists());
        drop(process);
        assert!(!std::path::Path::new(&folder).exists());
    }

    #[test]
    fn child_inherits_neither_our_files_nor_our_end_of_its_socket() {
        use std::os::linux::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let process = Process::start("/bin/cat", "-", &[], Stdio::null()).unwrap();
        let ours = rustix::fs::fstat(process.socket.as_ref().unwrap())
            .unwrap()
            .st_ino;
        let inodes: Vec<u64> = std::fs::read_dir(format!("/proc/{}/fd", process.id()))
            .unwrap()
            // The program's loader opens and closes its libraries meanwhile.
            .filter_map(|fd| std::fs::metadata(fd.unwrap().path()).ok())
            .map(|metadata| metadata.st_ino())
            .collect();
        assert!(inodes.len() >= 3, "{inodes:?}");
        assert!(
            !inodes.contains(&ours),
            "it would never see the end of its input"
        );
        assert!(!inodes.contains(&file.metadata().unwrap().st_ino()));
    }
}
