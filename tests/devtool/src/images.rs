//! What the tests run that is not ours to build: our own demo server as an image, a real distribution as one, and a host with systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::cache::{Cache, Key};
use crate::oci::{self, Image};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, packages};

/// Debian 12 with Python. `minbase` brings the shell, coreutils and apt that one expects of a distribution image.
const SUITE: &str = "bookworm";
const DEBIAN_PACKAGES: &str = "python3-minimal,libpython3-stdlib";
/// What systemd's own service manager needs, and a file system in the modern order, which spares a converter written in Perl.
const SYSTEMD_PACKAGES: &str = "systemd-sysv,usr-is-merged";
/// Documentation, locales and package lists are half of the image and no test reads them.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];

/// The demo server as an OCI archive.
pub fn demo(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    command::shown(
        workspace
            .cargo()
            .args(["build", "--quiet", "--release", "--package", "demo"]),
    )?;
    let program = workspace.release_program("demo");
    let key = Key::new("demo 1").file("program", &program)?;
    let entry = cache.entry("demo", key, |folder| {
        let content =
            fs::read(&program).with_context(|| format!("Cannot read {}", program.display()))?;
        let image = Image {
            files: &[
                ("demo", 0o755, &content),
                (
                    "etc/passwd",
                    0o644,
                    b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
                ),
                ("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n"),
            ],
            folders: &["etc", "tmp", "data"],
            config: json!({
                "Entrypoint": ["/demo"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
                "ExposedPorts": {"8080/tcp": {}},
            }),
            reference: "demo:latest",
        };
        oci::write(&folder.join("demo.tar"), &image)
    })?;
    Ok(entry.join("demo.tar"))
}

/// A Debian image with python3, made from Debian's packages, as an OCI archive.
pub fn python(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    packages::ensure(workspace, &[packages::IMAGES])?;
    let key = Key::new("python 1")
        .text("suite", SUITE)
        .text("packages", DEBIAN_PACKAGES)
        .text("left out", &LEFT_OUT.concat());
    let entry = cache.entry("python", key, |folder| {
        let step = Step::start("Building the Debian image with python3");
        build_python(workspace, folder, &step)?;
        step.done("");
        Ok(())
    })?;
    Ok(entry.join("python.tar"))
}

/// A Debian system with systemd, of the release that Cabana promises to run on, as an archive of its root.
pub fn systemd(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    packages::ensure(workspace, &[packages::IMAGES])?;
    let key = Key::new("systemd 1")
        .text("suite", SUITE)
        .text("packages", SYSTEMD_PACKAGES)
        .text("left out", &LEFT_OUT.concat());
    let entry = cache.entry("systemd", key, |folder| {
        let step = Step::start("Building the Debian system with systemd");
        let log = workspace.logs().join("systemd-root.log");
        let root = folder.join("systemd.tar");
        debian("essential", SYSTEMD_PACKAGES, &root, &log, &step)?;
        step.done("");
        Ok(())
    })?;
    Ok(entry.join("systemd.tar"))
}

/// Makes the archive of a root file system.
fn debian(variant: &str, packages: &str, root: &Path, log: &Path, step: &Step) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .env("SOURCE_DATE_EPOCH", "1")
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={packages}"));
    for path in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    mmdebstrap.arg(SUITE).arg(root);
    command::logged(&mut mmdebstrap, log, |line| step.note(line))
}

fn build_python(workspace: &Workspace, folder: &Path, step: &Step) -> Result<()> {
    let log = workspace.logs().join("python-image.log");
    let root = folder.join("root.tar");
    debian("minbase", DEBIAN_PACKAGES, &root, &log, step)?;

    let layout = folder.join("layout");
    let tag = format!("{}:python", layout.display());
    let umoci = |arguments: &[&str]| {
        command::logged(Command::new("umoci").args(arguments), &log, |line| {
            step.note(line)
        })
    };
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &tag])?;
    umoci(&[
        "raw",
        "add-layer",
        "--image",
        &tag,
        &root.display().to_string(),
    ])?;
    umoci(&[
        "config",
        "--image",
        &tag,
        "--config.cmd=/usr/bin/python3",
        "--config.cmd=-m",
        "--config.cmd=http.server",
        "--config.cmd=8000",
        "--config.workingdir=/usr/share",
        "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "--config.exposedports=8000/tcp",
    ])?;
    let archive = folder.join("python.tar");
    command::logged(
        Command::new("tar")
            .arg("-C")
            .arg(&layout)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
        &log,
        |_| {},
    )?;
    fs::remove_dir_all(&layout).context("Cannot remove the image layout")?;
    fs::remove_file(&root).context("Cannot remove the root archive")
}
