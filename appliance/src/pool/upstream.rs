//! Connections to one session's container, kept for reuse.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::launcher::Guest;

/// The body of a request on its way to a container.
pub type RequestBody = BoxBody<Bytes, hyper::Error>;

/// More idle connections than this are closed.
const MAX_IDLE: usize = 32;
/// Servers close idle connections after some seconds (gunicorn: 2, Node: 5); a shorter time here makes
/// it rare that both sides decide at once.
const IDLE_FOR: Duration = Duration::from_millis(1500);
/// Longest head of an answer, and most that is read ahead of the caller.
const BUFFER_BYTES: usize = 64 << 10;

/// The connections of one session.
pub struct Upstream {
    guest: Arc<dyn Guest>,
    kept: Mutex<Kept>,
}

/// Idle connections, the longest idle first.
#[derive(Default)]
struct Kept {
    idle: Vec<(Instant, SendRequest<RequestBody>)>,
    /// A task watches their age.
    watched: bool,
    closed: bool,
}

/// A connection that may carry one request now.
pub struct Connection {
    pub sender: SendRequest<RequestBody>,
    /// It has carried a request before, so the container may have closed it meanwhile.
    pub reused: bool,
}

impl Upstream {
    /// No connection is made before the first request.
    pub fn new(guest: Arc<dyn Guest>) -> Arc<Self> {
        Arc::new(Self {
            guest,
            kept: Mutex::default(),
        })
    }

    /// The guest behind it.
    pub fn guest(&self) -> Arc<dyn Guest> {
        Arc::clone(&self.guest)
    }

    /// A kept connection, or a new one.
    pub async fn connection(&self) -> io::Result<Connection> {
        match self.take_idle() {
            Some(sender) => Ok(Connection {
                sender,
                reused: true,
            }),
            None => self.new_connection().await,
        }
    }

    /// A new connection, whatever is kept.
    pub async fn new_connection(&self) -> io::Result<Connection> {
        let stream = self.guest.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            // How it ended is told to the request that was on it.
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection {
            sender,
            reused: false,
        })
    }

    /// Takes back a connection whose answer was read to its end.
    pub fn keep(self: &Arc<Self>, mut sender: SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        if sender.is_ready() {
            self.push_idle(sender);
            return;
        }
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            // Ready when the request's own body has been sent too.
            if sender.ready().await.is_ok() {
                upstream.push_idle(sender);
            }
        });
    }

    /// Closes what is kept, and keeps nothing more: many servers end only when idle connections are
    /// closed.
    pub fn close(&self) {
        let mut kept = self.kept();
        kept.closed = true;
        kept.idle.clear();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<SendRequest<RequestBody>> {
        let mut kept = self.kept();
        // The last one first: it is the least likely to be closed by the container.
        while let Some((since, sender)) = kept.idle.pop() {
            if since.elapsed() < IDLE_FOR && sender.is_ready() && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn push_idle(self: &Arc<Self>, sender: SendRequest<RequestBody>) {
        let mut kept = self.kept();
        if kept.closed {
            return;
        }
        if kept.idle.len() >= MAX_IDLE {
            kept.idle.remove(0);
        }
        kept.idle.push((Instant::now(), sender));
        if !kept.watched {
            kept.watched = true;
            tokio::spawn(close_old(Arc::downgrade(self)));
        }
    }
}

/// Closes connections when they are too old. A server that serves one connection at a time would
/// otherwise never come to the others. Ends when none is left.
async fn close_old(upstream: Weak<Upstream>) {
    loop {
        tokio::time::sleep(IDLE_FOR).await;
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        let mut kept = upstream.kept();
        kept.idle.retain(|(since, _)| since.elapsed() < IDLE_FOR);
        if kept.idle.is_empty() {
            kept.watched = false;
            return;
        }
    }
}
