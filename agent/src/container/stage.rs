//! The stage: this program once more, as the process that becomes the container.
//!
//! It is started before anybody asks for a container, does everything that does not depend on one
//! (control group, namespaces, mounts), says so and waits. `Start` then costs only what is left: user,
//! environment, `execve`. And it has one thread and nothing to share, so that this is ordinary
//! code and not the narrow kind that may run between `fork` and `exec`.
//!
//! Its standard input is a socket to the agent. The stage sends one zero byte when it is prepared, with
//! an isolated container's [`View`], and reads two frames, the [`ContainerSpec`] and the host name. If the
//! container starts, `exec` closes the socket; if not, one byte, an exit code as in a shell, and a
//! text come first.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use wire::{ContainerSpec, FrameError};

use super::identity::View;
use super::{command, exec, root, user};
use crate::attempt::{Attempt, SetupError, chain};
use crate::cli::StageOptions;

/// The byte that says that everything is prepared. No exit code of a failure.
pub const PREPARED: u8 = 0;
/// The container could not be set up.
pub const CANNOT_START: u8 = 125;
/// The program exists and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program does not exist.
pub const NOT_FOUND: u8 = 127;

/// Open files: soft and hard limit, as container runtimes and systemd have them. A higher soft
/// limit breaks programs that use `select` or close every possible descriptor; programs that need more raise
/// it themselves.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Why there will be no container.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn set_up(error: &dyn std::error::Error) -> Self {
        Self {
            code: CANNOT_START,
            message: chain(error),
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self::set_up(&error)
    }
}

/// Runs the stage. Returns only when there is no container.
pub fn run(options: &StageOptions) -> ExitCode {
    let mut channel = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
        Ok(channel) => UnixStream::from(channel),
        Err(error) => {
            eprintln!("agent: Cannot keep the channel to the agent: {error}");
            return ExitCode::from(CANNOT_START);
        }
    };
    let failure = match become_container(options, &mut channel) {
        Ok(Never::AgentGone) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let mut report = vec![failure.code];
    report.extend_from_slice(failure.message.as_bytes());
    // If the agent is gone, there is nobody to tell.
    let _ = channel.write_all(&report);
    ExitCode::from(failure.code)
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
    execute(&spec.argv, &environment)
}

/// An image that names nobody means root. An ordinary user cannot become root, and a container in
/// process mode then runs as that user.
fn wanted_user(user: &str) -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    if user.is_empty() && !uid.is_root() {
        format!("{uid}:{gid}")
    } else {
        user.to_owned()
    }
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

fn set_limits() -> Result<(), SetupError> {
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    let no_dumps = Rlimit {
        current: Some(0),
        maximum: None,
    };
    // The kernel's own limit of processes follows the size of memory and is far too low for a small
    // guest with a thread-happy program; the guest's memory is limit enough.
    let limits = [
        (Resource::Nofile, OPEN_FILES),
        (Resource::Nproc, none),
        (Resource::Core, no_dumps),
    ];
    for (resource, wanted) in limits {
        match rustix::process::setrlimit(resource, wanted) {
            // Root of a machine that withholds the capability, never of a guest: keeps its limit.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => Err(error).attempt(|| format!("set the limit {resource:?}"))?,
        }
    }
    Ok(())
}

/// Changes only what differs, so that an ordinary user may run a container as themselves. The stage has one
/// thread, so the calls for a thread are those for the process.
fn become_user(user: &user::User) -> Result<(), SetupError> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let describe = || format!("become user {} and group {}", user.uid, user.gid);
    if uid.is_root() {
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups)
            .attempt(|| "set the supplementary groups".into())?;
    }
    let new = Gid::from_raw(user.gid);
    if uid.is_root() || new != gid {
        rustix::thread::set_thread_res_gid(new, new, new).attempt(describe)?;
    }
    let new = Uid::from_raw(user.uid);
    if new != uid {
        rustix::thread::set_thread_res_uid(new, new, new).attempt(describe)?;
    }
    Ok(())
}

fn execute(argv: &[String], environment: &[(String, String)]) -> Result<Infallible, Failure> {
    let program = argv.first().ok_or_else(|| Failure {
        code: CANNOT_START,
        message: "Cannot start: neither image nor pool says what to execute".into(),
    })?;
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or("", |(_, value)| value);
    let file = command::find_program(program, path).map_err(|error| {
        let code = match error {
            command::LookupError::NotExecutable(_) => NOT_EXECUTABLE,
            command::LookupError::NotInPath(..) | command::LookupError::NoFile(_) => NOT_FOUND,
        };
        Failure {
            code,
            message: format!("Cannot execute {program:?}: {error}"),
        }
    })?;
    let null: OwnedFd = fs::File::open("/dev/null")
        .attempt(|| "open /dev/null".into())?
        .into();
    rustix::stdio::dup2_stdin(null).attempt(|| "give /dev/null as standard input".into())?;
    exec::reset_signal_dispositions();
    let text = |text: String| {
        let what = format!("hand {text:?} to the program");
        CString::new(text).attempt(|| what)
    };
    let name = CString::new(file.as_os_str().as_bytes())
        .attempt(|| format!("write down {}", file.display()))?;
    let argv = argv
        .iter()
        .cloned()
        .map(text)
        .collect::<Result<Vec<_>, _>>()?;
    let environment = environment
        .iter()
        .map(|(name, value)| text(format!("{name}={value}")))
        .collect::<Result<Vec<_>, _>>()?;
    let error = exec::execute(&name, &argv, &environment);
    let reason = command::explain_exec_error(&file, &error);
    Err(Failure {
        code: NOT_EXECUTABLE,
        message: format!("Cannot execute {program:?}: {reason}"),
    })
}
