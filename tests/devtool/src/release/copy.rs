//! The checkout as it is, at another place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;
use crate::workspace::Workspace;

/// Deeper than the checkout is likely to be, and of another length, since lengths of paths are what shifts bytes.
const INNER: &str = "another/place/with-a-longer-name";

/// Removed when dropped.
pub struct Copy {
    place: PathBuf,
    root: PathBuf,
    kept: bool,
}

impl Copy {
    /// Every file that git knows or could know of: what is ignored was built.
    pub fn make(workspace: &Workspace, place: &Path) -> Result<Self> {
        let copy = Self {
            place: place.to_owned(),
            root: place.join(INNER),
            kept: false,
        };
        if place.exists() {
            fs::remove_dir_all(place)
                .with_context(|| format!("Cannot remove {}", place.display()))?;
        }
        let mut git = Command::new("git");
        git.current_dir(workspace.path("")).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]);
        let names = command::output(&mut git)?;
        for name in names.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (workspace.path(name), copy.root().join(name));
            // Removed here, and not yet in git.
            if !from.exists() {
                continue;
            }
            let folder = to.parent().unwrap_or(place);
            fs::create_dir_all(folder)
                .with_context(|| format!("Cannot create {}", folder.display()))?;
            fs::copy(&from, &to).with_context(|| format!("Cannot copy {}", from.display()))?;
        }
        Ok(copy)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Leaves it there, and says where.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.root.clone()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.kept {
            // What is left is in the cache, which may be removed at any time.
            let _ = fs::remove_dir_all(&self.place);
        }
    }
}
