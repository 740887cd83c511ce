//! The appliance's side of the warden's socket.
//!
//! One task owns the socket. Everybody else sends it commands and gets answers, so requests and
//! events cannot overtake each other.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::channel;
use super::protocol::{Ending, Event, Request, Status, Usage};
use crate::worker::spec::WorkerSpec;
use crate::{guest, images};

/// Commands that wait for the socket.
const QUEUE: usize = 256;
/// The longest report of an image worker.
const MAX_IMAGE_REPORT_BYTES: u64 = 8 << 20;

/// Why the warden did not spawn, adopt or shape a process.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpawnError {
    #[error("The warden refused: {0}")]
    Refused(String),
    #[error("The warden is gone")]
    WardenGone,
    #[error("Cannot send the request to the warden: {0}")]
    Send(String),
}

/// Why an image job gave no report.
#[derive(Debug, thiserror::Error)]
pub enum ImageJobError {
    #[error("Cannot start an image worker")]
    Spawn(#[from] SpawnError),
    #[error("Cannot prepare or read the report of an image worker")]
    Report(#[source] io::Error),
    #[error("The image job or its report cannot be encoded")]
    Encoding(#[source] serde_json::Error),
    /// The job was done and failed, mostly because the image is bad.
    #[error(transparent)]
    Job(images::ImageError),
    #[error("The image worker ended with {0} and left no report")]
    Died(Status),
}

/// A process is gone, and everything that the warden made for it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEnd {
    pub status: Status,
    pub report: Option<String>,
}

type Spawned = Result<oneshot::Receiver<ProcessEnd>, SpawnError>;
type Shaped = Result<(), SpawnError>;

#[derive(Debug)]
enum Command {
    Spawn {
        id: Uuid,
        request: Request,
        fds: Vec<OwnedFd>,
        answer: oneshot::Sender<Spawned>,
    },
    Shape {
        id: Uuid,
        spec: WorkerSpec,
        answer: oneshot::Sender<Shaped>,
    },
    Usage {
        id: Uuid,
        answer: oneshot::Sender<Option<Usage>>,
    },
    Tell(Request),
}

/// Sends requests to the warden. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WardenClient {
    commands: mpsc::Sender<Command>,
    ending: watch::Receiver<Option<Ending>>,
}

impl WardenClient {
    /// Takes the socket over; needs a running tokio.
    pub fn start(socket: OwnedFd) -> io::Result<Self> {
        // tokio has no type for SOCK_SEQPACKET; of this one only the readiness is used.
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (ending_sender, ending) = watch::channel(None);
        let link = Link {
            socket: UnixDatagram::from_std(socket)?,
            ending: ending_sender,
            starting: HashMap::new(),
            shaping: HashMap::new(),
            measuring: HashMap::new(),
            running: HashMap::new(),
        };
        tokio::spawn(link.run(inbox));
        Ok(Self { commands, ending })
    }

    /// How this appliance is to end, once it is. [`Ending::Detach`] and closed when the warden is gone: workers with a guest live on
    /// without it, and the next appliance adopts them.
    pub fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.clone()
    }

    fn is_detaching(&self) -> bool {
        *self.ending.borrow() == Some(Ending::Detach)
    }

    /// A worker without a guest. It is killed when the first value is dropped; the second one
    /// tells its end.
    pub async fn spawn_worker(
        &self,
        id: Uuid,
        fds: Vec<OwnedFd>,
    ) -> Result<(KillOnDrop, oneshot::Receiver<ProcessEnd>), SpawnError> {
        let ended = self.spawn(id, Request::SpawnWorker { id }, fds).await?;
        Ok((KillOnDrop::new(self, id), ended))
    }

    /// A worker that an earlier appliance had, as if it had been spawned here. An end that comes right after is not lost.
    pub async fn adopt(
        &self,
        id: Uuid,
    ) -> Result<(KillOnDrop, oneshot::Receiver<ProcessEnd>), SpawnError> {
        let ended = self.spawn(id, Request::Adopt { id }, Vec::new()).await?;
        Ok((KillOnDrop::new(self, id), ended))
    }

    /// Says that this appliance serves: whatever an earlier one had, and nobody has adopted, ends now.
    pub async fn settled(&self) {
        self.tell(Request::Settled).await;
    }

    /// Asks for the end of everything. It comes as [`Ending::Stop`].
    pub async fn request_stop(&self) {
        self.tell(Request::Stop).await;
    }

    /// Gives a worker the limits that a guest of this shape needs.
    pub async fn shape(&self, id: Uuid, spec: WorkerSpec) -> Shaped {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Shape { id, spec, answer }).await?;
        answered.await.map_err(|_| SpawnError::WardenGone)?
    }

    /// The memory of a worker's process; `None` when it is gone.
    pub async fn usage(&self, id: Uuid) -> Option<Usage> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Usage { id, answer }).await.ok()?;
        answered.await.ok()?
    }

    pub async fn limit_cpu(&self, id: Uuid) {
        self.tell(Request::LimitCpu { id }).await;
    }

    pub async fn kill(&self, id: Uuid) {
        self.tell(Request::Kill { id }).await;
    }

    /// Runs one job in an image worker of its own and waits for it. When the caller goes away, the
    /// worker is killed.
    pub async fn run_image_job(
        &self,
        job: images::Job,
        mut fds: Vec<OwnedFd>,
    ) -> Result<images::JobReport, ImageJobError> {
        let id = Uuid::new_v4();
        let job = serde_json::to_string(&job).map_err(ImageJobError::Encoding)?;
        let report = guest::memory_file("image report").map_err(ImageJobError::Report)?;
        fds.push(report.try_clone().map_err(ImageJobError::Report)?.into());
        let ended = self
            .spawn(id, Request::SpawnImageWorker { id, job }, fds)
            .await?;
        let kill = KillOnDrop::new(self, id);
        let end = ended.await.map_err(|_| SpawnError::WardenGone)?;
        kill.defuse();
        read_report(report, end.status)
    }

    async fn spawn(&self, id: Uuid, request: Request, fds: Vec<OwnedFd>) -> Spawned {
        let (answer, answered) = oneshot::channel();
        let command = Command::Spawn {
            id,
            request,
            fds,
            answer,
        };
        self.command(command).await?;
        answered.await.map_err(|_| SpawnError::WardenGone)?
    }

    async fn command(&self, command: Command) -> Result<(), SpawnError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| SpawnError::WardenGone)
    }

    async fn tell(&self, request: Request) {
        // A warden that is gone is asked for nothing more.
        let _ = self.command(Command::Tell(request)).await;
    }
}

fn read_report(mut report: File, status: Status) -> Result<images::JobReport, ImageJobError> {
    let mut text = Vec::new();
    report.rewind().map_err(ImageJobError::Report)?;
    report
        .take(MAX_IMAGE_REPORT_BYTES)
        .read_to_end(&mut text)
        .map_err(ImageJobError::Report)?;
    if text.is_empty() {
        return Err(ImageJobError::Died(status));
    }
    let report: Result<images::JobReport, images::ImageError> =
        serde_json::from_slice(&text).map_err(ImageJobError::Encoding)?;
    report.map_err(ImageJobError::Job)
}

/// Kills a process that nobody holds any more, unless everything is let go of so that another appliance can have it.
#[derive(Debug)]
pub struct KillOnDrop {
    client: WardenClient,
    id: Uuid,
    defused: bool,
}

impl KillOnDrop {
    fn new(client: &WardenClient, id: Uuid) -> Self {
        Self {
            client: client.clone(),
            id,
            defused: false,
        }
    }

    /// It has ended already.
    pub fn defuse(mut self) {
        self.defused = true;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.defused || self.client.is_detaching() {
            return;
        }
        let (client, id) = (self.client.clone(), self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.kill(id).await });
        }
    }
}

/// Owns the socket.
struct Link {
    socket: UnixDatagram,
    ending: watch::Sender<Option<Ending>>,
    /// Spawned or adopted.
    starting: HashMap<Uuid, oneshot::Sender<Spawned>>,
    shaping: HashMap<Uuid, oneshot::Sender<Shaped>>,
    /// Answers come in the order of the questions.
    measuring: HashMap<Uuid, VecDeque<oneshot::Sender<Option<Usage>>>>,
    running: HashMap<Uuid, oneshot::Sender<ProcessEnd>>,
}

impl Link {
    async fn run(mut self, inbox: mpsc::Receiver<Command>) {
        match self.relay(inbox).await {
            Ok(()) => tracing::error!("The warden is gone"),
            Err(error) => tracing::error!("Cannot read from the warden: {error}"),
        }
        // Before anybody learns it from an end that never comes: the workers live on and must be left alone.
        let _ = self.ending.send(Some(Ending::Detach));
    }

    /// Until the warden closes the socket.
    async fn relay(&mut self, mut inbox: mpsc::Receiver<Command>) -> io::Result<()> {
        let mut clients = true;
        loop {
            tokio::select! {
                event = receive(&self.socket) => match event? {
                    Some(event) => self.on_event(event),
                    None => return Ok(()),
                },
                command = inbox.recv(), if clients => match command {
                    Some(command) => self.on_command(command).await,
                    None => clients = false,
                },
            }
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Spawn {
                id,
                request,
                fds,
                answer,
            } => match send(&self.socket, &request, &fds).await {
                Ok(()) => {
                    self.starting.insert(id, answer);
                }
                Err(error) => {
                    let _ = answer.send(Err(SpawnError::Send(error.to_string())));
                }
            },
            Command::Shape { id, spec, answer } => {
                match send(&self.socket, &Request::Shape { id, spec }, &[]).await {
                    Ok(()) => drop(self.shaping.insert(id, answer)),
                    Err(error) => {
                        let _ = answer.send(Err(SpawnError::Send(error.to_string())));
                    }
                }
            }
            Command::Usage { id, answer } => {
                // Otherwise the answer is dropped, and that is one, too.
                if send(&self.socket, &Request::Usage { id }, &[])
                    .await
                    .is_ok()
                {
                    self.measuring.entry(id).or_default().push_back(answer);
                }
            }
            Command::Tell(request) => {
                if let Err(error) = send(&self.socket, &request, &[]).await {
                    tracing::error!("Cannot send a request to the warden: {error}");
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Spawned { id } | Event::Adopted { id } => {
                let (end, ended) = oneshot::channel();
                self.running.insert(id, end);
                if let Some(answer) = self.starting.remove(&id)
                    && answer.send(Ok(ended)).is_err()
                {
                    // Nobody waits for it any more, so nobody would ever stop it.
                    let kill = serde_json::to_vec(&Request::Kill { id }).unwrap_or_default();
                    let _ = channel::send(self.socket.as_fd(), &kill, &[], true);
                }
            }
            Event::SpawnFailed { id, message } | Event::AdoptFailed { id, message } => {
                if let Some(answer) = self.starting.remove(&id) {
                    let _ = answer.send(Err(SpawnError::Refused(message)));
                }
            }
            Event::Shaped { id } => {
                if let Some(answer) = self.shaping.remove(&id) {
                    let _ = answer.send(Ok(()));
                }
            }
            Event::ShapeFailed { id, message } => {
                if let Some(answer) = self.shaping.remove(&id) {
                    let _ = answer.send(Err(SpawnError::Refused(message)));
                }
            }
            Event::Usage { id, usage } => {
                if let Some(waiting) = self.measuring.get_mut(&id) {
                    if let Some(answer) = waiting.pop_front() {
                        let _ = answer.send(usage);
                    }
                    if waiting.is_empty() {
                        self.measuring.remove(&id);
                    }
                }
            }
            Event::Exited { id, status, report } => {
                if let Some(end) = self.running.remove(&id) {
                    let _ = end.send(ProcessEnd { status, report });
                }
            }
            Event::End { how } => {
                let _ = self.ending.send(Some(how));
            }
        }
    }
}

async fn receive(socket: &UnixDatagram) -> io::Result<Option<Event>> {
    let receive = || channel::receive(socket.as_fd(), true);
    match socket.async_io(Interest::READABLE, receive).await? {
        Some(message) => Ok(Some(serde_json::from_slice(&message.bytes)?)),
        None => Ok(None),
    }
}

async fn send(socket: &UnixDatagram, request: &Request, fds: &[OwnedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(request)?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    socket
        .async_io(Interest::WRITABLE, || {
            channel::send(socket.as_fd(), &bytes, &fds, true)
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A client, and the warden's end of its socket.
    fn pair() -> (WardenClient, OwnedFd) {
        let (ours, theirs) = channel::pair().unwrap();
        (WardenClient::start(theirs).unwrap(), ours)
    }

    fn tell(warden: &OwnedFd, event: &Event) {
        let bytes = serde_json::to_vec(event).unwrap();
        channel::send(warden.as_fd(), &bytes, &[], false).unwrap();
    }

    /// The next request, waited for on a thread of its own.
    async fn heard(warden: &OwnedFd) -> Option<Request> {
        let warden = warden.try_clone().unwrap();
        let receive = move || channel::receive(warden.as_fd(), false).unwrap();
        let message = tokio::task::spawn_blocking(receive);
        let message = tokio::time::timeout(DEADLINE, message).await.unwrap();
        message.unwrap().map(|it| Request::parse(&it).unwrap())
    }

    async fn ends(client: &WardenClient, how: Ending) {
        let mut ending = client.ending();
        let told = ending.wait_for(|ending| *ending == Some(how));
        tokio::time::timeout(DEADLINE, told).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn end_that_comes_right_after_an_adoption_is_not_lost() {
        let (client, warden) = pair();
        let id = Uuid::new_v4();
        let asking = client.clone();
        let adopted = tokio::spawn(async move { asking.adopt(id).await });
        assert_eq!(heard(&warden).await, Some(Request::Adopt { id }));
        tell(&warden, &Event::Adopted { id });
        let status = Status::Unknown;
        let exited = Event::Exited {
            id,
            status,
            report: None,
        };
        tell(&warden, &exited);
        let (kill, ended) = adopted.await.unwrap().unwrap();
        let end = tokio::time::timeout(DEADLINE, ended)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            end,
            ProcessEnd {
                status,
                report: None
            }
        );
        kill.defuse();
    }

    #[tokio::test]
    async fn worker_that_is_dropped_is_killed_unless_everything_is_let_go_of() {
        for (how, killed) in [
            (None, true),
            (Some(Ending::Stop), true),
            (Some(Ending::Detach), false),
        ] {
            let (client, warden) = pair();
            if let Some(how) = how {
                tell(&warden, &Event::End { how });
                ends(&client, how).await;
            }
            let id = Uuid::new_v4();
            drop(KillOnDrop::new(&client, id));
            // Requests are sent one after the other.
            tokio::task::yield_now().await;
            client.settled().await;
            let first = heard(&warden).await;
            let expected = if killed {
                Request::Kill { id }
            } else {
                Request::Settled
            };
            assert_eq!(first, Some(expected), "{how:?}");
        }
    }

    #[tokio::test]
    async fn warden_that_is_gone_is_a_detach_for_everybody_even_after_a_stop() {
        let (client, warden) = pair();
        let how = Ending::Stop;
        tell(&warden, &Event::End { how });
        ends(&client, how).await;
        drop(warden);
        let mut ending = client.ending();
        let last = tokio::time::timeout(DEADLINE, async {
            while ending.changed().await.is_ok() {}
            *ending.borrow()
        });
        assert_eq!(last.await.unwrap(), Some(Ending::Detach));
        let refused = client.adopt(Uuid::new_v4()).await.unwrap_err();
        assert!(matches!(refused, SpawnError::WardenGone), "{refused}");
    }
}
