//! One running lab: the emulator process, its ports and its end.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::initrd::{self, LabCommand, LabFile};
use crate::children::{self, Tracked};

/// Ports in the order of their devices; `init.sh` finds them by name.
const PORTS: [&str; 4] = ["output", "errors", "logs", "control"];
/// How often a waiting lab looks whether the emulator has died: it is asked, since it reports nothing when it is killed.
const DEATH_CHECK: Duration = Duration::from_millis(500);
/// How often a lab is interrupted. QEMU's emulation of SVM now and then forgets to deliver a timer interrupt that is pending in the
/// local APIC; a processor that halts then sleeps until the next interrupt of any device.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between the command's exit and the end of the emulator: the logs of the lab are written in this time.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);
/// Folders of earlier labs that are kept.
const KEPT_RUNS: usize = 20;
/// Lines of the console that a failure repeats.
const TAIL_LINES: usize = 20;

pub struct Plan {
    /// Names the folder of this run.
    pub name: String,
    pub command: LabCommand,
    pub files: Vec<LabFile>,
    pub forwards: Vec<super::Forward>,
    pub memory_mib: u32,
    pub timeout: Option<Duration>,
    pub keep: bool,
}

pub type Sink = Box<dyn Write + Send>;

/// A lab that was started. Dropped, it is gone.
pub struct Machine {
    emulator: Tracked,
    folder: PathBuf,
    started: Instant,
    timeout: Option<Duration>,
    keep: bool,
    events: Receiver<Event>,
    readers: Vec<JoinHandle<()>>,
    /// Holds the sockets, whose paths must be short.
    _sockets: TempDir,
}

enum Event {
    /// The command starts.
    Up,
    Exit(i32),
}

/// The lab ran longer than its plan allows.
#[derive(Debug)]
pub struct TimedOut(String);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for TimedOut {}

impl Machine {
    /// `runs` is the folder for the folders of all labs, `host` the folder of the host kernel.
    pub fn start(
        runs: &Path,
        host: &Path,
        plan: &Plan,
        output: Sink,
        errors: Sink,
    ) -> Result<Self> {
        sweep(runs)?;
        let folder = runs.join(format!("{}-{}", plan.name, std::process::id()));
        // Left by a process that had the same id.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
        let initrd = folder.join("initrd.cpio");
        let contents = initrd::Contents {
            modules: host,
            command: &plan.command,
            keep: plan.keep,
            files: &plan.files,
        };
        initrd::write(&initrd, &contents)?;
        let sockets = tempfile::tempdir().context("Cannot make a temporary folder")?;
        let (sender, events) = mpsc::channel();
        let mut readers = Vec::new();
        let mut sinks = [Some(output), Some(errors), None, None];
        for (port, sink) in PORTS.iter().zip(&mut sinks) {
            readers.push(open_port(
                sockets.path(),
                &folder,
                port,
                sink.take(),
                sender.clone(),
            )?);
        }
        // Only the control port's reader keeps a sender, so that its end is seen.
        drop(sender);
        let started = Instant::now();
        let emulator = children::spawn(&mut emulator_command(
            &folder,
            sockets.path(),
            host,
            &initrd,
            plan,
        )?)?;
        Ok(Self {
            emulator,
            folder,
            started,
            timeout: plan.timeout,
            keep: plan.keep,
            events,
            readers,
            _sockets: sockets,
        })
    }

    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// Waits until the command starts; answers how long that took.
    pub fn wait_until_up(&mut self) -> Result<Duration> {
        match self.next_event(self.timeout)? {
            Event::Up => {
                // The kernel has unpacked it; it can be large.
                let _ = fs::remove_file(self.folder.join("initrd.cpio"));
                Ok(self.started.elapsed())
            }
            Event::Exit(_) => {
                bail!(self.failure("The lab reported an exit before its command started"))
            }
        }
    }

    /// Waits for the command's exit code.
    pub fn wait_for_exit(&mut self) -> Result<i32> {
        match self.next_event(self.timeout)? {
            Event::Exit(code) => Ok(code),
            Event::Up => bail!(self.failure("The lab started twice")),
        }
    }

    /// Waits until the lab is gone and everything it wrote has arrived.
    pub fn wait_until_off(mut self) -> Result<()> {
        // The last sender goes when the emulator closes the control port. A kept lab is closed by Ctrl-C only.
        let limit = if self.keep {
            Duration::MAX
        } else {
            POWER_OFF_LIMIT
        };
        if let Err(RecvTimeoutError::Timeout) = self.events.recv_timeout(limit) {
            eprintln!(
                "The lab does not power off; its console is in {}",
                self.console_log().display()
            );
            self.emulator.kill().context("Cannot end the emulator")?;
        }
        self.emulator
            .wait()
            .context("Cannot wait for the emulator")?;
        for reader in self.readers.drain(..) {
            // A reader that panicked has printed why.
            let _ = reader.join();
        }
        Ok(())
    }

    fn next_event(&mut self, limit: Option<Duration>) -> Result<Event> {
        loop {
            if let Some(limit) = limit
                && self.started.elapsed() > limit
            {
                // Killing it also ends the readers.
                let _ = self.emulator.kill();
                let what = format!("The lab was stopped after {} s", limit.as_secs());
                return Err(TimedOut(self.failure(&what)).into());
            }
            match self.events.recv_timeout(DEATH_CHECK) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(self.failure("The lab ended before its command did"))
                }
            }
            if let Some(status) = self
                .emulator
                .try_wait()
                .context("Cannot wait for the emulator")?
            {
                let complaint =
                    fs::read_to_string(self.folder.join("emulator.log")).unwrap_or_default();
                let complaint = complaint
                    .lines()
                    .filter(|line| !line.contains("TCG doesn't support"))
                    .collect::<Vec<_>>()
                    .join("; ");
                bail!(self.failure(&format!("The emulator ended ({status}) {complaint}")));
            }
        }
    }

    fn failure(&self, what: &str) -> String {
        let console = fs::read(self.console_log()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or_default()
            .join("\n  ");
        format!(
            "{what}; its console is in {} and ends with:\n  {tail}",
            self.console_log().display()
        )
    }
}

fn emulator_command(
    folder: &Path,
    sockets: &Path,
    host: &Path,
    initrd: &Path,
    plan: &Plan,
) -> Result<Command> {
    let mut command = children::tied("qemu-system-x86_64");
    // One virtual CPU, always: with two, QEMU's threads corrupt a host that runs KVM ("Oops: int3", "corrupted stack end").
    command.args([
        "-M",
        "q35",
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "EPYC,+svm,+npt",
        "-smp",
        "1",
    ]);
    command.args([
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        &plan.memory_mib.to_string(),
    ]);
    command
        .arg("-kernel")
        .arg(host.join("vmlinuz"))
        .arg("-initrd")
        .arg(initrd);
    // ramfs: a tmpfs root would end at half of the memory. The lab's own mitigations only cost emulated time.
    // no_timer_check: on a busy machine the emulated timer is late for the check, and the kernel panics ("IO-APIC + timer doesn't work").
    // norandmaps: the emulator keeps translated code by its virtual address, so that a program at another address is translated
    // anew, which takes half of the time of a short process. No real processor does that.
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 rootfstype=ramfs mitigations=off nokaslr norandmaps no_timer_check",
    ]);
    command.arg("-chardev").arg(format!(
        "file,id=console,path={}",
        escaped(&folder.join("console.log"))?
    ));
    command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    for port in PORTS {
        command.arg("-chardev").arg(format!(
            "socket,id={port},path={}",
            escaped(&sockets.join(port))?
        ));
        command
            .arg("-device")
            .arg(format!("virtserialport,chardev={port},name={port}"));
    }
    // A way in from loopback, none out.
    let forwards: String = plan
        .forwards
        .iter()
        .map(|forward| format!(",hostfwd=tcp:127.0.0.1:{}-:{}", forward.host, forward.lab))
        .collect();
    command
        .arg("-netdev")
        .arg(format!("user,id=net,restrict=on{forwards}"));
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    let log = File::create(folder.join("emulator.log")).context("Cannot create emulator.log")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if let LabCommand::Shell { .. } = plan.command {
        // The emulator makes the terminal raw, and gives it back when it ends.
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        command.args([
            "-chardev",
            "stdio,id=shell,signal=off",
            "-device",
            "virtconsole,chardev=shell",
        ]);
    }
    Ok(command)
}

/// QEMU's option lists double a comma inside a value.
fn escaped(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .context("The path of the checkout is not text")?
        .replace(',', ",,"))
}

/// Listens for the emulator's connection of one port and copies what arrives. Ports without a sink are ours.
fn open_port(
    sockets: &Path,
    folder: &Path,
    port: &'static str,
    sink: Option<Sink>,
    events: Sender<Event>,
) -> Result<JoinHandle<()>> {
    let path = sockets.join(port);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("Cannot listen on {}", path.display()))?;
    let mut sink = match (sink, port) {
        (Some(sink), _) => sink,
        (None, "control") => return Ok(thread::spawn(move || follow_control(&listener, &events))),
        (None, _) => {
            Box::new(File::create(folder.join("logs.log")).context("Cannot create logs.log")?)
        }
    };
    Ok(thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            copy_unbuffered(stream, &mut sink);
        }
    }))
}

fn copy_unbuffered(mut stream: UnixStream, sink: &mut Sink) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default();
        // A reader of ours that went away (`| head`) must not stop the lab.
        let _ = sink.write_all(bytes).and_then(|()| sink.flush());
    }
}

fn follow_control(listener: &UnixListener, events: &Sender<Event>) {
    if let Ok((stream, _)) = listener.accept() {
        if let Ok(stream) = stream.try_clone() {
            thread::spawn(move || keep_awake(stream));
        }
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let event = match line.split_once(' ') {
                Some(("up", _)) => Event::Up,
                Some(("exit", code)) => Event::Exit(code.parse().unwrap_or(1)),
                _ => continue,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }
}

/// Ends with the emulator, which then takes nothing any more.
fn keep_awake(mut stream: UnixStream) {
    while stream.write_all(b"\n").is_ok() {
        thread::sleep(HEARTBEAT);
    }
}

/// Removes the folders of old runs, and the large archive of runs that were killed.
fn sweep(runs: &Path) -> Result<()> {
    fs::create_dir_all(runs).with_context(|| format!("Cannot create {}", runs.display()))?;
    let mut folders: Vec<_> = fs::read_dir(runs)
        .with_context(|| format!("Cannot list {}", runs.display()))?
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT_RUNS);
    for (_, folder) in folders.into_iter().take(surplus) {
        // Another lab may sweep at the same time.
        let _ = fs::remove_dir_all(folder);
    }
    Ok(())
}
