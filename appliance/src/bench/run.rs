//! One launch, timed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::figures::Sample;
use super::image::Image;
use crate::worker::spec::{ForkPoint, RateLimits};
use crate::worker::{LaunchRequest, Purpose, Source, Urgency, Worker, WorkerEvent, WorkerHost};

/// A guest that takes longer has failed, even in an emulated host with fifty of them.
const LIMIT: Duration = Duration::from_secs(120);
/// One CPU and as little memory as a session may have.
const VCPUS: u8 = 1;
const CPU_MILLIS: u32 = 1000;
const MEM_MIB: u32 = 128;
/// The size that a session's disk has by default. It is sparse.
pub const DISK_BYTES: u64 = 8 << 30;
/// The longest answer that is read.
const MOST_ANSWER_BYTES: u64 = 64 << 10;

/// A guest that is booted from the image.
pub fn boot_request(image: &Image, purpose: Purpose) -> anyhow::Result<LaunchRequest> {
    let source = Source::Boot {
        root_image: image.root()?,
        disk_bytes: DISK_BYTES,
    };
    Ok(request(source, purpose))
}

/// What a container is started for.
pub fn session(image: &Image, point: ForkPoint) -> Purpose {
    Purpose::Session {
        container: image.container.clone(),
        point,
    }
}

pub fn request(source: Source, purpose: Purpose) -> LaunchRequest {
    LaunchRequest {
        source,
        vcpus: VCPUS,
        cpu_millis: CPU_MILLIS,
        limits: RateLimits::default(),
        mem_mib: MEM_MIB,
        purpose,
        urgency: Urgency::Claim,
    }
}

/// A launch on its way. Its steps are collected as it says them.
pub struct Run {
    pub worker: Worker,
    events: Receiver<WorkerEvent>,
    launched: Instant,
    sample: Sample,
}

impl Run {
    pub async fn start(workers: &WorkerHost, request: LaunchRequest) -> anyhow::Result<Self> {
        let launched = Instant::now();
        let (worker, events) = workers.launch(request).await?;
        Ok(Self {
            worker,
            events,
            launched,
            sample: Sample::default(),
        })
    }

    /// Until the agent has said its first word.
    pub async fn until_answered(&mut self) -> anyhow::Result<Sample> {
        self.until("does not answer", |event| {
            matches!(event, WorkerEvent::Booted { .. })
        })
        .await?;
        Ok(self.sample.clone())
    }

    /// Until the agent has answered that the guest is a guest of its own.
    pub async fn until_renewed(&mut self) -> anyhow::Result<Sample> {
        self.until("is not renewed", |event| {
            matches!(event, WorkerEvent::Renewed { .. })
        })
        .await?;
        Ok(self.sample.clone())
    }

    /// Until the golden stands still at its fork point.
    pub async fn until_held(&mut self) -> anyhow::Result<()> {
        self.until("does not reach its fork point", |event| {
            matches!(event, WorkerEvent::Held)
        })
        .await
    }

    /// Until the container has answered with a byte.
    pub async fn until_first_byte(&mut self) -> anyhow::Result<Sample> {
        self.until("is not ready", |event| matches!(event, WorkerEvent::Ready))
            .await?;
        self.step("container");
        let first = async {
            let mut stream = ask(&self.worker, "/").await?;
            stream
                .read_u8()
                .await
                .context("The container closed the connection")
        };
        timeout(LIMIT, first)
            .await
            .context("The container does not answer")??;
        self.step("first byte");
        Ok(self.sample.clone())
    }

    /// What the container answers to a request, without its head.
    pub async fn answer(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.until("is not ready", |event| matches!(event, WorkerEvent::Ready))
            .await?;
        let whole = async {
            let stream = ask(&self.worker, path).await?;
            let mut bytes = Vec::new();
            stream
                .take(MOST_ANSWER_BYTES)
                .read_to_end(&mut bytes)
                .await?;
            anyhow::Ok(bytes)
        };
        let answer = timeout(LIMIT, whole)
            .await
            .context("The container does not answer")??;
        body(&answer)
            .map(<[u8]>::to_vec)
            .with_context(|| format!("No answer but {}", String::from_utf8_lossy(&answer)))
    }

    pub async fn end(self) {
        self.worker.stop(Duration::ZERO).await;
    }

    async fn until(
        &mut self,
        otherwise: &str,
        wanted: impl Fn(&WorkerEvent) -> bool,
    ) -> anyhow::Result<()> {
        let outcome = timeout(LIMIT, self.follow(wanted)).await;
        let why = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => anyhow::anyhow!("nothing came for {} s", LIMIT.as_secs()),
        };
        let tail = self.worker.console_tail().join(" | ");
        Err(why.context(format!("The guest {otherwise}; its last lines: {tail}")))
    }

    async fn follow(&mut self, wanted: impl Fn(&WorkerEvent) -> bool) -> anyhow::Result<()> {
        loop {
            let event = self.events.recv().await.context("its worker is gone")?;
            match &event {
                WorkerEvent::Booted { elapsed, steps } => {
                    self.sample.total = *elapsed;
                    self.sample.answered = Some(*elapsed);
                    self.sample.steps.extend(steps.iter().cloned());
                }
                WorkerEvent::Renewed { elapsed } => {
                    let step = elapsed.saturating_sub(self.sample.total);
                    self.sample.steps.push(("renew".to_owned(), step));
                    self.sample.total = *elapsed;
                }
                WorkerEvent::StartFailed { message } => bail!("{message}"),
                WorkerEvent::ContainerExited(ending) => bail!("the container ended with {ending}"),
                WorkerEvent::Gone(exit) => bail!("{exit}"),
                WorkerEvent::Started | WorkerEvent::Ready | WorkerEvent::Held => {}
            }
            if wanted(&event) {
                return Ok(());
            }
        }
    }

    /// Ends a step now.
    fn step(&mut self, name: &str) {
        let now = self.launched.elapsed();
        let step = now.saturating_sub(self.sample.total);
        self.sample.steps.push((name.to_owned(), step));
        self.sample.total = now;
    }
}

async fn ask(worker: &Worker, path: &str) -> anyhow::Result<UnixStream> {
    let connecting = worker.connect().await;
    let mut stream = connecting.context("Cannot reach the container")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// The body of a successful answer; `None` of any other.
fn body(answer: &[u8]) -> Option<&[u8]> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let mut windows = answer.windows(END_OF_HEAD.len());
    let head = windows.position(|window| window == END_OF_HEAD)?;
    answer
        .starts_with(b"HTTP/1.1 200 ")
        .then(|| &answer[head + END_OF_HEAD.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_what_follows_the_head_of_a_successful_answer() {
        let answer = |line: &str| format!("{line}\r\nContent-Length: 2\r\n\r\nhi").into_bytes();
        assert_eq!(body(&answer("HTTP/1.1 200 OK")), Some(&b"hi"[..]));
        assert_eq!(body(&answer("HTTP/1.1 503 No")), None);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
