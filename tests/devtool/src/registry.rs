//! Debian's `docker-registry` with the images of real servers, as `skopeo` pushes them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::cache::{Cache, Key};
use crate::children::{self, Tracked};
use crate::lab::LabFile;
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, images, packages};

/// The registry, and what fills it.
pub const PACKAGES: &[&str] = &["docker-registry", "skopeo"];
const PROGRAM: &str = "/usr/bin/docker-registry";
/// Its last word before the address, when it takes connections.
const LISTENING: &str = "listening on 127.0.0.1:";
/// Where the lab has the storage.
const IN_LAB: &str = "/registry";

/// A running registry. Dropped, it is gone.
pub struct Registry {
    _process: Tracked,
    /// `127.0.0.1:port`.
    pub host: String,
}

impl Registry {
    /// On what lies in `storage`.
    pub fn start(storage: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("Cannot make a folder")?;
        let file = folder.path().join("config.yml");
        // YAML is a superset of JSON.
        let config = json!({
            "version": 0.1,
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": "127.0.0.1:0", "secret": "unused" },
        });
        fs::write(&file, config.to_string()).context("Cannot write the registry's settings")?;
        let mut command = children::tied(PROGRAM);
        command
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = children::spawn(&mut command)?;
        let log = process.stderr.take().context("The registry has no log")?;
        let mut log = BufReader::new(log);
        let mut said = String::new();
        let port = loop {
            let from = said.len();
            let read = log.read_line(&mut said);
            if read.context("Cannot read the registry's log")? == 0 {
                anyhow::bail!("The registry ended: {said}");
            }
            if let Some((_, rest)) = said[from..].split_once(LISTENING) {
                let digits = rest.chars().take_while(char::is_ascii_digit);
                break digits.collect::<String>();
            }
        };
        // Somebody must read, or it waits for that at last.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self {
            _process: process,
            host: format!("127.0.0.1:{port}"),
        })
    }

    /// Puts an image of an archive there.
    pub fn push(&self, archive: &Path, tag: &str, name: &str, log: &Path) -> Result<()> {
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--quiet"])
            .args(["--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci-archive:{}:{tag}", archive.display()))
            .arg(format!("docker://{}/{name}", self.host));
        command::logged(&mut skopeo, log, |_| {})
    }
}

/// What the lab needs for a registry of its own: the program, and the storage with all images.
pub fn lab_files(workspace: &Workspace, cache: &Cache) -> Result<[LabFile; 2]> {
    Ok([
        LabFile {
            source: storage(workspace, cache)?,
            target: IN_LAB.to_owned(),
        },
        LabFile {
            source: PathBuf::from(PROGRAM),
            target: "/usr/local/bin/docker-registry".to_owned(),
        },
    ])
}

/// The folder of a registry that has `debian/NAME:12` for each image of a real server.
fn storage(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    packages::ensure(workspace, &[PACKAGES])?;
    let servers = images::servers(workspace, cache)?;
    let mut key = Key::new("registry 1");
    for (recipe, archive) in &servers {
        // The name of its folder is the hash of all that the image was made of.
        let hash = archive.parent().and_then(Path::file_name);
        let hash = hash.context("An archive has no folder")?;
        key = key.text(recipe.name, &hash.to_string_lossy());
    }
    let entry = cache.entry("registry", key, |folder| {
        let step = Step::start("Filling the registry");
        let registry = Registry::start(folder)?;
        let log = workspace.logs().join("registry.log");
        for (recipe, archive) in &servers {
            step.note(recipe.name);
            let name = format!("debian/{}:12", recipe.name);
            registry.push(archive, recipe.name, &name, &log)?;
        }
        step.done("");
        Ok(())
    })?;
    Ok(entry)
}
