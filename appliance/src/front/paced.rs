//! A connection whose client has to take what is sent to it, and what is known of its requests.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Fails when something was to be sent for so long and the client took nothing of it. A stream on which there is nothing to send
/// may be silent for ever.
pub struct Paced<S> {
    stream: S,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub fn new(stream: S, stall: Duration) -> Self {
        Self {
            stream,
            stall,
            stalled: None,
        }
    }

    fn judge(
        &mut self,
        wrote: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let stall = self.stall;
        let alarm = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        match alarm.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing of what is sent to it",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(wrote, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.judge(wrote, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How many requests a connection has open, and since when it has none.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    open: AtomicUsize,
    changed: Mutex<Instant>,
}

/// A request that is open until this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Shared>);

impl Activity {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            open: AtomicUsize::new(0),
            changed: Mutex::new(Instant::now()),
        }))
    }

    pub fn request(&self) -> Busy {
        self.0.open.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(&self.0))
    }

    /// Resolves when there was no request for so long.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let changed = *self
                .0
                .changed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let open = self.0.open.load(Ordering::Acquire) > 0;
            let now = Instant::now();
            if !open && now >= changed + limit {
                return;
            }
            // While a request is open the clock has not begun; it is looked at again when it could have ended at the earliest.
            sleep_until(if open { now + limit } else { changed + limit }).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // The time first: who sees no request open must not see the time before this one.
        *self
            .0
            .changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn client_that_takes_nothing_is_cut_and_a_slow_one_is_not() {
        for takes in [false, true] {
            let (mut client, server) = tokio::io::duplex(10);
            let mut server = Paced::new(server, LIMIT);
            tokio::spawn(async move {
                let mut byte = [0; 4];
                for _ in 0..10 {
                    tokio::time::sleep(LIMIT / 2).await;
                    if takes {
                        client.read_exact(&mut byte).await.unwrap();
                    }
                }
            });
            let wrote = server.write_all(&[0; 40]).await;
            assert_eq!(wrote.is_ok(), takes, "{wrote:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_idle_only_when_no_request_is_open() {
        let activity = Activity::new();
        let begun = Instant::now();
        let busy = activity.request();
        tokio::spawn(async move {
            tokio::time::sleep(LIMIT * 10).await;
            drop(busy);
        });
        activity.idle_for(LIMIT).await;
        assert!(begun.elapsed() >= LIMIT * 11, "{:?}", begun.elapsed());
        assert!(begun.elapsed() <= LIMIT * 12, "{:?}", begun.elapsed());
    }
}
