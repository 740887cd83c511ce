//! The licences of others, as their packages have them: most ask that their text goes along with the binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::contents::Crate;

/// How such files begin, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];
/// What Debian says of what is in the binary and is no crate.
const DEBIAN: [&str; 3] = ["libc6-dev", "libgcc-12-dev", "linux-source-6.12"];

/// Each text once, with whom it is of.
pub fn texts(crates: &[Crate]) -> Result<String> {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for one in crates.iter().filter(|one| one.checksum.is_some()) {
        let name = format!("{} {}", one.name, one.version);
        let files = files(&one.folder)?;
        if files.is_empty() {
            without.push(format!(
                "{name}: {}",
                one.licence.as_deref().unwrap_or("none is named")
            ));
        }
        for file in files {
            owners.entry(read(&file)?).or_default().push(name.clone());
        }
    }
    for package in DEBIAN {
        let path = Path::new("/usr/share/doc").join(package).join("copyright");
        if path.exists() {
            owners
                .entry(read(&path)?)
                .or_default()
                .push(package.to_owned());
        }
    }
    let mut parts: Vec<String> = owners
        .into_iter()
        .map(|(text, mut names)| {
            names.dedup();
            format!("{}\n\n{}\n", names.join(", "), text.trim())
        })
        .collect();
    parts.sort();
    if !without.is_empty() {
        parts.push(format!(
            "Packages without a text of their own, and what they name as their licence\n\n{}\n",
            without.join("\n")
        ));
    }
    Ok(parts.join(&format!("\n{}\n\n", "=".repeat(80))))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("Cannot list {}", folder.display()))?
            .path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        if path.is_file() && NAMES.iter().any(|known| name.starts_with(known)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn text_that_two_packages_have_is_there_once_and_one_without_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let package = |name: &str, text: Option<&str>| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            if let Some(text) = text {
                fs::write(folder.join("License-MIT.txt"), text).unwrap();
            }
            Crate {
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                licence: Some("MIT".to_owned()),
                repository: None,
                checksum: Some(String::new()),
                folder,
                programs: BTreeSet::new(),
                calls: BTreeSet::new(),
            }
        };
        let crates = [
            package("a", Some("Do what you like.\r\n")),
            package("b", Some("Do what you like.\n")),
            package("c", None),
        ];
        let text = texts(&crates).unwrap();
        assert_eq!(text.matches("Do what you like.").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0\n"), "{text}");
        assert!(text.contains("c 1.0.0: MIT"), "{text}");
    }
}
