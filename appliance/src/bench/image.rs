//! The images that a measurement runs.

use std::fs::File;
use std::io::Seek as _;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wire::ContainerSpec;

use crate::guest::memory_file;
use crate::images::worker::run_shaped;
use crate::images::{Input, Job, JobReport, Limits, Shape, Transport};
use crate::worker::WorkerHost;

/// An archive and the port that its container serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub transport: Transport,
    /// Opened by the appliance process, so its user must be able to read it.
    pub path: std::path::PathBuf,
    pub reference: Option<String>,
    pub target_port: u16,
}

/// A root image in memory, and what is started from it.
pub struct Image {
    root: File,
    pub container: ContainerSpec,
}

impl Image {
    /// A root image with nothing in it, for what only looks at the agent.
    pub async fn empty(workers: &WorkerHost) -> anyhow::Result<Self> {
        let job = build(Transport::DockerArchive, None);
        let (root, _) = unpack(workers, job, empty_archive()?)
            .await
            .context("Cannot make an empty image")?;
        // Never started: the guest is ended before the container could matter.
        let container = ContainerSpec {
            argv: vec!["/none".to_owned()],
            ..ContainerSpec::default()
        };
        Ok(Self { root, container })
    }

    pub async fn open(workers: &WorkerHost, source: Source) -> anyhow::Result<Self> {
        let path = source.path.display();
        let archive = File::open(&source.path).with_context(|| format!("Cannot read {path}"))?;
        let job = build(source.transport, source.reference);
        let (root, report) = unpack(workers, job, archive)
            .await
            .with_context(|| format!("Cannot make an image of {path}"))?;
        Self::of(root, report, &path.to_string(), source.target_port)
    }

    /// The same with a root image of this shape, made in this process, and how long that is.
    pub fn shaped(source: &Source, archive: File, shape: Shape) -> anyhow::Result<(Self, u64)> {
        let path = source.path.display();
        let job = build(source.transport, source.reference.clone());
        let output = memory_file("bench")?;
        let files = [archive, output.try_clone()?, memory_file("bench")?];
        let report = run_shaped(job, files.map(Into::into).into(), shape)
            .with_context(|| format!("Cannot make an image of {path}"))?;
        let bytes = report.bytes;
        let image = Self::of(output, report, &path.to_string(), source.target_port)?;
        Ok((image, bytes))
    }

    fn of(root: File, report: JobReport, path: &str, target_port: u16) -> anyhow::Result<Self> {
        let config = report.config;
        let argv = [config.entrypoint, config.cmd].concat();
        ensure!(!argv.is_empty(), "The image in {path} names nothing to run");
        let container = ContainerSpec {
            argv,
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            stop_signal: config.stop_signal.unwrap_or_default(),
            target_port,
        };
        Ok(Self { root, container })
    }

    pub fn root(&self) -> anyhow::Result<File> {
        self.root.try_clone().context("Cannot copy a descriptor")
    }
}

fn build(transport: Transport, reference: Option<String>) -> Job {
    Job {
        input: Input::Archive {
            transport,
            reference,
        },
        build: true,
        limits: Limits::default(),
    }
}

/// As every image is made that a pool uses.
async fn unpack(
    workers: &WorkerHost,
    job: Job,
    archive: File,
) -> anyhow::Result<(File, JobReport)> {
    let output = memory_file("bench")?;
    let fds = vec![
        archive.into(),
        output.try_clone()?.into(),
        memory_file("bench")?.into(),
    ];
    let report = workers.run_image_job(job, fds).await?;
    Ok((output, report))
}

/// An image of one empty layer, as `docker save` writes it.
fn empty_archive() -> anyhow::Result<File> {
    /// Two zero blocks end an archive (POSIX.1-2017, pax, ustar format).
    const EMPTY_TAR: [u8; 1024] = [0; 1024];
    let diff_id = format!("sha256:{:x}", Sha256::digest(EMPTY_TAR));
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] },
    ]);
    let mut archive = tar::Builder::new(memory_file("bench")?);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes)
    };
    add("manifest.json", manifest.to_string().as_bytes())?;
    add("config.json", config.to_string().as_bytes())?;
    add("layer.tar", &EMPTY_TAR)?;
    let mut file = archive.into_inner()?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_of_the_benchmark_is_an_image() {
        use std::os::unix::fs::FileExt as _;
        let output = memory_file("bench").unwrap();
        let files = [
            empty_archive().unwrap(),
            output.try_clone().unwrap(),
            memory_file("bench").unwrap(),
        ];
        let job = build(Transport::DockerArchive, None);
        crate::images::worker::run(job, files.map(Into::into).into()).unwrap();
        let mut magic = [0; 4];
        output.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"hsqs");
    }
}
