//! A warden whose workers are agents as ordinary processes.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::process::Command;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Programs, guest};
use crate::warden::channel;
use crate::warden::protocol::{Ending, Event, Request, Status};
use crate::worker::spec::ImageWorkerSetup;

/// Answers an appliance as long as it is there.
#[derive(Clone)]
pub struct Warden {
    inner: Arc<Inner>,
}

struct Inner {
    socket: OwnedFd,
    programs: Programs,
    /// Dropped, it ends the child.
    children: Mutex<HashMap<Uuid, oneshot::Sender<()>>>,
}

impl Warden {
    /// Needs a running tokio.
    pub fn start(socket: OwnedFd, programs: Programs) -> Self {
        let this = Self {
            inner: Arc::new(Inner {
                socket,
                programs,
                children: Mutex::default(),
            }),
        };
        let (warden, runtime) = (this.clone(), tokio::runtime::Handle::current());
        std::thread::spawn(move || {
            let _runtime = runtime.enter();
            while let Ok(Some(message)) = channel::receive(warden.inner.socket.as_fd(), false) {
                let request = Request::parse(&message).unwrap();
                request.check(&message.fds).unwrap();
                warden.carry_out(request, message.fds);
            }
            // As a warden that ends everything when its appliance is gone.
            warden.inner.children.lock().unwrap().clear();
        });
        this
    }

    /// How many children there are.
    pub fn children(&self) -> usize {
        self.inner.children.lock().unwrap().len()
    }

    /// Ends all of them as a crash would.
    pub fn kill_children(&self) {
        self.inner.children.lock().unwrap().clear();
    }

    pub fn tell(&self, event: &Event) {
        let bytes = serde_json::to_vec(event).unwrap();
        // It may be gone.
        let _ = channel::send(self.inner.socket.as_fd(), &bytes, &[], false);
    }

    fn carry_out(&self, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::SpawnWorker { id } => {
                let agent = self.inner.programs.agent.clone();
                self.spawn(id, async move { guest::live(fds, &agent).await });
            }
            Request::SpawnImageWorker { id, job } => {
                let cabana = self.inner.programs.cabana.clone();
                self.spawn(id, async move {
                    let (ours, theirs) = channel::pair().unwrap();
                    let mut command = Command::new(cabana);
                    command
                        .arg("image-worker")
                        .stdin(Stdio::from(theirs))
                        .kill_on_drop(true);
                    let mut child = command.spawn().unwrap();
                    let setup = ImageWorkerSetup {
                        uid: None,
                        confined: true,
                        threads: 0,
                        job,
                    };
                    let setup = serde_json::to_vec(&setup).unwrap();
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    channel::send(ours.as_fd(), &setup, &fds, false).unwrap();
                    let code = child.wait().await.unwrap().code().unwrap();
                    (Status::Code(code), None)
                });
            }
            Request::Shape { id, .. } => self.tell(&Event::Shaped { id }),
            Request::Usage { id } => self.tell(&Event::Usage { id, usage: None }),
            Request::LimitCpu { .. } | Request::Settled => {}
            // None outlives its appliance here.
            Request::Adopt { id } => self.tell(&Event::AdoptFailed {
                id,
                message: "There is no such worker".to_owned(),
            }),
            Request::Stop => self.tell(&Event::End { how: Ending::Stop }),
            Request::Kill { id } => drop(self.inner.children.lock().unwrap().remove(&id)),
        }
    }

    fn spawn(
        &self,
        id: Uuid,
        life: impl Future<Output = (Status, Option<String>)> + Send + 'static,
    ) {
        let (alive, killed) = oneshot::channel();
        self.inner.children.lock().unwrap().insert(id, alive);
        self.tell(&Event::Spawned { id });
        let this = self.clone();
        tokio::spawn(async move {
            const SIGKILL: i32 = 9;
            let (status, report) = tokio::select! {
                end = life => end,
                _ = killed => (Status::Signal(SIGKILL), None),
            };
            this.inner.children.lock().unwrap().remove(&id);
            this.tell(&Event::Exited { id, status, report });
        });
    }
}
