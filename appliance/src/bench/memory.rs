//! What an idle fork takes of the host's memory and processors, and whether more of them take more each.
//!
//! The figures of a process are the kernel's own sums over its mappings (`/proc/<pid>/smaps_rollup`). Page tables and kernel objects are in
//! none of them; the last column, what the host has lost per fork, includes them and whatever else the host did meanwhile.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::figures::millis;
use super::golden::Golden;
use super::image::Image;
use super::run::Run;
use crate::config::Paths;
use crate::worker::spec::ForkPoint;
use crate::worker::{Purpose, WorkerHost};

/// Guests go on for a moment after they have answered: timers, the agent's own allocations.
const SETTLE: Duration = Duration::from_secs(2);

/// For so long it is watched how much processor time they take.
const WATCHED: Duration = Duration::from_secs(4);

/// Means per fork, in bytes, with so many of them running.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    forks: u32,
    /// Milliseconds of processor time in a second of doing nothing.
    cpu_ms: Option<f64>,
    /// In no other process: what ends with the fork. Of a single fork the golden's own pages are among them.
    private: u64,
    /// Written by the fork, or made by its process.
    anonymous: u64,
    rss: u64,
    /// Shared pages divided by who shares them.
    pss: u64,
    /// By how much the host's available memory is less, per fork; negative when it grew meanwhile.
    host: i64,
}

pub struct Report(Vec<Row>);

/// `counts`: how many forks run when it is looked at, one after the other, growing.
pub async fn measure(
    workers: &WorkerHost,
    paths: &Paths,
    mut counts: Vec<u32>,
) -> anyhow::Result<Report> {
    counts.sort_unstable();
    counts.dedup();
    let image = Image::empty(workers).await?;
    let golden = Golden::build(workers, paths, &image, ForkPoint::BeforeStart).await?;
    workers.at_rest().await;
    tokio::time::sleep(SETTLE).await;
    let available = available_bytes()?;
    let mut runs: Vec<Run> = Vec::new();
    let mut rows = Vec::new();
    for count in counts {
        while runs.len() < count as usize {
            let mut run = Run::start(workers, golden.fork(&image, Purpose::Trial)?).await?;
            run.until_renewed().await?;
            runs.push(run);
        }
        // So that the host has as many spares as it had before.
        workers.at_rest().await;
        tokio::time::sleep(SETTLE).await;
        let row = look(&runs, count, available).await?;
        let cpu_ms = watch(&runs).await;
        rows.push(Row { cpu_ms, ..row });
    }
    for run in runs {
        run.end().await;
    }
    Ok(Report(rows))
}

async fn look(runs: &[Run], forks: u32, before: i64) -> anyhow::Result<Row> {
    let mut sums = [0; 4];
    for run in runs {
        let usage = run.worker.usage().await;
        let usage = usage.context("The memory of a worker cannot be read")?;
        let parts = [usage.private, usage.anonymous, usage.rss, usage.pss];
        sums.iter_mut()
            .zip(parts)
            .for_each(|(sum, part)| *sum += part);
    }
    let [private, anonymous, rss, pss] = sums.map(|sum| sum / u64::from(forks));
    Ok(Row {
        forks,
        private,
        anonymous,
        rss,
        pss,
        cpu_ms: None,
        host: (before - available_bytes()?) / i64::from(forks),
    })
}

/// How many milliseconds per second each of them runs.
async fn watch(runs: &[Run]) -> Option<f64> {
    let (begun, before) = (Instant::now(), cpu_time(runs).await?);
    tokio::time::sleep(WATCHED).await;
    let (elapsed, after) = (begun.elapsed(), cpu_time(runs).await?);
    let spent = after.saturating_sub(before);
    let forks = f64::from(u32::try_from(runs.len()).ok()?);
    Some(millis(spent) / elapsed.as_secs_f64() / forks)
}

async fn cpu_time(runs: &[Run]) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for run in runs {
        sum += Duration::from_nanos(run.worker.usage().await?.cpu_ns?);
    }
    Some(sum)
}

fn available_bytes() -> anyhow::Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("Cannot read /proc/meminfo")?;
    available(&text).context("/proc/meminfo names no available memory")
}

/// proc_meminfo(5): kibibytes, whatever the unit says.
fn available(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: i64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

impl Report {
    /// By how much a fork costs more among the most than among the fewest: 1.0 is flat. Of what it wrote itself,
    /// since what is shared gets cheaper by itself.
    fn growth(&self) -> Option<f64> {
        let (first, last) = (self.0.first()?, self.0.last()?);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53 bytes")]
        let ratio = last.anonymous as f64 / first.anonymous.max(1) as f64;
        Some(ratio)
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .0
            .iter()
            .map(|row| {
                json!({
                    "forks": row.forks,
                    "private": row.private,
                    "anonymous": row.anonymous,
                    "rss": row.rss,
                    "pss": row.pss,
                    "host": row.host,
                    "cpuMsPerSecond": row.cpu_ms,
                })
            })
            .collect();
        json!({ "id": "fork_memory", "unit": "bytes", "rows": rows, "growth": self.growth() })
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}   KiB per fork; ms of a processor per second\n",
            "forks", "private", "anonymous", "rss", "pss", "host", "processor"
        );
        for row in &self.0 {
            let [private, anonymous, rss, pss] =
                [row.private, row.anonymous, row.rss, row.pss].map(|bytes| bytes / 1024);
            text += &format!(
                "{:>6} {private:>10} {anonymous:>10} {rss:>10} {pss:>10} {:>10} {:>10}\n",
                row.forks,
                row.host / 1024,
                row.cpu_ms
                    .map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.2}"))
            );
        }
        if let Some(growth) = self.growth() {
            text += &format!("{growth:.2} times as much of its own in each at the end\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24 kB\n";
        assert_eq!(available(text), Some(24 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert!(available_bytes().unwrap() > 0);
    }

    #[test]
    fn growth_compares_the_most_with_the_fewest() {
        let row = |forks, anonymous| Row {
            forks,
            private: 9,
            anonymous,
            rss: 9,
            pss: 9,
            host: 9,
            cpu_ms: None,
        };
        let report = Report(vec![row(1, 1000), row(10, 5000), row(50, 1100)]);
        assert!((report.growth().unwrap() - 1.1).abs() < 1e-9);
        assert_eq!(Report(Vec::new()).growth(), None);
    }
}
