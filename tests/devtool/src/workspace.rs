//! Where things are in the checkout, and how cargo is called for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The target of `.cargo/config.toml`: what we ship is built for it, statically linked.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The checkout that this program was built from, or a copy of it that a release is built in.
pub struct Workspace {
    root: PathBuf,
    /// Absent for everyday builds, which go where cargo puts them.
    recipe: Option<Recipe>,
}

/// How cargo is called so that the place of the build is not in the result.
pub struct Recipe {
    pub target: PathBuf,
    /// `--config` and `--locked`: what stands before the name of cargo's command, and works for each.
    pub settings: Vec<String>,
    pub environment: Vec<(String, OsString)>,
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
        Ok(Self { root, recipe: None })
    }

    /// The checkout at `root`, built by `recipe`.
    pub fn with_recipe(root: PathBuf, recipe: Recipe) -> Self {
        Self {
            root,
            recipe: Some(recipe),
        }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Where cargo puts what it builds.
    pub fn target(&self) -> PathBuf {
        if let Some(recipe) = &self.recipe {
            return recipe.target.clone();
        }
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
        self.embedded("guest")
    }

    /// Where it looks for the worker.
    pub fn worker(&self) -> PathBuf {
        self.embedded("worker")
    }

    fn embedded(&self, name: &str) -> PathBuf {
        match &self.recipe {
            Some(recipe) => recipe.target.join(name),
            None => self.root.join("target").join(name),
        }
    }

    /// Logs of long steps.
    pub fn logs(&self) -> PathBuf {
        self.root.join("target/devtool")
    }

    pub fn cargo(&self) -> Command {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        if let Some(recipe) = &self.recipe {
            // Flags of whoever calls us would go before those of the recipe, and into the result.
            command
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS");
            command
                .env("CARGO_TARGET_DIR", &recipe.target)
                .env("CABANA_GUEST_DIR", self.guest())
                .env("CABANA_WORKER_DIR", self.worker());
            command.envs(recipe.environment.iter().cloned());
            command.args(&recipe.settings);
        }
        command
    }
}
