//! A command of an operator, from the inside: this program once more, as the process that goes to where the
//! container is and becomes the command.
//!
//! It is started by the agent and is as trusted as that, so the container must not get hold of it. A process in
//! the container's PID namespace can be seen and traced by the container's root. So this one stays outside of that
//! namespace while it does everything that takes time or reads what the container may have prepared (the terminal,
//! `/etc/passwd`, the search in `PATH`), and only then forks: the child is in the namespace, has nothing open but what
//! the command will have and one socket, and does nothing but `execve`.
//!
//! Standard input is a socket to the agent. The agent sends one byte with descriptors (standard input for the command,
//! then a pidfd of the container, each if there is one), and an [`Order`]. This process sends [`TERMINAL`] with the
//! terminal's other end if it made one, and [`FORKED`] when it has a child, and waits for the agent to close its end:
//! the agent asks the kernel, and nobody else, which process that child is. If the command starts, `exec` closes the
//! socket; if not, an exit code and a text come first.

use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{FileType, Mode, major, minor};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use wire::ContainerSpec;
use wire::exec::WindowSize;

use super::launch::{self, Failure, Program};
use super::{command, exec, passing, user};
use crate::attempt::{Attempt, SetupError};
use crate::cli::StageOptions;

/// The byte that comes with the agent's end of a terminal. Like the other, no exit code of a failure.
pub const TERMINAL: u8 = 1;
/// The byte that says that there is a child in the container's PID namespace.
pub const FORKED: u8 = 2;

/// What to become: the container's own settings with the operator's in their place, the host name, and the size of the
/// terminal if there is to be one.
pub type Order = (ContainerSpec, String, Option<WindowSize>);

/// The device that makes terminals (`Documentation/admin-guide/devices.txt`).
const PTMX: &str = "/dev/ptmx";
const PTMX_NUMBER: (u32, u32) = (5, 2);

/// Becomes the command. Returns when there is none, or when the child was left to the agent.
pub fn run(options: &StageOptions) -> ExitCode {
    let mut channel = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
        Ok(channel) => UnixStream::from(channel),
        Err(_) => return ExitCode::from(launch::CANNOT_START),
    };
    match become_command(options, &mut channel) {
        Ok(Left::ToTheAgent) => ExitCode::SUCCESS,
        Err(failure) => {
            // If the agent is gone, there is nobody to tell.
            let _ = channel.write_all(&failure.report());
            ExitCode::from(failure.code)
        }
    }
}

/// What this process ends with when it was not the one to become the command.
enum Left {
    ToTheAgent,
}

fn become_command(options: &StageOptions, channel: &mut UnixStream) -> Result<Left, Failure> {
    let mut byte = [0];
    let received = passing::receive(channel, &mut byte);
    let (_, passed) = received.attempt(|| "receive the command's descriptors".into())?;
    let mut passed = passed.into_iter();
    let (spec, hostname, terminal): Order =
        wire::read_frame(channel).map_err(|error| Failure::set_up(&error))?;
    let input = if terminal.is_none() {
        passed.next()
    } else {
        None
    };
    let container = passed.next();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    enter(options, container.as_ref())?;
    let user = user::find(&launch::wanted_user(&spec.user))
        .attempt(|| "read /etc/passwd and /etc/group".into())?
        .map_err(|error| Failure::set_up(&error))?;
    let stdio = match terminal {
        Some(size) => Stdio::Terminal(open_terminal(size, user.uid, channel)?),
        None => Stdio::Pipes(input),
    };
    let environment = command::environment(&spec.env, &user.home, &hostname)
        .map_err(|error| Failure::set_up(&error))?;
    if options.isolate {
        launch::set_limits()?;
    }
    let directory = match spec.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    std::env::set_current_dir(directory)
        .attempt(|| format!("enter the working directory {directory}"))?;
    launch::become_user(&user)?;
    let program = Program::find(&spec.argv, &environment)?;
    drop(container);
    if options.isolate {
        fork_and_execute(&program, stdio, channel)
    } else {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .attempt(|| "ask to end with the agent".into())?;
        match execute(&program, stdio)? {}
    }
}

/// Goes to where the container is: its control group first, because that is found by the agent's own paths.
fn enter(options: &StageOptions, container: Option<&OwnedFd>) -> Result<(), SetupError> {
    if let Some(cgroup) = &options.cgroup {
        join_cgroup(cgroup, container)?;
    }
    match (&options.root, container) {
        (Some(_), Some(container)) if options.isolate => {
            let namespaces = ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
                | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
                | ThreadNameSpaceType::CONTROL_GROUP
                | ThreadNameSpaceType::PROCESS_ID;
            // Of this very process, whatever has its number by now. All of them, or none; the PID namespace is for
            // children. The root directory is then that of the namespace.
            move_into_thread_name_spaces(container.as_fd(), namespaces)
                .attempt(|| "enter the container".into())
        }
        (Some(root), _) => {
            rustix::process::chroot(root)
                .attempt(|| format!("make {} the root", root.display()))?;
            std::env::set_current_dir("/").attempt(|| "enter the new root".into())
        }
        (None, _) => Ok(()),
    }
}

/// Joins the group of the container or, where that only holds other groups by now (as systemd arranges them), the
/// one that the container's first process is in.
fn join_cgroup(cgroup: &Path, container: Option<&OwnedFd>) -> Result<(), SetupError> {
    let join = |group: &Path| fs::write(group.join("cgroup.procs"), "0");
    let container = match (join(cgroup), container) {
        (Err(error), Some(container)) if error.raw_os_error() == Some(libc::EBUSY) => container,
        (joined, _) => return joined.attempt(|| format!("join {}", cgroup.display())),
    };
    let inner = || -> std::io::Result<PathBuf> {
        let of_pidfd = fs::read_to_string(format!(
            "/proc/self/fdinfo/{}",
            std::os::fd::AsRawFd::as_raw_fd(container)
        ))?;
        let pid = of_pidfd.lines().find_map(|line| line.strip_prefix("Pid:"));
        let pid = pid.ok_or(Errno::SRCH)?.trim();
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(below(cgroup, &groups).ok_or(Errno::SRCH)?)
    };
    let inner = inner().attempt(|| "find the control group of the container".into())?;
    join(&inner).attempt(|| format!("join {}", inner.display()))
}

/// The path of a group that `/proc/PID/cgroup` names, if it lies below `cgroup`. Where the hierarchy is mounted nobody
/// says, so the end of the one path is looked for at the beginning of the other.
fn below(cgroup: &Path, groups: &str) -> Option<PathBuf> {
    let named = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let named = Path::new(named);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !named.components().all(plain) {
        return None;
    }
    let parts: Vec<_> = cgroup.components().collect();
    let ends = (0..parts.len()).map(|from| parts[from..].iter().collect::<PathBuf>());
    let mut suffixes = ends.filter_map(|end| named.strip_prefix(end).ok());
    suffixes.next().map(|suffix| cgroup.join(suffix))
}

/// What the command has as its standard input, output and error.
enum Stdio {
    /// Output and error are this process's own already.
    Pipes(Option<OwnedFd>),
    Terminal(OwnedFd),
}

/// Makes a terminal in the container's own `/dev`, so that the command finds it there, and hands the other end to the
/// agent. What the container may have put in the place of the device is refused; a FIFO does not block.
fn open_terminal(
    size: WindowSize,
    owner: u32,
    channel: &UnixStream,
) -> Result<OwnedFd, SetupError> {
    let flags = rustix::fs::OFlags::RDWR
        | rustix::fs::OFlags::NOCTTY
        | rustix::fs::OFlags::NONBLOCK
        | rustix::fs::OFlags::CLOEXEC;
    let ours = rustix::fs::open(PTMX, flags, Mode::empty()).attempt(|| format!("open {PTMX}"))?;
    let stat = rustix::fs::fstat(&ours).attempt(|| format!("look at {PTMX}"))?;
    let number = (major(stat.st_rdev), minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || number != PTMX_NUMBER {
        Err(Errno::NOTTY).attempt(|| format!("make a terminal with {PTMX}"))?;
    }
    rustix::pty::unlockpt(&ours).attempt(|| "unlock a terminal".into())?;
    set_size(&ours, size).attempt(|| "set the size of a terminal".into())?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, peer)
        .attempt(|| "open the other end of a terminal".into())?;
    // An ordinary user in process mode has nobody else's terminal to give away.
    let _ = rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(owner)), None);
    passing::send(channel, TERMINAL, &[ours.as_fd()])
        .attempt(|| "hand a terminal to the agent".into())?;
    Ok(theirs)
}

/// Tells a terminal how large its window is.
pub fn set_size(terminal: impl AsFd, size: WindowSize) -> rustix::io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
}

fn fork_and_execute(
    program: &Program,
    stdio: Stdio,
    channel: &mut UnixStream,
) -> Result<Left, Failure> {
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).attempt(|| "make a pipe".into())?;
    let child = exec::fork().attempt(|| "make a process in the container".into())?;
    if child.is_some() {
        // If this fails the agent is gone, and so will be the guest.
        let _ = channel.write_all(&[FORKED]);
        drop((told, tell, stdio));
        let _ = channel.read(&mut [0]);
        return Ok(Left::ToTheAgent);
    }
    // Nothing of the child's is to be said before that byte.
    drop(tell);
    let _ = rustix::io::read(&told, &mut [0; 1]);
    drop(told);
    match execute(program, stdio)? {}
}

fn execute(program: &Program, stdio: Stdio) -> Result<Infallible, Failure> {
    rustix::process::setsid().attempt(|| "make a session".into())?;
    let give = || -> rustix::io::Result<()> {
        match &stdio {
            Stdio::Pipes(Some(input)) => rustix::stdio::dup2_stdin(input),
            Stdio::Pipes(None) => Err(Errno::BADF),
            Stdio::Terminal(terminal) => {
                rustix::process::ioctl_tiocsctty(terminal)?;
                rustix::stdio::dup2_stdin(terminal)?;
                rustix::stdio::dup2_stdout(terminal)?;
                rustix::stdio::dup2_stderr(terminal)
            }
        }
    };
    give().attempt(|| "give the command its input and output".into())?;
    program.execute()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_of_the_first_process_is_found_wherever_the_hierarchy_is_mounted() {
        let cgroup = Path::new("/sys/fs/cgroup/container");
        let found = |groups| below(cgroup, groups);
        assert_eq!(
            found("0::/container/init.scope\n"),
            Some(cgroup.join("init.scope"))
        );
        assert_eq!(found("0::/container\n"), Some(cgroup.into()));
        let deep = Path::new("/mnt/a/b");
        assert_eq!(
            below(deep, "1:cpu:/x\n0::/a/b/c/d\n"),
            Some(deep.join("c/d"))
        );
        for outside in [
            "0::/",
            "0::/other",
            "0::/../container",
            "1:cpu:/container",
            "",
        ] {
            assert_eq!(found(outside), None, "{outside:?}");
        }
    }
}
