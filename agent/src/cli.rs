//! The command line, and which of its roles the program plays.

use std::ffi::OsString;
use std::path::PathBuf;

const USAGE: &str = "\
Usage: agent --socket PATH [--root DIR] [--isolate] [--cgroup DIR]

Serves a worker's host socket at PATH and runs one container as an ordinary process.
Prints \"listening on PATH\" when clients may connect. SIGTERM stops the container, SIGINT kills it.
In a guest the program is PID 1 and takes no arguments.

  --socket PATH  Unix socket to listen on; it must not exist
  --root DIR     the container's root directory (needs root; default: the whole file system)
  --isolate      with --root: namespaces, /proc, /sys and /dev of its own, as in a guest
  --cgroup DIR   the container's control group, an empty directory of cgroup v2; without it, the
                 container cannot be frozen
  --version      print the version
  --help         print this text";

/// The first argument of the process that becomes a command beside the container. Not for people.
pub const ENTER_ARGUMENT: &str = "--enter";
/// The container has namespaces and mounts of its own.
const ISOLATE_ARGUMENT: &str = "--isolate";
/// Names the control group of the container.
const CGROUP_ARGUMENT: &str = "--cgroup";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    /// PID 1 of a guest.
    Guest,
    /// An ordinary process in place of a guest.
    Process(ProcessOptions),
    /// The process that goes to where the container is, and becomes a command there.
    Enter(StageOptions),
    /// Print this and exit.
    Print(String),
}

/// Options of process mode.
#[derive(Debug, PartialEq, Eq)]
pub struct ProcessOptions {
    pub socket: PathBuf,
    pub container: StageOptions,
}

/// Where a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOptions {
    /// The container's root directory; `None` leaves the root as it is.
    pub root: Option<PathBuf>,
    /// Whether it gets namespaces and mounts of its own.
    pub isolate: bool,
    /// The control group it runs in; `None` leaves it in the agent's own.
    pub cgroup: Option<PathBuf>,
}

impl StageOptions {
    /// As arguments of a process that is to have them.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut name = |flag: &str, path: &Option<PathBuf>| {
            if let Some(path) = path {
                arguments.extend([flag.into(), path.clone().into_os_string()]);
            }
        };
        name("--root", &self.root);
        name(CGROUP_ARGUMENT, &self.cgroup);
        arguments.extend(self.isolate.then(|| ISOLATE_ARGUMENT.into()));
        arguments
    }
}

/// Why the command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("Unknown argument {0:?}; see agent --help")]
    Unknown(OsString),
    #[error("{0} needs a value; see agent --help")]
    NoValue(&'static str),
    #[error("--socket PATH is missing; see agent --help")]
    NoSocket,
    #[error("--isolate needs --root DIR; see agent --help")]
    IsolateWithoutRoot,
}

/// Decides the role. PID 1 ignores arguments it does not know, because the kernel hands every
/// word of its command line that it does not know to init.
pub fn role(is_init: bool, arguments: impl Iterator<Item = OsString>) -> Result<Role, UsageError> {
    let mut arguments = arguments.peekable();
    let first = arguments.peek().and_then(|argument| argument.to_str());
    if first == Some(ENTER_ARGUMENT) {
        arguments.next();
        let (_, container) = options(arguments)?;
        return Ok(Role::Enter(container));
    }
    match first {
        Some("--help") => Ok(Role::Print(USAGE.into())),
        Some("--version") => Ok(Role::Print(format!("agent {}", env!("CARGO_PKG_VERSION")))),
        first if is_init && first != Some("--socket") => Ok(Role::Guest),
        _ => {
            let (socket, container) = options(arguments)?;
            let socket = socket.ok_or(UsageError::NoSocket)?;
            Ok(Role::Process(ProcessOptions { socket, container }))
        }
    }
}

fn options(
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<(Option<PathBuf>, StageOptions), UsageError> {
    let mut socket = None;
    let mut container = StageOptions {
        root: None,
        isolate: false,
        cgroup: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--socket") => socket = Some(value("--socket", &mut arguments)?),
            Some("--root") => container.root = Some(value("--root", &mut arguments)?),
            Some(CGROUP_ARGUMENT) => {
                container.cgroup = Some(value(CGROUP_ARGUMENT, &mut arguments)?);
            }
            Some(ISOLATE_ARGUMENT) => container.isolate = true,
            _ => return Err(UsageError::Unknown(argument)),
        }
    }
    if container.isolate && container.root.is_none() {
        return Err(UsageError::IsolateWithoutRoot);
    }
    Ok((socket, container))
}

fn value(
    name: &'static str,
    arguments: &mut impl Iterator<Item = OsString>,
) -> Result<PathBuf, UsageError> {
    arguments
        .next()
        .map(PathBuf::from)
        .ok_or(UsageError::NoValue(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(is_init: bool, line: &str) -> Result<Role, UsageError> {
        role(is_init, line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn init_ignores_words_that_the_kernel_did_not_know() {
        assert_eq!(parse(true, "splash nosuch"), Ok(Role::Guest));
    }

    #[test]
    fn ordinary_process_without_a_socket_is_refused() {
        assert_eq!(parse(false, ""), Err(UsageError::NoSocket));
        assert_eq!(
            parse(false, "--socket"),
            Err(UsageError::NoValue("--socket"))
        );
        assert_eq!(
            parse(false, "--sockets x"),
            Err(UsageError::Unknown("--sockets".into()))
        );
        assert_eq!(
            parse(false, "--socket x --isolate"),
            Err(UsageError::IsolateWithoutRoot)
        );
    }

    #[test]
    fn root_isolate_and_control_group_reach_the_container() {
        let line = "--socket /s --root /r --isolate --cgroup /c";
        let Ok(Role::Process(options)) = parse(false, line) else {
            panic!("not process mode");
        };
        assert_eq!(options.socket, PathBuf::from("/s"));
        assert_eq!(
            options.container,
            StageOptions {
                root: Some("/r".into()),
                isolate: true,
                cgroup: Some("/c".into()),
            }
        );
        // And from there on every process of the agent's own.
        let arguments = [vec![ENTER_ARGUMENT.into()], options.container.arguments()].concat();
        assert_eq!(
            role(false, arguments.into_iter()),
            Ok(Role::Enter(options.container))
        );
    }
}
