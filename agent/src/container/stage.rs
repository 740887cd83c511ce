//! The stage: the process that becomes the container.
//!
//! It is forked from the agent before anybody asks for a container, does everything that does not depend on one
//! (control group, namespaces, mounts), says so and waits. `Start` then costs only what is left: user,
//! environment, `execve`. Agent and stage have one thread each and share nothing, so that this is ordinary
//! code and not the narrow kind that may run between `fork` and `exec` of a program with threads.
//!
//! Its standard input is a socket to the agent. The stage sends one zero byte when it is prepared, with
//! an isolated container's [`View`], and reads two frames, the [`ContainerSpec`] and the host name. If the
//! container starts, `exec` closes the socket; if not, one byte, an exit code as in a shell, and a
//! text come first.

use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;

use rustix::fs::Mode;
use rustix::process::Signal;
use wire::{ContainerSpec, FrameError};

use super::identity::View;
use super::launch::{CANNOT_START, Failure, Program, become_user, set_limits, wanted_user};
use super::{command, exec, root, user};
use crate::attempt::{Attempt, SetupError};
use crate::cli::StageOptions;

/// The byte that says that everything is prepared. No exit code of a failure.
pub const PREPARED: u8 = 0;
/// Runs the stage: the process is a container, or ends.
pub fn run(options: &StageOptions) -> ! {
    let code = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
        Ok(channel) => run_with(options, UnixStream::from(channel)),
        Err(error) => {
            eprintln!("agent: Cannot keep the channel to the agent: {error}");
            CANNOT_START
        }
    };
    exec::leave(code)
}

fn run_with(options: &StageOptions, mut channel: UnixStream) -> u8 {
    let failure = match become_container(options, &mut channel) {
        Ok(Never::AgentGone) => return 0,
        Err(failure) => failure,
    };
    // If the agent is gone, there is nobody to tell.
    let _ = channel.write_all(&failure.report());
    failure.code
}

/// How the stage ends without becoming a container and without a failure.
enum Never {
    AgentGone,
}

fn become_container(options: &StageOptions, channel: &mut UnixStream) -> Result<Never, Failure> {
    let sent = match prepare(options)? {
        Some(view) => view.send(channel, PREPARED),
        None => channel.write_all(&[PREPARED]),
    };
    if sent.is_err() {
        return Ok(Never::AgentGone);
    }
    let read = wire::read_frame(channel).and_then(|spec| Ok((spec, wire::read_frame(channel)?)));
    let (spec, hostname): (ContainerSpec, String) = match read {
        Ok(read) => read,
        Err(FrameError::Closed | FrameError::Stream(_)) => return Ok(Never::AgentGone),
        Err(error) => return Err(Failure::set_up(&error)),
    };
    match launch(&spec, &hostname, options) {
        Ok(never) => match never {},
        Err(failure) => Err(failure),
    }
}

/// All that does not depend on the container. Answers what an isolated one will see.
fn prepare(options: &StageOptions) -> Result<Option<View>, SetupError> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(cgroup) = &options.cgroup {
        // "0" is the writer itself.
        let path = cgroup.join("cgroup.procs");
        fs::write(&path, "0").attempt(|| format!("write to {}", path.display()))?;
    }
    match &options.root {
        Some(directory) if options.isolate => root::enter(directory)?,
        Some(directory) => {
            rustix::process::chroot(directory)
                .attempt(|| format!("make {} the root", directory.display()))?;
            std::env::set_current_dir("/").attempt(|| "enter the new root".into())?;
        }
        None => {}
    }
    rustix::process::setsid().attempt(|| "make a session".into())?;
    options.isolate.then(View::open).transpose()
}

/// Becomes the container.
fn launch(
    spec: &ContainerSpec,
    hostname: &str,
    options: &StageOptions,
) -> Result<Infallible, Failure> {
    if options.isolate {
        root::ensure_resolver_file()?;
        set_limits()?;
    }
    let user = user::find(&wanted_user(&spec.user))
        .attempt(|| "read /etc/passwd and /etc/group".into())?
        .map_err(|error| Failure::set_up(&error))?;
    let environment =
        command::environment(&spec.env, &user.home, hostname).map_err(|error| Failure {
            code: CANNOT_START,
            message: format!("Cannot start: {error}"),
        })?;
    enter_working_dir(&spec.working_dir)?;
    become_user(&user)?;
    if !options.isolate {
        // Without a namespace that ends with the agent, this is what ends the container then.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .attempt(|| "ask to end with the agent".into())?;
    }
    let program = Program::find(&spec.argv, &environment)?;
    let null: OwnedFd = fs::File::open("/dev/null")
        .attempt(|| "open /dev/null".into())?
        .into();
    rustix::stdio::dup2_stdin(null).attempt(|| "give /dev/null as standard input".into())?;
    program.execute()
}

fn enter_working_dir(directory: &str) -> Result<(), SetupError> {
    let directory = if directory.is_empty() { "/" } else { directory };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .attempt(|| format!("make the working directory {directory}"))?;
    std::env::set_current_dir(directory)
        .attempt(|| format!("enter the working directory {directory}"))
}
