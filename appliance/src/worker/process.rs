//! `cabana worker`: the process that is one microVM.
//!
//! Its standard input is the warden's socket. The first message brings everything it will ever
//! have; from then on it opens nothing by path. When the socket closes, whoever closed it, the
//! microVM is stopped and the process ends: no worker outlives its warden.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use vmm::{BlockConfig, Vm, VmConfig, VmExit, VmHandle};

use super::spec::{WorkerFd, WorkerReport, WorkerSetup, WorkerSpec};
use crate::exit::{Exit, Failure, chain};
use crate::warden::channel;
use crate::warden::protocol::MAX_REPORT_BYTES;
use crate::{privileges, telemetry};

/// How long the vCPUs may take to stop once nobody is there to be told.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs until the guest ends or the warden goes away.
pub fn run() -> Result<Exit, Failure> {
    let Some((socket, setup, fds)) = first_message::<WorkerSetup>(c"cabana:worker")? else {
        return Ok(Exit::Ok);
    };
    privileges::drop_to(setup.uid).map_err(|error| Failure::of(Exit::Internal, &error))?;
    telemetry::start();
    let begun = Instant::now();
    let report = match start(&setup.spec, fds) {
        Ok(vm) => {
            tracing::debug!(worker = %setup.id, elapsed = ?begun.elapsed(), "Guest runs");
            watch(&socket, vm.handle()).map_err(|error| Failure::of(Exit::Internal, &error))?;
            report(vm.wait())
        }
        Err(what) => WorkerReport::NotStarted { what },
    };
    tracing::debug!(worker = %setup.id, ?report, "Guest ended");
    say(&socket, report);
    Ok(Exit::Ok)
}

/// The setup and descriptors that the warden sends to a new child; `None` when it is gone already.
/// `name` is what `ps` and `top` show, since all children are started as `/proc/self/exe`.
pub fn first_message<S: serde::de::DeserializeOwned>(
    name: &CStr,
) -> Result<Option<(OwnedFd, S, Vec<OwnedFd>)>, Failure> {
    // Only for people to look at.
    let _ = rustix::thread::set_name(name);
    let by_hand = |error: &dyn std::error::Error| {
        let line = format!("This command is started by `cabana serve`, not by hand: {error}");
        Failure::new(Exit::Usage, line)
    };
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| by_hand(&error))?;
    let message = channel::receive(socket.as_fd(), false).map_err(|error| by_hand(&error))?;
    let Some(message) = message else {
        return Ok(None);
    };
    let setup = serde_json::from_slice(&message.bytes).map_err(|error| by_hand(&error))?;
    Ok(Some((socket, setup, message.fds)))
}

fn start(spec: &WorkerSpec, fds: Vec<OwnedFd>) -> Result<Vm, String> {
    let mut files = Vec::new();
    let mut vsock = None;
    let roles = WorkerFd::FROM_APPLIANCE.into_iter().chain([WorkerFd::Kvm]);
    for (role, fd) in roles.zip(fds) {
        match role {
            WorkerFd::Vsock => vsock = Some(fd.into()),
            _ => files.push(File::from(fd)),
        }
    }
    let (Ok([kernel, initramfs, root, scratch, console, kvm]), Some(vsock)) =
        (<[File; 6]>::try_from(files), vsock)
    else {
        return Err("The warden sent too few descriptors".to_owned());
    };
    let memory = vmm::memory::create(spec.mem_mib)
        .map_err(|error| format!("Cannot get {} MiB of memory: {error}", spec.mem_mib))?;
    Vm::start(VmConfig {
        kvm,
        memory,
        mem_mib: spec.mem_mib,
        vcpus: spec.vcpus,
        kernel,
        initramfs,
        cmdline: String::new(),
        blocks: vec![
            BlockConfig {
                file: root,
                read_only: true,
            },
            BlockConfig {
                file: scratch,
                read_only: false,
            },
        ],
        vsock,
        console,
    })
    .map_err(|error| chain(&error))
}

/// Stops the microVM when the socket closes or says anything.
fn watch(socket: &OwnedFd, vm: VmHandle) -> io::Result<()> {
    let socket = socket.try_clone()?;
    let thread = std::thread::Builder::new().name("warden-watch".to_owned());
    thread.spawn(move || {
        let _ = channel::receive(socket.as_fd(), false);
        vm.stop();
        std::thread::sleep(STOP_LIMIT);
        std::process::exit(Exit::Internal.code().into());
    })?;
    Ok(())
}

fn report(exit: VmExit) -> WorkerReport {
    match exit {
        VmExit::PowerOff => WorkerReport::PowerOff,
        VmExit::Reset => WorkerReport::Reset,
        VmExit::TripleFault => WorkerReport::TripleFault,
        VmExit::Stopped => WorkerReport::Stopped,
        VmExit::Failed { what } => WorkerReport::Failed { what },
    }
}

/// The warden passes a report on only up to a limit, so the text is cut to fit.
fn say(socket: &OwnedFd, mut report: WorkerReport) {
    if let WorkerReport::Failed { what } | WorkerReport::NotStarted { what } = &mut report {
        *what = what
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_REPORT_BYTES / 8)
            .collect();
    }
    match serde_json::to_vec(&report) {
        // The warden may be gone, and then nobody asks.
        Ok(bytes) => drop(channel::send(socket.as_fd(), &bytes, &[], true)),
        Err(error) => tracing::error!("Cannot encode the report: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_report_still_fits_and_can_be_read() {
        let (ours, theirs) = channel::pair().unwrap();
        say(
            &ours,
            WorkerReport::Failed {
                what: "\u{1f980}\n\"".repeat(100_000),
            },
        );
        let message = channel::receive(theirs.as_fd(), true).unwrap().unwrap();
        assert!(
            message.bytes.len() <= MAX_REPORT_BYTES,
            "{}",
            message.bytes.len()
        );
        serde_json::from_slice::<WorkerReport>(&message.bytes).unwrap();
    }
}
