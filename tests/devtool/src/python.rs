//! Python environments with published packages, which some tests run as their users do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, packages};

/// Published versions of a package, each of which gets an environment of its own.
pub struct Package {
    pub name: &'static str,
    pub versions: &'static [&'static str],
    /// What these are installed with, so that a test that passed yesterday runs the same code today.
    pub constraints: &'static str,
}

impl Package {
    /// A folder with an environment for each version, by its name.
    pub fn environments(&self, workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
        packages::ensure(workspace, &[packages::PYTHON])?;
        // An environment refers to the interpreter that it was made with.
        let python = command::output(Command::new("python3").arg("--version"))?;
        let key = Key::new("python 1")
            .text("python", &python)
            .text("versions", &self.versions.join(" "))
            .text("constraints", self.constraints);
        cache.entry(self.name, key, |folder| {
            let constraints = folder.join("constraints.txt");
            std::fs::write(&constraints, self.constraints)
                .with_context(|| format!("Cannot write {}", constraints.display()))?;
            for version in self.versions {
                self.install(workspace, version, &folder.join(version), &constraints)?;
            }
            Ok(())
        })
    }

    fn install(
        &self,
        workspace: &Workspace,
        version: &str,
        environment: &Path,
        constraints: &Path,
    ) -> Result<()> {
        let step = Step::start(format!("Installing {} {version}", self.name));
        let log = workspace.logs().join(format!("{}.log", self.name));
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(environment);
        command::logged(&mut venv, &log, |line| step.note(line))?;
        let mut pip = Command::new(interpreter(environment));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check"])
            .arg("--constraint")
            .arg(constraints)
            .arg(format!("{}=={version}", self.name));
        command::logged(&mut pip, &log, |line| step.note(line))?;
        step.done("");
        Ok(())
    }
}

/// What runs the packages of an environment. Their own programs name the folder that they were installed in, and that has
/// been renamed since.
pub fn interpreter(environment: &Path) -> PathBuf {
    environment.join("bin/python")
}
