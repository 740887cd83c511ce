//! `cabana image-worker`: one image job in a process of its own, which then ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use ::worker::landlock;
use ::worker::limits::Limits;
use ::worker::privileges::DropError;
use ::worker::setup::first_message;

use super::image_filter;
use super::spec::ImageWorkerSetup;
use crate::exit::{Exit, Failure};
use crate::warden::channel;
use crate::{images, privileges, telemetry};

pub fn run() -> Result<Exit, Failure> {
    let first = first_message::<ImageWorkerSetup>(c"cabana:image")?;
    let Some((socket, setup, mut fds)) = first else {
        return Ok(Exit::Ok);
    };
    telemetry::start();
    confine(&setup).map_err(|error| Failure::of(Exit::Internal, &error))?;
    ::worker::telemetry::log_panics();
    if setup.confined {
        // Before the first thread, so that all of them have it.
        vmm::sandbox::install(&image_filter::PROGRAM)
            .map_err(|error| Failure::of(Exit::Internal, &error))?;
    }
    end_with(socket).map_err(|error| Failure::of(Exit::Internal, &error))?;
    let (Some(report), Ok(job)) = (fds.pop(), serde_json::from_str(&setup.job)) else {
        return Err(Failure::new(Exit::Internal, "The image job cannot be read"));
    };
    let result = images::worker::run(job, fds);
    let exit = if result.is_ok() {
        Exit::Ok
    } else {
        Exit::Failed
    };
    let text = serde_json::to_vec(&result).map_err(|error| Failure::of(Exit::Internal, &error))?;
    File::from(report)
        .write_all(&text)
        .map_err(|error| Failure::of(Exit::Internal, &error))?;
    Ok(exit)
}

/// As a worker does it. What it parses was written by a stranger, and it needs what it was given and nothing else.
fn confine(setup: &ImageWorkerSetup) -> Result<(), DropError> {
    let failed = |what| move |source: io::Error| DropError::System { what, source };
    Limits::image_worker(setup.uid.is_some(), setup.threads)
        .set()
        .map_err(|error| failed("set limits")(error.into()))?;
    privileges::drop_to(setup.uid)?;
    if setup.confined {
        let version = landlock::forbid_everything().map_err(failed("use landlock"))?;
        tracing::debug!(landlock = version.unwrap_or(0), "Confined");
    }
    Ok(())
}

/// Ends this process when the warden's socket closes.
fn end_with(socket: OwnedFd) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("warden-watch".to_owned());
    thread.spawn(move || {
        let _ = channel::receive(socket.as_fd(), false);
        std::process::exit(Exit::Internal.code().into());
    })?;
    Ok(())
}
