//! `cargo dev test`: everything, lab included.
//!
//! What needs no KVM runs here first. Everything about the microVM then runs in two labs side by side, which lose nothing on two
//! cores: the VMM's own tests and the end-to-end tests, dealt out over both.

mod programs;
mod report;

use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use report::{LineSink, Report};

use crate::cache::Cache;
use crate::lab::{Lab, LabCommand, LabFile, Plan};
use crate::workspace::Workspace;
use crate::{check, children, guest, images, registry};
use programs::Programs;

/// Both labs together must end before CI's own limit.
const LAB_LIMIT: Duration = Duration::from_secs(45 * 60);
/// Room for the guests of a test that runs ten at once, and for the distribution images in memory.
const LAB_MEMORY_MIB: u32 = 5120;
const LABS: usize = 2;
/// What the binary says of this very host, which may be one that cannot run guests; the labs always can.
const TESTS_HERE: [&str; 2] = ["doctor::doctor_says", "doctor::serve_without"];
/// Where the labs find things.
const FOLDER: &str = "/suite";
/// What tests without the binary boot. The file system of a writable layer comes packed: unpacked it is 64 MiB of the lab's memory.
const GUEST_FILES: [&str; 3] = ["vmlinux", "initramfs.cpio", "scratch.ext4.zst"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this, and without the checks before them
    #[arg(long, value_name = "SUBSTR")]
    only: Option<String>,
}

/// `cargo dev test`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let only = arguments.only.as_deref();
    let mut report = if only.is_none() {
        // The image that is also unpacked by others, to compare.
        let image = images::python(workspace, &Cache::open()?)?;
        check::run_with(
            workspace,
            &check::Arguments::default(),
            &[("CABANA_PYTHON_IMAGE", image)],
        )?
    } else {
        Report::default()
    };
    if report.failed() == 0 {
        report.merge(run_in_labs(workspace, only)?);
    }
    if only.is_none() && report.failed() == 0 {
        eprintln!("== The list of what is in the binary");
        crate::release::list_everyday(workspace, &Cache::open()?)?;
    }
    eprintln!("All tests: {} s", started.elapsed().as_secs());
    for (program, test, reason) in report.skipped() {
        println!("skipped: {program}: {test}: {reason}");
    }
    for test in report.unsteady() {
        println!(
            "unsteady: {test}: failed in the lab, and passed when it was tried once more by itself; what it said is above"
        );
    }
    for failure in report.failures() {
        println!("failed: {failure}");
    }
    println!("{report}");
    Ok(exit_code(&report))
}

pub fn exit_code(report: &Report) -> ExitCode {
    if report.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a `cargo test` here, with its output shown.
pub fn run_here(command: &mut Command) -> Result<Report> {
    let report = Arc::new(Mutex::new(Report::default()));
    let (reader, writer) = std::io::pipe().context("Cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("Cannot copy a pipe")?)
        .stderr(writer);
    let mut child = children::spawn(command)?;
    // The command holds the write ends; while it does, the copy below would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut sink = LineSink::new(String::new(), &report);
    std::io::copy(&mut std::io::BufReader::new(reader), &mut sink)
        .context("Cannot read the tests' output")?;
    drop(sink);
    let status = child.wait().context("Cannot wait for cargo")?;
    let mut report = take(report)?;
    if !status.success() && report.failed() == 0 {
        report.fail("cargo test", format!("ended with {status}"));
    }
    Ok(report)
}

fn run_in_labs(workspace: &Workspace, only: Option<&str>) -> Result<Report> {
    let cache = Cache::open()?;
    let lab = Lab::prepare(workspace, &cache)?;
    let binary = guest::build_appliance(workspace, &cache)?;
    let demo = images::demo(workspace, &cache)?;
    let registry = registry::lab_files(workspace, &cache)?;
    let python = images::python(workspace, &cache)?;
    let systemd = images::systemd(workspace, &cache)?;
    let programs = Programs::build(workspace)?;
    let mut report = Report::default();
    if only.is_none() {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--package", "e2e", "--test", "e2e", "--"]);
        report.merge(run_here(cargo.args(TESTS_HERE).env("CABANA_BIN", &binary))?);
    }
    let scripts = programs.deal(LABS, only)?;
    if scripts.is_empty() {
        bail!(
            "No test of the lab has {:?} in its name",
            only.unwrap_or_default()
        );
    }
    let mut files = programs.files();
    files.extend([
        LabFile {
            source: binary,
            target: "/usr/local/bin/cabana".to_owned(),
        },
        LabFile {
            source: demo,
            target: "/demo.tar".to_owned(),
        },
        LabFile {
            source: python,
            target: "/python.tar".to_owned(),
        },
        LabFile {
            source: systemd,
            target: "/systemd.tar".to_owned(),
        },
    ]);
    files.extend(registry);
    files.extend(GUEST_FILES.map(|name| LabFile {
        source: workspace.guest().join(name),
        target: format!("{FOLDER}/guest/{name}"),
    }));
    let outcomes: Vec<Result<Report>> = std::thread::scope(|scope| {
        let (lab, files) = (&lab, &files);
        let mut threads = Vec::new();
        for (number, script) in (1..).zip(&scripts) {
            threads.push(scope.spawn(move || run_one_lab(lab, number, files, script)));
        }
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("The thread of a lab panicked"))
            })
            .collect()
    });
    for outcome in outcomes {
        report.merge(outcome?);
    }
    Ok(report)
}

fn run_one_lab(lab: &Lab, number: usize, files: &[LabFile], script: &str) -> Result<Report> {
    let report = Arc::new(Mutex::new(Report::default()));
    let plan = Plan {
        name: format!("test{number}"),
        command: LabCommand::Script(script.to_owned()),
        files: files.to_vec(),
        forwards: Vec::new(),
        memory_mib: LAB_MEMORY_MIB,
        timeout: Some(LAB_LIMIT),
        keep: false,
    };
    let prefix = format!("lab {number}: ");
    let output = Box::new(LineSink::new(prefix.clone(), &report));
    let errors = Box::new(LineSink::new(prefix, &report));
    let mut machine = lab.start(&plan, output, errors)?;
    let console = machine.console_log();
    let ended = machine
        .wait_until_up()
        .and_then(|_| machine.wait_for_exit())
        .and_then(|_| machine.wait_until_off());
    let mut report = take(report)?;
    report.settle();
    if let Err(error) = ended {
        report.fail(&format!("lab {number}"), format!("{error:#}"));
    }
    if report.failed() > 0 {
        eprintln!(
            "lab {number}: console and logs are in {}",
            console.parent().unwrap_or(&console).display()
        );
    }
    Ok(report)
}

/// The report, once every sink that wrote to it is gone.
fn take(report: Arc<Mutex<Report>>) -> Result<Report> {
    let report = Arc::into_inner(report).context("An output is still being read")?;
    report
        .into_inner()
        .ok()
        .context("A reader of the output panicked")
}
