//! `cargo dev up`: from a fresh checkout to an answer from a microVM.
//!
//! The appliance runs here when this host can run guests, and inside the lab when it cannot; one script starts it in both places.

mod place;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cache::Cache;
use crate::children;
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{guest, images, packages};
use place::{Event, Place};

/// The appliance's usual port, taken when it is free.
const USUAL_PORT: u16 = 8443;
/// Subscription and resource group of pools that are made on the host itself.
const POOL_PATH: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/default/sessionPools/demo";

#[derive(clap::Args)]
pub struct Arguments {
    /// Sends one request, prints the answer and the times, stops everything
    #[arg(long)]
    once: bool,
}

/// How the running appliance is reached.
struct Access {
    url: String,
    token: String,
    ca: PathBuf,
}

/// `cargo dev up`
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure(workspace, &[packages::GUEST, packages::CLIENT])?;
    let cache = Cache::open()?;
    let step = Step::start("Building the guest and the binary");
    let binary = guest::build_appliance(workspace, &cache)?;
    let demo = images::demo(workspace, &cache)?;
    step.done("");

    let port = free_port()?;
    let mut place = match why_not_here(&binary)? {
        None => Place::here(&binary, &demo, port)?,
        Some(reason) => {
            eprintln!("This host cannot run guests: {reason}.");
            eprintln!("The appliance runs inside the lab instead.");
            Place::lab(workspace, &cache, port)?
        }
    };
    let access = start(&mut place, &workspace.path("target/up"), port)?;
    println!();
    println!("Endpoint  {}", access.url);
    println!("Token     {}", access.token);
    println!("Try it    {}", access.as_text());
    println!();
    if arguments.once {
        request(&access, "First request (a new microVM)")?;
        request(&access, "Second request (same session)")?;
        place.stop()?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("Ctrl-C stops everything.");
    place.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// Follows the start until a request can be sent.
fn start(place: &mut Place, folder: &Path, port: u16) -> Result<Access> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let ca = folder.join("ca.pem");
    let mut certificate = String::new();
    let mut token = String::new();
    let mut step = Step::start("Starting the appliance");
    loop {
        match place.next_event()? {
            Event::Serving => {
                step.done("");
                step = Step::start("Importing the demo image and making a pool");
            }
            Event::Pool => {
                step.done("");
                step = Step::start("Making a token");
            }
            Event::Token(text) => token = text,
            Event::CaLine(line) => {
                certificate.push_str(&line);
                certificate.push('\n');
            }
            Event::Ready => break,
            Event::Failed => bail!("The appliance did not start, see above"),
        }
    }
    step.done("");
    fs::write(&ca, certificate).with_context(|| format!("Cannot write {}", ca.display()))?;
    let url = format!("https://localhost:{port}{POOL_PATH}/?identifier=first-user");
    Ok(Access { url, token, ca })
}

/// Sends one request and prints its answer.
fn request(access: &Access, title: &str) -> Result<()> {
    let started = Instant::now();
    let output = access
        .command()
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start curl")?;
    let took = started.elapsed();
    if !output.status.success() {
        bail!(
            "{title}: curl failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    println!("{title}: {:.2} s", took.as_secs_f64());
    println!("  {}", String::from_utf8_lossy(&output.stdout).trim_end());
    Ok(())
}

/// `None` when this host can run guests, otherwise the reason in one line.
pub fn why_not_here(binary: &Path) -> Result<Option<String>> {
    let output = Command::new(binary)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start cabana doctor")?;
    if output.status.success() {
        return Ok(None);
    }
    let report: Value = serde_json::from_slice(&output.stdout)
        .context("cabana doctor printed something that is not JSON")?;
    let findings = report["findings"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let failed = findings
        .iter()
        .find(|finding| finding["verdict"] == "fails");
    let said = |name: &str| failed.and_then(|finding| finding[name].as_str());
    Ok(Some(match (said("detail"), said("remedy")) {
        (Some(detail), Some(remedy)) => format!("{detail}: {remedy}"),
        _ => "cabana doctor gives no reason".to_owned(),
    }))
}

fn free_port() -> Result<u16> {
    let usual = TcpListener::bind(("127.0.0.1", USUAL_PORT));
    let listener = match usual {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).context("No TCP port is free on loopback")?,
    };
    let port = listener
        .local_addr()
        .context("A listener has no address")?
        .port();
    if port != USUAL_PORT {
        eprintln!("Port {USUAL_PORT} is taken; using {port}");
    }
    Ok(port)
}

// === impl Access ===

impl Access {
    fn command(&self) -> Command {
        let mut command = children::tied("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--fail-with-body",
                "--max-time",
                "120",
                "--cacert",
            ])
            .arg(&self.ca);
        command
            .arg("--header")
            .arg(format!("Authorization: Bearer {}", self.token))
            .arg(&self.url);
        command
    }

    fn as_text(&self) -> String {
        format!(
            "curl --cacert {} -H 'Authorization: Bearer {}' '{}'",
            self.ca.display(),
            self.token,
            self.url
        )
    }
}
