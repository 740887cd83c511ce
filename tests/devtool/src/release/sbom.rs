//! The list of what is in the binary, as CycloneDX 1.5 (ECMA-424 has the later form): readers of vulnerabilities and of licences take it.
//!
//! Written here and not by `cargo-cyclonedx`, which knows one crate's dependencies and neither a kernel nor programs inside, nor by its library
//! `cyclonedx-bom`, which would bring an XML parser and a validator into this tool for a hundred lines of JSON.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::contents::{Contents, Crate, Library, escaped};
use super::{hex, sha256};
use sha2::{Digest as _, Sha256};

const SPEC: &str = "1.5";
/// The kinds of components that 1.5 knows and we have.
const TYPES: [&str; 4] = ["application", "library", "operating-system", "file"];

/// `binary`: its SHA-256. All times are `epoch`.
pub fn document(contents: &Contents, binary: &str, epoch: u64) -> Result<Value> {
    let subject = "cabana";
    let mut components = Vec::new();
    let mut edges: Vec<(String, BTreeSet<String>)> = Vec::new();

    let programs = [
        (
            "cabana-worker",
            &contents.worker,
            "the process that is one microVM, inside the binary",
        ),
        (
            "agent",
            &contents.agent,
            "the first process of a guest, inside the initramfs",
        ),
    ];
    for (name, path, description) in programs {
        components.push(json!({
            "type": "application", "bom-ref": format!("program:{name}"), "name": name, "version": contents.version,
            "description": description, "licenses": licence("Apache-2.0"), "hashes": sum(&sha256(path)?),
        }));
        edges.push((format!("program:{name}"), linked(contents, name)));
    }
    components.push(kernel(contents)?);
    edges.push((KERNEL.to_owned(), BTreeSet::new()));
    let files = [
        (
            "initramfs",
            &contents.initramfs,
            "the guest's first file system",
        ),
        (
            "scratch.ext4",
            &contents.scratch,
            "the empty file system of a session's writable layer",
        ),
    ];
    for (name, path, description) in files {
        components.push(json!({
            "type": "file", "bom-ref": format!("file:{name}"), "name": name, "version": contents.version,
            "description": description, "hashes": sum(&sha256(path)?),
        }));
    }
    edges.push((
        "file:initramfs".to_owned(),
        BTreeSet::from(["program:agent".to_owned()]),
    ));
    edges.push(("file:scratch.ext4".to_owned(), BTreeSet::new()));
    for library in &contents.libraries {
        components.push(of_library(library));
        edges.push((library.purl.clone(), BTreeSet::new()));
    }
    for one in &contents.crates {
        components.push(of_crate(one));
        edges.push((
            reference(one),
            one.calls
                .iter()
                .map(|(name, version)| purl(name, version))
                .collect(),
        ));
    }
    let mut inside = linked(contents, "cabana");
    inside.extend(
        [
            "program:cabana-worker",
            KERNEL,
            "file:initramfs",
            "file:scratch.ext4",
        ]
        .map(str::to_owned),
    );
    edges.push((subject.to_owned(), inside));
    edges.sort();

    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": serial(binary)?,
        "version": 1,
        "metadata": {
            "timestamp": timestamp(epoch),
            "component": {
                "type": "application", "bom-ref": subject, "name": "cabana", "version": contents.version,
                "licenses": licence("Apache-2.0"), "hashes": sum(binary),
            },
        },
        "components": components,
        "dependencies": edges.iter().map(|(from, to)| json!({"ref": from, "dependsOn": to})).collect::<Vec<_>>(),
    }))
}

const KERNEL: &str = "guest-kernel";

/// The kernel is GPL: who gives the binary to others owes them these sources, the patches and the configuration.
fn kernel(contents: &Contents) -> Result<Value> {
    let origin = &contents.kernel;
    let mut properties = vec![
        property("cabana:source-package", &origin.package),
        property("cabana:source-sha256", &sha256(&origin.archive)?),
    ];
    for patch in &origin.patches {
        let name = patch.file_name().unwrap_or_default().to_string_lossy();
        properties.push(property(&format!("cabana:patch:{name}"), &sha256(patch)?));
    }
    Ok(json!({
        "type": "operating-system", "bom-ref": KERNEL, "name": "linux", "version": origin.version,
        "description": "the guest's kernel, built from Debian's source with kernel-config/",
        "purl": format!("pkg:deb/debian/{}@{}?arch=all", origin.package, escaped(&origin.version)),
        "licenses": licence("GPL-2.0-only WITH Linux-syscall-note"),
        "hashes": sum(&sha256(&contents.vmlinux)?), "properties": properties,
    }))
}

fn of_library(library: &Library) -> Value {
    json!({
        "type": "library", "bom-ref": library.purl, "name": library.name, "version": library.version,
        "purl": library.purl, "licenses": licence(library.licence),
    })
}

fn of_crate(one: &Crate) -> Value {
    let programs: Vec<&str> = one.programs.iter().copied().collect();
    let mut component = json!({
        "type": "library", "bom-ref": reference(one), "name": one.name, "version": one.version,
        "licenses": licence(one.licence.as_deref().unwrap_or_default()),
        "properties": [property("cabana:linked-into", &programs.join(","))],
    });
    if let Some(checksum) = &one.checksum {
        // Of the package as it was published.
        component["hashes"] = sum(checksum);
        component["purl"] = json!(purl(&one.name, &one.version));
    }
    if let Some(repository) = &one.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

/// All that is in a program: its crates and the libraries below them.
fn linked(contents: &Contents, program: &str) -> BTreeSet<String> {
    let crates = contents
        .crates
        .iter()
        .filter(|one| one.programs.contains(program))
        .map(reference);
    crates
        .chain(
            contents
                .libraries
                .iter()
                .map(|library| library.purl.clone()),
        )
        .collect()
}

fn reference(one: &Crate) -> String {
    purl(&one.name, &one.version)
}

fn purl(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{}", escaped(version))
}

/// `MIT/Apache-2.0` is how crates said it before SPDX expressions.
fn licence(expression: &str) -> Value {
    let parts: Vec<&str> = expression.split('/').map(str::trim).collect();
    json!([{"expression": parts.join(" OR ")}])
}

fn sum(sha256: &str) -> Value {
    json!([{"alg": "SHA-256", "content": sha256}])
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// A UUID of version 8 (RFC 9562 §5.8) made of the binary's digest: the same release has the same.
fn serial(binary: &str) -> Result<String> {
    let digest = hex(&Sha256::digest(binary));
    let part = |from: usize, to: usize| digest.get(from..to).context("A digest is too short");
    Ok(format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        part(0, 8)?,
        part(8, 12)?,
        part(13, 16)?,
        part(17, 20)?,
        part(20, 32)?
    ))
}

/// Seconds since 1970 as RFC 3339. The days are counted by Howard Hinnant's `civil_from_days`.
fn timestamp(epoch: u64) -> String {
    let (days, second) = (epoch / 86_400 + 719_468, epoch % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

/// What the schema of CycloneDX 1.5 and its text forbid, as far as we could do it wrong.
pub fn problems(document: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut claim = |holds: bool, what: String| {
        if !holds {
            problems.push(what);
        }
    };
    claim(
        document["bomFormat"] == "CycloneDX" && document["specVersion"] == SPEC,
        "It does not say what it is".to_owned(),
    );
    let serial = document["serialNumber"].as_str().unwrap_or_default();
    claim(
        is_uuid(serial.strip_prefix("urn:uuid:").unwrap_or_default()),
        format!("Serial number {serial:?}"),
    );
    claim(
        document["version"].as_u64() >= Some(1),
        "No version of its own".to_owned(),
    );

    let empty = Vec::new();
    let subject = &document["metadata"]["component"];
    let components = document["components"].as_array().unwrap_or(&empty);
    let mut references = BTreeSet::new();
    for component in components.iter().chain([subject]) {
        let name = component["name"].as_str().unwrap_or_default();
        let reference = component["bom-ref"].as_str().unwrap_or_default();
        let kind = component["type"].as_str().unwrap_or_default();
        claim(
            !name.is_empty() && !reference.is_empty(),
            format!("A component without name or reference: {component}"),
        );
        claim(
            references.insert(reference),
            format!("Two components are {reference}"),
        );
        claim(
            TYPES.contains(&kind),
            format!("{reference} is of type {kind:?}"),
        );
        claim(
            component["version"]
                .as_str()
                .is_some_and(|version| !version.is_empty()),
            format!("{reference} has no version"),
        );
        if kind != "file" {
            let expression = component["licenses"][0]["expression"]
                .as_str()
                .unwrap_or_default();
            claim(
                !expression.is_empty() && !expression.contains('/'),
                format!("{reference} has the licence {expression:?}"),
            );
        }
        for hash in component["hashes"].as_array().unwrap_or(&empty) {
            let content = hash["content"].as_str().unwrap_or_default();
            let hexadecimal =
                content.len() == 64 && content.bytes().all(|byte| byte.is_ascii_hexdigit());
            claim(
                hash["alg"] == "SHA-256" && hexadecimal,
                format!("{reference} has the hash {hash}"),
            );
        }
        if let Some(purl) = component["purl"].as_str() {
            claim(
                purl.starts_with("pkg:") && purl.contains('@'),
                format!("{reference} has the package URL {purl}"),
            );
        }
    }
    let mut described = BTreeSet::new();
    for dependency in document["dependencies"].as_array().unwrap_or(&empty) {
        let from = dependency["ref"].as_str().unwrap_or_default();
        claim(described.insert(from), format!("{from} depends twice"));
        let to = dependency["dependsOn"].as_array().unwrap_or(&empty);
        for reference in to.iter().filter_map(Value::as_str).chain([from]) {
            claim(
                references.contains(reference),
                format!("{from} depends on {reference}, which is not listed"),
            );
        }
    }
    claim(
        described == references,
        "Not every component says what it depends on".to_owned(),
    );
    problems
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12]
        && text
            .bytes()
            .all(|byte| byte == b'-' || matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::kernel::Origin;

    fn one(name: &str, checksum: Option<&str>, programs: &[&'static str], calls: &[&str]) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0+b".to_owned(),
            licence: Some("MIT/Apache-2.0".to_owned()),
            repository: Some(format!("https://example.org/{name}")),
            checksum: checksum.map(str::to_owned),
            folder: PathBuf::new(),
            programs: programs.iter().copied().collect(),
            calls: calls
                .iter()
                .map(|name| ((*name).to_owned(), "1.0.0+b".to_owned()))
                .collect(),
        }
    }

    fn sample(folder: &std::path::Path) -> Contents {
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        Contents {
            version: "0.1.0".to_owned(),
            crates: vec![
                one("appliance", None, &["cabana"], &["bytes"]),
                one("bytes", Some(&"ab".repeat(32)), &["agent", "cabana"], &[]),
            ],
            agent: file("agent"),
            worker: file("worker"),
            kernel: Origin {
                package: "linux-source-6.12".to_owned(),
                version: "6.12.117-1~deb12u1".to_owned(),
                archive: file("linux.tar.xz"),
                patches: vec![file("0001-x.patch")],
            },
            vmlinux: file("vmlinux"),
            initramfs: file("initramfs"),
            scratch: file("scratch"),
            libraries: vec![Library {
                name: "glibc",
                version: "2.36-9".to_owned(),
                licence: "LGPL-2.1-or-later",
                purl: "pkg:deb/debian/libc6-dev@2.36-9?arch=amd64".to_owned(),
            }],
        }
    }

    #[test]
    fn document_lists_crates_programs_kernel_and_files_and_breaks_no_rule() {
        let folder = tempfile::tempdir().unwrap();
        let document = document(&sample(folder.path()), &"cd".repeat(32), 1_577_836_800).unwrap();
        assert_eq!(problems(&document), Vec::<String>::new());
        let components = document["components"].as_array().unwrap();
        let names: Vec<&str> = components
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "cabana-worker",
                "agent",
                "linux",
                "initramfs",
                "scratch.ext4",
                "glibc",
                "appliance",
                "bytes"
            ]
        );
        let bytes = &components[7];
        assert_eq!(bytes["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bytes["properties"][0]["value"], "agent,cabana");
        assert_eq!(bytes["purl"], "pkg:cargo/bytes@1.0.0%2Bb");
        assert_eq!(document["metadata"]["timestamp"], "2020-01-01T00:00:00Z");
        let linux = &components[2];
        assert_eq!(
            linux["licenses"][0]["expression"],
            "GPL-2.0-only WITH Linux-syscall-note"
        );
        assert!(
            linux["properties"].to_string().contains("source-sha256"),
            "{linux}"
        );
        let agent = document["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["ref"] == "program:agent");
        assert_eq!(
            agent.unwrap()["dependsOn"],
            json!([
                "pkg:cargo/bytes@1.0.0%2Bb",
                "pkg:deb/debian/libc6-dev@2.36-9?arch=amd64"
            ])
        );
    }

    #[test]
    fn broken_documents_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let good = document(&sample(folder.path()), &"cd".repeat(32), 0).unwrap();
        let broken = |change: fn(&mut Value)| {
            let mut document = good.clone();
            change(&mut document);
            problems(&document).join("; ")
        };
        assert!(broken(|it| it["serialNumber"] = json!("urn:uuid:1")).contains("Serial"));
        assert!(broken(|it| it["components"][0]["licenses"] = json!([])).contains("licence"));
        assert!(
            broken(|it| it["components"][0]["hashes"][0]["content"] = json!("xyz"))
                .contains("hash")
        );
        assert!(
            broken(|it| it["components"][1]["bom-ref"] = json!("program:cabana-worker"))
                .contains("Two")
        );
        assert!(
            broken(|it| it["dependencies"][0]["dependsOn"] = json!(["nobody"])).contains("nobody")
        );
        assert!(
            broken(|it| {
                it["dependencies"].as_array_mut().unwrap().pop();
            })
            .contains("Not every")
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(timestamp(1_795_378_515), "2026-11-22T20:15:15Z");
    }
}
