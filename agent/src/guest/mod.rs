//! PID 1 of a guest: prepares the machine, serves, powers off.

mod disk;
mod mounts;
mod net;
mod poweroff;
pub mod random;
pub mod settle;

use std::process::ExitCode;

use crate::attempt::{Attempt, SetupError, chain};
use crate::cli::StageOptions;
use crate::container::Container;
use crate::control::Control;
use crate::poller::Poller;
use crate::reaper::SignalPipe;
use crate::supervisor::{Supervisor, raise_open_files_limit};
use crate::transport::Transport;

/// Runs the guest. PID 1 must not end, so this returns only when the power does not go off.
pub fn run() -> ExitCode {
    if let Err(error) = serve() {
        // The console, as nobody could be reached over vsock.
        eprintln!("agent: {}", chain(&error));
    }
    if let Err(error) = poweroff::power_off() {
        eprintln!("agent: Cannot power off: {error}");
    }
    ExitCode::FAILURE
}

fn serve() -> Result<(), SetupError> {
    let mut poller = Poller::new().attempt(|| "make an epoll instance".into())?;
    // The host's next request comes while the guest is prepared, and so does what the host does before it.
    let mut transport = Transport::vsock()?;
    let control = Control::greeting_at_once(&mut transport, &mut poller)
        .attempt(|| "wait for the host".into())?;
    raise_open_files_limit();
    let children = SignalPipe::new(&[libc::SIGCHLD]).attempt(|| "watch for children".into())?;
    let container = prepare().and_then(|root| Container::prepare(&root, &poller));
    if let Err(error) = &container {
        // It goes to the host too, if that can be reached.
        eprintln!("agent: {}", chain(error));
    }
    let mut supervisor = Supervisor::new(poller, (transport, control), children, container)?;
    supervisor.own_the_machine()?;
    supervisor.serve().attempt(|| "wait for events".into())
}

fn prepare() -> Result<StageOptions, SetupError> {
    mounts::leave_initramfs()?;
    mounts::mount_kernel_file_systems()?;
    mounts::keep_quiet()?;
    mounts::make_cgroup()?;
    net::bring_up_loopback()?;
    disk::mount_container_root()?;
    Ok(StageOptions {
        root: Some(disk::CONTAINER_ROOT.into()),
        isolate: true,
        cgroup: Some(mounts::CONTAINER_CGROUP.into()),
    })
}
