//! What a process does last before it becomes a program of the container: its user, its limits, its `execve`.
//! Shared by the stage, which becomes the container, and by a command of an operator.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};

use super::{command, exec, user};
use crate::attempt::{Attempt, SetupError, chain};

/// It could not be set up.
pub const CANNOT_START: u8 = wire::exec::CANNOT_START;
/// The program exists and cannot be executed.
pub const NOT_EXECUTABLE: u8 = wire::exec::NOT_EXECUTABLE;
/// The program does not exist.
pub const NOT_FOUND: u8 = wire::exec::NOT_FOUND;

/// Open files: soft and hard limit, as container runtimes and systemd have them. A higher soft
/// limit breaks programs that use `select` or close every possible descriptor; programs that need more raise
/// it themselves.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Why there will be no program.
#[derive(Debug)]
pub struct Failure {
    /// As a shell would report it.
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn set_up(error: &dyn std::error::Error) -> Self {
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

impl Failure {
    /// As it is told to the agent: the code, and the text.
    pub fn report(&self) -> Vec<u8> {
        let mut report = vec![self.code];
        report.extend_from_slice(self.message.as_bytes());
        report
    }
}

/// An image that names nobody means root. An ordinary user cannot become root, and a container in
/// process mode then runs as that user.
pub fn wanted_user(user: &str) -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    if user.is_empty() && !uid.is_root() {
        format!("{uid}:{gid}")
    } else {
        user.to_owned()
    }
}

pub fn set_limits() -> Result<(), SetupError> {
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

/// Changes only what differs, so that an ordinary user may run a container as themselves. The process has one
/// thread, so the calls for a thread are those for the process.
pub fn become_user(user: &user::User) -> Result<(), SetupError> {
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

/// A program with everything that `execve` takes.
pub struct Program {
    /// As it was asked for.
    name: String,
    file: PathBuf,
    path: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Finds it as the user that the process is now.
    pub fn find(argv: &[String], environment: &[(String, String)]) -> Result<Self, Failure> {
        let name = argv.first().ok_or_else(|| Failure {
            code: CANNOT_START,
            message: "Cannot start: neither image nor pool says what to execute".into(),
        })?;
        let path = environment.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or("", |(_, value)| value);
        let file = command::find_program(name, path).map_err(|error| {
            let code = match error {
                command::LookupError::NotExecutable(_) => NOT_EXECUTABLE,
                command::LookupError::NotInPath(..) | command::LookupError::NoFile(_) => NOT_FOUND,
            };
            Failure {
                code,
                message: format!("Cannot execute {name:?}: {error}"),
            }
        })?;
        let text = |text: String| {
            let what = format!("hand {text:?} to the program");
            CString::new(text).attempt(|| what)
        };
        let path = CString::new(file.as_os_str().as_bytes())
            .attempt(|| format!("write down {}", file.display()))?;
        Ok(Self {
            name: name.clone(),
            path,
            file,
            argv: argv
                .iter()
                .cloned()
                .map(text)
                .collect::<Result<_, SetupError>>()?,
            environment: environment
                .iter()
                .map(|(name, value)| text(format!("{name}={value}")))
                .collect::<Result<_, SetupError>>()?,
        })
    }

    /// Becomes it.
    pub fn execute(&self) -> Result<Infallible, Failure> {
        exec::reset_signal_dispositions();
        let error = exec::execute(&self.path, &self.argv, &self.environment);
        let reason = command::explain_exec_error(&self.file, &error);
        Err(Failure {
            code: NOT_EXECUTABLE,
            message: format!("Cannot execute {:?}: {reason}", self.name),
        })
    }
}
