//! Published versions of the cloud service's client library, which the tests of the resource API are run with.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{Cache, Key};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, packages};

/// Where the test looks for them.
pub const VARIABLE: &str = "CABANA_AZURE_SDK";

/// Versions of `azure-mgmt-appcontainers`: the first stable one with session pools, the last with models of one level, and
/// the newest.
const VERSIONS: [&str; 3] = ["3.2.0", "4.0.0", "5.1.0"];

/// What these are installed with, so that a test that passed yesterday runs the same code today.
const CONSTRAINTS: &str = "\
azure-common==1.1.28
azure-core==1.41.0
azure-mgmt-core==1.6.0
certifi==2026.10.18
charset-normalizer==3.5.2
idna==3.20
isodate==0.7.2
msrest==0.7.1
oauthlib==4.0.1
requests==2.34.2
requests-oauthlib==2.0.0
typing_extensions==4.16.0
urllib3==2.8.0
";

/// A folder with a Python environment for each version, by its name.
pub fn environments(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    packages::ensure(workspace, &[packages::PYTHON])?;
    // An environment refers to the interpreter that it was made with.
    let python = command::output(Command::new("python3").arg("--version"))?;
    let key = Key::new("azure sdk 1")
        .text("python", &python)
        .text("versions", &VERSIONS.join(" "))
        .text("constraints", CONSTRAINTS);
    cache.entry("azure-sdk", key, |folder| {
        let constraints = folder.join("constraints.txt");
        std::fs::write(&constraints, CONSTRAINTS)
            .with_context(|| format!("Cannot write {}", constraints.display()))?;
        for version in VERSIONS {
            let step = Step::start(format!("Installing azure-mgmt-appcontainers {version}"));
            let log = workspace.logs().join("azure-sdk.log");
            let environment = folder.join(version);
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv"]).arg(&environment);
            command::logged(&mut venv, &log, |line| step.note(line))?;
            let mut pip = Command::new(environment.join("bin/python"));
            pip.args(["-m", "pip", "install", "--disable-pip-version-check"])
                .arg("--constraint")
                .arg(&constraints)
                .arg(format!("azure-mgmt-appcontainers=={version}"));
            command::logged(&mut pip, &log, |line| step.note(line))?;
            step.done("");
        }
        Ok(())
    })
}
