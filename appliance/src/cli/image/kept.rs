//! `cabana image ls`, `inspect`, `rm` and `prune`: what is there, and taking it out.

use http::Method;
use serde_json::{Value, json};

use crate::cli::args::{InspectImage, ListImages, PruneImages, RemoveImages};
use crate::cli::client::{Payload, call, escape};
use crate::cli::output::{print, table};
use crate::cli::sessionpool::cell;
use crate::exit::{Exit, Failure};

pub fn list(list: &ListImages) -> Result<Exit, Failure> {
    let answer = call(
        &list.connection.root,
        Method::GET,
        "/images",
        Payload::Nothing,
    )?;
    let images = values(&answer);
    print(&list.output, &images, |images| {
        table(
            &["NAME", "DIGEST", "SIZE", "LAST USE", "POOLS"],
            &images.iter().map(row).collect::<Vec<_>>(),
        )
    })?;
    Ok(Exit::Ok)
}

pub fn inspect(inspect: &InspectImage) -> Result<Exit, Failure> {
    let path = format!("/images/{}", escape(&inspect.image));
    let image = call(
        &inspect.connection.root,
        Method::GET,
        &path,
        Payload::Nothing,
    )?;
    print(&inspect.output, &image, description)?;
    Ok(Exit::Ok)
}

/// All that can be removed are; the first that cannot decides how the command ends.
pub fn remove(remove: &RemoveImages) -> Result<Exit, Failure> {
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    for image in &remove.images {
        let path = format!("/images/{}", escape(image));
        let payload = Payload::Nothing;
        match call(&remove.connection.root, Method::DELETE, &path, payload) {
            Ok(answer) => removed.push(answer),
            Err(failure) => failures.push(failure),
        }
    }
    print(&remove.output, &removed, |removed| {
        removed.iter().map(removal).collect()
    })?;
    warn(&removed);
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else {
        return Ok(Exit::Ok);
    };
    for failure in failures {
        eprintln!("cabana: {}", failure.line);
    }
    Err(first)
}

pub fn prune(prune: &PruneImages) -> Result<Exit, Failure> {
    let answer = call(
        &prune.connection.root,
        Method::POST,
        "/images/prune",
        Payload::Json(json!({ "dryRun": prune.dry_run })),
    )?;
    let removed = values(&answer);
    print(&prune.output, &answer, |answer| {
        let lines: String = match prune.dry_run {
            true => removed.iter().map(proposal).collect(),
            false => removed.iter().map(removal).collect(),
        };
        let freed = size(&answer["freedBytes"]);
        let would = if prune.dry_run { "would be" } else { "are" };
        let count = match removed.len() {
            1 => "1 image".to_owned(),
            count => format!("{count} images"),
        };
        format!("{lines}{count}, {freed} {would} freed\n")
    })?;
    warn(&removed);
    Ok(Exit::Ok)
}

fn values(answer: &Value) -> Vec<Value> {
    answer["value"].as_array().cloned().unwrap_or_default()
}

fn warn(removed: &[Value]) {
    let warnings = removed.iter().filter_map(|it| it["warnings"].as_array());
    for warning in warnings.flatten() {
        eprintln!("cabana: warning: {}", cell(warning));
    }
}

fn row(image: &Value) -> Vec<String> {
    vec![
        cell(&image["name"]),
        cell(&image["digest"]),
        size(&image["rootImageBytes"]),
        cell(&image["lastUsedAt"]),
        users(image),
    ]
}

/// The pools; something short-lived where there are none.
fn users(image: &Value) -> String {
    let pools = joined(&image["pools"], ",");
    match (pools.is_empty(), image["held"] == true) {
        (false, _) => pools,
        (true, true) => "(busy)".to_owned(),
        (true, false) => "-".to_owned(),
    }
}

fn joined(list: &Value, between: &str) -> String {
    let items = list.as_array().into_iter().flatten();
    items.map(cell).collect::<Vec<_>>().join(between)
}

/// Nothing where there is nothing to say.
fn known(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        value => cell(value),
    }
}

fn size(bytes: &Value) -> String {
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    let mib = bytes.as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
    format!("{mib:.1}Mi")
}

fn description(image: &Value) -> String {
    let config = &image["config"];
    let mut lines = vec![
        ("Name", cell(&image["name"])),
        ("Names", joined(&image["names"], ", ")),
        ("Digest", cell(&image["digest"])),
        ("Root image", size(&image["rootImageBytes"])),
        ("Layers", known(&image["layers"])),
        ("Made", known(&image["madeAt"])),
        ("Last use", cell(&image["lastUsedAt"])),
        ("Pools", users(image)),
        ("Entrypoint", joined(&config["entrypoint"], " ")),
        ("Command", joined(&config["cmd"], " ")),
        ("Folder", known(&config["working_dir"])),
        ("User", known(&config["user"])),
        ("Stop signal", known(&config["stop_signal"])),
        ("Ports", joined(&config["exposed"], ", ")),
    ];
    let more = [
        ("Variable", &config["env"]),
        ("Warning", &image["warnings"]),
    ];
    for (title, list) in more {
        let items = list.as_array().into_iter().flatten();
        lines.extend(items.map(|item| (title, cell(item))));
    }
    let width = lines.iter().map(|(title, _)| title.len()).max();
    let width = width.unwrap_or(0);
    lines
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(title, text)| format!("{title:<width$}  {text}\n"))
        .collect()
}

fn removal(removed: &Value) -> String {
    let name = cell(&removed["name"]);
    let left = joined(&removed["namesLeft"], ", ");
    if !left.is_empty() {
        return format!("Name {name} is removed; the image is still called {left}\n");
    }
    let freed = size(&removed["freedBytes"]);
    format!(
        "Image {name} is removed: {freed} freed{}\n",
        goldens(removed)
    )
}

fn proposal(removed: &Value) -> String {
    let freed = size(&removed["freedBytes"]);
    let name = cell(&removed["name"]);
    format!(
        "Image {name} would be removed: {freed}{}\n",
        goldens(removed)
    )
}

fn goldens(removed: &Value) -> String {
    match removed["goldens"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => ", with 1 golden".to_owned(),
        Some(count) => format!(", with {count} goldens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_the_list_says_who_needs_the_image() {
        let mut image = json!({
            "name": "demo", "digest": "sha256:d", "rootImageBytes": 3 << 19, "lastUsedAt": "2026-11-22T10:00:00Z",
            "pools": ["alpha", "beta"], "held": true,
        });
        let expected = [
            "demo",
            "sha256:d",
            "1.5Mi",
            "2026-11-22T10:00:00Z",
            "alpha,beta",
        ];
        assert_eq!(row(&image), expected);
        image["pools"] = json!([]);
        assert_eq!(row(&image)[4], "(busy)");
        image["held"] = json!(false);
        assert_eq!(row(&image)[4], "-");
    }

    #[test]
    fn removed_name_and_removed_image_are_told_apart() {
        let mut removed =
            json!({ "name": "demo", "namesLeft": ["demo:1"], "freedBytes": 0, "goldens": 0 });
        assert_eq!(
            removal(&removed),
            "Name demo is removed; the image is still called demo:1\n"
        );
        removed["namesLeft"] = json!([]);
        removed["freedBytes"] = json!(1 << 20);
        assert_eq!(removal(&removed), "Image demo is removed: 1.0Mi freed\n");
        removed["goldens"] = json!(2);
        assert_eq!(
            proposal(&removed),
            "Image demo would be removed: 1.0Mi, with 2 goldens\n"
        );
    }

    #[test]
    fn description_leaves_out_what_the_image_does_not_say() {
        let image = json!({
            "name": "demo", "names": ["demo"], "digest": "sha256:d", "rootImageBytes": 0, "layers": null, "madeAt": null,
            "lastUsedAt": "then", "pools": [], "held": false, "warnings": ["something was lost"],
            "config": { "entrypoint": ["/demo"], "cmd": [], "env": ["A=1", "B=2"], "working_dir": "", "user": "", "stop_signal": null, "exposed": [] },
        });
        let text = description(&image);
        let titles: Vec<_> = text.lines().map(|line| line[..11].trim()).collect();
        let expected = [
            "Name",
            "Names",
            "Digest",
            "Root image",
            "Last use",
            "Pools",
            "Entrypoint",
            "Variable",
            "Variable",
            "Warning",
        ];
        assert_eq!(titles, expected, "{text}");
    }
}
