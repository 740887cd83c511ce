//! The body of a request on its way to a container: no longer than it may be, and from a client that does send it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// Who sends so much while the container waits for [`BodyLimits::stall`] is slow, but not silent.
const LEAST_BYTES: u64 = 1024;

/// What a client may do with a body.
#[derive(Debug, Clone, Copy, Default)]
pub struct BodyLimits {
    pub most_bytes: Option<u64>,
    /// How long the container waits for the next [`LEAST_BYTES`]. Only until it answers: then it may be a conversation.
    pub stall: Option<Duration>,
}

/// Why a body came to no good end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body broke off")]
    Broken(#[from] hyper::Error),
    #[error("the body is longer than it may be")]
    TooLong,
    #[error("the client does not send the body")]
    Stalled,
    #[error("the request takes longer than it may")]
    OutOfTime,
}

/// Shared by a request's body and whoever waits for the answer. As long as both have it, the body is being sent.
#[derive(Debug, Default)]
pub struct Sending {
    pub answered: AtomicBool,
}

/// See the module documentation.
pub struct RequestBody<B = Incoming> {
    body: Option<B>,
    limits: BodyLimits,
    seen: u64,
    patience: Option<Patience>,
    sending: Option<Arc<Sending>>,
}

/// With a client that has sent less than [`LEAST_BYTES`] since `from`.
struct Patience {
    from: u64,
    /// Only what the container has waited for the client counts, not the other way round.
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<B> Default for RequestBody<B> {
    /// No body.
    fn default() -> Self {
        Self {
            body: None,
            limits: BodyLimits::default(),
            seen: 0,
            patience: None,
            sending: None,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> RequestBody<B> {
    pub fn new(body: B, limits: BodyLimits) -> Self {
        Self {
            body: (!body.is_end_stream()).then_some(body),
            limits,
            ..Self::default()
        }
    }

    pub fn is_sent_by(&mut self, sending: Arc<Sending>) {
        self.sending = Some(sending);
    }

    fn came(&mut self, bytes: u64) -> Result<(), BodyError> {
        self.seen += bytes;
        if let Some(patience) = &mut self.patience {
            if let Some((since, _)) = patience.waiting.take() {
                patience.waited += since.elapsed();
            }
            if self.seen - patience.from >= LEAST_BYTES {
                self.patience = None;
            }
        }
        match self.limits.most_bytes {
            Some(most) if self.seen > most => Err(BodyError::TooLong),
            _ => Ok(()),
        }
    }

    /// Nothing is there. `true`: and it has been so for too long.
    fn is_stalled(&mut self, context: &mut Context<'_>) -> bool {
        let answered = |sending: &Arc<Sending>| sending.answered.load(Ordering::Relaxed);
        let Some(stall) = self.limits.stall else {
            return false;
        };
        if self.sending.as_ref().is_some_and(answered) {
            self.patience = None;
            return false;
        }
        let patience = self.patience.get_or_insert_with(|| Patience {
            from: self.seen,
            waited: Duration::ZERO,
            waiting: None,
        });
        let left = stall.saturating_sub(patience.waited);
        let (_, alarm) = patience
            .waiting
            .get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        alarm.as_mut().poll(context).is_ready()
    }
}

impl<B: Body<Data = Bytes, Error = E> + Unpin, E: Into<BodyError>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                Poll::Ready(Some(this.came(length).map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.is_stalled(context) => Poll::Ready(Some(Err(BodyError::Stalled))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(nothing, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;

    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    struct Client(mpsc::Receiver<Bytes>);

    impl Body for Client {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let piece = self.0.poll_recv(context);
            piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn body(most_bytes: Option<u64>) -> (mpsc::Sender<Bytes>, RequestBody<Client>) {
        let (client, pieces) = mpsc::channel(1);
        let limits = BodyLimits {
            most_bytes,
            stall: Some(STALL),
        };
        (client, RequestBody::new(Client(pieces), limits))
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_drips_is_cut_and_a_slow_one_is_not() {
        for (bytes, fine) in [(1, false), (1024, true)] {
            let (client, body) = body(None);
            tokio::spawn(async move {
                for _ in 0..20 {
                    tokio::time::sleep(STALL / 2).await;
                    if client.send(Bytes::from(vec![0; bytes])).await.is_err() {
                        return;
                    }
                }
            });
            let begun = Instant::now();
            let read = body.collect().await;
            assert_eq!(read.is_ok(), fine, "{bytes} bytes at a time");
            if !fine {
                assert!(matches!(read, Err(BodyError::Stalled)));
                assert!(begun.elapsed() <= STALL + Duration::from_secs(1));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn container_that_reads_slowly_is_not_the_clients_fault() {
        let (client, mut body) = body(None);
        tokio::spawn(async move { while client.send(Bytes::from_static(b"x")).await.is_ok() {} });
        for _ in 0..5 {
            assert!(body.frame().await.unwrap().is_ok());
            tokio::time::sleep(STALL).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn body_may_pause_once_the_container_answers() {
        let (client, mut body) = body(None);
        let sending = Arc::new(Sending::default());
        body.is_sent_by(Arc::clone(&sending));
        sending.answered.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(STALL * 10).await;
            client.send(Bytes::from_static(b"x")).await.unwrap();
        });
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
    }

    #[tokio::test]
    async fn longer_body_than_allowed_breaks_off_at_the_limit() {
        let (client, body) = body(Some(3));
        tokio::spawn(async move { while client.send(Bytes::from_static(b"ab")).await.is_ok() {} });
        assert!(matches!(body.collect().await, Err(BodyError::TooLong)));
    }
}
