//! What the front door adds to a request, and how much of it there is beside nginx as a TLS proxy. Natively on any machine.
//!
//! Both are measured on the processors that load generator and upstream run on, too. Ours goes through a session's agent, nginx to
//! the upstream directly: what is compared is what an operator would have, not two proxies of the same length.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::runner::figure;
use super::{Bench, Row};
use crate::packages;

/// The median of one connection, over what the upstream takes without anything in front.
const MOST_ADDED_MICROS: f64 = 100.0;
/// nginx's requests a second over ours: ours is to be as fast.
const MOST_OF_NGINX: f64 = 1.0;

pub fn added(bench: &Bench) -> Result<Row> {
    let result = measured(bench)?;
    let row = row(&result, 1)?;
    let p50 = |way: &str| figure(row, &format!("/{way}/p50Micros"));
    let direct = p50("direct")?;
    let (ours, nginx) = (p50("ours")? - direct, p50("nginx")? - direct);
    let detail = format!(
        "median of one connection with keep-alive, over {direct:.0} us without a proxy; nginx adds {nginx:.0} us; native: TLS, appliance, agent as process"
    );
    Ok(Row::checked("front_door", ours, "us", MOST_ADDED_MICROS).with(detail, notes(&result)?))
}

pub fn rate(bench: &Bench) -> Result<Row> {
    let result = measured(bench)?;
    let row = row(&result, 16)?;
    let of = |name: &str| {
        Ok::<_, anyhow::Error>((
            figure(row, &format!("/ours/{name}"))?,
            figure(row, &format!("/nginx/{name}"))?,
        ))
    };
    let (ours, nginx) = of("perSecond")?;
    let (our_cpu, their_cpu) = of("cpuMicros")?;
    let agent = figure(row, "/ours/agentCpuMicros")?;
    let detail = format!(
        "nginx's requests a second / ours, 16 connections, small answers; processor time {their_cpu:.0} us a request / {our_cpu:.0} us and {agent:.0} us of the agent"
    );
    Ok(
        Row::checked("front_door_rate", nginx / ours, "ratio", MOST_OF_NGINX)
            .with(detail, Vec::new()),
    )
}

/// Once for both rows.
fn measured(bench: &Bench) -> Result<Value> {
    if let Some(result) = bench.front_door.get() {
        return Ok(result.clone());
    }
    packages::ensure(bench.runner.workspace(), &[packages::FRONT_DOOR])?;
    let result = bench.runner.native("native::front_door::front_door")?;
    Ok(bench.front_door.get_or_init(|| result).clone())
}

/// Of small answers.
fn row(result: &Value, connections: u64) -> Result<&Value> {
    let rows = result["rows"].as_array().context("There are no rows")?;
    let wanted = |row: &&Value| row["connections"] == connections && row["body"] == "small";
    rows.iter()
        .find(wanted)
        .with_context(|| format!("There is nothing about {connections} connections"))
}

fn notes(result: &Value) -> Result<Vec<String>> {
    let mut notes = vec![format!(
        "in turns, {} rounds of {} s each, the median; all on the same processors. ours: TLS, appliance, agent, upstream; nginx: TLS, nginx, upstream; direct: upstream",
        result["rounds"],
        result["seconds"].as_str().unwrap_or("?")
    )];
    for row in result["rows"].as_array().context("There are no rows")? {
        for way in ["ours", "nginx", "direct"] {
            let of = |name: &str| figure(row, &format!("/{way}/{name}"));
            notes.push(format!(
                "{:>3} connections, {:<5} {way:<6} {:>8.0} /s, p50 {:>7.0} us, p99 {:>7.0} us, processor {:>6.1} us each, agent {:>5.1} us; load generator {:.0} % of one",
                // JSON of its own would not be aligned.
                row["connections"].as_u64().unwrap_or_default(),
                row["body"].as_str().unwrap_or("?"),
                of("perSecond")?,
                of("p50Micros")?,
                of("p99Micros")?,
                of("cpuMicros")?,
                of("agentCpuMicros")?,
                of("loadCpus")? * 100.0,
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_of_the_three_ways_become_lines_and_rows_are_found_by_connections() {
        let way = json!({ "perSecond": 1000.0, "p50Micros": 90.0, "p99Micros": 200.0, "cpuMicros": 40.0,
            "agentCpuMicros": 10.0, "loadCpus": 0.25 });
        let row_of = |connections: u64| json!({ "connections": connections, "body": "small", "ours": way, "nginx": way, "direct": way });
        let result = json!({ "rounds": 3, "seconds": "2", "rows": [row_of(1), row_of(16)] });
        let notes = notes(&result).unwrap();
        assert_eq!(notes.len(), 7, "{notes:#?}");
        assert!(
            notes[1].starts_with("  1 connections, small ours"),
            "{notes:#?}"
        );
        assert!(
            notes[1].ends_with("load generator 25 % of one"),
            "{notes:#?}"
        );
        assert_eq!(row(&result, 16).unwrap()["connections"], 16);
        row(&result, 2).unwrap_err();
    }
}
