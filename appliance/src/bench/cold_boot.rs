//! From a launch to the agent's answer and on to a renewed guest, without a golden.

use serde_json::Value;

use super::figures::Series;
use super::image::Image;
use super::run::{Run, boot_request};
use crate::worker::{Purpose, WorkerHost};

/// Of the same guests.
#[derive(Debug, Default)]
pub struct Report {
    /// Until the agent's first word.
    answered: Series,
    /// Until its disks are mounted, its container is prepared, and it is a guest of its own.
    renewed: Series,
}

/// Boots guests one after the other.
pub async fn measure(workers: &WorkerHost, count: u32) -> anyhow::Result<Report> {
    let image = Image::empty(workers).await?;
    let mut report = Report::default();
    workers.at_rest().await;
    for _ in 0..count {
        let mut run = Run::start(workers, boot_request(&image, Purpose::Trial)?).await?;
        report.answered.push(run.until_answered().await?);
        report.renewed.push(run.until_renewed().await?);
        run.end().await;
    }
    Ok(report)
}

impl Report {
    /// The figures of the answer stand at the top, beside their name.
    pub fn json(&self) -> Value {
        let mut result = self.answered.json();
        result["id"] = "cold_boot".into();
        result["unit"] = "ms".into();
        result["renewed"] = self.renewed.json();
        result
    }

    pub fn text(&self) -> String {
        self.answered.text("launch to agent's answer")
            + &self.renewed.text("launch to agent renewed")
    }
}
