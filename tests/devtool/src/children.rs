//! Child processes that never outlive us.
//!
//! Ctrl-C or a TERM signal ends every child that is alive, by process id, and the program then leaves by its ordinary way, so that
//! temporary files go too. A child whose owner is dropped is killed and reaped. For the case that we are killed outright,
//! [`tied`] lets the kernel end the child.

use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A running child. Dropping it kills it.
pub struct Tracked {
    child: Child,
    pid: Option<Pid>,
}

/// From now on signals end the children first.
pub fn watch_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("Cannot watch signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            // The second Ctrl-C does not wait for anybody.
            let signal = if INTERRUPTED.swap(true, Ordering::SeqCst) {
                Signal::KILL
            } else {
                Signal::TERM
            };
            for pid in live().iter() {
                // A child that has just ended is none of our worry.
                let _ = kill_process(*pid, signal);
            }
        }
    });
    Ok(())
}

/// Whether the user asked us to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A command that the kernel kills when this process ends, however it ends.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    tied_by("KILL", program)
}

/// Like [`tied`], for a program that has children of its own to end first.
pub fn tied_gently(program: impl AsRef<OsStr>) -> Command {
    tied_by("TERM", program)
}

pub fn spawn(command: &mut Command) -> Result<Tracked> {
    if interrupted() {
        bail!("interrupted");
    }
    let child = command
        .spawn()
        .with_context(|| format!("Cannot start {}", command.get_program().display()))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    live().extend(pid);
    Ok(Tracked { child, pid })
}

fn tied_by(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

fn live() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    LIVE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

// === impl Tracked ===

impl Tracked {
    /// Asks the child to end in its own time.
    pub fn terminate(&self) {
        if let Some(pid) = self.pid {
            // It may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Deref for Tracked {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Tracked {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Both fail only for a child that was reaped before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        live().retain(|pid| Some(*pid) != self.pid);
    }
}
