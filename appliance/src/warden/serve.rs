//! The warden's life: prepare, take over what an earlier one has left, work, end everything or let go of it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::appliance::Launch;
use super::cgroup::Cgroups;
use super::children::{Children, Terms};
use super::confinement::{self, ConfinementError};
use super::folders::{FolderError, Folders};
use super::program::{Program, ProgramError};
use super::protocol::{ApplianceSetup, Ending, Status};
use super::records::Records;
use super::run::{Outcome, Warden};
use super::signals::Signals;
use super::takeover::take_over;
use crate::config::{Checked, UID_COUNT};
use crate::doctor::kvm::{self, KvmError};
use crate::exit::{Exit, chain};

pub use super::protocol::Task;

/// Connections that may wait for their `accept`: a burst of new callers, each with its own.
const BACKLOG: i32 = 1024;
/// How long the port of an appliance that was killed may take to be free.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Folders(#[from] FolderError),
    #[error("Cannot read what an earlier appliance has left")]
    Records(#[source] io::Error),
    #[error("Cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error("Cannot open the running program")]
    Ourselves(#[source] io::Error),
    #[error(transparent)]
    Worker(#[from] ProgramError),
    #[error("Cannot watch processes")]
    Watch(#[source] io::Error),
    #[error("Cannot catch signals")]
    Signals(#[source] io::Error),
    #[error("Cannot start the appliance process")]
    Appliance(#[source] io::Error),
}

impl ServeError {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Kvm(_) | Self::Confinement(_) | Self::Worker(ProgramError::NoExec { .. }) => {
                Exit::Unavailable
            }
            Self::Folders(error) if error.is_permission() => Exit::Permission,
            Self::Listen { source, .. } | Self::Records(source)
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::Permission
            }
            Self::Folders(_)
            | Self::Records(_)
            | Self::Listen { .. }
            | Self::Ourselves(_)
            | Self::Worker(_)
            | Self::Watch(_)
            | Self::Signals(_)
            | Self::Appliance(_) => Exit::Failed,
        }
    }
}

/// Runs until it is told to end, or the appliance cannot go on. Afterwards nothing is left, or only workers with a guest, as the kind of
/// the end wants it.
pub fn serve(config: Checked, task: Task) -> Result<Exit, ServeError> {
    raise_descriptor_limit();
    let kvm = kvm::open_usable()?;
    let uid = rustix::process::geteuid()
        .is_root()
        .then_some(config.uid_base);
    let room = confinement::prepare(config.confined, uid.is_some())?;
    let ourselves = || Program::ourselves().map_err(ServeError::Ourselves);
    let mut folders = Folders::prepare(&config.paths, uid)?;
    let worker = Program::unpack(&config.paths.state)?;
    let records = Records::open(&config.paths.records).map_err(ServeError::Records)?;
    let left = take_over(&records).map_err(ServeError::Records)?;
    if !left.workers.is_empty() {
        tracing::info!(workers = left.workers.len(), "Taking over");
    }
    folders.open_run(uid, !left.workers.is_empty())?;
    let addresses = match task {
        Task::Serve => Some(config.listen)
            .into_iter()
            .chain(config.tls.plain_listen()),
        Task::Bench(_) => None.into_iter().chain(None),
    };
    let listeners = addresses
        .map(|address| listen(address, left.appliance))
        .collect::<Result<_, _>>()?;
    let signals = Signals::catch().map_err(ServeError::Signals)?;
    let cgroups = match Cgroups::prepare(&config.paths.disks) {
        Ok(groups) => Some(groups),
        Err(error) => {
            tracing::warn!("Workers run without cgroup limits: {}", chain(&error));
            None
        }
    };
    let mut children = Children::new(Terms {
        worker,
        ourselves: ourselves()?,
        room,
        confined: config.confined,
        cgroups,
        uid_base: uid,
        orphan_limit_seconds: config.orphan_limit_seconds,
        records,
    })
    .map_err(ServeError::Watch)?;
    children.take_over(left.workers);
    if let Some(base) = uid {
        children.reserve(confinement::ids_in_use(base..base + UID_COUNT));
    }
    let setup = ApplianceSetup {
        config,
        uid,
        confined: true,
        cpu: kvm::cpu_digest(&kvm),
        task: task.clone(),
    };
    let launch = Launch {
        program: ourselves()?,
        setup,
        listeners,
    };
    let appliance = launch
        .start(children.records())
        .map_err(ServeError::Appliance)?;
    let warden = Warden::new(kvm, signals, launch, appliance, children);
    let (outcome, children) = warden.run();
    finish(&task, &outcome, children, folders);
    Ok(exit(&task, &outcome))
}

/// A socket of the appliance. It is made here, where ports below 1024 may be bound, and first, so that
/// a port in use is told before anything is started. The warden reads nothing from it.
fn listen(address: SocketAddr, patient: bool) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let deadline = Instant::now() + BIND_PATIENCE;
    let listener = loop {
        match TcpListener::bind(address) {
            Err(error)
                if patient
                    && error.kind() == io::ErrorKind::AddrInUse
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(BIND_PAUSE);
            }
            bound => break bound.map_err(failed)?,
        }
    };
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(listener)
}

/// Each session takes a few descriptors here and more in the appliance, which inherits the limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("Cannot raise the limit of open files: {error}");
    }
}

/// What becomes of the children. Whoever did not ask for an end of everything finds the sessions again.
fn fate(task: &Task, outcome: &Outcome) -> Ending {
    match (task, outcome.ending) {
        (Task::Bench(_), _) => Ending::Stop,
        (Task::Serve, ending) => ending.unwrap_or(Ending::Detach),
    }
}

fn finish(task: &Task, outcome: &Outcome, mut children: Children, mut folders: Folders) {
    let kept = match fate(task, outcome) {
        Ending::Stop => {
            let left = children.busy();
            if left > 0 {
                tracing::warn!("{left} processes were still running and have been killed");
            }
            children.end_all();
            0
        }
        Ending::Detach => children.detach(),
    };
    if kept > 0 {
        tracing::info!(workers = kept, "Workers live on until the next start");
    }
    // Leaves go before the folder that they are in.
    drop(children);
    folders.keep(kept > 0);
}

/// What the end of the appliance process means for ours.
fn exit(task: &Task, outcome: &Outcome) -> Exit {
    let asked = outcome.ending.is_some();
    match (outcome.status, task) {
        (Status::Code(0), _) if asked => Exit::Ok,
        (Status::Code(0), Task::Bench(_)) => Exit::Ok,
        (Status::Code(code), _) if code != 0 && (asked || !outcome.settled) => {
            Exit::from_code(code)
        }
        (status, _) => {
            tracing::error!("The appliance process ended with {status}");
            Exit::Internal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ending: Option<Ending>, settled: bool, status: Status) -> Outcome {
        Outcome {
            status,
            settled,
            ending,
        }
    }

    fn bench() -> Task {
        Task::Bench(crate::bench::Plan {
            measure: crate::bench::Measure::ColdBoot { count: 1 },
            json: false,
        })
    }

    #[test]
    fn end_of_the_appliance_decides_the_exit_code() {
        let serve = |ending, settled, status| exit(&Task::Serve, &outcome(ending, settled, status));
        for how in [Ending::Stop, Ending::Detach] {
            assert_eq!(serve(Some(how), true, Status::Code(0)), Exit::Ok);
            assert_eq!(serve(Some(how), true, Status::Code(1)), Exit::Failed);
            assert_eq!(serve(Some(how), true, Status::Signal(9)), Exit::Internal);
        }
        assert_eq!(serve(None, false, Status::Code(0)), Exit::Internal);
        assert_eq!(serve(None, false, Status::Code(1)), Exit::Failed);
        assert_eq!(serve(None, false, Status::Code(134)), Exit::Internal);
        // It served, and was started again too often.
        assert_eq!(serve(None, true, Status::Code(1)), Exit::Internal);
        let ended = outcome(None, false, Status::Code(0));
        assert_eq!(exit(&bench(), &ended), Exit::Ok);
    }

    #[test]
    fn only_who_asks_for_a_stop_ends_the_sessions() {
        let fate = |task: &Task, ending| fate(task, &outcome(ending, true, Status::Code(0)));
        assert_eq!(fate(&Task::Serve, None), Ending::Detach);
        assert_eq!(fate(&Task::Serve, Some(Ending::Detach)), Ending::Detach);
        assert_eq!(fate(&Task::Serve, Some(Ending::Stop)), Ending::Stop);
        assert_eq!(fate(&bench(), None), Ending::Stop);
    }

    #[test]
    fn port_of_an_appliance_that_is_on_its_way_out_is_waited_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(matches!(
            listen(address, false),
            Err(ServeError::Listen { .. })
        ));
        let waiting = std::thread::spawn(move || listen(address, true));
        drop(taken);
        waiting.join().unwrap().unwrap();
    }
}
