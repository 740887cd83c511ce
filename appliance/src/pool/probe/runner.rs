//! Asks a container how it is, on time and as long as it matters.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::check::{self, Connect};
use super::schedule::{Schedule, Verdict};
use super::{Probe, Probes};
use crate::store::PoolRecord;
use crate::worker::spec::ForkPoint;

/// The probes of one slot. Its futures may be dropped at any await and made anew: a try that was cut off is
/// made again, and nothing else is forgotten.
#[derive(Debug)]
pub struct Prober {
    startup: Option<Asking>,
    liveness: Option<Asking>,
    /// A first question is asked at once, and no failure counts.
    at_once: bool,
    /// Of the probe that failed.
    grace: Option<Duration>,
}

/// A container that its pool does not want any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// `startup` or `liveness`.
    probe: &'static str,
    /// In a row.
    failures: u32,
    /// What was asked the last time and what came, in one short line that cannot drive a terminal.
    complaint: String,
}

#[derive(Debug)]
struct Asking {
    probe: Probe,
    /// From the first question on.
    schedule: Option<Schedule>,
    complaint: String,
}

impl Prober {
    /// For a slot of this pool.
    ///
    /// The container of a fork from after ready has passed its startup probe before it was frozen. It is asked
    /// once more, because nobody shall get a slot that does not answer, and at once, because
    /// that is all it takes. If this fails, or if it was no fork, the probe begins as everywhere.
    pub fn of_slot(pool: &PoolRecord) -> Self {
        Self {
            at_once: pool.fork_point == ForkPoint::AfterReady,
            ..Self::new(&pool.probes)
        }
    }

    /// For the guest that becomes a golden.
    pub fn of_golden(startup: Option<Probe>) -> Self {
        Self::new(&Probes {
            startup,
            liveness: None,
        })
    }

    fn new(probes: &Probes) -> Self {
        let asking = |probe: &Option<Probe>| {
            probe.clone().map(|probe| Asking {
                probe,
                schedule: None,
                complaint: String::new(),
            })
        };
        Self {
            startup: asking(&probes.startup),
            liveness: asking(&probes.liveness),
            at_once: false,
            grace: None,
        }
    }

    /// How long the container may take to end now: as always, or as the probe says that has failed.
    pub fn grace(&self) -> Duration {
        self.grace.unwrap_or(wire::timing::STOP_GRACE)
    }

    /// Asks the startup probe, whose time begins with the first call, until it has succeeded or failed.
    /// That takes at most its initial delay and, for each failure allowed, the longer of period
    /// and timeout. Without one it is done at once.
    pub async fn started(&mut self, connect: &Connect<'_>) -> Result<(), Unhealthy> {
        let Some(asking) = &mut self.startup else {
            return Ok(());
        };
        if self.at_once {
            let asked = check::ask(connect, &asking.probe).await;
            self.at_once = false;
            if asked.is_ok() {
                return Ok(());
            }
        }
        let schedule = asking
            .schedule
            .get_or_insert_with(|| Schedule::startup(&asking.probe, Instant::now()));
        loop {
            let complaint = &mut asking.complaint;
            match ask_in_time(schedule, &asking.probe, complaint, connect).await {
                Verdict::Healthy => return Ok(()),
                Verdict::Unhealthy => {
                    self.grace = asking.grace();
                    return Err(asking.unhealthy("startup"));
                }
                Verdict::Undecided => {}
            }
        }
    }

    /// Asks the liveness probe, whose time begins with the first call, until it has failed too often.
    /// Without one it never ends.
    pub async fn unhealthy(&mut self, connect: &Connect<'_>) -> Unhealthy {
        let Some(asking) = &mut self.liveness else {
            return std::future::pending().await;
        };
        let schedule = asking
            .schedule
            .get_or_insert_with(|| Schedule::liveness(&asking.probe, Instant::now(), jitter()));
        loop {
            let complaint = &mut asking.complaint;
            let verdict = ask_in_time(schedule, &asking.probe, complaint, connect).await;
            if verdict == Verdict::Unhealthy {
                self.grace = asking.grace();
                return asking.unhealthy("liveness");
            }
        }
    }
}

/// Waits for the next try and makes it.
async fn ask_in_time(
    schedule: &mut Schedule,
    probe: &Probe,
    complaint: &mut String,
    connect: &Connect<'_>,
) -> Verdict {
    sleep_until(schedule.next_try()).await;
    let asked = Instant::now();
    let answer = check::ask(connect, probe).await;
    let healthy = answer.is_ok();
    if let Err(why) = answer {
        tracing::debug!(why, "a probe failed");
        *complaint = why;
    }
    schedule.on_answer(asked, Instant::now(), healthy)
}

impl Asking {
    fn unhealthy(&self, probe: &'static str) -> Unhealthy {
        Unhealthy {
            probe,
            failures: self.schedule.as_ref().map_or(0, Schedule::failures),
            complaint: self.complaint.clone(),
        }
    }

    fn grace(&self) -> Option<Duration> {
        self.probe
            .termination_grace_seconds
            .map(Duration::from_secs)
    }
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            probe, complaint, ..
        } = self;
        match self.failures {
            0 | 1 => write!(f, "its {probe} probe failed because {complaint}"),
            failures => write!(
                f,
                "its {probe} probe failed {failures} times in a row, the last time because {complaint}"
            ),
        }
    }
}

/// From 0 to 1. Nothing secret: it only has to differ from slot to slot.
fn jitter() -> f64 {
    f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
