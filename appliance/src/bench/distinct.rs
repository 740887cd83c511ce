//! Whether forks of one golden are guests of their own: each is asked the same question, and no two may give the same answer.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::golden::Golden;
use super::image::{Image, Source};
use super::run::{Run, session};
use crate::config::Paths;
use crate::worker::spec::ForkPoint;
use crate::worker::{LaunchRequest, WorkerHost};

/// See [`super::Measure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub forks: u32,
    /// So many at the same time.
    pub parallel: u32,
    pub point: ForkPoint,
    pub image: Source,
    /// What is asked of the container, like `/random`.
    pub path: String,
}

pub struct Report {
    forks: u32,
    /// How many forks gave each answer.
    answers: BTreeMap<Vec<u8>, u32>,
}

pub async fn measure(workers: &WorkerHost, paths: &Paths, plan: Plan) -> anyhow::Result<Report> {
    let image = Image::open(workers, plan.image).await?;
    let golden = Golden::build(workers, paths, &image, plan.point).await?;
    let mut report = Report {
        forks: plan.forks,
        answers: BTreeMap::new(),
    };
    let mut asked = 0;
    while asked < plan.forks {
        let mut asking = JoinSet::new();
        for _ in 0..plan.parallel.min(plan.forks - asked) {
            let request = golden.fork(&image, session(&image, plan.point))?;
            asking.spawn(ask(workers.clone(), request, plan.path.clone()));
            asked += 1;
        }
        while let Some(answer) = asking.join_next().await {
            let answer = answer.context("A measurement panicked")??;
            *report.answers.entry(answer).or_default() += 1;
        }
    }
    Ok(report)
}

async fn ask(workers: WorkerHost, request: LaunchRequest, path: String) -> anyhow::Result<Vec<u8>> {
    let mut run = Run::start(&workers, request).await?;
    run.until_renewed().await?;
    let answer = run.answer(&path).await?;
    run.end().await;
    Ok(answer)
}

impl Report {
    /// An error when two forks gave the same answer.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.answers.iter().find(|(_, count)| **count > 1) {
            Some((answer, count)) => bail!(
                "{count} of {} forks have answered {:?}",
                self.forks,
                String::from_utf8_lossy(answer)
            ),
            None => Ok(()),
        }
    }

    pub fn json(&self) -> Value {
        json!({ "id": "distinct", "unit": "forks", "forks": self.forks, "distinct": self.answers.len() })
    }

    pub fn text(&self) -> String {
        let distinct = self.answers.len();
        format!("{distinct} different answers of {} forks\n", self.forks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_that_was_given_twice_is_an_error_and_names_it() {
        let mut report = Report {
            forks: 3,
            answers: BTreeMap::from([(b"a".to_vec(), 1), (b"b".to_vec(), 1)]),
        };
        report.check().unwrap();
        report.answers.insert(b"c".to_vec(), 2);
        let error = report.check().unwrap_err().to_string();
        assert!(
            error.contains("2 of 3") && error.contains("\"c\""),
            "{error}"
        );
    }
}
