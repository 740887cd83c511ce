//! One function for each promise of the README that can be measured yet, in its order.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::front_door;
use super::image_build::image_build;
use super::image_pull::{image_pull, pool_create};
use super::peer::Comparison;
use super::runner::figure;
use super::{Bench, Promise, Row};

pub const PROMISES: &[Promise] = &[
    Promise {
        id: "cold_boot",
        measure: cold_boot,
    },
    Promise {
        id: "fork_agent",
        measure: fork_agent,
    },
    Promise {
        id: "jail",
        measure: jail,
    },
    Promise {
        id: "claim_first_byte",
        measure: claim_first_byte,
    },
    Promise {
        id: "claims_50",
        measure: claims_50,
    },
    Promise {
        id: "fork_memory",
        measure: fork_memory,
    },
    Promise {
        id: "pool_create",
        measure: pool_create,
    },
    Promise {
        id: "image_pull",
        measure: image_pull,
    },
    Promise {
        id: "front_door",
        measure: front_door::added,
    },
    Promise {
        id: "front_door_rate",
        measure: front_door::rate,
    },
    Promise {
        id: "image_build",
        measure: image_build,
    },
    Promise {
        id: "binary_size",
        measure: binary_size,
    },
];

/// On hardware.
const COLD_BOOT_MS: f64 = 100.0;
const FORK_AGENT_MS: f64 = 5.0;
const CLAIMS_50_MS: f64 = 60.0;
/// Natively, in the appliance: the 99th percentile of what a claim of a ready session takes.
const CLAIM_SERVER_MS: f64 = 1.0;
/// In the lab, of the peer's time.
const COLD_BOOT_OF_PEER: f64 = 0.8;
const FORK_AGENT_OF_PEER: f64 = 0.5;
/// In the lab, of one claim's time: fifty at once on its one processor take no longer than fifty one after the other.
const CLAIMS_50_OF_ONE: f64 = 50.0;
const FORK_MEMORY_MIB: f64 = 1.5;
const LARGEST_BINARY_MIB: f64 = 32.0;

const NO_PEER: &str = "no peer to compare with: give --firecracker PATH";

/// Every guest begins with the start of a process, as the peer's does.
fn cold_boot(bench: &Bench) -> Result<Row> {
    if let Some(comparison) = bench.comparison()? {
        let row = Row::checked(
            "cold_boot",
            comparison.boot_ratio()?,
            "ratio",
            COLD_BOOT_OF_PEER,
        );
        return Ok(row.with(
            "process start to agent's answer / the peer's to guest init",
            comparison.notes(),
        ));
    }
    let run = ["cold-boot", "--count", "10", "--spares", "0"];
    let results = bench.runner.bench("cold boots", &[&run])?;
    let result = results.first().context("There is no result")?;
    let value = figure(result, "/median")?;
    let place = bench.runner.place();
    let what = format!("process start to agent's answer, median of 10, {place}");
    let renewed = figure(result, "/renewed/median")?;
    let mut notes = vec![format!(
        "until the agent is renewed: median {renewed:.1} ms"
    )];
    notes.extend(steps(&result["renewed"]));
    Ok(if bench.runner.here {
        Row::checked("cold_boot", value, "ms", COLD_BOOT_MS).with(what, notes)
    } else {
        let detail = format!("{what}; {NO_PEER}");
        Row::unchecked("cold_boot", value, "ms").with(detail, notes)
    })
}

/// What confinement costs the start of a worker, which is measured with it and without it in turn.
fn jail(bench: &Bench) -> Result<Row> {
    let run = ["jail", "--count", "300", "--parallel", "50"];
    let result = bench.runner.bench_as_root("starts of workers", &run)?;
    let of = |row: &str, name: &str| figure(&result, &format!("/starts/{row}/{name}"));
    let (confined, free) = (of("0", "wholeMs")?, of("1", "wholeMs")?);
    let detail = format!(
        "start and end of a worker with its jail, over without: {confined:.2} and {free:.2} ms, medians of 300"
    );
    let notes = vec![
        format!(
            "of that the warden's part: {:.2} and {:.2} ms",
            of("0", "wardenMs")?,
            of("1", "wardenMs")?
        ),
        format!(
            "50 at once: {:.1} and {:.1} ms",
            of("0", "atOnceMs")?,
            of("1", "atOnceMs")?
        ),
    ];
    Ok(Row::unchecked("jail", confined / free, "ratio").with(detail, notes))
}

/// Both fork points, with and without a container, one at a time and twenty at once; the row is the default one.
fn fork_agent(bench: &Bench) -> Result<Row> {
    let image = bench.runner.demo();
    let run = |point| {
        let flags = ["fork", "--count", "10", "--parallel", "20", "--image"];
        [&flags[..], &[&image, "--fork-point", point]].concat()
    };
    let runs = ["beforeStart", "afterReady"].map(run);
    let results = bench
        .runner
        .bench("forks", &[runs[0].as_slice(), runs[1].as_slice()])?;
    let mut notes = Vec::new();
    for result in &results {
        notes.extend(fork_notes(result)?);
    }
    let first = results.first().context("There is no result")?;
    let value = figure(first, "/agent/single/answered/median")?;
    let p99 = figure(first, "/agent/single/answered/p99")?;
    let renewed = figure(first, "/agent/single/median")?;
    let place = bench.runner.place();
    let what = format!(
        "fork to the agent's first word, median of 10 (p99 {p99:.1} ms); renewed {renewed:.1} ms; {place}"
    );
    Ok(match bench.comparison()? {
        _ if bench.runner.here => {
            Row::checked("fork_agent", value, "ms", FORK_AGENT_MS).with(what, notes)
        }
        Some(comparison) => {
            notes.extend(comparison.notes());
            let ratio = comparison.fork_ratio()?;
            let detail =
                "fork to the agent's first word / the peer's start, load, resume to guest output";
            Row::checked("fork_agent", ratio, "ratio", FORK_AGENT_OF_PEER).with(detail, notes)
        }
        None => Row::unchecked("fork_agent", value, "ms").with(format!("{what}; {NO_PEER}"), notes),
    })
}

/// Natively on any machine: the shipped appliance, with agents as ordinary processes in place of guests.
fn claim_first_byte(bench: &Bench) -> Result<Row> {
    let result = bench.runner.native("native::bench::claim_first_byte")?;
    let value = figure(&result, "/server/p99")?;
    let row = Row::checked("claim_first_byte", value, "ms", CLAIM_SERVER_MS);
    let count = &result["server"]["count"];
    let detail = format!(
        "p99 of {count} claims of ready sessions at {} a second, in the appliance, until the store is written and the claim answered; \
         native, agents as processes",
        result["perSecond"]
    );
    Ok(row.with(detail, claim_notes(&result)?))
}

/// None of them ready: fifty forks at once.
fn claims_50(bench: &Bench) -> Result<Row> {
    let run = ["fork", "--count", "10", "--parallel", "50"];
    let alone = ["fork", "--count", "5", "--parallel", "1", "--spares", "0"];
    let results = bench.runner.bench("fifty forks at once", &[&run, &alone])?;
    let [result, alone] = results.as_slice() else {
        bail!("There are no two results");
    };
    let one = figure(result, "/agent/single/median")?;
    let p99 = figure(result, "/agent/burst/p99")?;
    // What each of the fifty is where there are no processes made ahead, or too few.
    let bare = figure(alone, "/agent/single/median")?;
    let what = format!(
        "p99 of 50 at once {p99:.1} ms, one alone {one:.1} ms, one alone that waits for its process {bare:.1} ms ({:.0} times)",
        p99 / bare
    );
    let detail = format!("{what}, fork to agent renewed, {}", bench.runner.place());
    Ok(if bench.runner.here {
        Row::checked("claims_50", p99, "ms", CLAIMS_50_MS)
    } else {
        Row::checked("claims_50", p99 / one, "ratio", CLAIMS_50_OF_ONE)
    }
    .with(detail, Vec::new()))
}

fn fork_memory(bench: &Bench) -> Result<Row> {
    let results = bench
        .runner
        .bench("the memory of forks", &[&["memory", "--forks", "1,10,50"]])?;
    let result = results.first().context("There is no result")?;
    let rows = result["rows"].as_array().context("There are no rows")?;
    let mut notes = vec![
        "KiB per fork; `private` of a single one includes the golden's pages, which others share; \
         `host` includes page tables and kernel objects"
            .to_owned(),
    ];
    for row in rows {
        let kib = |name: &str| row[name].as_f64().map_or(f64::NAN, |bytes| bytes / 1024.0);
        let columns = ["private", "anonymous", "rss", "pss", "host"];
        let columns = columns.map(|name| format!("{name} {:.0}", kib(name)));
        let cpu = row["cpuMsPerSecond"].as_f64().unwrap_or(f64::NAN);
        notes.push(format!(
            "{:>3} forks: {}, {cpu:.2} ms of a processor per second",
            row["forks"],
            columns.join(", ")
        ));
    }
    let most = rows.last().context("There are no rows")?;
    let value = figure(most, "/private")? / f64::from(1 << 20);
    let growth = figure(result, "/growth")?;
    let detail = format!(
        "private memory of an idle fork among {}, {growth:.2} times that of a single one's own; {}",
        most["forks"],
        bench.runner.place()
    );
    Ok(Row::checked("fork_memory", value, "MiB", FORK_MEMORY_MIB).with(detail, notes))
}

fn binary_size(bench: &Bench) -> Result<Row> {
    let bytes = std::fs::metadata(bench.binary)
        .context("Cannot read the binary")?
        .len();
    // Exact: a file of 2^53 bytes is not among those that we build.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the size of a file that fits on a disk"
    )]
    let value = bytes as f64 / f64::from(1 << 20);
    let row = Row::checked("binary_size", value, "MiB", LARGEST_BINARY_MIB);
    Ok(row.with(
        "the release binary, kernel and initramfs included",
        Vec::new(),
    ))
}

impl Bench<'_> {
    /// Measured once for all rows that need it; `None` without a peer, or on hardware, where the promises are times.
    fn comparison(&self) -> Result<Option<&Comparison>> {
        let Some(firecracker) = self.firecracker.filter(|_| !self.runner.here) else {
            return Ok(None);
        };
        if let Some(known) = self.compared.get() {
            return Ok(Some(known));
        }
        let comparison = Comparison::measure(&self.runner, firecracker)?;
        Ok(Some(self.compared.get_or_init(|| comparison)))
    }
}

/// What the native benchmark has found, a line for each series.
fn claim_notes(result: &Value) -> Result<Vec<String>> {
    let series = |of: &Value, what: &str| -> Result<[String; 2]> {
        let line = |name: &str, meaning: &str| -> Result<String> {
            let [median, p99, most] =
                ["p50", "p99", "max"].map(|rank| figure(of, &format!("/{name}/{rank}")));
            let (median, p99, most) = (median?, p99?, most?);
            Ok(format!(
                "{what}, {meaning}: median {median:.2} ms, p99 {p99:.2} ms, longest {most:.2} ms"
            ))
        };
        Ok([
            line("server", "claim")?,
            line("firstByte", "first byte through TLS")?,
        ])
    };
    let mut notes = Vec::new();
    notes.extend(series(result, "all ready before")?);
    notes.extend(series(&result["refilled"], "each replaced at once")?);
    for level in result["levels"].as_array().context("There are no levels")? {
        let sessions = &level["sessions"];
        notes.extend(series(level, &format!("beside {sessions} sessions"))?);
        let kib = figure(level, "/bytesPerSession")? / 1024.0;
        notes.push(format!(
            "beside {sessions} sessions, private memory of the appliance per session: {kib:.0} KiB"
        ));
    }
    Ok(notes)
}

/// What `cabana bench fork` has found, a line for each figure.
fn fork_notes(result: &Value) -> Result<Vec<String>> {
    let point = result["forkPoint"].as_str().unwrap_or("unknown");
    let parallel = &result["parallel"];
    let mut notes = Vec::new();
    for (goal, name) in [("agent", "agent renewed"), ("firstByte", "first byte")] {
        if result[goal].is_null() {
            continue;
        }
        let single = &result[goal]["single"];
        for (series, how) in [
            ("single", "one at a time".to_owned()),
            ("burst", format!("{parallel} at once")),
            ("wholeBurst", format!("the last of {parallel} at once")),
            ("coldBoot", "cold boot instead".to_owned()),
        ] {
            let median = figure(result, &format!("/{goal}/{series}/median"))?;
            let p99 = figure(result, &format!("/{goal}/{series}/p99"))?;
            notes.push(format!(
                "{point} to {name}, {how}: median {median:.1} ms, p99 {p99:.1} ms"
            ));
        }
        if goal == "agent" {
            let median = figure(single, "/answered/median")?;
            notes.push(format!(
                "of which until its first word, one at a time: median {median:.1} ms"
            ));
        }
        notes.extend(steps(single));
    }
    Ok(notes)
}

/// Where the time of a series goes.
fn steps(series: &Value) -> Vec<String> {
    let steps = series["steps"].as_array().map(Vec::as_slice);
    let mut notes: Vec<String> = steps
        .unwrap_or_default()
        .iter()
        .filter_map(|step| {
            let (name, mean) = (step["step"].as_str()?, step["mean"].as_f64()?);
            Some(format!("  {mean:9.2} ms  {name}"))
        })
        .collect();
    if let Some(covered) = series["covered"].as_f64() {
        notes.push(format!(
            "  {:9.1} %   of the time is in these steps",
            covered * 100.0
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_of_claims_become_lines() {
        let times = json!({ "p50": 0.21, "p99": 0.5, "max": 1.25 });
        let series = json!({ "server": times, "firstByte": times });
        let mut level = series.clone();
        level["sessions"] = 10.into();
        level["bytesPerSession"] = (3 << 10).into();
        let mut result = series.clone();
        result["refilled"] = series;
        result["levels"] = json!([level]);
        let notes = claim_notes(&result).unwrap();
        assert_eq!(notes.len(), 7, "{notes:#?}");
        assert_eq!(
            notes[4],
            "beside 10 sessions, claim: median 0.21 ms, p99 0.50 ms, longest 1.25 ms"
        );
        assert!(notes[6].ends_with("session: 3 KiB"), "{notes:#?}");
        claim_notes(&json!({})).unwrap_err();
    }

    #[test]
    fn figures_of_forks_become_lines_and_a_missing_container_none() {
        let series = json!({ "median": 1.5, "p99": 2.5, "answered": { "median": 1.2 },
            "steps": [{ "step": "map", "mean": 1.4 }], "covered": 0.97 });
        let goal =
            json!({ "single": series, "burst": series, "wholeBurst": series, "coldBoot": series });
        let result =
            json!({ "forkPoint": "afterReady", "parallel": 20, "agent": goal, "firstByte": null });
        let notes = fork_notes(&result).unwrap();
        assert_eq!(notes.len(), 7, "{notes:#?}");
        assert_eq!(
            notes[1],
            "afterReady to agent renewed, 20 at once: median 1.5 ms, p99 2.5 ms"
        );
        assert!(notes[4].ends_with("median 1.2 ms"), "{notes:#?}");
        assert!(notes[5].ends_with("1.40 ms  map"), "{notes:#?}");
        assert!(notes[6].contains("97.0 %"), "{notes:#?}");
        fork_notes(&json!({ "agent": {} })).unwrap_err();
    }
}
