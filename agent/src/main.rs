//! The agent: the guest's first process, and the only program of ours in there.
//!
//! As PID 1 it mounts the disks, prepares a process for the container, says hello to the host and
//! then does what the host tells it: become a guest like no other, start the container, forward its output, join streams to its
//! port, stop it, power off. As an ordinary process (`agent --socket PATH`) it does the same over
//! a Unix socket and without a VM, so that everything above the VMM can be tested anywhere.
//!
//! One thread, one epoll loop ([`supervisor`]), no state shared.

mod attempt;
mod cli;
mod clock;
mod container;
mod control;
mod guest;
mod host_socket;
mod operator;
mod output;
mod poller;
mod proxy;
mod ready;
mod reaper;
mod renew;
mod supervisor;
mod target;
mod transport;
mod vsock;

use std::process::ExitCode;

use cli::Role;

/// Exit code for a bad command line (`EX_USAGE` of `sysexits.h`).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    match cli::role(
        rustix::process::getpid().is_init(),
        std::env::args_os().skip(1),
    ) {
        Ok(Role::Guest) => guest::run(),
        Ok(Role::Enter(options)) => container::enter::run(&options),
        Ok(Role::Process(options)) => match supervisor::run_as_process(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("agent: {}", attempt::chain(&error));
                ExitCode::FAILURE
            }
        },
        Ok(Role::Print(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("agent: {error}");
            ExitCode::from(EX_USAGE)
        }
    }
}
