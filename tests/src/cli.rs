//! Client commands of the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::artifacts;

/// Runs `cabana` with the root of one appliance.
#[derive(Clone, Debug)]
pub struct Cli {
    root: Option<PathBuf>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub command: String,
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    pub fn with_root(root: &Path) -> Self {
        Self {
            root: Some(root.to_owned()),
        }
    }

    pub fn without_root() -> Self {
        Self { root: None }
    }

    /// Runs one command; `--root` goes behind its arguments, where every command takes it.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(artifacts::cabana());
        command.args(arguments);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        Ran::of(&mut command)
    }

    /// Runs a command that must succeed; answers its stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        ran.stdout
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let stdout = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("{arguments:?} printed no JSON ({e}): {stdout}"))
    }
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output();
        let output = output.unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        Self {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts that the command failed as a good citizen: this exit code, nothing on stdout, and on
    /// stderr one line that contains each of `words`.
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        self.assert_one_line(words);
    }

    /// One line on stderr that contains each of `words`. Lines of the log do not count.
    #[track_caller]
    pub fn assert_one_line(&self, words: &[&str]) {
        let lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|line| !is_log_line(line))
            .collect();
        assert_eq!(lines.len(), 1, "not one line: {self:#?}");
        for word in words {
            assert!(
                self.stderr.contains(word),
                "the line does not name {word:?}: {self:#?}"
            );
        }
    }
}

/// `2026-11-21T20:18:00.123456Z  INFO cabana: ...`, as the log writes it.
fn is_log_line(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let stamp = words
        .next()
        .is_some_and(|word| word.ends_with('Z') && word.contains('T'));
    stamp
        && matches!(
            words.next(),
            Some("TRACE" | "DEBUG" | "INFO" | "WARN" | "ERROR")
        )
}
