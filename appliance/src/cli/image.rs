//! `cabana image`: archives go to the appliance as a stream, whatever their size.

use std::path::Path;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{ImportImage, ListImages};
use super::client::{Payload, call, escape};
use super::output::{print, table};
use super::sessionpool::cell;
use super::source::Source;
use crate::exit::{Exit, Failure};

/// The appliance's answer to an import.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    pub name: String,
    pub digest: String,
    pub root_image_bytes: u64,
    /// The same content was there already.
    #[serde(default)]
    pub cached: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

pub fn import(import: &ImportImage) -> Result<Exit, Failure> {
    let imported = send(
        &import.connection.root,
        &import.source,
        import.name.as_deref(),
    )?;
    for warning in &imported.warnings {
        eprintln!("cabana: warning: {warning}");
    }
    print(import.json, &imported, |imported| {
        let Imported {
            name,
            digest,
            root_image_bytes,
            cached,
            ..
        } = imported;
        let how = if *cached {
            "was there already"
        } else {
            "is imported"
        };
        #[allow(clippy::cast_precision_loss, reason = "a size for people")]
        let mib = *root_image_bytes as f64 / f64::from(1 << 20);
        format!("Image {name} {how}: {mib:.1} MiB, {digest}\n")
    })?;
    Ok(Exit::Ok)
}

/// Sends an archive; the appliance unpacks and checks it.
pub fn send(root: &Path, source: &Source, name: Option<&str>) -> Result<Imported, Failure> {
    let shown = source.path.display();
    let file = source
        .open()
        .map_err(|error| Failure::new(Exit::Failed, format!("Cannot read {shown}: {error}")))?;
    let mut path = format!("/images?transport={}", source.transport_name());
    if let Some(name) = name.map(str::to_owned).or_else(|| source.default_name()) {
        path.push_str("&name=");
        path.push_str(&escape(&name));
    }
    if let Some(reference) = &source.reference {
        path.push_str("&ref=");
        path.push_str(&escape(reference));
    }
    let answer = call(root, Method::POST, &path, Payload::File(file))?;
    serde_json::from_value(answer).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("The appliance's answer is not understood: {error}"),
        )
    })
}

pub fn list(list: &ListImages) -> Result<Exit, Failure> {
    let answer = call(
        &list.connection.root,
        Method::GET,
        "/images",
        Payload::Nothing,
    )?;
    let images = match &answer["value"] {
        Value::Array(images) => images.clone(),
        _ => Vec::new(),
    };
    print(list.json, &images, |images| {
        let row = |image: &Value| {
            ["name", "digest", "rootImageBytes"]
                .map(|key| cell(&image[key]))
                .to_vec()
        };
        table(
            &["NAME", "DIGEST", "BYTES"],
            &images.iter().map(row).collect::<Vec<_>>(),
        )
    })?;
    Ok(Exit::Ok)
}
