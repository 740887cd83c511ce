//! Where things are in the checkout, and how cargo is called for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The target of `.cargo/config.toml`: what we ship is built for it, statically linked.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The checkout that this program was built from.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().with_context(|| {
            format!(
                "The checkout at {} has moved: run `cargo dev` inside it",
                root.display()
            )
        })?;
        Ok(Self { root })
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Where cargo puts what it builds.
    pub fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |target| self.root.join(target))
    }

    /// A program built with `--release`.
    pub fn release_program(&self, name: &str) -> PathBuf {
        self.program("release", name)
    }

    /// A program built with `--profile PROFILE`.
    pub fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target().join(TRIPLE).join(profile).join(name)
    }

    /// Where `appliance/build.rs` looks for the guest, see `.cargo/config.toml`.
    pub fn guest(&self) -> PathBuf {
        self.root.join("target/guest")
    }

    /// Where it looks for the worker.
    pub fn worker(&self) -> PathBuf {
        self.root.join("target/worker")
    }

    /// Logs of long steps.
    pub fn logs(&self) -> PathBuf {
        self.root.join("target/devtool")
    }

    pub fn cargo(&self) -> Command {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }
}
