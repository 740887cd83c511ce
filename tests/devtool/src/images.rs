//! What the tests run: our own demo server as an image, real servers of a real distribution as images, and a host with systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::cache::{Cache, Key};
use crate::oci::{self, Image};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, packages};

/// Where the programs of an image are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The release of all of them.
const SUITE: &str = "bookworm";
/// What systemd's own service manager needs, and a file system in the modern order, which spares a converter written in Perl.
const SYSTEMD_PACKAGES: &str = "systemd-sysv,usr-is-merged";
/// Folders in the modern order from the start, which spares the converter.
const MERGED: &str = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr";
/// Documentation, locales and package lists are half of the image and no test reads them.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];

/// An image made from Debian's packages, with no change to what is in them.
pub struct Recipe {
    /// Its tag, and its name in the registry.
    pub name: &'static str,
    /// Changes when the way of building changes in what the other fields do not say.
    version: &'static str,
    /// Of mmdebstrap: how much there is besides the packages.
    variant: &'static str,
    more: &'static [&'static str],
    packages: &'static str,
    command: &'static [&'static str],
    folder: &'static str,
    port: &'static str,
}

/// `minbase` brings the shell, coreutils and apt that one expects of a distribution image.
pub const PYTHON: Recipe = Recipe {
    name: "python",
    version: "python 1",
    variant: "minbase",
    more: &[],
    packages: "python3-minimal,libpython3-stdlib",
    command: &["/usr/bin/python3", "-m", "http.server", "8000"],
    folder: "/usr/share",
    port: "8000/tcp",
};
/// As little of Debian as there is, with a shell for a command: whoever starts it says what runs.
const MINIMAL: Recipe = Recipe {
    name: "debian",
    version: "debian 1",
    variant: "essential",
    more: &[MERGED],
    packages: "",
    command: &["/bin/sh"],
    folder: "/",
    port: "",
};
/// With the page and the configuration that the package brings.
const NGINX: Recipe = Recipe {
    name: "nginx",
    version: "nginx 1",
    packages: "nginx",
    command: &["/usr/sbin/nginx", "-g", "daemon off;"],
    port: "80/tcp",
    ..MINIMAL
};
const NODE: Recipe = Recipe {
    name: "node",
    version: "node 1",
    packages: "nodejs",
    command: &[
        "/usr/bin/node",
        "--eval",
        r#"require("http").createServer((...pair) => pair[1].end(process.version)).listen(8080)"#,
    ],
    port: "8080/tcp",
    ..MINIMAL
};
/// Node.js with what a developer has beside it: the real image of 120 MB that promises are about.
pub const LARGE: Recipe = Recipe {
    name: "large",
    version: "large 1",
    packages: "nodejs,python3,git,cpp,make",
    ..NODE
};
/// What the registry of the tests has.
const SERVERS: [&Recipe; 4] = [&MINIMAL, &NGINX, &NODE, &PYTHON];

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
                "Env": [format!("PATH={PATH}")],
                "WorkingDir": "/",
                "ExposedPorts": {"8080/tcp": {}},
            }),
            reference: "demo:latest",
        };
        oci::write(&folder.join("demo.tar"), &image)
    })?;
    Ok(entry.join("demo.tar"))
}

/// The archive of a Debian image with python3.
pub fn python(workspace: &Workspace, cache: &Cache) -> Result<PathBuf> {
    build(workspace, cache, &PYTHON)
}

/// All images of real servers, with the archive of each. They are built side by side: most of the time goes into unpacking packages on
/// one core.
pub fn servers(workspace: &Workspace, cache: &Cache) -> Result<Vec<(&'static Recipe, PathBuf)>> {
    packages::ensure(workspace, &[packages::IMAGES])?;
    thread::scope(|scope| {
        let builds = SERVERS.map(|recipe| {
            let build = scope.spawn(move || build(workspace, cache, recipe));
            (recipe, build)
        });
        let archive = |(recipe, build): (&'static Recipe, thread::ScopedJoinHandle<_>)| {
            let built: Result<PathBuf> = match build.join() {
                Ok(built) => built,
                Err(_) => bail!("The build of the image {} panicked", recipe.name),
            };
            Ok((recipe, built?))
        };
        builds.into_iter().map(archive).collect()
    })
}

/// An image as an OCI archive.
pub fn build(workspace: &Workspace, cache: &Cache, recipe: &Recipe) -> Result<PathBuf> {
    packages::ensure(workspace, &[packages::IMAGES])?;
    let key = Key::new(recipe.version)
        .text("suite", SUITE)
        .text("packages", recipe.packages)
        .text("left out", &LEFT_OUT.concat());
    let entry = cache.entry(recipe.name, key, |folder| {
        let step = Step::start(format!("Building the Debian image {}", recipe.name));
        build_image(workspace, recipe, folder, &step)?;
        step.done("");
        Ok(())
    })?;
    Ok(entry.join(format!("{}.tar", recipe.name)))
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
        debian("essential", &[], SYSTEMD_PACKAGES, &root, &log, &step)?;
        step.done("");
        Ok(())
    })?;
    Ok(entry.join("systemd.tar"))
}

/// Makes the archive of a root file system.
fn debian(
    variant: &str,
    more: &[&str],
    packages: &str,
    root: &Path,
    log: &Path,
    step: &Step,
) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .env("SOURCE_DATE_EPOCH", "1")
        .arg(format!("--variant={variant}"))
        .args(more);
    if !packages.is_empty() {
        mmdebstrap.arg(format!("--include={packages}"));
    }
    for path in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    mmdebstrap.arg(SUITE).arg(root);
    command::logged(&mut mmdebstrap, log, |line| step.note(line))
}

fn build_image(workspace: &Workspace, recipe: &Recipe, folder: &Path, step: &Step) -> Result<()> {
    let log = workspace.logs().join(format!("{}-image.log", recipe.name));
    let root = folder.join("root.tar");
    debian(
        recipe.variant,
        recipe.more,
        recipe.packages,
        &root,
        &log,
        step,
    )?;

    let layout = folder.join("layout");
    let tag = format!("{}:{}", layout.display(), recipe.name);
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
    let mut config: Vec<String> = recipe
        .command
        .iter()
        .map(|word| format!("--config.cmd={word}"))
        .collect();
    config.push(format!("--config.workingdir={}", recipe.folder));
    config.push(format!("--config.env=PATH={PATH}"));
    if !recipe.port.is_empty() {
        config.push(format!("--config.exposedports={}", recipe.port));
    }
    let config = config.iter().map(String::as_str);
    let arguments: Vec<&str> = ["config", "--image", &tag]
        .into_iter()
        .chain(config)
        .collect();
    umoci(&arguments)?;
    let archive = folder.join(format!("{}.tar", recipe.name));
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
