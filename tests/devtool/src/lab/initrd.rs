//! The lab's root file system: busybox, curl, the modules and whatever the caller brings. Nothing is installed in it, and it lives
//! in memory.
//!
//! It is an uncompressed archive: the emulated processor would need seconds to decompress it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::command;
use crate::cpio::Archive;

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/bin/busybox";
const CURL: &str = "/usr/bin/curl";
const FOLDERS: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "var",
    "root",
    "mnt",
    "usr/bin",
    "usr/sbin",
    "sbin",
    "usr/local/bin",
    "etc",
];
/// The accounts that programs look up.
const SMALL_FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nkvm:x:106:\nnogroup:x:65534:\n"),
    (
        "etc/hosts",
        "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 lab\n",
    ),
    ("etc/resolv.conf", ""),
    ("etc/os-release", "ID=lab\nPRETTY_NAME=\"Cabana lab\"\n"),
];

/// A file or folder of the host, and where it goes in the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabFile {
    pub source: PathBuf,
    pub target: String,
}

/// What runs in the lab.
#[derive(Clone, Debug)]
pub enum LabCommand {
    Script(String),
    /// An interactive shell on a terminal of this size.
    Shell {
        rows: u16,
        columns: u16,
    },
}

pub struct Contents<'a> {
    /// Where the host kernel's modules are.
    pub modules: &'a Path,
    pub command: &'a LabCommand,
    pub keep: bool,
    pub files: &'a [LabFile],
}

impl LabFile {
    /// Parses `SRC[:DST]`. Without a target, programs go into the lab's PATH and anything else to `/`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (source, target) = match text.split_once(':') {
            Some((source, target)) => (source, Some(target)),
            None => (text, None),
        };
        let source = PathBuf::from(source);
        let metadata =
            fs::metadata(&source).map_err(|error| format!("{}: {error}", source.display()))?;
        let target = match target {
            Some(target) if target.starts_with('/') => target.to_owned(),
            Some(target) => return Err(format!("the target {target:?} is not an absolute path")),
            None => {
                let name = source
                    .file_name()
                    .ok_or("the source has no name")?
                    .to_string_lossy();
                let program = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
                if program {
                    format!("/usr/local/bin/{name}")
                } else {
                    format!("/{name}")
                }
            }
        };
        Ok(Self { source, target })
    }
}

impl LabCommand {
    fn script(&self) -> String {
        match self {
            Self::Script(script) => script.clone(),
            Self::Shell { rows, columns } => {
                // The size is set by the shell's own session: a terminal that nobody has open forgets it.
                let shell = format!("stty rows {rows} cols {columns}; PS1=\"lab# \" exec sh");
                format!(
                    "until [ -e /dev/hvc0 ]; do usleep 10000; done\n\
                    setsid -c sh -c '{shell}' </dev/hvc0 >/dev/hvc0 2>&1\n"
                )
            }
        }
    }
}

/// Writes the archive to `path`.
pub fn write(path: &Path, contents: &Contents) -> Result<()> {
    let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
    let mut root = Root {
        archive: Archive::new(BufWriter::with_capacity(1 << 20, file)),
        present: BTreeSet::new(),
    };
    for folder in FOLDERS {
        root.archive.folder(folder, 0o755)?;
    }
    root.text("init", 0o755, INIT)?;
    root.text("lab/command", 0o644, &contents.command.script())?;
    if contents.keep {
        root.text("lab/keep", 0o644, "")?;
    }
    for (path, text) in SMALL_FILES {
        root.text(path, 0o644, text)?;
    }
    for module in fs::read_dir(contents.modules).context("Cannot list the host kernel's modules")? {
        let module = module.context("Cannot list the host kernel's modules")?;
        if module
            .path()
            .extension()
            .is_some_and(|extension| extension == "ko")
        {
            root.file(
                &module.path(),
                &format!("lab/{}", module.file_name().to_string_lossy()),
            )?;
        }
    }
    // What the caller brings wins over what is there anyway.
    for file in contents.files {
        root.tree(&file.source, &file.target)?;
    }
    root.program(Path::new(CURL), "usr/bin/curl")?;
    root.file(Path::new(BUSYBOX), "bin/busybox")?;
    for applet in command::output(Command::new(BUSYBOX).arg("--list"))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        root.link(&format!("bin/{applet}"), "busybox")?;
    }
    root.archive.finish()?;
    Ok(())
}

struct Root<W: Write> {
    archive: Archive<W>,
    present: BTreeSet<String>,
}

impl<W: Write> Root<W> {
    fn is_new(&mut self, target: &str) -> bool {
        self.present.insert(target.trim_matches('/').to_owned())
    }

    fn text(&mut self, target: &str, mode: u32, text: &str) -> Result<()> {
        if self.is_new(target) {
            self.archive
                .file(target, mode, text.len() as u64, text.as_bytes())
        } else {
            Ok(())
        }
    }

    fn link(&mut self, target: &str, to: &str) -> Result<()> {
        if self.is_new(target) {
            self.archive.symlink(target, to)
        } else {
            Ok(())
        }
    }

    fn file(&mut self, source: &Path, target: &str) -> Result<()> {
        if !self.is_new(target) {
            return Ok(());
        }
        let file =
            File::open(source).with_context(|| format!("Cannot open {}", source.display()))?;
        let metadata = file
            .metadata()
            .with_context(|| format!("Cannot read {}", source.display()))?;
        let mode = metadata.permissions().mode() & 0o7777;
        self.archive
            .file(target, mode, metadata.len(), file)
            .with_context(|| format!("Cannot pack {}", source.display()))
    }

    /// A file together with the libraries that it is linked with.
    fn program(&mut self, source: &Path, target: &str) -> Result<()> {
        self.file(source, target)?;
        let libraries = Command::new("ldd")
            .arg(source)
            .stderr(Stdio::null())
            .output()
            .context("Cannot run ldd")?;
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
            if word.starts_with('/') && Path::new(word) != source {
                self.file(Path::new(word), word)?;
            }
        }
        Ok(())
    }

    fn tree(&mut self, source: &Path, target: &str) -> Result<()> {
        if !source.is_dir() {
            return self.program(source, target);
        }
        self.archive.folder(target, 0o755)?;
        for entry in
            fs::read_dir(source).with_context(|| format!("Cannot list {}", source.display()))?
        {
            let entry = entry.with_context(|| format!("Cannot list {}", source.display()))?;
            let target = format!("{target}/{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                let to = fs::read_link(entry.path())
                    .with_context(|| format!("Cannot read {}", entry.path().display()))?;
                self.link(&target, &to.to_string_lossy())?;
            } else {
                self.tree(&entry.path(), &target)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_without_a_target_goes_where_it_is_useful() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tool");
        let data = folder.path().join("data.tar");
        fs::write(&program, "").unwrap();
        fs::write(&data, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            LabFile::parse(program.to_str().unwrap()).unwrap().target,
            "/usr/local/bin/tool"
        );
        assert_eq!(
            LabFile::parse(data.to_str().unwrap()).unwrap().target,
            "/data.tar"
        );
    }

    #[test]
    fn file_with_a_relative_target_or_without_a_source_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let existing = folder.path().to_str().unwrap();
        assert!(LabFile::parse(&format!("{existing}:relative")).is_err());
        assert!(LabFile::parse(&format!("{existing}/absent:/x")).is_err());
    }
}
