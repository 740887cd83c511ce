//! How far a guest has come, and what follows from what it says. Pure.
//!
//! A guest is led by a script: which messages it gets, and after which of its own. Whatever it
//! claims, each step is taken once and in order. Before it has said that it is renewed, nothing
//! of a tenant may run in it, so one that claims otherwise has broken out of the script and is
//! killed. Only a fork of a frozen container may say at once what was true before it was frozen;
//! that is kept back until the guest is renewed.
//!
//! A guest that an earlier appliance has led to its end of the script is taken as it is: it runs, and what its agent says again on
//! its new stream is no news.

use std::fmt;
use std::time::Duration;

use wire::{Ending, GuestMessage, Stream};

use super::launch::{Purpose, Source};
use super::spec::ForkPoint;

/// From the start of a guest to its agent's first word. Sized for an emulated host that boots many.
const HELLO_LIMIT: Duration = Duration::from_secs(120);
/// A guest that was booted mounts its disks before it answers; the same slow host needs as long for that.
const RENEW_LIMIT: Duration = Duration::from_secs(120);
const FREEZE_LIMIT: Duration = Duration::from_secs(120);

/// What is to be done with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// Started and ready may be said before the guest is renewed: its container is frozen.
    frozen: bool,
    start: bool,
    /// Its container is frozen when it is ready and somebody has asked for it.
    freeze: bool,
    /// Told at its first word to stand still, and left as it is from then on.
    hold: bool,
    /// Somebody is served, so it is ended in order.
    serves: bool,
}

impl Script {
    pub fn new(purpose: &Purpose, source: &Source) -> Self {
        let fork = matches!(source, Source::Fork { .. });
        let (frozen, start, freeze, hold) = match purpose {
            Purpose::Session { point, .. } => {
                let frozen = fork && *point == ForkPoint::AfterReady;
                (frozen, !frozen, false, false)
            }
            Purpose::Golden {
                point: ForkPoint::BeforeStart,
                ..
            } => (false, false, false, true),
            Purpose::Golden {
                point: ForkPoint::AfterReady,
                ..
            } => (false, true, true, false),
            // Of which point its snapshot is, nobody has to say.
            Purpose::Trial => (fork, false, false, false),
        };
        Self {
            frozen,
            start,
            freeze,
            hold,
            serves: matches!(purpose, Purpose::Session { .. }),
        }
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// From here on the guest runs what is the tenant's.
    LimitCpu,
    Renew,
    Start,
    Freeze,
    /// It does not need the host's CPUs for coming up any more.
    Up,
    Tell(Told),
    /// The agent of a guest that runs is there again, and speaks this version.
    Heard {
        version: u16,
    },
    Keep(Stream, String),
    Kill,
}

/// What the launcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Booted { version: u16, uptime_us: u64 },
    Renewed,
    Started,
    Ready,
    Held,
    Exited(Ending),
    Failed(String),
}

/// What the host waits for, and how long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    Hello,
    Renewed,
    Frozen,
}

impl Awaited {
    pub fn limit(self) -> Duration {
        match self {
            Self::Hello => HELLO_LIMIT,
            Self::Renewed => RENEW_LIMIT,
            Self::Frozen => FREEZE_LIMIT,
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "answer",
            Self::Renewed => "take its identity",
            Self::Frozen => "stand still",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Renewing,
    Running,
    Freezing,
    /// As freezing, with no container in it.
    Settling,
    Held,
    /// Killed; nothing it says counts.
    Over,
}

#[derive(Debug)]
pub struct Progress {
    script: Script,
    stage: Stage,
    started: bool,
    ready: bool,
    freeze_asked: bool,
    /// The container ended or will never run.
    finished: bool,
}

impl Progress {
    pub fn new(script: Script) -> Self {
        Self {
            script,
            stage: Stage::Waiting,
            started: false,
            ready: false,
            freeze_asked: false,
            finished: false,
        }
    }

    /// Of a session that was led so far by an earlier appliance.
    pub fn adopted() -> Self {
        let script = Script {
            frozen: false,
            start: false,
            freeze: false,
            hold: false,
            serves: true,
        };
        Self {
            stage: Stage::Running,
            started: true,
            ready: true,
            ..Self::new(script)
        }
    }

    /// What follows from a message. Its texts are a stranger's: whoever passes them on tames them.
    pub fn on(&mut self, message: GuestMessage) -> Vec<Act> {
        match self.stage {
            Stage::Waiting => self.on_first(message),
            Stage::Renewing => self.on_renewing(message),
            Stage::Running | Stage::Freezing => self.on_running(message),
            Stage::Settling => self.on_settling(message),
            Stage::Held => self.on_held(message),
            Stage::Over => Vec::new(),
        }
    }

    /// What the host waits for now, if anything.
    pub fn awaited(&self) -> Option<Awaited> {
        match self.stage {
            Stage::Waiting => Some(Awaited::Hello),
            Stage::Renewing => Some(Awaited::Renewed),
            Stage::Freezing | Stage::Settling => Some(Awaited::Frozen),
            Stage::Running | Stage::Held | Stage::Over => None,
        }
    }

    /// The guest cannot be led any further.
    pub fn fail(&mut self, why: String) -> Vec<Act> {
        self.stage = Stage::Over;
        if std::mem::replace(&mut self.finished, true) {
            vec![Act::Kill]
        } else {
            vec![Act::Tell(Told::Failed(why)), Act::Kill]
        }
    }

    /// The container of a golden may be frozen, as soon as it is ready.
    pub fn freeze_when_ready(&mut self) -> Vec<Act> {
        self.freeze_asked = true;
        self.freeze_if_due()
    }

    /// Whether the agent can end the container in order; otherwise nothing is lost by a kill.
    pub fn can_stop_in_order(&self) -> bool {
        self.stage == Stage::Running && self.script.serves
    }

    fn on_first(&mut self, message: GuestMessage) -> Vec<Act> {
        let GuestMessage::Hello { version, uptime_us } = message else {
            return self.break_out(&message);
        };
        let mut acts = vec![Act::Tell(Told::Booted { version, uptime_us })];
        if self.script.hold {
            self.stage = Stage::Settling;
            acts.push(Act::Freeze);
            return acts;
        }
        if self.script.frozen {
            // Renewing thaws the container.
            acts.push(Act::LimitCpu);
        }
        self.stage = Stage::Renewing;
        acts.push(Act::Renew);
        acts
    }

    fn on_renewing(&mut self, message: GuestMessage) -> Vec<Act> {
        match message {
            GuestMessage::Renewed => self.on_renewed(),
            GuestMessage::Failed { message } => self.fail(format!("The guest failed: {message}")),
            GuestMessage::Started { .. } if self.script.frozen => {
                self.started = true;
                Vec::new()
            }
            GuestMessage::Ready if self.script.frozen => {
                self.ready = true;
                Vec::new()
            }
            GuestMessage::Output { stream, line } if self.script.frozen => {
                vec![Act::Keep(stream, line)]
            }
            GuestMessage::Hello { .. } => {
                self.fail("The agent came back before the guest had its identity".to_owned())
            }
            other => self.break_out(&other),
        }
    }

    fn on_renewed(&mut self) -> Vec<Act> {
        self.stage = Stage::Running;
        let mut acts = vec![Act::Tell(Told::Renewed), Act::Up];
        if self.started {
            acts.push(Act::Tell(Told::Started));
        }
        if self.ready {
            acts.push(Act::Tell(Told::Ready));
        }
        if !self.script.frozen {
            acts.push(Act::LimitCpu);
        }
        if self.script.start {
            acts.push(Act::Start);
        }
        acts
    }

    fn on_running(&mut self, message: GuestMessage) -> Vec<Act> {
        match message {
            GuestMessage::Started { .. } if !self.started => {
                self.started = true;
                vec![Act::Tell(Told::Started)]
            }
            GuestMessage::Ready if !self.ready => {
                self.ready = true;
                let mut acts = vec![Act::Tell(Told::Ready)];
                acts.extend(self.freeze_if_due());
                acts
            }
            GuestMessage::Frozen if self.stage == Stage::Freezing => {
                self.stage = Stage::Held;
                vec![Act::Tell(Told::Held)]
            }
            GuestMessage::Output { stream, line } => vec![Act::Keep(stream, line)],
            GuestMessage::Hello { version, .. } if self.stage == Stage::Running => {
                vec![Act::Heard { version }]
            }
            other => self.on_end(other),
        }
    }

    fn freeze_if_due(&mut self) -> Vec<Act> {
        let is_due = self.script.freeze && self.freeze_asked && self.ready && !self.finished;
        if !is_due || self.stage != Stage::Running {
            return Vec::new();
        }
        self.stage = Stage::Freezing;
        vec![Act::Freeze]
    }

    fn on_settling(&mut self, message: GuestMessage) -> Vec<Act> {
        match message {
            GuestMessage::Frozen => {
                self.stage = Stage::Held;
                vec![Act::Up, Act::Tell(Told::Held)]
            }
            other => self.break_out(&other),
        }
    }

    fn on_held(&mut self, message: GuestMessage) -> Vec<Act> {
        match message {
            GuestMessage::Output { stream, line } if self.script.freeze => {
                vec![Act::Keep(stream, line)]
            }
            GuestMessage::Started { .. } | GuestMessage::Ready | GuestMessage::Output { .. }
                if !self.script.freeze =>
            {
                self.break_out(&message)
            }
            other => self.on_end(other),
        }
    }

    fn on_end(&mut self, message: GuestMessage) -> Vec<Act> {
        let told = match message {
            GuestMessage::Exited(ending) => Told::Exited(ending),
            GuestMessage::Failed { message } => Told::Failed(message),
            GuestMessage::Hello { .. }
            | GuestMessage::Renewed
            | GuestMessage::Started { .. }
            | GuestMessage::Ready
            | GuestMessage::Frozen
            | GuestMessage::Output { .. }
            | GuestMessage::Unknown => return Vec::new(),
        };
        if std::mem::replace(&mut self.finished, true) {
            return Vec::new();
        }
        vec![Act::Tell(told)]
    }

    /// A guest that says what cannot be true yet.
    fn break_out(&mut self, message: &GuestMessage) -> Vec<Act> {
        let claim = match message {
            GuestMessage::Started { .. } => "its container has started",
            GuestMessage::Ready => "its container is ready",
            GuestMessage::Output { .. } => "its container has written something",
            GuestMessage::Exited(_) => "its container has ended",
            GuestMessage::Renewed => "it has an identity that nobody gave it",
            GuestMessage::Failed { message } => {
                return self.fail(format!("The guest failed: {message}"));
            }
            GuestMessage::Frozen | GuestMessage::Hello { .. } | GuestMessage::Unknown => {
                return Vec::new();
            }
        };
        self.fail(format!(
            "The guest claims that {claim}, before it may have happened"
        ))
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
