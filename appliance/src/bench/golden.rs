//! A golden of the benchmark's own, made as the appliance makes one: boot, hold, save, try, record the working set.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;

use super::image::Image;
use super::run::{DISK_BYTES, Run, boot_request, request};
use crate::config::Paths;
use crate::worker::spec::ForkPoint;
use crate::worker::{LaunchRequest, Purpose, SaveFiles, Snapshot, Source, WorkerHost, WorkingSet};

const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISK: &str = "disk";
const WORKING_SET: &str = "working-set";

/// Gone with its folder when dropped.
pub struct Golden {
    folder: TempDir,
    point: ForkPoint,
}

impl Golden {
    pub async fn build(
        workers: &WorkerHost,
        paths: &Paths,
        image: &Image,
        point: ForkPoint,
    ) -> anyhow::Result<Self> {
        // Where goldens lie on the same file system as disks, as they do for the service.
        let folder = tempfile::tempdir_in(&paths.disks).context("Cannot make a folder")?;
        let golden = Self { folder, point };
        golden
            .save(workers, image)
            .await
            .context("Cannot save a golden")?;
        golden
            .record(workers, image)
            .await
            .context("Cannot fork from the golden")?;
        Ok(golden)
    }

    /// Boots a guest to the fork point and keeps it.
    async fn save(&self, workers: &WorkerHost, image: &Image) -> anyhow::Result<()> {
        let purpose = Purpose::Golden {
            point: self.point,
            container: image.container.clone(),
        };
        let mut run = Run::start(workers, boot_request(image, purpose)?).await?;
        run.worker.freeze_when_ready().await;
        run.until_held().await?;
        run.worker.pause().await?;
        let files = SaveFiles {
            state: self.create(STATE)?,
            memory: self.create(MEMORY)?,
            disk: self.create(DISK)?,
        };
        run.worker.save(files).await?;
        run.end().await;
        Ok(())
    }

    /// The pages that a fork touches first, so that the next ones have them at once.
    async fn record(&self, workers: &WorkerHost, image: &Image) -> anyhow::Result<()> {
        let mut run = Run::start(workers, self.fork(image, Purpose::Trial)?).await?;
        run.until_renewed().await?;
        if self.point == ForkPoint::AfterReady {
            run.worker.connect().await?;
        }
        run.worker.pause().await?;
        run.worker
            .save_working_set(self.create(WORKING_SET)?)
            .await?;
        run.end().await;
        Ok(())
    }

    /// What a fork is launched with.
    pub fn fork(&self, image: &Image, purpose: Purpose) -> anyhow::Result<LaunchRequest> {
        let snapshot = Snapshot {
            state: self.open(STATE)?,
            memory: self.open(MEMORY)?,
            disk: self.open(DISK)?,
            working_set: match File::open(self.path().join(WORKING_SET)) {
                Ok(file) => WorkingSet::Known(file),
                Err(_) => WorkingSet::Wanted,
            },
            disk_bytes: DISK_BYTES,
        };
        let source = Source::Fork {
            snapshot,
            root_image: image.root()?,
        };
        Ok(request(source, purpose))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn create(&self, name: &str) -> anyhow::Result<File> {
        let options = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .clone();
        options
            .open(self.path().join(name))
            .with_context(|| format!("Cannot create the file {name}"))
    }

    fn open(&self, name: &str) -> anyhow::Result<File> {
        File::open(self.path().join(name)).with_context(|| format!("Cannot open the file {name}"))
    }
}
