//! `cabana bench cold-boot`: how long it takes from a launch to the agent's first word.
//!
//! It runs as the appliance process does, over the same warden and workers, so what is measured is
//! what a session waits for: folder, disk, process, boot.

use std::fs::File;
use std::io::Seek as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::MemfdFlags;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use uuid::Uuid;
use wire::ContainerSpec;

use crate::images::{Action, Job, Limits, Transport};
use crate::worker::{LaunchRequest, WorkerEvent, WorkerHost};

/// A boot that takes longer has failed, even in an emulated host.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const MEM_MIB: u32 = 128;

/// Boots `count` guests one after the other and prints the times.
pub async fn cold_boot(workers: &WorkerHost, count: u32, json: bool) -> anyhow::Result<()> {
    let mut times = Vec::new();
    let image = empty_image(workers)
        .await
        .context("Cannot make an empty image")?;
    for _ in 0..count {
        times.push(boot_once(workers, image.try_clone()?).await?.as_secs_f64() * 1000.0);
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let median = median(&sorted).context("There is nothing to measure")?;
    if json {
        let result = serde_json::json!({
            "id": "cold_boot",
            "unit": "ms",
            "median": median,
            "values": times,
        });
        println!("{result}");
    } else {
        times.iter().for_each(|time| println!("{time:9.1} ms"));
        println!("{median:9.1} ms  median of {count}, launch to agent ready");
    }
    Ok(())
}

async fn boot_once(workers: &WorkerHost, root_image: File) -> anyhow::Result<Duration> {
    let request = LaunchRequest {
        id: Uuid::new_v4(),
        root_image,
        vcpus: 1,
        cpu_millis: 1000,
        mem_mib: MEM_MIB,
        // Never looked at: the worker is stopped before the container could matter.
        container: ContainerSpec {
            argv: vec!["/none".to_owned()],
            ..ContainerSpec::default()
        },
    };
    let (worker, mut events) = workers.launch(request).await?;
    let first = timeout(BOOT_LIMIT, async {
        loop {
            match events.recv().await {
                Some(WorkerEvent::Booted { elapsed, .. }) => return Ok(elapsed),
                Some(WorkerEvent::Gone(exit)) => bail!("The guest did not boot: {exit}"),
                Some(_) => {}
                None => bail!("The guest did not boot"),
            }
        }
    })
    .await;
    let tail = worker.console_tail();
    worker.stop(Duration::ZERO).await;
    match first {
        Ok(Ok(elapsed)) => Ok(elapsed),
        Ok(Err(error)) => Err(error.context(tail.join(" | "))),
        Err(_) => bail!(
            "No agent within {} s: {}",
            BOOT_LIMIT.as_secs(),
            tail.join(" | ")
        ),
    }
}

/// A root image with nothing in it, made as every other one is.
async fn empty_image(workers: &WorkerHost) -> anyhow::Result<File> {
    let output = memory_file()?;
    let job = Job {
        action: Action::Build,
        transport: Transport::DockerArchive,
        reference: None,
        limits: Limits::default(),
    };
    let fds = vec![
        empty_archive()?.into(),
        output.try_clone()?.into(),
        memory_file()?.into(),
    ];
    workers.run_image_job(job, fds).await?;
    Ok(output)
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
    let mut archive = tar::Builder::new(memory_file()?);
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

fn memory_file() -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(
        "bench",
        MemfdFlags::CLOEXEC,
    )?))
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        Some(upper)
    } else {
        Some(f64::midpoint(sorted[middle - 1], upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_none_one_odd_and_even() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn archive_of_the_benchmark_is_an_image() {
        use std::os::unix::fs::FileExt as _;
        let output = memory_file().unwrap();
        let job = Job {
            action: Action::Build,
            transport: Transport::DockerArchive,
            reference: None,
            limits: Limits::default(),
        };
        let files = [
            empty_archive().unwrap(),
            output.try_clone().unwrap(),
            memory_file().unwrap(),
        ];
        crate::images::worker::run(job, files.map(Into::into).into()).unwrap();
        let mut magic = [0; 4];
        output.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"hsqs");
    }
}
