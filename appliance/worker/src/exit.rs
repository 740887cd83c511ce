//! Exit codes of every command, the same numbers as `sysexits.h`. Listed in the README.

use std::process::ExitCode;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// The operation was understood and failed; the line on stderr says why.
    Failed,
    /// A bad flag, value or config key. Nothing was touched.
    Usage,
    /// The appliance is not reachable, or this host cannot run guests.
    Unavailable,
    /// A process of the appliance died; what it ran is gone.
    Internal,
    /// The operating system refused access.
    Permission,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Permission => 77,
        }
    }

    /// The meaning of a child's exit code; an unknown one is a failure of ours.
    pub fn from_code(code: i32) -> Self {
        [
            Self::Ok,
            Self::Failed,
            Self::Usage,
            Self::Unavailable,
            Self::Permission,
        ]
        .into_iter()
        .find(|exit| i32::from(exit.code()) == code)
        .unwrap_or(Self::Internal)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What ends a command early: the code and the one line that says why.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub line: String,
}

impl Failure {
    pub fn new(exit: Exit, line: impl Into<String>) -> Self {
        Self {
            exit,
            line: line.into(),
        }
    }

    /// `error` with all its causes in one line.
    pub fn of(exit: Exit, error: &dyn std::error::Error) -> Self {
        Self {
            exit,
            line: chain(error),
        }
    }
}

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
