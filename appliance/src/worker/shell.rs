//! A worker that has nothing to run yet, with everything that does not depend on what it will run.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::control::Control;
use super::launch::LaunchError;
use super::orders::Orders;
use crate::config::Paths;
use crate::guest;
use crate::warden::client::{KillOnDrop, ProcessEnd, WardenClient};

/// Makes shells. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShellMaker {
    pub warden: WardenClient,
    pub paths: Arc<Paths>,
}

/// A process without a guest. Dropped, it is killed and its folder is removed.
#[derive(Debug)]
pub struct Shell {
    // Order: the process is on its way out before its folder goes.
    pub kill: KillOnDrop,
    pub id: Uuid,
    pub ended: oneshot::Receiver<ProcessEnd>,
    pub orders: Orders,
    /// Connected already, and waiting for the agent to come.
    pub control: Control,
    pub serial: File,
    /// Empty, and of no size yet.
    pub disk: File,
    pub folder: RunFolder,
}

impl ShellMaker {
    pub async fn make(&self) -> Result<Shell, LaunchError> {
        let id = Uuid::new_v4();
        let folder = RunFolder::create(&self.paths.workers, id)?;
        let failed = |source| LaunchError::Folder {
            path: folder.path.clone(),
            source,
        };
        let vsock = UnixListener::bind(folder.socket()).map_err(failed)?;
        let control = Control::connect(folder.socket()).map_err(failed)?;
        let (orders, listener) = Orders::open(&folder.orders()).map_err(failed)?;
        let console = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.console())
            .map_err(failed)?;
        let serial = console.try_clone().map_err(LaunchError::Descriptor)?;
        let disk = guest::nameless_disk(&self.paths.disks)?;
        let fds: Vec<OwnedFd> = vec![vsock.into(), console.into(), listener];
        let (kill, ended) = self.warden.spawn_worker(id, fds).await?;
        Ok(Shell {
            kill,
            id,
            ended,
            orders,
            control,
            serial,
            disk,
            folder,
        })
    }
}

impl Shell {
    /// Ready when its process has ended.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Option<ProcessEnd>> {
        std::pin::Pin::new(&mut self.ended)
            .poll(context)
            .map(Result::ok)
    }

    /// Kills it and waits until everything of it is removed. `None`: it ended with the warden.
    pub async fn end(self) -> Option<ProcessEnd> {
        let Self {
            kill,
            ended,
            folder,
            ..
        } = self;
        drop(kill);
        let end = ended.await.ok();
        drop(folder);
        end
    }
}

/// A worker's folder below the run folder. That of a shell is removed when it is dropped; that of a guest is not, because
/// the guest may live on.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    is_a_guests: bool,
}

impl RunFolder {
    fn create(workers: &Path, id: Uuid) -> Result<Self, LaunchError> {
        let path = workers.join(id.simple().to_string());
        match private_folder(&path) {
            Ok(()) => Ok(Self {
                path,
                is_a_guests: false,
            }),
            Err(source) => Err(LaunchError::Folder { path, source }),
        }
    }

    /// One that is there already.
    pub fn of_a_guest(path: PathBuf) -> Self {
        Self {
            path,
            is_a_guests: true,
        }
    }

    /// From now on there is a guest behind it.
    pub fn into_a_guests(mut self) -> Self {
        self.is_a_guests = true;
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The host's side of the guest's vsock.
    pub fn socket(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }

    /// Where orders are given.
    pub fn orders(&self) -> PathBuf {
        self.path.join("orders.sock")
    }

    /// What the guest's kernel prints.
    pub fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// Nothing lives on.
    pub fn remove(mut self) {
        self.is_a_guests = false;
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.is_a_guests {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}

pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_of_a_worker_is_private_and_gone_when_dropped() {
        use std::os::unix::fs::PermissionsExt;
        let workers = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(workers.path(), Uuid::new_v4()).unwrap();
        std::fs::write(folder.path.join("console.log"), "x").unwrap();
        let mode = std::fs::metadata(&folder.path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700);
        drop(folder);
        assert_eq!(std::fs::read_dir(workers.path()).unwrap().count(), 0);
    }

    #[test]
    fn folder_of_a_guest_is_removed_when_that_is_said_and_not_before() {
        let workers = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(workers.path(), Uuid::new_v4()).unwrap();
        let path = folder.path.clone();
        drop(folder.into_a_guests());
        assert!(path.exists());
        RunFolder::of_a_guest(path.clone()).remove();
        assert!(!path.exists());
    }
}
