//! One guest of the peer, and when it said its first word.

use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::api::Api;
use super::guest;

/// On an emulated processor a boot takes some seconds.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(60);
/// As much as ours has.
const MEM_MIB: u32 = 128;
const VCPUS: u32 = 1;
/// Quiet, so that the serial port costs the boot nothing; the peer's own recommendation otherwise.
const BOOT_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=0 reboot=k panic=-1 pci=off \
    i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd";
/// Between the guest's first word and its snapshot: it is idle by then.
const SETTLE: Duration = Duration::from_secs(1);

pub struct Peer {
    program: PathBuf,
    kernel: PathBuf,
    folder: PathBuf,
}

/// Killed when dropped.
struct Running {
    child: Child,
    started: Instant,
    first_word: Receiver<Instant>,
    socket: PathBuf,
}

impl Peer {
    pub fn new(program: &Path, kernel: &Path, folder: &Path) -> Result<Self> {
        guest::write_initramfs(&folder.join("initramfs"))?;
        let peer = Self {
            program: program.to_owned(),
            kernel: kernel.to_owned(),
            folder: folder.to_owned(),
        };
        let config = json!({
            "boot-source": peer.boot_source(),
            "machine-config": machine_config(),
            "drives": [],
        });
        let path = peer.path("config.json");
        std::fs::write(&path, config.to_string())
            .with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(peer)
    }

    /// From the start of the process to the first word of the guest. Without the API, which would only cost time.
    pub fn boot(&self) -> Result<Duration> {
        let config = self.path("config.json");
        let arguments = ["--no-api", "--config-file"].map(Into::into);
        let running = self.start([&arguments[..], &[config.into_os_string()]].concat())?;
        running.until_first_word()
    }

    /// Boots a guest and keeps it as a snapshot.
    pub fn save(&self) -> Result<()> {
        let running = self.start(self.api_arguments())?;
        let mut api = Api::connect(&running.socket)?;
        api.put("/boot-source", &self.boot_source())?;
        api.put("/machine-config", &machine_config())?;
        api.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
        running.until_first_word()?;
        thread::sleep(SETTLE);
        api.patch("/vm", &json!({ "state": "Paused" }))?;
        let files = json!({
            "snapshot_type": "Full",
            "snapshot_path": self.path("state"),
            "mem_file_path": self.path("memory"),
        });
        api.put("/snapshot/create", &files)
    }

    /// From the start of the process over loading and resuming to the first word of the guest.
    pub fn restore(&self) -> Result<Duration> {
        let running = self.start(self.api_arguments())?;
        let mut api = Api::connect(&running.socket)?;
        let files = json!({
            "snapshot_path": self.path("state"),
            "mem_backend": { "backend_type": "File", "backend_path": self.path("memory") },
            "resume_vm": true,
        });
        api.put("/snapshot/load", &files)?;
        running.until_first_word()
    }

    fn boot_source(&self) -> Value {
        json!({
            "kernel_image_path": self.kernel,
            "initrd_path": self.path("initramfs"),
            "boot_args": BOOT_ARGUMENTS,
        })
    }

    fn api_arguments(&self) -> Vec<std::ffi::OsString> {
        vec!["--api-sock".into(), self.path("api.sock").into()]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn start(&self, arguments: Vec<std::ffi::OsString>) -> Result<Running> {
        let socket = self.path("api.sock");
        // Of the one before.
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(&self.program);
        command
            .args(["--no-seccomp", "--level", "Error"])
            .args(arguments)
            // Kept open: at the end of its input the peer's serial port would have something to do.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("Cannot start {}", self.program.display()))?;
        let output = child.stdout.take().context("The peer has no output")?;
        let (sender, first_word) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = BufReader::new(output).bytes().map_while(Result::ok);
            if bytes.any(|byte| byte == guest::MARK) {
                // Nobody waits any more when the peer was given up.
                let _ = sender.send(Instant::now());
            }
            // A full pipe would stop the guest.
            bytes.for_each(drop);
        });
        Ok(Running {
            child,
            started,
            first_word,
            socket,
        })
    }
}

impl Running {
    fn until_first_word(&self) -> Result<Duration> {
        match self.first_word.recv_timeout(FIRST_WORD_LIMIT) {
            Ok(when) => Ok(when.duration_since(self.started)),
            Err(_) => bail!("The peer's guest has not said a word"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn machine_config() -> Value {
    json!({ "vcpu_count": VCPUS, "mem_size_mib": MEM_MIB })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A peer that is a shell script.
    fn peer(folder: &Path, script: &str) -> Peer {
        let program = folder.join("peer");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Peer::new(&program, Path::new("/no/kernel"), folder).unwrap()
    }

    #[test]
    fn boot_lasts_until_the_first_mark_and_its_process_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'a line of its log'; echo $$ > \"$0.pid\"; sleep 0.05; printf '~~'; exec sleep 60";
        let peer = peer(folder.path(), script);
        let time = peer.boot().unwrap();
        assert!(time >= Duration::from_millis(50), "{time:?}");
        let pid = std::fs::read_to_string(folder.path().join("peer.pid")).unwrap();
        assert!(
            !Path::new("/proc").join(pid.trim()).exists(),
            "it still runs"
        );
    }

    #[test]
    fn guest_that_ends_without_a_word_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let peer = peer(folder.path(), "echo 'no kernel'");
        let error = peer.boot().unwrap_err().to_string();
        assert!(error.contains("not said a word"), "{error}");
    }
}
