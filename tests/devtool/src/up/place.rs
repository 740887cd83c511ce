//! Where the appliance of `cargo dev up` runs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::cache::Cache;
use crate::children::{self, Tracked};
use crate::lab::{self, Forward, Lab, LabCommand, Machine, Plan};
use crate::progress::Step;
use crate::workspace::Workspace;

const SCRIPT: &str = include_str!("start.sh");
/// The appliance's port inside the lab.
const LAB_PORT: u16 = 8443;

/// What the script reports.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Serving,
    Pool,
    Token(String),
    CaLine(String),
    Ready,
    Failed,
}

pub enum Place {
    Here {
        shell: Tracked,
        reader: JoinHandle<()>,
        events: Receiver<Event>,
        _root: TempDir,
    },
    Lab {
        machine: Box<Machine>,
        events: Receiver<Event>,
    },
}

impl Place {
    /// On this host, with everything below a temporary folder.
    pub fn here(binary: &Path, demo: &Path, port: u16) -> Result<Self> {
        // Short, since the paths of Unix sockets below it may have 107 bytes only.
        let root = tempfile::Builder::new()
            .prefix("cabana-up-")
            .tempdir()
            .context("Cannot make a temporary folder")?;
        // The appliance process is another user and must get through.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))
            .context("Cannot open the temporary folder")?;
        let script = root.path().join("start.sh");
        fs::write(&script, SCRIPT).with_context(|| format!("Cannot write {}", script.display()))?;
        let folder = binary.parent().context("The binary has no folder")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = children::tied_gently("sh");
        command
            .arg(&script)
            .env("PATH", format!("{}:{path}", folder.display()));
        command
            .env("ROOT", root.path())
            .env("LOG", root.path().join("serve.log"))
            .env("DEMO", demo);
        command
            .env("LISTEN", format!("127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut shell = children::spawn(&mut command)?;
        let mut output = shell.stdout.take().context("The shell has no output")?;
        let (sender, events) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            // An output that cannot be read any more ends like one that is closed.
            let _ = io::copy(&mut output, &mut EventSink::new(sender));
        });
        Ok(Self::Here {
            shell,
            reader,
            events,
            _root: root,
        })
    }

    /// In the lab, with the HTTPS port forwarded to loopback.
    pub fn lab(workspace: &Workspace, cache: &Cache, port: u16) -> Result<Self> {
        let lab = Lab::prepare(workspace, cache)?;
        let (sender, events) = mpsc::channel();
        let settings =
            format!("export ROOT=/ LOG=/tmp/serve.log DEMO=/demo.tar LISTEN=0.0.0.0:{LAB_PORT}\n");
        let plan = Plan {
            name: "up".to_owned(),
            command: LabCommand::Script(format!("{settings}{SCRIPT}")),
            files: lab::usual_files(workspace, cache)?,
            forwards: vec![Forward {
                host: port,
                lab: LAB_PORT,
            }],
            memory_mib: lab::DEFAULT_MEMORY_MIB,
            timeout: None,
            keep: false,
        };
        let step = Step::start("Booting the lab");
        let mut machine = lab.start(
            &plan,
            Box::new(EventSink::new(sender)),
            Box::new(io::stderr()),
        )?;
        machine.wait_until_up()?;
        step.done(&format!(
            "its console is in {}",
            machine.console_log().display()
        ));
        Ok(Self::Lab {
            machine: Box::new(machine),
            events,
        })
    }

    pub fn next_event(&mut self) -> Result<Event> {
        let (Self::Here { events, .. } | Self::Lab { events, .. }) = self;
        events
            .recv()
            .ok()
            .context("The appliance ended before it was ready")
    }

    /// Waits until the appliance ends, which it does not do by itself.
    pub fn wait(self) -> Result<()> {
        match self {
            Self::Here {
                mut shell, reader, ..
            } => {
                shell.wait().context("Cannot wait for the appliance")?;
                // It has printed why, should it have panicked.
                let _ = reader.join();
            }
            Self::Lab { mut machine, .. } => {
                machine.wait_for_exit()?;
                machine.wait_until_off()?;
            }
        }
        bail!("The appliance ended")
    }

    /// Ends the appliance in order where it runs here. A lab is thrown away as a whole.
    pub fn stop(self) -> Result<()> {
        let Self::Here { mut shell, .. } = self else {
            return Ok(());
        };
        let step = Step::start("Stopping the appliance");
        shell.terminate();
        let status = shell.wait().context("Cannot wait for the appliance")?;
        if !status.success() {
            bail!("The appliance did not stop in order ({status})");
        }
        step.done("");
        Ok(())
    }
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "serving" => Self::Serving,
            "pool" => Self::Pool,
            "token" => Self::Token(rest.to_owned()),
            "ca" => Self::CaLine(rest.to_owned()),
            "ready" => Self::Ready,
            "failed" => Self::Failed,
            _ => return None,
        })
    }
}

/// Turns the script's reports into events and shows the rest.
struct EventSink {
    line: Vec<u8>,
    events: Sender<Event>,
}

impl EventSink {
    fn new(events: Sender<Event>) -> Self {
        Self {
            line: Vec::new(),
            events,
        }
    }

    fn finish_line(&mut self) -> io::Result<()> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        match line.strip_prefix("@@").and_then(Event::parse) {
            // Nobody listens any more once the start is over.
            Some(event) => drop(self.events.send(event)),
            None => writeln!(io::stderr(), "{line}")?,
        }
        Ok(())
    }
}

impl Write for EventSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                self.finish_line()?
            } else {
                self.line.push(*byte)
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_the_script_become_events_and_other_lines_do_not() {
        let (sender, events) = mpsc::channel();
        let mut sink = EventSink::new(sender);
        sink.write_all(b"@@serving\nhello\n@@tok").unwrap();
        sink.write_all(b"en abc.def\n@@ca -----BEGIN CERTIFICATE-----\n")
            .unwrap();
        drop(sink);
        let events: Vec<_> = events.iter().collect();
        let certificate = "-----BEGIN CERTIFICATE-----".to_owned();
        assert_eq!(
            events,
            [
                Event::Serving,
                Event::Token("abc.def".to_owned()),
                Event::CaLine(certificate)
            ]
        );
    }
}
