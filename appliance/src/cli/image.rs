//! `cabana image`: archives go to the appliance as a stream, whatever their size.

mod kept;

use std::path::Path;

use http::Method;
use serde::{Deserialize, Serialize};

pub use self::kept::{inspect, list, prune, remove};
use super::args::{ImportImage, Output};
use super::client::{Payload, call, escape};
use super::output::print;
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
    report(&import.output, &imported, "is imported")
}

/// Says what has come of it, and what was lost on the way.
pub fn report(flags: &Output, imported: &Imported, done: &str) -> Result<Exit, Failure> {
    for warning in &imported.warnings {
        eprintln!("cabana: warning: {warning}");
    }
    print(flags, imported, |imported| {
        let Imported {
            name,
            digest,
            root_image_bytes,
            cached,
            ..
        } = imported;
        let how = if *cached { "was there already" } else { done };
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
