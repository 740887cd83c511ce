//! Errors of set-up work: what was attempted, and why it failed.

use std::error::Error;
use std::io;

/// A step that failed. The cause stays in `source()`; [`chain`] prints both.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {attempt}")]
pub struct SetupError {
    attempt: String,
    source: io::Error,
}

/// Names what was attempted when it fails.
pub trait Attempt<T> {
    /// `what` continues the sentence "Cannot ...".
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T, SetupError> {
        self.map_err(|source| SetupError {
            attempt: what(),
            source: source.into(),
        })
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_the_attempt_and_then_the_cause() {
        let error = Err::<(), _>(rustix::io::Errno::NOENT)
            .attempt(|| "open /x".into())
            .expect_err("the result is an error");
        assert_eq!(
            chain(&error),
            "Cannot open /x: No such file or directory (os error 2)"
        );
    }
}
