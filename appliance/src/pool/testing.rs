//! A launcher for tests. Its guests are real HTTP servers on socket pairs in this process.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::budget::{Budget, Size};
use super::launcher::{
    BoxFuture, Guest, GuestEvent, Launched, Launcher, NotAdopted, Noted, PrepareFailure,
    StartFailure, StartFailureCause, StartOrder, Survivor, Urgency,
};
use super::{FingerprintKey, PoolChangeError, Pools, Put, Tools, Uses};
use crate::store::{MemoryStore, PoolRecord, Records};
use crate::worker::Log;

/// More than any test takes.
const UNLIMITED: Size = Size {
    mem_mib: 1 << 40,
    cpu_millis: 1 << 40,
};

/// Serves one stream to the container's port.
pub type Server = Arc<dyn Fn(usize, UnixStream) + Send + Sync>;

/// What becomes of the guests that are launched from now on.
#[derive(Debug, Clone)]
pub enum Plan {
    /// They come up.
    Ready,
    /// Their container prints this and exits with status 3.
    ExitAtStart(Vec<String>),
    /// They never say anything.
    Silent,
    /// They cannot be launched.
    Refuse(String),
}

/// See the module documentation.
pub struct FakeLauncher {
    server: Server,
    plan: Mutex<Plan>,
    plans: Mutex<HashMap<Uuid, Plan>>,
    /// A guest takes one permit before it is ready.
    pub gate: Arc<Semaphore>,
    /// A launch takes one permit before there is a guest.
    pub turns: Arc<Semaphore>,
    launched: AtomicUsize,
    adopted: AtomicUsize,
    orders: watch::Sender<Vec<(Uuid, Urgency)>>,
    budget: Mutex<Budget>,
    alive: Arc<watch::Sender<usize>>,
    stops: Arc<watch::Sender<Stops>>,
    guests: Mutex<Vec<Arc<FakeGuest>>>,
    preparing: Mutex<Preparing>,
    told: Mutex<Vec<Vec<String>>>,
    records: Records,
    agent: Mutex<Option<PathBuf>>,
}

/// How pools are prepared.
#[derive(Default)]
struct Preparing {
    /// The next one waits for [`FakeLauncher::prepared`] and says here that it does.
    announce: Option<oneshot::Sender<()>>,
    waiting: Option<oneshot::Sender<Result<(), PrepareFailure>>>,
}

/// Whether guests that are told to stop do so.
#[derive(Default)]
struct Stops {
    held: bool,
    asked: usize,
    /// Of the last one.
    grace: Duration,
}

/// One guest.
pub struct FakeGuest {
    number: usize,
    worker: Uuid,
    note: Mutex<Option<(Noted, Arc<PoolRecord>)>>,
    server: Server,
    events: Mutex<Option<mpsc::Sender<GuestEvent>>>,
    alive: Arc<watch::Sender<usize>>,
    stops: Arc<watch::Sender<Stops>>,
    console: Vec<String>,
    /// Those that were named.
    ports: Mutex<Vec<u16>>,
    log: Arc<Log>,
    /// The socket of an agent that serves commands of operators.
    agent: Option<PathBuf>,
}

impl FakeLauncher {
    /// Guests answer with `server`, which is told the number of the guest.
    pub fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            plan: Mutex::new(Plan::Ready),
            plans: Mutex::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            turns: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            launched: AtomicUsize::new(0),
            adopted: AtomicUsize::new(0),
            orders: watch::Sender::default(),
            budget: Mutex::new(Budget::new(UNLIMITED)),
            alive: Arc::new(watch::Sender::new(0)),
            stops: Arc::default(),
            guests: Mutex::new(Vec::new()),
            preparing: Mutex::default(),
            told: Mutex::default(),
            records: Records::new(Arc::new(MemoryStore::default())),
            agent: Mutex::default(),
        })
    }

    /// Commands of operators are served by the agent at this socket from now on.
    pub fn serve_commands_with(&self, agent: &Path) {
        *self.agent.lock().unwrap() = Some(agent.to_owned());
    }

    /// What guest `number` has printed.
    pub fn log(&self, number: usize) -> Arc<Log> {
        Arc::clone(&self.guests.lock().unwrap()[number].log)
    }

    /// Puts a pool, and returns when it is being prepared.
    pub async fn put_while_preparing(
        &self,
        pools: &Pools,
        pool: PoolRecord,
    ) -> JoinHandle<Result<(Arc<PoolRecord>, Put), PoolChangeError>> {
        let announced = self.hold_next_preparation();
        let pools = pools.clone();
        let putting = tokio::spawn(async move { pools.put(pool).await });
        announced.await.unwrap();
        putting
    }

    /// The next pool that is prepared waits for [`Self::prepared`]. Resolves when it does.
    pub fn hold_next_preparation(&self) -> oneshot::Receiver<()> {
        let (announce, announced) = oneshot::channel();
        self.preparing.lock().unwrap().announce = Some(announce);
        announced
    }

    /// The pool that is being prepared is, or cannot be.
    pub fn prepared(&self, result: Result<(), PrepareFailure>) {
        let waiting = self.preparing.lock().unwrap().waiting.take();
        waiting.unwrap().send(result).unwrap();
    }

    /// The names of all pools, as often as it was told them.
    pub fn told(&self) -> Vec<Vec<String>> {
        self.told.lock().unwrap().clone()
    }

    /// The pools in the store.
    pub async fn stored(&self) -> Vec<PoolRecord> {
        self.records.pools().await.unwrap()
    }

    /// Guests accept streams and never answer.
    pub fn mute() -> Arc<Self> {
        Self::new(Arc::new(|_, _| {}))
    }

    /// Sets what becomes of later guests.
    pub fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    /// Sets what becomes of later guests of one revision.
    pub fn plan_for(&self, revision: Uuid, plan: Plan) {
        self.plans.lock().unwrap().insert(revision, plan);
    }

    /// Pools that are started from now on share this budget.
    pub fn budget(&self, budget: Budget) {
        *self.budget.lock().unwrap() = budget;
    }

    /// Every launch that was ordered, those that were refused among them.
    pub fn orders(&self) -> Vec<(Uuid, Urgency)> {
        self.orders.borrow().clone()
    }

    /// Waits until so many launches were ordered.
    pub async fn wait_ordered(&self, wanted: usize) {
        let mut orders = self.orders.subscribe();
        let reached = orders.wait_for(|orders| orders.len() >= wanted);
        let reached = tokio::time::timeout(Duration::from_secs(4000), reached).await;
        assert!(reached.is_ok(), "{:?}", self.orders());
    }

    /// How many guests were ever launched.
    pub fn launched(&self) -> usize {
        self.launched.load(Ordering::SeqCst)
    }

    /// How many exist now.
    pub fn alive(&self) -> usize {
        *self.alive.borrow()
    }

    /// Waits until so many exist.
    pub async fn wait_alive(&self, wanted: usize) {
        let mut alive = self.alive.subscribe();
        let reached = alive.wait_for(|alive| *alive == wanted);
        tokio::time::timeout(Duration::from_secs(4000), reached)
            .await
            .unwrap_or_else(|_| panic!("{} guests are alive, {wanted} wanted", self.alive()))
            .unwrap();
    }

    /// Guests that are told to stop wait.
    pub fn hold_stops(&self) {
        self.stops.send_modify(|stops| stops.held = true);
    }

    /// Waits until a guest was told to stop.
    pub async fn wait_stopping(&self) {
        self.stops
            .subscribe()
            .wait_for(|stops| stops.asked > 0)
            .await
            .unwrap();
    }

    /// What the last guest that was told to stop was granted.
    pub fn last_grace(&self) -> Duration {
        self.stops.borrow().grace
    }

    /// The ports that guest `number` was asked for by their number.
    pub fn ports(&self, number: usize) -> Vec<u16> {
        self.guests.lock().unwrap()[number]
            .ports
            .lock()
            .unwrap()
            .clone()
    }

    /// Guests that wait with stopping go on.
    pub fn release_stops(&self) {
        self.stops.send_modify(|stops| stops.held = false);
    }

    /// The container of guest `number` exits.
    pub fn exit(&self, number: usize) {
        let guest = Arc::clone(&self.guests.lock().unwrap()[number]);
        let exited = GuestEvent::ContainerExited {
            how: "exit status 0".into(),
        };
        guest
            .events
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .try_send(exited)
            .unwrap();
    }

    /// The worker of guest `number` dies.
    pub fn kill(&self, number: usize) {
        self.guests.lock().unwrap()[number].end("killed by signal 9");
    }

    /// What is noted beside guest `number`.
    pub fn noted(&self, number: usize) -> Option<Noted> {
        let guest = Arc::clone(&self.guests.lock().unwrap()[number]);
        let note = guest.note.lock().unwrap();
        note.as_ref().map(|(noted, _)| *noted)
    }

    /// Notes that somebody gets guest `number`, and nothing more.
    pub fn note_leased(&self, number: usize) {
        let guest = Arc::clone(&self.guests.lock().unwrap()[number]);
        guest.note_leased().unwrap();
    }

    /// How many guests were ever taken over.
    pub fn adopted(&self) -> usize {
        self.adopted.load(Ordering::SeqCst)
    }

    /// [`Self::tools`] for somebody who is not in a runtime.
    pub fn tools_in(self: &Arc<Self>, runtime: &Runtime) -> Tools {
        let _inside = runtime.enter();
        self.tools()
    }

    /// Tools for a pool driver on this launcher.
    pub fn tools(self: &Arc<Self>) -> Tools {
        Tools {
            launcher: Arc::clone(self) as Arc<dyn Launcher>,
            records: self.records.clone(),
            uses: Uses::keep(self.records.clone()),
            fingerprints: FingerprintKey::new(b"test"),
            start_timeout: Duration::from_secs(60),
            budget: self.budget.lock().unwrap().clone(),
        }
    }
}

impl Launcher for FakeLauncher {
    fn launch(&self, order: StartOrder) -> BoxFuture<'static, Result<Launched, StartFailure>> {
        let revision = order.pool.revision;
        self.orders
            .send_modify(|orders| orders.push((revision, order.urgency)));
        let plan = self.plans.lock().unwrap().get(&revision).cloned();
        let plan = plan.unwrap_or_else(|| self.plan.lock().unwrap().clone());
        if let Plan::Refuse(message) = plan {
            let failure = StartFailure::silent(StartFailureCause::Launch { message });
            return Box::pin(async { Err(failure) });
        }
        let number = self.launched.fetch_add(1, Ordering::SeqCst);
        let (sender, events) = mpsc::channel(16);
        let console = if let Plan::ExitAtStart(lines) = &plan {
            lines.clone()
        } else {
            vec![]
        };
        let worker = Uuid::new_v4();
        let guest = Arc::new(FakeGuest {
            number,
            worker,
            note: Mutex::default(),
            server: Arc::clone(&self.server),
            events: Mutex::new(Some(sender.clone())),
            alive: Arc::clone(&self.alive),
            stops: Arc::clone(&self.stops),
            console,
            ports: Mutex::default(),
            log: Arc::default(),
            agent: self.agent.lock().unwrap().clone(),
        });
        self.alive.send_modify(|alive| *alive += 1);
        self.guests.lock().unwrap().push(Arc::clone(&guest));
        let gate = Arc::clone(&self.gate);
        tokio::spawn(async move {
            gate.acquire_owned().await.unwrap().forget();
            let event = match plan {
                Plan::Ready => GuestEvent::Ready,
                Plan::ExitAtStart(_) => GuestEvent::ContainerExited {
                    how: "exit status 3".into(),
                },
                Plan::Silent | Plan::Refuse(_) => return,
            };
            let _ = sender.send(event).await;
        });
        let turns = Arc::clone(&self.turns);
        Box::pin(async move {
            turns.acquire_owned().await.unwrap().forget();
            Ok(Launched {
                worker,
                guest: guest as Arc<dyn Guest>,
                events,
            })
        })
    }

    fn prepare(&self, _: Arc<PoolRecord>) -> BoxFuture<'static, Result<(), PrepareFailure>> {
        let mut preparing = self.preparing.lock().unwrap();
        let Some(announce) = preparing.announce.take() else {
            return Box::pin(async { Ok(()) });
        };
        let (waiting, result) = oneshot::channel();
        preparing.waiting = Some(waiting);
        Box::pin(async {
            announce.send(()).unwrap();
            result.await.unwrap()
        })
    }

    fn pools_changed(&self, pools: Vec<Arc<PoolRecord>>) -> BoxFuture<'static, ()> {
        self.told.lock().unwrap().push(names(&pools));
        Box::pin(async {})
    }

    fn survivors(&self) -> Vec<Survivor> {
        let guests = self.guests.lock().unwrap();
        let survivor = |guest: &Arc<FakeGuest>| {
            let (noted, pool) = guest.note.lock().unwrap().clone()?;
            Some(Survivor {
                worker: guest.worker,
                pool,
                noted,
            })
        };
        guests.iter().filter_map(survivor).collect()
    }

    fn adopt(&self, worker: Uuid) -> BoxFuture<'static, Result<Launched, NotAdopted>> {
        let guests = self.guests.lock().unwrap();
        let guest = guests.iter().find(|guest| guest.worker == worker).unwrap();
        let (sender, events) = mpsc::channel(16);
        let adopted = match &mut *guest.events.lock().unwrap() {
            Some(before) => {
                *before = sender;
                self.adopted.fetch_add(1, Ordering::SeqCst);
                Ok(Launched {
                    worker,
                    guest: Arc::clone(guest) as Arc<dyn Guest>,
                    events,
                })
            }
            None => Err(NotAdopted {
                message: "it is gone".into(),
            }),
        };
        Box::pin(async { adopted })
    }
}

fn names(pools: &[Arc<PoolRecord>]) -> Vec<String> {
    pools.iter().map(|pool| pool.name.to_string()).collect()
}

impl FakeGuest {
    fn end(&self, how: &str) {
        if let Some(events) = self.events.lock().unwrap().take() {
            let _ = events.try_send(GuestEvent::Gone { how: how.into() });
            self.alive.send_modify(|alive| *alive -= 1);
        }
    }
}

impl Guest for FakeGuest {
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            if self.events.lock().unwrap().is_none() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = UnixStream::pair()?;
            (self.server)(self.number, far);
            Ok(near)
        })
    }

    fn connect_to(&self, port: u16) -> BoxFuture<'_, io::Result<UnixStream>> {
        self.ports.lock().unwrap().push(port);
        self.connect()
    }

    fn connect_exec(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        let agent = self.agent.clone();
        Box::pin(async {
            let mut stream =
                UnixStream::connect(agent.ok_or(io::ErrorKind::ConnectionRefused)?).await?;
            stream.write_all(b"CONNECT 1027\n").await?;
            stream.read_exact(&mut [0; "OK 1027\n".len()]).await?;
            Ok(stream)
        })
    }

    fn stop_within(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stops.send_modify(|stops| {
                stops.asked += 1;
                stops.grace = grace;
            });
            self.stops
                .subscribe()
                .wait_for(|stops| !stops.held)
                .await
                .unwrap();
            self.end("power off");
        })
    }

    fn console_tail(&self) -> Vec<String> {
        self.console.clone()
    }

    fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    fn note_ready(&self, pool: &PoolRecord) -> io::Result<()> {
        *self.note.lock().unwrap() = Some((Noted::Ready, Arc::new(pool.clone())));
        Ok(())
    }

    fn note_leased(&self) -> io::Result<()> {
        let mut note = self.note.lock().unwrap();
        let (noted, _) = note.as_mut().expect("it was never ready");
        assert_eq!(*noted, Noted::Ready, "somebody had it");
        *noted = Noted::Leased;
        Ok(())
    }

    fn forget_note(&self) {
        *self.note.lock().unwrap() = None;
    }
}
