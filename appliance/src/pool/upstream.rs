//! Connections to one session's container, kept for reuse.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::launcher::Guest;
use super::request_body::{RequestBody, Sending};

/// More idle connections than this are closed. As many as one connection of a client may have requests at once.
const MAX_IDLE: usize = 256;
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
    idle: Vec<(Instant, Connection)>,
    /// A task watches their age.
    watched: bool,
    closed: bool,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection that may carry one request now.
///
/// It has no task of its own: whoever waits for its answer moves its bytes, so that between a container and
/// its caller there is one task to wake and not two. Nobody looks at one that is idle before it is taken again.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    /// `None` when a task has it, and when it is over.
    driver: Option<Driver>,
    /// Shared with the body of the request that is on it.
    sending: Arc<Sending>,
    /// It has carried a request before, so the container may have closed it meanwhile.
    pub reused: bool,
}

impl Connection {
    /// Gives the head of the answer.
    #[allow(
        clippy::result_large_err,
        reason = "as hyper has it: the request comes back"
    )]
    pub async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sending = Arc::default();
        request.body_mut().is_sent_by(Arc::clone(&self.sending));
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|context| {
            poll_driving(&mut self.driver, context, |context| {
                answer.as_mut().poll(context)
            })
        });
        let answered = answered.await;
        self.sending.answered.store(true, Ordering::Relaxed);
        if Arc::strong_count(&self.sending) > 1 {
            // It must go on also while the caller does not read the answer.
            self.detach();
        }
        answered
    }

    /// Polls what this connection brings, and moves its bytes for as long as that has not come.
    pub fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        poll_driving(&mut self.driver, context, look)
    }

    /// From here on a task moves the bytes, whether anybody waits for them or not.
    pub fn detach(&mut self) {
        if let Some(driver) = self.driver.take() {
            // How it ended is told to the request that was on it.
            tokio::spawn(async move { drop(driver.await) });
        }
    }

    /// Whether it can carry another request. An end that has come meanwhile is seen here.
    fn is_usable(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.sender.is_ready() && !self.sender.is_closed()
    }
}

fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(connection) = driver
        && connection.as_mut().poll(context).is_ready()
    {
        *driver = None;
    }
}

/// See [`Connection::poll`].
///
/// The connection and who looks at what it brings are one task, and each would wake it for what the other one has just done. A task that is
/// woken while it runs is put in the queue once more, and another processor is woken to help with that: one system call of eight in a
/// small request. So nobody is woken until there is nothing left to do here, and then only by the connection.
fn poll_driving<T>(
    driver: &mut Option<Driver>,
    context: &mut Context<'_>,
    mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let quiet = &mut Context::from_waker(Waker::noop());
    if driver.is_some() {
        let there = look(quiet);
        if there.is_ready() {
            return there;
        }
        drive(driver, quiet);
        let brought = look(quiet);
        if brought.is_ready() {
            return brought;
        }
        drive(driver, context);
    }
    // A task has the connection, or it is over; otherwise what comes is seen when it is driven.
    look(if driver.is_some() { quiet } else { context })
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
            Some(connection) => Ok(connection),
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
        Ok(Connection {
            sender,
            driver: Some(Box::pin(connection.with_upgrades())),
            sending: Arc::default(),
            reused: false,
        })
    }

    /// Takes back a connection whose answer was read to its end.
    pub fn keep(self: &Arc<Self>, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.reused = true;
        if connection.is_usable() {
            self.push_idle(connection);
            return;
        }
        connection.detach();
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            // Ready when the request's own body has been sent too.
            if connection.sender.ready().await.is_ok() {
                upstream.push_idle(connection);
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

    fn take_idle(&self) -> Option<Connection> {
        let mut kept = self.kept();
        // The last one first: it is the least likely to be closed by the container.
        while let Some((since, mut connection)) = kept.idle.pop() {
            if since.elapsed() < IDLE_FOR && connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    fn push_idle(self: &Arc<Self>, connection: Connection) {
        let mut kept = self.kept();
        if kept.closed {
            return;
        }
        if kept.idle.len() >= MAX_IDLE {
            kept.idle.remove(0);
        }
        kept.idle.push((Instant::now(), connection));
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
