//! What the container executes: its environment, and where its program is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

/// `PATH` of an image that has none, as other container runtimes set it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be executed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("no such file {0} in PATH {1}")]
    NotInPath(String, String),
    #[error("no such file {0}")]
    NoFile(String),
    #[error("{0} is not an executable file")]
    NotExecutable(String),
}

/// An entry of the environment without a `=`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment entry {0:?} is not of the form NAME=value")]
pub struct EnvironmentError(String);

/// The environment as pairs, in order, each name once. Later entries win over earlier ones, and
/// any over the defaults. `TERM` is left out: there is no terminal.
pub fn environment(
    entries: &[String],
    home: &str,
    hostname: &str,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let defaults = [
        ("PATH", DEFAULT_PATH),
        ("HOSTNAME", hostname),
        ("HOME", home),
    ];
    let mut pairs = defaults
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    for entry in entries {
        let (name, value) = entry
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| EnvironmentError(entry.clone()))?;
        match pairs.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => pairs.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(pairs)
}

/// Finds the program as `execvp` would, with the container's own `PATH`, root and user.
pub fn find_program(program: &str, path: &str) -> Result<PathBuf, LookupError> {
    if program.contains('/') {
        return match look(Path::new(program)) {
            Found::Executable => Ok(program.into()),
            Found::Other => Err(LookupError::NotExecutable(program.to_owned())),
            Found::Nothing => Err(LookupError::NoFile(program.to_owned())),
        };
    }
    let mut refused = None;
    for directory in path.split(':').filter(|_| !program.is_empty()) {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(program);
        match look(&candidate) {
            Found::Executable => return Ok(candidate),
            Found::Other => refused = refused.or(Some(candidate)),
            Found::Nothing => {}
        }
    }
    Err(match refused {
        Some(candidate) => LookupError::NotExecutable(candidate.display().to_string()),
        None => LookupError::NotInPath(program.to_owned(), path.to_owned()),
    })
}

enum Found {
    Executable,
    /// A directory, or a file without permission to execute it.
    Other,
    Nothing,
}

fn look(path: &Path) -> Found {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
                Ok(()) => Found::Executable,
                Err(_) => Found::Other,
            }
        }
        Ok(_) => Found::Other,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Found::Other,
        Err(_) => Found::Nothing,
    }
}

/// What the kernel's refusal to execute an existing file most likely means.
pub fn explain_exec_error(program: &Path, error: &std::io::Error) -> String {
    let name = program.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => match interpreter(program) {
            Some(interpreter) => {
                format!("{name} needs {interpreter}, which the image does not have")
            }
            None => format!("{name} needs a program loader that the image does not have"),
        },
        Some(libc::ENOEXEC) => {
            format!("{name} is neither a program for this machine nor a script with a #! line")
        }
        _ => format!("{name}: {error}"),
    }
}

/// The program named in the first line of a script.
fn interpreter(program: &Path) -> Option<String> {
    use std::io::Read;
    let mut head = [0; 256]; // what the kernel looks at: BINPRM_BUF_SIZE
    let read = std::fs::File::open(program).ok()?.read(&mut head).ok()?;
    let line = head[..read]
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let name = line
        .trim_ascii()
        .split(|byte| byte.is_ascii_whitespace())
        .next()?;
    Some(OsStr::from_bytes(name).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pairs(entries: &[&str]) -> Vec<(String, String)> {
        let entries: Vec<_> = entries.iter().map(|&entry| entry.to_owned()).collect();
        environment(&entries, "/root", "s1").unwrap()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn empty_environment_gets_path_host_name_and_home() {
        assert_eq!(
            pairs(&[]),
            [
                pair("PATH", DEFAULT_PATH),
                pair("HOSTNAME", "s1"),
                pair("HOME", "/root")
            ]
        );
    }

    #[test]
    fn later_entries_win_over_earlier_ones_and_over_the_defaults() {
        let got = pairs(&["A=1", "HOME=/x", "A=2=3", "PATH=", "B="]);
        let expected = [
            pair("PATH", ""),
            pair("HOSTNAME", "s1"),
            pair("HOME", "/x"),
            pair("A", "2=3"),
            pair("B", ""),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn entry_without_a_name_or_a_value_is_refused() {
        for entry in ["A", "=x", ""] {
            let error = environment(&[entry.to_owned()], "/", "").unwrap_err();
            assert_eq!(error, EnvironmentError(entry.to_owned()));
        }
    }

    #[test]
    fn first_executable_file_in_path_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        make("a/tool", 0o644);
        let tool = make("b/tool", 0o755);
        make("c/tool", 0o755);
        let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
        let path = format!("/nowhere:{}:{}:{}", a.display(), b.display(), c.display());
        assert_eq!(find_program("tool", &path), Ok(tool));
        let refused = a.join("tool").display().to_string();
        assert_eq!(
            find_program("tool", &a.display().to_string()),
            Err(LookupError::NotExecutable(refused))
        );
        let missing = LookupError::NotInPath("nosuch".into(), path.clone());
        assert_eq!(find_program("nosuch", &path), Err(missing));
        assert_eq!(
            find_program("/no/such", &path),
            Err(LookupError::NoFile("/no/such".into()))
        );
        assert!(find_program("", &path).is_err());
        assert!(matches!(
            find_program("/", &path),
            Err(LookupError::NotExecutable(_))
        ));
    }

    #[test]
    fn missing_interpreter_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("run");
        fs::write(&script, "#! /opt/nosuch/python -u\nprint()\n").unwrap();
        let error = std::io::Error::from_raw_os_error(libc::ENOENT);
        let text = explain_exec_error(&script, &error);
        assert!(
            text.contains("needs /opt/nosuch/python, which the image does not have"),
            "{text}"
        );
    }
}
