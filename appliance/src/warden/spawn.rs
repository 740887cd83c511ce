//! Starting a process of this same binary, or of the worker that is inside it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::time::{Duration, Instant};

use ::worker::room::Room;
use ::worker::start::{Start, start};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::program::Program;
use super::protocol::Status;
use super::{channel, proof};
use crate::telemetry::{FILTER_VARIABLE, FORMAT_VARIABLE};

/// What a child is for: the name of its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Appliance,
    Worker,
    ImageWorker,
}

impl Role {
    fn command(self) -> &'static CStr {
        match self {
            Self::Appliance => c"appliance",
            Self::Worker => c"worker",
            Self::ImageWorker => c"image-worker",
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

/// Where the standard output of a child goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Nowhere,
    /// Where ours goes.
    Ours,
}

/// Where a child is from its first instruction on.
#[derive(Debug, Default, Clone, Copy)]
pub struct Place<'a> {
    /// The open folder of a control group; otherwise it is in ours.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Otherwise it sees what we see.
    pub room: Option<&'a Room>,
}

/// A process with a descriptor that cannot come to mean another one, and our end of its socket.
#[derive(Debug)]
pub struct Process {
    /// Not one that an earlier warden has started, and not reaped.
    is_child: bool,
    pid: u32,
    pidfd: OwnedFd,
    /// `None` once the child has closed its end, and for one that is no child.
    pub socket: Option<OwnedFd>,
    /// Whether it may run when nobody holds it any more.
    outlives: bool,
}

impl Process {
    /// Starts `program` as `cabana <role>`, which is what `ps` shows.
    /// The child gives up its ids itself, before it listens to anybody.
    pub fn spawn(
        program: &Program,
        role: Role,
        output: Output,
        place: Place<'_>,
    ) -> io::Result<Self> {
        Self::start(program, role.command(), role.environment(), output, place)
    }

    pub(super) fn start(
        program: &Program,
        argument: &CStr,
        environment: &[(&str, &str)],
        output: Output,
        place: Place<'_>,
    ) -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        let nowhere = match output {
            Output::Nowhere => Some(File::options().write(true).open("/dev/null")?),
            Output::Ours => None,
        };
        let (pid, pidfd) = start(&Start {
            program: program.fd(),
            arguments: &[c"cabana", argument],
            environment: &variables(environment)?,
            stdin: theirs.as_fd(),
            stdout: nowhere.as_ref().map(AsFd::as_fd),
            cgroup: place.cgroup,
            room: place.room,
        })?;
        Ok(Self {
            is_child: true,
            pid,
            pidfd,
            socket: Some(ours),
            outlives: false,
        })
    }

    /// One that an earlier warden has started, by the descriptor that it was proved with.
    pub fn found(pid: u32, pidfd: OwnedFd) -> Self {
        Self {
            is_child: false,
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
        if !self.is_child {
            // Its end is told to its parent only; what everybody sees is that it has come.
            return Ok(proof::has_ended(&self.pidfd).then_some(Status::Unknown));
        }
        self.reap(WaitIdOptions::NOHANG)
    }

    /// Waits for its end and reaps it.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.is_child {
            self.reap(WaitIdOptions::empty()).map(drop)
        } else {
            self.poll_end(None).map(drop)
        }
    }

    fn reap(&mut self, how: WaitIdOptions) -> io::Result<Option<Status>> {
        let ended = loop {
            match waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | how,
            ) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let Some(ended) = ended else {
            return Ok(None);
        };
        self.is_child = false;
        Ok(Some(match ended.exit_status() {
            Some(code) => Status::Code(code),
            None => Status::Signal(ended.terminating_signal().unwrap_or(0)),
        }))
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

/// What a child finds in its environment: what it is started with, and what of ours is about logs.
fn variables(own: &[(&str, &str)]) -> io::Result<Vec<CString>> {
    let own = own.iter().map(|(name, value)| (*name, (*value).into()));
    let passed_on = [
        FILTER_VARIABLE,
        FORMAT_VARIABLE,
        "NO_COLOR",
        "RUST_BACKTRACE",
    ];
    let passed_on = passed_on
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    own.chain(passed_on)
        .map(|(name, value)| {
            let text = [name.as_bytes(), b"=", &value.into_vec()].concat();
            Ok(CString::new(text)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Timespec = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };

    fn cat() -> Process {
        let program = Program::at("/bin/cat").unwrap();
        Process::start(&program, c"-", &[], Output::Nowhere, Place::default()).unwrap()
    }

    #[test]
    fn child_sees_the_end_of_its_input_when_our_end_is_closed() {
        let mut process = cat();
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
        let process = cat();
        let folder = format!("/proc/{}", process.id());
        assert!(std::path::Path::new(&folder).exists());
        drop(process);
        assert!(!std::path::Path::new(&folder).exists());
    }

    #[test]
    fn child_inherits_neither_our_files_nor_our_end_of_its_socket() {
        use std::os::linux::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let process = cat();
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
