//! What confinement costs a start, measured: processes are started with it and without it, in turn, and nothing else is done.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ::worker::room::Room;
use uuid::Uuid;

use super::confinement::{self, ConfinementError};
use super::program::{Program, ProgramError};
use super::spawn::{Output, Place, Process, Role};
use crate::worker::spec::WorkerSetup;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum StartsError {
    #[error(transparent)]
    Worker(#[from] ProgramError),
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error("Cannot start a process")]
    Process(#[from] io::Error),
    #[error("Workers are confined by a warden that is root, which this process is not")]
    NotRoot,
}

/// One start.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// As long as the warden is busy with it.
    pub started: Duration,
    /// Until the worker has given up what it can, sees that there is nothing to do, and is gone.
    pub ended: Duration,
}

/// The same number of each, taken in turn, so that both meet the same host.
#[derive(Debug, Default)]
pub struct Starts {
    pub confined: Vec<Start>,
    pub free: Vec<Start>,
    /// Of all that were started at once.
    pub confined_at_once: Duration,
    pub free_at_once: Duration,
}

/// What a worker is started with and without.
struct Way<'a> {
    program: &'a Program,
    room: Option<&'a Room>,
    uid: u32,
}

/// Starts `count` of each one after the other, and then `parallel` of each at once.
pub fn measure(folder: &Path, uid: u32, count: u32, parallel: u32) -> Result<Starts, StartsError> {
    if !rustix::process::geteuid().is_root() {
        return Err(StartsError::NotRoot);
    }
    let program = &Program::unpack(folder)?;
    let room = confinement::prepare(true, true)?;
    let confined = Way {
        program,
        room: room.as_ref(),
        uid,
    };
    let free = Way {
        room: None,
        ..confined
    };
    let mut starts = Starts::default();
    for _ in 0..count {
        starts.confined.push(confined.start()?.until_ended()?);
        starts.free.push(free.start()?.until_ended()?);
    }
    starts.confined_at_once = confined.at_once(parallel)?;
    starts.free_at_once = free.at_once(parallel)?;
    Ok(starts)
}

/// A worker on its way.
struct Begun {
    process: Process,
    begun: Instant,
    started: Duration,
}

impl Way<'_> {
    fn start(&self) -> io::Result<Begun> {
        let begun = Instant::now();
        let place = Place {
            cgroup: None,
            room: self.room,
        };
        let process = Process::spawn(self.program, Role::Worker, Output::Nowhere, place)?;
        let setup = WorkerSetup {
            id: Uuid::nil(),
            uid: Some(self.uid),
            confined: self.room.is_some(),
            orphan_limit_seconds: 0,
        };
        // With no descriptor to make a machine of, so it ends where it would have begun to.
        process.send_first(&setup, &[])?;
        let started = begun.elapsed();
        Ok(Begun {
            process,
            begun,
            started,
        })
    }

    fn at_once(&self, count: u32) -> io::Result<Duration> {
        let begun = Instant::now();
        let all: Vec<_> = (0..count).map(|_| self.start()).collect::<Result<_, _>>()?;
        for one in all {
            one.until_ended()?;
        }
        Ok(begun.elapsed())
    }
}

impl Begun {
    fn until_ended(mut self) -> io::Result<Start> {
        self.process.wait()?;
        Ok(Start {
            started: self.started,
            ended: self.begun.elapsed(),
        })
    }
}
