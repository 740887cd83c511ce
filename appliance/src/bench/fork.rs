//! From a launch to the agent of a fork and to the first byte of its container: one at a time, and many at once.
//!
//! The agent is there twice: with its first word, and when the guest has its identity and may run what is a tenant's.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::figures::{Sample, Series};
use super::golden::Golden;
use super::image::{Image, Source};
use super::run::{Run, boot_request, session};
use crate::config::Paths;
use crate::worker::spec::ForkPoint;
use crate::worker::{LaunchRequest, Purpose, WorkerHost};

/// Between two measurements, beside the time in which the host makes its spares again. Sessions come
/// further apart than this; those that do not are what the bursts measure.
const PAUSE: Duration = Duration::from_millis(700);
/// Bursts of one kind, however many forks are asked for.
const MOST_BURSTS: u32 = 5;
/// Cold boots beside the forks.
const COLD_BOOTS: u32 = 5;

/// See [`super::Measure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Forks one after the other.
    pub count: u32,
    /// Forks at once.
    pub parallel: u32,
    pub point: ForkPoint,
    /// Without one the forks have an agent and nothing to run.
    pub image: Option<Source>,
}

/// How far a fork is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Agent,
    FirstByte,
}

/// What was measured of one goal.
struct Figures {
    single: Series,
    burst: Series,
    /// From the first launch of a burst to its last answer.
    whole_bursts: Series,
    cold: Series,
}

pub struct Report {
    plan: Plan,
    agent: Figures,
    first_byte: Option<Figures>,
}

pub async fn measure(workers: &WorkerHost, paths: &Paths, plan: Plan) -> anyhow::Result<Report> {
    let image = match plan.image.clone() {
        Some(source) => Image::open(workers, source).await?,
        None => Image::empty(workers).await?,
    };
    let has_container = plan.image.is_some();
    ensure!(
        has_container || plan.point == ForkPoint::BeforeStart,
        "The fork point {} needs a container: name one with --image",
        plan.point
    );
    let golden = Golden::build(workers, paths, &image, plan.point).await?;
    let bench = Bench {
        workers,
        image: &image,
        golden: &golden,
        plan: &plan,
    };
    let agent = bench.figures(Goal::Agent).await?;
    let first_byte = if has_container {
        Some(bench.figures(Goal::FirstByte).await?)
    } else {
        None
    };
    Ok(Report {
        plan,
        agent,
        first_byte,
    })
}

struct Bench<'a> {
    workers: &'a WorkerHost,
    image: &'a Image,
    golden: &'a Golden,
    plan: &'a Plan,
}

impl Bench<'_> {
    async fn rest(&self) {
        self.workers.at_rest().await;
        tokio::time::sleep(PAUSE).await;
    }

    async fn figures(&self, goal: Goal) -> anyhow::Result<Figures> {
        let mut single = Series::default();
        for _ in 0..self.plan.count {
            self.rest().await;
            single.push(one(self.workers.clone(), self.fork(goal)?, goal).await?);
        }
        let (mut burst, mut whole_bursts) = (Series::default(), Series::default());
        let bursts = (self.plan.count / self.plan.parallel).clamp(1, MOST_BURSTS);
        for _ in 0..bursts {
            self.rest().await;
            let samples = self.burst(goal).await?;
            let total = samples.iter().map(|sample| sample.total).max();
            whole_bursts.push(Sample {
                total: total.unwrap_or_default(),
                ..Sample::default()
            });
            samples.into_iter().for_each(|sample| burst.push(sample));
        }
        let mut cold = Series::default();
        for _ in 0..COLD_BOOTS.min(self.plan.count) {
            self.rest().await;
            let purpose = self.purpose(goal, ForkPoint::BeforeStart);
            let request = boot_request(self.image, purpose)?;
            cold.push(one(self.workers.clone(), request, goal).await?);
        }
        Ok(Figures {
            single,
            burst,
            whole_bursts,
            cold,
        })
    }

    /// All are launched before any of them is waited for, and all run until the last one has answered.
    async fn burst(&self, goal: Goal) -> anyhow::Result<Vec<Sample>> {
        let requests: Vec<LaunchRequest> = (0..self.plan.parallel)
            .map(|_| self.fork(goal))
            .collect::<anyhow::Result<_>>()?;
        let mut running = JoinSet::new();
        for request in requests {
            running.spawn(follow(self.workers.clone(), request, goal));
        }
        let mut followed = Vec::new();
        while let Some(outcome) = running.join_next().await {
            followed.push(outcome.context("A measurement panicked")??);
        }
        let mut samples = Vec::new();
        let mut ending = JoinSet::new();
        for (run, sample) in followed {
            samples.push(sample);
            ending.spawn(run.end());
        }
        ending.join_all().await;
        Ok(samples)
    }

    fn fork(&self, goal: Goal) -> anyhow::Result<LaunchRequest> {
        self.golden
            .fork(self.image, self.purpose(goal, self.plan.point))
    }

    fn purpose(&self, goal: Goal, point: ForkPoint) -> Purpose {
        match goal {
            Goal::Agent => Purpose::Trial,
            Goal::FirstByte => session(self.image, point),
        }
    }
}

async fn one(workers: WorkerHost, request: LaunchRequest, goal: Goal) -> anyhow::Result<Sample> {
    let (run, sample) = follow(workers, request, goal).await?;
    run.end().await;
    Ok(sample)
}

async fn follow(
    workers: WorkerHost,
    request: LaunchRequest,
    goal: Goal,
) -> anyhow::Result<(Run, Sample)> {
    let mut run = Run::start(&workers, request).await?;
    let sample = match goal {
        Goal::Agent => run.until_renewed().await?,
        Goal::FirstByte => {
            run.until_renewed().await?;
            run.until_first_byte().await?
        }
    };
    Ok((run, sample))
}

impl Figures {
    fn json(&self) -> Value {
        json!({
            "single": self.single.json(),
            "burst": self.burst.json(),
            "wholeBurst": self.whole_bursts.json(),
            "coldBoot": self.cold.json(),
        })
    }

    fn text(&self, goal: &str, plan: &Plan) -> String {
        let parallel = plan.parallel;
        [
            self.single.text(&format!("fork to {goal}, one at a time")),
            self.burst
                .text(&format!("fork to {goal}, {parallel} at once")),
            self.whole_bursts
                .text(&format!("until the last of {parallel}, per burst")),
            self.cold
                .text(&format!("cold boot to {goal}, one at a time")),
        ]
        .concat()
    }
}

impl Report {
    pub fn json(&self) -> Value {
        json!({
            "id": "fork",
            "unit": "ms",
            "forkPoint": self.plan.point,
            "parallel": self.plan.parallel,
            "agent": self.agent.json(),
            "firstByte": self.first_byte.as_ref().map(Figures::json),
        })
    }

    pub fn text(&self) -> String {
        let mut text = format!("Fork point {}\n", self.plan.point);
        text += &self.agent.text("agent renewed", &self.plan);
        if let Some(figures) = &self.first_byte {
            text += &figures.text("the container's first byte", &self.plan);
        }
        text
    }
}
