//! What a root image costs to build, to keep and to read, depending on how it is cut and packed.
//!
//! Each shape is built once, in this process and on all its processors. Then, as often as it is asked for and in turns, so that a
//! host that becomes slower does so for all of them, a guest is booted from each and asked for one page. Its cache is
//! empty, and so is the host's of what it decompresses: a first request on a new host.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::figures::{Sample, Series, millis};
use super::image::{Image, Source};
use super::run::{Run, boot_request, session};
use crate::images::Shape;
use crate::worker::WorkerHost;
use crate::worker::spec::ForkPoint;

/// See [`super::Measure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub image: Source,
    pub shapes: Vec<Shape>,
    /// Guests of each shape. 0: only the builds.
    pub rounds: u32,
}

pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    shape: Shape,
    built: Duration,
    processor: Duration,
    bytes: u64,
    /// From a renewed guest to the first byte of its container.
    first_byte: Series,
}

/// Builds, without a guest.
pub fn build(plan: &Plan) -> anyhow::Result<Report> {
    let rows = plan.shapes.iter().map(|shape| {
        let (_, row) = built(&plan.image, *shape)?;
        Ok(row)
    });
    let rows = rows.collect::<anyhow::Result<_>>()?;
    Ok(Report { rows })
}

pub async fn measure(workers: &WorkerHost, plan: Plan) -> anyhow::Result<Report> {
    let mut images = Vec::new();
    let mut report = Report { rows: Vec::new() };
    for shape in plan.shapes {
        let source = plan.image.clone();
        let (image, row) = tokio::task::spawn_blocking(move || built(&source, shape)).await??;
        images.push(image);
        report.rows.push(row);
    }
    for _ in 0..plan.rounds {
        for (image, row) in images.iter().zip(&mut report.rows) {
            let request = boot_request(image, session(image, ForkPoint::default()))?;
            let mut run = Run::start(workers, request).await?;
            let renewed = run.until_renewed().await?.total;
            let total = run.until_first_byte().await?.total;
            run.end().await;
            row.first_byte.push(Sample {
                total: total.saturating_sub(renewed),
                ..Sample::default()
            });
        }
    }
    Ok(report)
}

fn built(source: &Source, shape: Shape) -> anyhow::Result<(Image, Row)> {
    let path = source.path.display();
    let archive = File::open(&source.path).with_context(|| format!("Cannot read {path}"))?;
    let (started, processor) = (Instant::now(), processor_time());
    let (image, bytes) = Image::shaped(source, archive, shape)?;
    let row = Row {
        shape,
        built: started.elapsed(),
        processor: processor_time().saturating_sub(processor),
        bytes,
        first_byte: Series::default(),
    };
    Ok((image, row))
}

/// Of this process, all threads together.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl Report {
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "level": row.shape.level,
                "stored": row.shape.is_stored,
                "blockBytes": 1 << row.shape.block_log,
                "buildMs": millis(row.built),
                "processorMs": millis(row.processor),
                "bytes": row.bytes,
                "firstByteMs": row.first_byte.median(),
                "firstByteLeastMs": row.first_byte.percentile(0.0),
            })
        });
        json!({ "id": "root_image", "value": rows.collect::<Vec<_>>() })
    }

    pub fn text(&self) -> String {
        let mut text =
            "shape          build s    CPU s       MB  first byte ms  least ms\n".to_owned();
        for row in &self.rows {
            #[expect(clippy::cast_precision_loss, reason = "a size for people")]
            let mb = row.bytes as f64 / 1e6;
            let cell = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.0}"));
            text += &format!(
                "{:<13} {:8.2} {:8.2} {mb:8.1} {:>14} {:>9}\n",
                row.shape.to_string(),
                row.built.as_secs_f64(),
                row.processor.as_secs_f64(),
                cell(row.first_byte.median()),
                cell(row.first_byte.percentile(0.0)),
            );
        }
        text
    }
}
