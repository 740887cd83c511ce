//! Stops every process of the container where it is, and lets them go on: the freezer of cgroup v2.
//!
//! The kernel says in `cgroup.events` when the last one has stopped, and reports a change of that file as an
//! exceptional condition (`Documentation/admin-guide/cgroup-v2.rst`), so nobody has to look again and again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::attempt::{Attempt, SetupError};
use crate::poller::{Poller, Token};

/// `cgroup.events` is two short lines.
const MAX_EVENTS_BYTES: usize = 256;

/// The freezer of one control group.
pub struct Freezer {
    cgroup: PathBuf,
    state: State,
}

enum State {
    Thawed,
    /// Was asked to freeze; the file says when it has.
    Freezing(File),
    Frozen,
}

impl Freezer {
    /// `cgroup` is a directory of cgroup v2 that is not its root.
    pub fn new(cgroup: PathBuf) -> Self {
        Self {
            cgroup,
            state: State::Thawed,
        }
    }

    /// Whether its processes have stopped or are about to.
    pub fn is_on(&self) -> bool {
        !matches!(self.state, State::Thawed)
    }

    /// Begins to freeze. Answers whether everything has stopped already; if not,
    /// [`Token::Freezer`] will be reported.
    pub fn freeze(&mut self, poller: &Poller) -> Result<bool, SetupError> {
        match self.state {
            State::Frozen => return Ok(true),
            State::Freezing(_) => return Ok(false),
            State::Thawed => {}
        }
        let path = self.cgroup.join("cgroup.events");
        let events = File::open(&path).attempt(|| format!("open {}", path.display()))?;
        poller
            .watch_changes(&events, Token::Freezer)
            .attempt(|| format!("watch {}", path.display()))?;
        self.write("1")?;
        self.state = State::Freezing(events);
        self.on_event()
    }

    /// Looks at what the kernel says. Answers whether everything has just stopped.
    pub fn on_event(&mut self) -> Result<bool, SetupError> {
        let State::Freezing(events) = &self.state else {
            return Ok(false);
        };
        let is_frozen = read(events)
            .attempt(|| format!("read {}", self.cgroup.join("cgroup.events").display()))?;
        if is_frozen {
            self.state = State::Frozen;
        }
        Ok(is_frozen)
    }

    /// Lets everything go on.
    pub fn thaw(&mut self) -> Result<(), SetupError> {
        if self.is_on() {
            self.write("0")?;
            self.state = State::Thawed;
        }
        Ok(())
    }

    fn write(&self, value: &str) -> Result<(), SetupError> {
        let path = self.cgroup.join("cgroup.freeze");
        fs::write(&path, value).attempt(|| format!("write {value} to {}", path.display()))
    }
}

/// Reading from the start also tells the kernel that the change was seen.
fn read(events: &File) -> io::Result<bool> {
    let mut text = [0; MAX_EVENTS_BYTES];
    let length = events.read_at(&mut text, 0)?;
    Ok(says_frozen(&text[..length]))
}

fn says_frozen(events: &[u8]) -> bool {
    events
        .split(|&byte| byte == b'\n')
        .any(|line| line == b"frozen 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_about_freezing_counts() {
        assert!(says_frozen(b"populated 1\nfrozen 1\n"));
        assert!(!says_frozen(b"populated 1\nfrozen 0\n"));
        assert!(!says_frozen(b"populated 1\nfrozen 10\nunfrozen 1\n"));
        assert!(!says_frozen(b""));
    }

    #[test]
    fn group_that_does_not_exist_cannot_be_frozen_and_is_not_on() {
        let poller = Poller::new().unwrap();
        let mut freezer = Freezer::new("/no/such".into());
        assert!(freezer.freeze(&poller).is_err());
        assert!(!freezer.is_on());
        freezer.thaw().unwrap();
    }
}
