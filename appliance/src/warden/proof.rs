//! Whether a process is the one that was written down.
//!
//! The kernel uses a pid again once its process is gone. What it does not use again within one boot is the pair of pid and start
//! time, which is counted in hundredths of a second since the boot; and a pid does not come round within that.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// What tells a process from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Of the host, as the kernel names it.
    pub boot: String,
    pub pid: u32,
    /// In clock ticks since the boot.
    pub start_time: u64,
    /// The user that it has become.
    pub uid: u32,
}

impl Identity {
    /// A hold on exactly this process; `None` when it is gone, or another one has its pid.
    pub fn prove(&self, boot: &str) -> Option<OwnedFd> {
        if self.boot != boot {
            return None;
        }
        // First: from here on the descriptor means one process, and what is read below is about that one or about none.
        let pidfd = open(self.pid).ok()?;
        let same = start_time(self.pid).ok()? == self.start_time && uid(self.pid).ok()? == self.uid;
        // One that has ended and is not reaped has its pid still, so all of this was about it.
        (same && !has_ended(&pidfd)).then_some(pidfd)
    }
}

pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Does not wait.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The id of this boot of the host (random(4)).
pub fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim_end().to_owned())
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)).
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the name, in parentheses, and may hold anything; the third one follows the last of them.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// The real user id. Not the owner of the folder in `/proc`, which is root for everybody who has changed its ids.
pub fn uid(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let real = status.lines().find_map(|line| {
        line.strip_prefix("Uid:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    real.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn own() -> Identity {
        let pid = std::process::id();
        Identity {
            boot: boot().unwrap(),
            pid,
            start_time: start_time(pid).unwrap(),
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    fn is_proved(identity: &Identity) -> bool {
        identity.prove(&boot().unwrap()).is_some()
    }

    #[test]
    fn process_is_proved_by_what_was_written_down_about_it() {
        assert!(is_proved(&own()));
    }

    #[test]
    fn process_that_differs_in_anything_is_another_one() {
        let own = own();
        let others = [
            Identity {
                start_time: own.start_time + 1,
                ..own.clone()
            },
            Identity {
                start_time: own.start_time - 1,
                ..own.clone()
            },
            Identity {
                uid: own.uid + 1,
                ..own.clone()
            },
            Identity {
                boot: "another".to_owned(),
                ..own.clone()
            },
            Identity {
                pid: 0,
                ..own.clone()
            },
            Identity {
                pid: u32::MAX,
                ..own.clone()
            },
            // It is there for ever, and started at the boot.
            Identity { pid: 1, ..own },
        ];
        for identity in others {
            assert!(!is_proved(&identity), "{identity:?}");
        }
    }

    #[test]
    fn process_that_has_ended_and_was_not_reaped_is_gone() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let identity = Identity {
            pid,
            start_time: start_time(pid).unwrap(),
            ..own()
        };
        assert!(is_proved(&identity));
        let pidfd = open(pid).unwrap();
        drop(child.stdin.take());
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        assert!(
            !is_proved(&identity),
            "it is not reaped, and counts as running"
        );
        child.wait().unwrap();
        assert!(!is_proved(&identity));
    }

    #[test]
    fn name_of_a_process_does_not_shift_the_fields_behind_it() {
        let stat = "7 (a) R 1 (b) S) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 3 0";
        assert_eq!(parse_start_time(stat), Some(4711));
        assert_eq!(parse_start_time("7 (a) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }
}
