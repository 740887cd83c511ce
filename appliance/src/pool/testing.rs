//! A launcher for tests. Its guests are real HTTP servers on socket pairs in this process.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};

use super::launcher::{
    BoxFuture, Guest, GuestEvent, Launched, Launcher, StartFailure, StartFailureCause, StartOrder,
};
use super::{FingerprintKey, Tools};
use crate::store::{MemoryStore, Records};

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
    /// A guest takes one permit before it is ready.
    pub gate: Arc<Semaphore>,
    launched: AtomicUsize,
    alive: Arc<watch::Sender<usize>>,
    stops: Arc<watch::Sender<Stops>>,
    guests: Mutex<Vec<Arc<FakeGuest>>>,
}

/// Whether guests that are told to stop do so.
#[derive(Default)]
struct Stops {
    held: bool,
    asked: usize,
}

/// One guest.
pub struct FakeGuest {
    number: usize,
    server: Server,
    events: Mutex<Option<mpsc::Sender<GuestEvent>>>,
    alive: Arc<watch::Sender<usize>>,
    stops: Arc<watch::Sender<Stops>>,
    console: Vec<String>,
}

impl FakeLauncher {
    /// Guests answer with `server`, which is told the number of the guest.
    pub fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            plan: Mutex::new(Plan::Ready),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            launched: AtomicUsize::new(0),
            alive: Arc::new(watch::Sender::new(0)),
            stops: Arc::default(),
            guests: Mutex::new(Vec::new()),
        })
    }

    /// Guests accept streams and never answer.
    pub fn mute() -> Arc<Self> {
        Self::new(Arc::new(|_, _| {}))
    }

    /// Sets what becomes of later guests.
    pub fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
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

    /// Tools for a pool driver on this launcher.
    pub fn tools(self: &Arc<Self>) -> Tools {
        Tools {
            launcher: Arc::clone(self) as Arc<dyn Launcher>,
            records: Records::new(Arc::new(MemoryStore::default())),
            fingerprints: FingerprintKey::new(b"test"),
            start_timeout: Duration::from_secs(60),
        }
    }
}

impl Launcher for FakeLauncher {
    fn launch(&self, _: StartOrder) -> BoxFuture<'static, Result<Launched, StartFailure>> {
        let plan = self.plan.lock().unwrap().clone();
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
        let guest = Arc::new(FakeGuest {
            number,
            server: Arc::clone(&self.server),
            events: Mutex::new(Some(sender.clone())),
            alive: Arc::clone(&self.alive),
            stops: Arc::clone(&self.stops),
            console,
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
        Box::pin(async {
            Ok(Launched {
                guest: guest as Arc<dyn Guest>,
                events,
            })
        })
    }
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

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stops.send_modify(|stops| stops.asked += 1);
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
}
