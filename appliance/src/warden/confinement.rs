//! What this host lets the warden keep workers from, and what is missing.

use std::collections::HashSet;
use std::ops::Range;

use ::worker::landlock;
use ::worker::room::{Room, RoomError};
use rustix::thread::CapabilitySet;

use crate::exit::chain;
use crate::privileges;

/// Why workers could not be confined, so that none is started.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    #[error(
        "Workers cannot be kept from the host: {}. Let this service make namespaces and mount (`cabana doctor` tries it), or \
         use `cabana serve --unconfined` where all sessions may be trusted with the host",
        chain(.0)
    )]
    Room(RoomError),
}

/// What children need until they are confined: to become somebody else and to give up the rest.
const CHILDREN: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP);

/// Makes the room that workers are in. There is none when the operator wants none, or when we are not root: one line says so each time.
pub fn prepare(confined: bool, root: bool) -> Result<Option<Room>, ConfinementError> {
    if !confined {
        tracing::warn!(
            "Started with --unconfined: a worker that a guest has taken over sees the host's files, network and processes"
        );
    }
    // An older landlock is one wall of several for root, and the only one for everybody else.
    let version = landlock::version();
    if confined
        && (!root || version.is_none())
        && let Confinement::Weaker(lacks) = judge(root, version)
    {
        tracing::warn!("Workers are confined less well than they could be: {lacks}");
    }
    if !confined || !root {
        return Ok(None);
    }
    let room = Room::make().map_err(ConfinementError::Room)?;
    // From here on only this process has more.
    if let Err(error) = privileges::keep_in_bounds(CHILDREN) {
        tracing::debug!("Children begin with all capabilities, and give them up: {error}");
    }
    Ok(Some(room))
}

/// User ids in `range` that a process has now. Usually none: what an earlier warden has left is known by its records. What those do not
/// know, because somebody has damaged one, must not share its id all the same.
pub fn ids_in_use(range: Range<u32>) -> HashSet<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| super::proof::uid(pid).ok())
        .filter(|uid| range.contains(uid))
        .collect()
}

/// How well workers are kept from this host.
#[derive(Debug, PartialEq, Eq)]
pub enum Confinement {
    /// As well as we know how, by this version of landlock.
    Whole { landlock: u32 },
    /// What is missing, in words.
    Weaker(String),
    /// Without `--unconfined` no appliance starts here, and why.
    Refused(String),
}

/// Looks what this process could do about it.
pub fn look() -> Confinement {
    let root = rustix::process::geteuid().is_root();
    if root && let Err(error) = Room::make() {
        return Confinement::Refused(chain(&error));
    }
    judge(root, landlock::version())
}

fn judge(root: bool, landlock: Option<u32>) -> Confinement {
    let mut lacks = Vec::new();
    if !root {
        lacks.push(
            "not started as root, so that workers have neither namespaces nor ids of their own"
                .to_owned(),
        );
    }
    match landlock {
        Some(version) if version >= SCOPED => {
            if root {
                return Confinement::Whole { landlock: version };
            }
        }
        Some(version) => lacks.push(format!(
            "landlock has version {version} here, and forbids signals and abstract sockets from {SCOPED} on (Linux 6.12)"
        )),
        None => lacks.push(
            "no landlock: it wants CONFIG_SECURITY_LANDLOCK and `landlock` in `lsm=` of the kernel's command line"
                .to_owned(),
        ),
    }
    Confinement::Weaker(lacks.join("; "))
}

/// The version of landlock from which on it forbids all that is known here.
const SCOPED: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_user_id_is_in_use_and_another_one_is_not() {
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(ids_in_use(own..own + 1), HashSet::from([own]));
        assert_eq!(ids_in_use(1_999_999_999..2_000_000_000), HashSet::new());
    }

    #[test]
    fn whatever_is_missing_is_said() {
        assert_eq!(judge(true, Some(6)), Confinement::Whole { landlock: 6 });
        let lacks = |root, landlock| match judge(root, landlock) {
            Confinement::Weaker(lacks) => lacks,
            other => panic!("{other:?}"),
        };
        assert!(lacks(true, None).contains("no landlock"));
        assert!(lacks(true, Some(5)).contains("version 5"));
        assert!(lacks(false, Some(7)).contains("root"));
        let both = lacks(false, None);
        assert!(both.contains("root") && both.contains("landlock"), "{both}");
    }

    #[test]
    fn who_wants_no_confinement_and_who_is_not_root_gets_no_room() {
        for (confined, root) in [(false, true), (false, false), (true, false)] {
            assert!(prepare(confined, root).unwrap().is_none());
        }
    }
}
