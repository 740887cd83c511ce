//! Runs the binary's own measurements where guests can run: on this host, or in a lab.
//!
//! The binary measures itself: a shell that looked for the end would take the guest's processor time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cache::Cache;
use crate::lab::{Lab, LabCommand, LabFile, Plan};
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{command, images, packages, up};

const LIMIT: Duration = Duration::from_secs(1200);
/// Room for fifty forks and their golden.
const MEMORY_MIB: u32 = 5120;
const LAB_BINARY: &str = "/usr/local/bin/cabana";
const LAB_DEMO: &str = "/demo.tar";

pub struct Runner<'a> {
    workspace: &'a Workspace,
    cache: &'a Cache,
    binary: &'a Path,
    demo: PathBuf,
    /// Guests can run on this host.
    pub here: bool,
}

impl<'a> Runner<'a> {
    pub fn new(workspace: &'a Workspace, cache: &'a Cache, binary: &'a Path) -> Result<Self> {
        Ok(Self {
            workspace,
            cache,
            binary,
            demo: images::demo(workspace, cache)?,
            here: up::why_not_here(binary)?.is_none(),
        })
    }

    pub fn place(&self) -> &'static str {
        if self.here {
            "on this host"
        } else {
            "in the lab, on an emulated processor"
        }
    }

    pub fn workspace(&self) -> &Workspace {
        self.workspace
    }

    /// The demo image, as `cabana bench` is given it.
    pub fn demo(&self) -> String {
        let path = if self.here {
            self.demo.as_path()
        } else {
            Path::new(LAB_DEMO)
        };
        format!("oci-archive:{}", path.display())
    }

    /// What each of these runs of `cabana bench` has measured. All of them in one lab.
    pub fn bench(&self, what: &str, runs: &[&[&str]]) -> Result<Vec<Value>> {
        self.bench_at(self.here, what, runs)
    }

    /// The same of what needs root and no guest, so that it is measured on this host where we are root.
    pub fn bench_as_root(&self, what: &str, run: &[&str]) -> Result<Value> {
        let results = self.bench_at(rustix::process::geteuid().is_root(), what, &[run])?;
        results.into_iter().next().context("There is no result")
    }

    fn bench_at(&self, here: bool, what: &str, runs: &[&[&str]]) -> Result<Vec<Value>> {
        let step = Step::start(format!("Measuring {what}"));
        let output = if here {
            let mut output = String::new();
            for arguments in runs {
                output += &command::output(
                    Command::new(self.binary)
                        .arg("bench")
                        .args(*arguments)
                        .arg("--json")
                        .env("CABANA_LOG", "warn"),
                )?;
            }
            output
        } else {
            let lines = runs
                .iter()
                .map(|run| format!("cabana bench {} --json || exit\n", run.join(" ")));
            let script = format!("export CABANA_LOG=warn\n{}", lines.collect::<String>());
            self.in_lab(&script, &[])?
        };
        step.done("");
        let results: Vec<Value> = json_lines(&output);
        if results.len() != runs.len() {
            bail!("cabana printed no result but {output:?}");
        }
        Ok(results)
    }

    /// What a measurement of the appliance's test program has found, which runs the shipped programs on this host and needs
    /// no guest.
    pub fn native(&self, test: &str) -> Result<Value> {
        self.native_with(test, &[])
    }

    /// The same with variables that say what is measured.
    pub fn native_with(&self, test: &str, variables: &[(&str, &str)]) -> Result<Value> {
        let step = Step::start(format!("Measuring {test}"));
        // Of the same profile as the binary, beside it.
        let mut guests = self.workspace.cargo();
        guests.args([
            "build",
            "--release",
            "--package",
            "agent",
            "--package",
            "demo",
        ]);
        command::logged(
            &mut guests,
            &self.workspace.logs().join("native-build.log"),
            |line| {
                step.note(line);
            },
        )?;
        let programs = self.binary.parent().context("The binary is nowhere")?;
        let output = self.workspace.logs().join("native-bench.json");
        // What an earlier run has left is no result of this one.
        let _ = std::fs::remove_file(&output);
        let mut cargo = self.workspace.cargo();
        cargo
            .args([
                "test",
                "--quiet",
                "--package",
                "appliance",
                "--bin",
                "cabana",
            ])
            .args(["--", "--ignored", "--exact", "--nocapture", test])
            .env("CABANA_NATIVE_PROGRAMS", programs)
            .env("CABANA_BENCH_OUTPUT", &output)
            .envs(variables.iter().copied());
        command::logged(&mut cargo, &output.with_extension("log"), |_| {})?;
        let text = std::fs::read_to_string(&output)
            .with_context(|| format!("Cannot read {}", output.display()))?;
        step.done("");
        serde_json::from_str(&text).context("The measurement's result is not JSON")
    }

    /// Runs `script` in a lab of its own with the binary, the demo image and `files`; answers what it printed.
    pub fn in_lab(&self, script: &str, files: &[LabFile]) -> Result<String> {
        packages::ensure(self.workspace, &[packages::LAB])?;
        let mut all = vec![
            LabFile {
                source: self.binary.to_owned(),
                target: LAB_BINARY.to_owned(),
            },
            LabFile {
                source: self.demo.clone(),
                target: LAB_DEMO.to_owned(),
            },
        ];
        all.extend_from_slice(files);
        let plan = Plan {
            name: "bench".to_owned(),
            command: LabCommand::Script(script.to_owned()),
            files: all,
            forwards: Vec::new(),
            memory_mib: MEMORY_MIB,
            timeout: Some(LIMIT),
            keep: false,
        };
        let printed = Collector::default();
        let lab = Lab::prepare(self.workspace, self.cache)?;
        let errors = Box::new(std::io::stderr());
        let mut machine = lab.start(&plan, Box::new(printed.clone()), errors)?;
        machine.wait_until_up()?;
        let code = machine.wait_for_exit()?;
        machine.wait_until_off()?;
        let text = printed.text();
        if code != 0 {
            bail!(
                "The lab's command ended with exit code {code}: {}",
                text.trim()
            );
        }
        Ok(text)
    }
}

/// The lines that are JSON objects, in order; or the one object that is on many lines.
pub fn json_lines(output: &str) -> Vec<Value> {
    if let Ok(whole @ Value::Object(_)) = serde_json::from_str(output) {
        return vec![whole];
    }
    output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect()
}

/// A figure of a result, named by its place in it.
pub fn figure(result: &Value, pointer: &str) -> Result<f64> {
    let found = result.pointer(pointer).and_then(Value::as_f64);
    found.with_context(|| format!("cabana printed no {pointer} but {result}"))
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_between_other_lines() {
        let output = "warning\n{\"a\":{\"b\":1.5}}\n12\nmore\n{\"a\":2}\n";
        let results = json_lines(output);
        assert_eq!(results.len(), 2);
        assert!((figure(&results[0], "/a/b").unwrap() - 1.5).abs() < 1e-9);
        assert!(figure(&results[1], "/a/b").is_err());
        assert_eq!(json_lines("{\n  \"a\": 3\n}\n").len(), 1);
    }
}
