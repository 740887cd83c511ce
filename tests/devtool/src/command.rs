//! Runs programs whose output only matters when they fail.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::children;

/// Lines of the log that a failure repeats.
const TAIL_LINES: usize = 30;

/// Runs `command` with all its output in the file `log`; each line is also shown to `on_line`. A failure repeats the last lines.
pub fn logged(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let name = command.get_program().display().to_string();
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("Cannot create {}", folder.display()))?;
    }
    let mut file = File::create(log).with_context(|| format!("Cannot create {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("Cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("Cannot copy a pipe")?)
        .stderr(writer);
    let mut child = children::spawn(command)?;
    // The command holds the write ends; while it does, the reader below would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = std::collections::VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("Cannot read the output of {name}"))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(file, "{line}").with_context(|| format!("Cannot write {}", log.display()))?;
        on_line(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child
        .wait()
        .with_context(|| format!("Cannot wait for {name}"))?;
    if !status.success() {
        for line in tail {
            eprintln!("  {line}");
        }
        bail!(
            "{name} failed ({status}); its whole output is in {}",
            log.display()
        );
    }
    Ok(())
}

/// Runs `command` on our own standard streams.
pub fn shown(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let status = children::spawn(command)?
        .wait()
        .with_context(|| format!("Cannot wait for {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// What `command` printed on standard output, as text.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("Cannot start {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{name} printed something that is not text"))
}
