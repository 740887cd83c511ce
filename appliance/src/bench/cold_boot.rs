//! From a launch to the agent's answer, without a golden.

use serde_json::Value;

use super::figures::Series;
use super::image::Image;
use super::run::{Run, boot_request};
use crate::worker::{Purpose, WorkerHost};

/// Boots guests one after the other.
pub async fn measure(workers: &WorkerHost, count: u32) -> anyhow::Result<Series> {
    let image = Image::empty(workers).await?;
    let mut series = Series::default();
    for _ in 0..count {
        let mut run = Run::start(workers, boot_request(&image, Purpose::Trial)?).await?;
        series.push(run.until_renewed().await?);
        run.end().await;
    }
    Ok(series)
}

/// The figures stand at the top, beside their name.
pub fn json(series: &Series) -> Value {
    let mut result = series.json();
    result["id"] = "cold_boot".into();
    result["unit"] = "ms".into();
    result
}
