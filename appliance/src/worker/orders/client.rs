//! The appliance's end of a worker's orders socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, listen, socket_with,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Answer, Order, OrderError};
use crate::warden::channel;
use crate::worker::console;

/// Orders that wait for the one before them.
const QUEUE: usize = 8;
/// Connections that may wait to be accepted: one appliance, and the one that follows it.
const BACKLOG: i32 = 4;
/// A worker that takes longer is stuck; sized for an emulated host with many workers at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Saving writes all the memory of a guest to a disk.
const SAVE_LIMIT: Duration = Duration::from_secs(600);

type Outcome = Result<Vec<(String, Duration)>, OrderError>;

struct Job {
    order: Order,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Outcome>,
}

/// Gives orders to one worker. Cheap to clone; the connection closes with the last clone.
#[derive(Debug, Clone)]
pub struct Orders {
    jobs: mpsc::Sender<Job>,
}

impl Orders {
    /// Makes the socket at `path` and connects to it. The listening end is for the worker, which
    /// finds this connection waiting there.
    pub fn open(path: &Path) -> io::Result<(Self, OwnedFd)> {
        let listener = socket()?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        listen(&listener, BACKLOG)?;
        Ok((Self::connect(path)?, listener))
    }

    /// Connects to a worker that listens at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let ours = socket()?;
        connect(&ours, &SocketAddrUnix::new(path)?)?;
        // tokio has no type for SOCK_SEQPACKET; of this one only the readiness is used.
        let ours = UnixDatagram::from_std(ours.into())?;
        let (jobs, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(work(ours, inbox));
        Ok(Self { jobs })
    }

    /// Gives one order and waits until it is carried out. Says where the time went. An order
    /// whose caller goes away is carried out all the same.
    pub async fn give(&self, order: Order, fds: Vec<OwnedFd>) -> Outcome {
        order.check(&fds)?;
        let (answer, answered) = oneshot::channel();
        let job = Job { order, fds, answer };
        self.jobs.send(job).await.map_err(|_| OrderError::Gone)?;
        answered.await.map_err(|_| OrderError::Gone)?
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Owns the connection. After a failure nobody knows which order an answer would belong to, so
/// nothing else is tried.
async fn work(socket: UnixDatagram, mut inbox: mpsc::Receiver<Job>) {
    while let Some(Job { order, fds, answer }) = inbox.recv().await {
        let limit = match order {
            Order::Save | Order::SaveWorkingSet => SAVE_LIMIT,
            Order::Boot { .. } | Order::Restore { .. } | Order::Pause | Order::Resume => LIMIT,
        };
        let what = order.what();
        let outcome = match timeout(limit, exchange(&socket, &order, fds)).await {
            Ok(Ok(Answer::Done { steps })) => Ok(steps
                .into_iter()
                .map(|(name, micros)| (name, Duration::from_micros(micros)))
                .collect()),
            Ok(Ok(Answer::Failed { message })) => Err(OrderError::Refused {
                what,
                message: console::tame(&message),
            }),
            Ok(Err(_)) => Err(OrderError::Gone),
            Err(_) => Err(OrderError::TimedOut {
                what,
                seconds: limit.as_secs(),
            }),
        };
        let usable = matches!(outcome, Ok(_) | Err(OrderError::Refused { .. }));
        let _ = answer.send(outcome);
        if !usable {
            return;
        }
    }
}

async fn exchange(socket: &UnixDatagram, order: &Order, fds: Vec<OwnedFd>) -> io::Result<Answer> {
    let bytes = serde_json::to_vec(order)?;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let send = || channel::send(socket.as_fd(), &bytes, &borrowed, true);
    socket.async_io(Interest::WRITABLE, send).await?;
    drop(fds);
    let receive = || channel::receive(socket.as_fd(), true);
    let message = socket.async_io(Interest::READABLE, receive).await?;
    let message = message.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(serde_json::from_slice(&message.bytes)?)
}
