//! Machines for tests: they come up, save and fork as they are told to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use super::Goldens;
use super::builder::Builder;
use super::launcher::HostLauncher;
use super::machine::{Machine, MachineError, Machines, Started};
use super::manifest::{Manifest, tests::host};
use super::recipe::{Recipe, Recipes, template};
use super::store::Store;
use crate::pool::container::{self, ImageDefaults};
use crate::pool::launcher::BoxFuture;
use crate::store::PoolRecord;
use crate::worker::spec::ForkPoint;
use crate::worker::{
    LaunchRequest, Leftover, Log, Purpose, SaveFiles, Source, WorkerEvent, WorkingSet,
};

/// What becomes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes where it shall.
    Good,
    /// Nothing can be launched, and the snapshot is not at fault.
    Unlaunched,
    /// It cannot be launched, for a reason of the snapshot.
    Unforkable,
    /// It dies before it is anywhere.
    Dies,
    /// It cannot be given an identity.
    NotRenewed,
    /// Its container prints a line and exits with status 3.
    Exits,
    /// Its container is ready, and then exits with status 3.
    ExitsLater,
    /// Its container runs and never opens its port.
    NeverReady,
    /// It never says anything.
    Silent,
    /// It does not pause.
    NotPaused,
    /// It does not save, because the disk is full.
    NotSaved,
    /// It saves too little.
    SavedShort,
    /// It does not write its working set down.
    NotRecorded,
}

/// See the module documentation.
#[derive(Default)]
pub struct FakeMachines {
    state: Arc<Mutex<State>>,
}

struct State {
    /// Of the next machines; then all are good.
    fates: VecDeque<Fate>,
    launched: Vec<String>,
    cpu_millis: Vec<u32>,
    alive: usize,
    /// The ports that were asked for by their number.
    ports: Vec<u16>,
    /// So many of these are refused first.
    refusals: u32,
    /// A machine takes one permit before it is anywhere.
    gate: Arc<Semaphore>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            fates: VecDeque::new(),
            launched: Vec::new(),
            cpu_millis: Vec::new(),
            alive: 0,
            ports: Vec::new(),
            refusals: 0,
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }
}

impl FakeMachines {
    /// Of the next machines, in this order.
    pub fn fates(&self, fates: &[Fate]) {
        self.state.lock().unwrap().fates = fates.iter().copied().collect();
    }

    /// Everything that was launched since this was asked for the last time.
    pub fn launched(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().launched)
    }

    /// The CPU of everything that was ever launched.
    pub fn cpu_millis(&self) -> Vec<u32> {
        self.state.lock().unwrap().cpu_millis.clone()
    }

    /// The next connections to ports that are named are refused.
    pub fn refuse(&self, connections: u32) {
        self.state.lock().unwrap().refusals = connections;
    }

    /// The ports that were named.
    pub fn ports(&self) -> Vec<u16> {
        self.state.lock().unwrap().ports.clone()
    }

    pub fn alive(&self) -> usize {
        self.state.lock().unwrap().alive
    }

    /// Machines that are launched from now on wait until as many permits are added.
    pub fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state.lock().unwrap().gate = Arc::clone(&gate);
        gate
    }
}

impl Machines for FakeMachines {
    fn launch(&self, request: LaunchRequest) -> BoxFuture<'static, Result<Started, MachineError>> {
        let state = Arc::clone(&self.state);
        let mut inner = state.lock().unwrap();
        let fate = inner.fates.pop_front().unwrap_or(Fate::Good);
        inner.launched.push(describe(&request));
        inner.cpu_millis.push(request.cpu_millis);
        if matches!(fate, Fate::Unlaunched | Fate::Unforkable) {
            return Box::pin(async move { Err(refused("no worker", fate == Fate::Unforkable)) });
        }
        inner.alive += 1;
        let gate = Arc::clone(&inner.gate);
        drop(inner);
        let (sender, events) = mpsc::channel(8);
        let forked = matches!(request.source, Source::Fork { .. });
        let shape = match &request.source {
            Source::Boot { disk_bytes, .. } => *disk_bytes,
            Source::Fork { snapshot, .. } => snapshot.disk_bytes,
        };
        let machine = FakeMachine {
            id: Uuid::new_v4(),
            fate,
            memory_bytes: u64::from(request.mem_mib) << 20,
            disk_bytes: shape,
            state,
            freeze: Arc::new(Semaphore::new(0)),
        };
        let freeze = Arc::clone(&machine.freeze);
        tokio::spawn(async move {
            gate.acquire_owned().await.unwrap().forget();
            let mut ready = false;
            for event in story(fate, forked, request.purpose) {
                if ready && matches!(event, WorkerEvent::Held) {
                    freeze.acquire().await.unwrap().forget();
                }
                ready |= matches!(event, WorkerEvent::Ready);
                let _ = sender.send(event).await;
            }
            match fate {
                Fate::Dies => drop(sender),
                _ => sender.closed().await,
            }
        });
        Box::pin(async {
            let machine = Box::new(machine);
            Ok(Started { machine, events })
        })
    }

    fn leftovers(&self) -> Vec<Leftover> {
        Vec::new()
    }

    fn adopt(&self, _: Uuid) -> BoxFuture<'static, Result<Started, MachineError>> {
        Box::pin(async { Err(refused("nothing was left", false)) })
    }
}

/// `boot golden beforeStart`, `fork trial`, `fork session`, `boot session`.
fn describe(request: &LaunchRequest) -> String {
    let source = match &request.source {
        Source::Boot { .. } => "boot",
        Source::Fork { snapshot, .. } => {
            (&snapshot.memory).write_all(b"x").unwrap_err();
            let wanted = matches!(snapshot.working_set, WorkingSet::Wanted);
            assert_eq!(wanted, matches!(request.purpose, Purpose::Trial));
            "fork"
        }
    };
    match &request.purpose {
        Purpose::Session { .. } => format!("{source} session"),
        Purpose::Golden { point, .. } => format!("{source} golden {point}"),
        Purpose::Trial => format!("{source} trial"),
    }
}

fn story(fate: Fate, forked: bool, purpose: Purpose) -> Vec<WorkerEvent> {
    let elapsed = Duration::from_millis(1);
    let booted = WorkerEvent::Booted {
        elapsed,
        steps: vec![],
    };
    let exited = || WorkerEvent::ContainerExited(wire::Exit::Code(3).into());
    match (fate, purpose) {
        (Fate::Dies, _) => vec![booted],
        (Fate::Silent, _) => vec![],
        (Fate::NotRenewed, _) => vec![
            booted,
            WorkerEvent::StartFailed {
                message: "no reseed".into(),
            },
        ],
        (Fate::Exits, Purpose::Golden { .. }) => vec![
            booted,
            WorkerEvent::Renewed { elapsed },
            WorkerEvent::Started,
            exited(),
        ],
        (Fate::ExitsLater, Purpose::Golden { .. }) => vec![
            booted,
            WorkerEvent::Renewed { elapsed },
            WorkerEvent::Started,
            WorkerEvent::Ready,
            exited(),
        ],
        (Fate::NeverReady, Purpose::Golden { .. }) => vec![
            booted,
            WorkerEvent::Renewed { elapsed },
            WorkerEvent::Started,
        ],
        (_, Purpose::Golden { point, .. }) => {
            assert!(!forked);
            match point {
                ForkPoint::BeforeStart => vec![booted, WorkerEvent::Held],
                ForkPoint::AfterReady => vec![
                    booted,
                    WorkerEvent::Renewed { elapsed },
                    WorkerEvent::Started,
                    WorkerEvent::Ready,
                    WorkerEvent::Held,
                ],
            }
        }
        (_, Purpose::Trial) => vec![booted, WorkerEvent::Renewed { elapsed }],
        (_, Purpose::Session { .. }) => vec![
            booted,
            WorkerEvent::Renewed { elapsed },
            WorkerEvent::Started,
            WorkerEvent::Ready,
        ],
    }
}

fn refused(message: &str, blames_snapshot: bool) -> MachineError {
    MachineError {
        message: message.to_owned(),
        blames_snapshot,
    }
}

struct FakeMachine {
    id: Uuid,
    fate: Fate,
    memory_bytes: u64,
    disk_bytes: u64,
    state: Arc<Mutex<State>>,
    /// A permit lets its container be frozen.
    freeze: Arc<Semaphore>,
}

impl FakeMachine {
    fn answer(&self, bad: Fate, why: &str) -> BoxFuture<'_, Result<(), MachineError>> {
        let answer = match self.fate {
            fate if fate == bad => Err(refused(why, false)),
            _ => Ok(()),
        };
        Box::pin(async { answer })
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.state.lock().unwrap().alive -= 1;
    }
}

impl Machine for FakeMachine {
    fn id(&self) -> Uuid {
        self.id
    }

    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }

    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>> {
        let mut state = self.state.lock().unwrap();
        state.ports.push(port);
        let accepts = state.refusals == 0;
        state.refusals = state.refusals.saturating_sub(1);
        drop(state);
        Box::pin(async move {
            match accepts {
                true => UnixStream::pair().map(|(near, _)| near),
                false => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn freeze_when_ready(&self) -> BoxFuture<'_, ()> {
        self.freeze.add_permits(1);
        Box::pin(async {})
    }

    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        self.connect()
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        self.answer(Fate::NotPaused, "does not pause")
    }

    fn save(&self, files: SaveFiles) -> BoxFuture<'_, Result<(), MachineError>> {
        (&files.state).write_all(b"state").unwrap();
        files.memory.set_len(self.memory_bytes).unwrap();
        (&files.memory).write_all(b"memory").unwrap();
        let short = u64::from(self.fate == Fate::SavedShort);
        files.disk.set_len(self.disk_bytes - short).unwrap();
        self.answer(
            Fate::NotSaved,
            "Cannot write: No space left on device (os error 28)",
        )
    }

    fn save_working_set(&self, mut file: File) -> BoxFuture<'_, Result<(), MachineError>> {
        file.write_all(b"working set").unwrap();
        self.answer(Fate::NotRecorded, "cannot read the pagemap")
    }

    fn stop(&self, _: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn console_tail(&self) -> Vec<String> {
        match self.fate {
            Fate::Exits => vec!["no database".into()],
            _ => vec![],
        }
    }

    fn log(&self) -> Arc<Log> {
        Arc::default()
    }

    fn note_ready(&self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn note_leased(&self) -> io::Result<()> {
        Ok(())
    }

    fn forget_note(&self) {}
}

/// Every pool's image is there and runs `/demo`; `lost` has none.
struct DemoRecipes;

impl Recipes for DemoRecipes {
    fn recipe(&self, pool: &PoolRecord) -> Result<Recipe, String> {
        if pool.image_digest == "lost" {
            return Err("No image 'lost'".to_owned());
        }
        let image = ImageDefaults {
            cmd: vec!["/demo".into()],
            ..Default::default()
        };
        let vault = crate::vault::Vault::new(&[7; crate::vault::KEY_BYTES]).unwrap();
        let container = container::spec(&image, pool, &vault).unwrap();
        Ok(Recipe {
            pool: pool.name.clone(),
            manifest: Manifest::new(&host(), template(pool, &container)?),
            container,
            startup: pool.probes.startup.clone(),
            cpu_millis: pool.cpu_millis,
            limits: pool.rate_limits,
            root_image: tempfile::tempfile().unwrap(),
            _hold: None,
        })
    }
}

/// Goldens in a folder of their own, made of fake machines.
pub struct Works {
    pub machines: Arc<FakeMachines>,
    pub goldens: Goldens,
    pub launcher: HostLauncher,
    pub folder: tempfile::TempDir,
}

impl Works {
    pub fn open() -> Self {
        Self::open_in(tempfile::tempdir().unwrap())
    }

    /// As after a restart of the appliance.
    pub fn open_in(folder: tempfile::TempDir) -> Self {
        let machines = Arc::new(FakeMachines::default());
        let builder = Builder {
            machines: Arc::clone(&machines) as Arc<dyn Machines>,
            store: Store::open(folder.path(), &host()).unwrap(),
            start_timeout: Duration::from_secs(60),
        };
        let goldens = Goldens::new(builder, Arc::new(DemoRecipes));
        let launcher = HostLauncher {
            machines: Arc::clone(&machines) as Arc<dyn Machines>,
            goldens: goldens.clone(),
            fork_limit: Duration::from_secs(30),
        };
        Self {
            machines,
            goldens,
            launcher,
            folder,
        }
    }

    pub fn recipe(&self, pool: &PoolRecord) -> Recipe {
        self.goldens.recipe(pool).unwrap()
    }

    /// What lies in the folder: keys, and what should not be there.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Waits until the pool's golden is there.
    pub async fn wait_for(&self, pool: &PoolRecord) {
        let recipe = self.recipe(pool);
        while self.goldens.find(&recipe).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until so many are in the folder: a golden is out of use before its files are gone.
    pub async fn wait_for_names(&self, count: usize) {
        let limit = Duration::from_secs(30);
        let counted = async {
            while self.names().len() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(limit, counted).await.is_err() {
            panic!("after {limit:?} there are {:?}", self.names());
        }
    }

    /// Returns when nothing is alive any more.
    pub async fn wait_idle(&self) {
        while self.machines.alive() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A small pool, so that its golden is small.
pub fn pool(name: &str) -> PoolRecord {
    PoolRecord {
        mem_mib: 64,
        disk_mib: 1,
        ..crate::store::tests::pool(name)
    }
}

/// The same, forked when its container runs.
pub fn running_pool(name: &str) -> PoolRecord {
    PoolRecord {
        fork_point: ForkPoint::AfterReady,
        ..pool(name)
    }
}
