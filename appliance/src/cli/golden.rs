//! `cabana golden`: what sessions are forked from.

use std::fs::File;
use std::path::Path;

use http::Method;
use serde_json::Value;

use super::args::ListGoldens;
use super::client::{Payload, call};
use super::output::{print, table, write};
use super::sessionpool::cell;
use crate::exit::{Exit, Failure, chain};

pub fn list(list: &ListGoldens) -> Result<Exit, Failure> {
    let answer = call(
        &list.connection.root,
        Method::GET,
        "/goldens",
        Payload::Nothing,
    )?;
    let goldens = match &answer["value"] {
        Value::Array(goldens) => goldens.clone(),
        _ => Vec::new(),
    };
    print(&list.output, &goldens, |goldens| {
        let rows: Vec<_> = goldens.iter().map(row).collect();
        table(
            &[
                "KEY",
                "FORK POINT",
                "IMAGE",
                "VCPUS",
                "MEMORY",
                "STORAGE",
                "ON DISK",
                "MADE",
                "POOLS",
            ],
            &rows,
        )
    })?;
    Ok(Exit::Ok)
}

fn row(golden: &Value) -> Vec<String> {
    let mut row = [
        "key",
        "forkPoint",
        "image",
        "vcpus",
        "memory",
        "ephemeralStorage",
    ]
    .map(|field| cell(&golden[field]))
    .to_vec();
    let bytes = |field: &str| golden[field].as_u64().unwrap_or(0);
    let mib = (bytes("memoryBytes") + bytes("diskBytes")).div_ceil(1 << 20);
    row.push(format!("{mib}Mi"));
    row.push(cell(&golden["madeAt"]));
    let pools = golden["pools"].as_array().into_iter().flatten();
    let pools: Vec<_> = pools.map(cell).collect();
    row.push(if pools.is_empty() {
        "-".to_owned()
    } else {
        pools.join(",")
    });
    row
}

/// Reads the file itself; no appliance is needed.
pub fn inspect(path: &Path) -> Result<Exit, Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("Cannot open {shown}: {error}"))
    })?;
    let inspection = vmm::snapshot::inspect(&file).map_err(|error| {
        let line = format!("{shown} is not a snapshot's state: {}", chain(&error));
        Failure::new(Exit::Failed, line)
    })?;
    write(&format!("{}\n", inspection.to_string().trim_end()))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn row_of_the_list_is_made_from_the_answer() {
        let golden = json!({
            "key": "0123", "forkPoint": "beforeStart", "image": "demo", "vcpus": 1, "memory": "0.5Gi",
            "ephemeralStorage": "8Gi", "memoryBytes": (30 << 20) + 1, "diskBytes": 1 << 20,
            "madeAt": "2026-11-21T20:00:00Z", "pools": ["a", "b"],
        });
        assert_eq!(
            row(&golden),
            [
                "0123",
                "beforeStart",
                "demo",
                "1",
                "0.5Gi",
                "8Gi",
                "32Mi",
                "2026-11-21T20:00:00Z",
                "a,b"
            ]
        );
        assert_eq!(row(&json!({ "pools": [] })).last().unwrap(), "-");
    }

    #[test]
    fn file_that_is_no_state_and_file_that_is_not_there_are_one_line_each() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = inspect(file.path()).unwrap_err();
        assert!(
            failure.line.contains("not a snapshot's state"),
            "{}",
            failure.line
        );
        let failure = inspect(Path::new("/nonexistent/state")).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(
            failure.line.contains("/nonexistent/state"),
            "{}",
            failure.line
        );
    }
}
