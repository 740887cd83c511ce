//! The body of an answer, and the log line that is written when it has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep_until};
use uuid::Uuid;

use super::limit::Place;
use super::paced::Busy;
use super::refusal::{Code, Refusal};
use crate::access::TokenHash;
use crate::pool::{BodyError, Connection, Lease, PoolName, Upstream};

/// What is said about a request when it has ended. It never holds an identifier, a token, a path or
/// a payload.
#[derive(Debug)]
pub struct RequestLog {
    pub trace: String,
    pub method: Method,
    pub version: Version,
    pub pool: Option<PoolName>,
    pub session: Option<Uuid>,
    /// How long it waited for its session.
    pub claim: Option<Duration>,
    pub status: StatusCode,
    pub code: Option<Code>,
    pub cause: Option<anyhow::Error>,
    pub started: Instant,
    pub bytes_out: u64,
    /// Cleared when the answer was cut short, by either side.
    pub complete: bool,
    /// What the request takes of the limits until it has ended.
    pub takes: Takes,
}

/// See [`RequestLog::takes`].
#[derive(Debug, Default)]
pub struct Takes {
    pub connection: Option<Busy>,
    pub token: Option<Place<TokenHash>>,
    pub session: Option<Place<Uuid>>,
    /// When it has had all the time that there is for a request.
    pub deadline: Option<tokio::time::Instant>,
}

impl RequestLog {
    /// Of a request that has just come.
    pub fn new(method: Method, version: Version) -> Self {
        Self {
            trace: trace_id(),
            method,
            version,
            pool: None,
            session: None,
            claim: None,
            status: StatusCode::OK,
            code: None,
            cause: None,
            started: Instant::now(),
            bytes_out: 0,
            complete: false,
            takes: Takes::default(),
        }
    }
}

/// Names a request in the log and in its answer. It is no secret and opens nothing, so that the kernel is not asked each time.
fn trace_id() -> String {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    id.simple().to_string()
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        tracing::info!(
            trace = self.trace,
            method = %self.method,
            version = ?self.version,
            pool = self.pool.as_ref().map(tracing::field::display),
            session = self.session.as_ref().map(tracing::field::display),
            status = self.status.as_u16(),
            code = self.code.map(Code::as_str),
            cause = self.cause.as_ref().map(|cause| format!("{cause:#}")),
            bytes_out = self.bytes_out,
            complete = self.complete,
            claim_ms = self.claim.map(|claim| tracing::field::display(millis(claim))),
            ms = %millis(self.started.elapsed()),
            "request"
        );
    }
}

/// To the microsecond: a claim of a session that is ready takes a fraction of a millisecond.
fn millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

/// The answer for a caller that does not get what it asked for.
pub fn refuse(mut refusal: Refusal, operation: &str, mut log: RequestLog) -> Response<AnswerBody> {
    log.status = refusal.status.unwrap_or(refusal.code.status());
    log.code = Some(refusal.code);
    log.cause = refusal.cause.take();
    log.complete = true;
    let (parts, body) = refusal.into_response(&log.trace, operation).into_parts();
    Response::from_parts(parts, AnswerBody::own(body, Some(log)))
}

/// The body of every answer of the front door.
pub struct AnswerBody {
    source: Source,
    /// How it broke off, told one turn later: what came before it is sent meanwhile, and would be dropped otherwise.
    broken: Option<BodyError>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Absent when a tunnel goes on after this answer: it has the line then.
    log: Option<RequestLog>,
}

enum Source {
    Own(Full<Bytes>),
    /// Whatever is sent, until the sender is gone.
    Lines(mpsc::Receiver<Bytes>),
    Container {
        body: Incoming,
        hold: Option<Hold>,
    },
}

/// What an answer of a container holds until it has been read to its end.
pub struct Hold {
    pub lease: Lease,
    pub upstream: Arc<Upstream>,
    pub connection: Connection,
}

impl AnswerBody {
    /// A body of our own.
    pub fn own(bytes: Bytes, log: Option<RequestLog>) -> Self {
        Self {
            source: Source::Own(Full::new(bytes)),
            broken: None,
            deadline: None,
            log,
        }
    }

    /// A body that goes on as long as somebody sends. The sender learns when nobody reads any more.
    pub fn lines(lines: mpsc::Receiver<Bytes>, log: RequestLog) -> Self {
        Self {
            source: Source::Lines(lines),
            broken: None,
            deadline: None,
            log: Some(log),
        }
    }

    /// A body that a container sends.
    pub fn from_container(body: Incoming, hold: Hold, log: RequestLog) -> Self {
        let mut this = Self {
            source: Source::Container {
                body,
                hold: Some(hold),
            },
            broken: None,
            deadline: log.takes.deadline.map(|at| Box::pin(sleep_until(at))),
            log: Some(log),
        };
        if this.is_end_stream() {
            this.finish();
        }
        this
    }

    /// The answer is whole: the connection can be used again, the session's idle clock may run.
    fn finish(&mut self) {
        if let Some(log) = &mut self.log {
            log.complete = true;
        }
        if let Source::Container { hold, .. } = &mut self.source
            && let Some(Hold {
                lease,
                upstream,
                connection,
            }) = hold.take()
        {
            upstream.keep(connection);
            drop(lease);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match &mut self.source {
            Source::Own(body) => Pin::new(body)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Source::Lines(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
            Source::Container { body, hold: None } => Pin::new(body).poll_frame(context),
            Source::Container {
                body,
                hold: Some(Hold { connection, .. }),
            } => connection.poll(context, |context| Pin::new(&mut *body).poll_frame(context)),
        };
        let frame = frame.map(|ready| ready.map(|frame| frame.map_err(BodyError::from)));
        let late = frame.is_pending()
            && self
                .deadline
                .as_mut()
                .is_some_and(|deadline| deadline.as_mut().poll(context).is_ready());
        let frame = if late {
            Poll::Ready(Some(Err(BodyError::OutOfTime)))
        } else {
            frame
        };
        if let Poll::Ready(ready) = &frame {
            match ready {
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                    if let Some(log) = &mut self.log {
                        log.bytes_out += length;
                    }
                    // The server does not ask again after the last byte of a known length.
                    if self.is_end_stream() {
                        self.finish();
                    }
                }
                Some(Err(error)) => {
                    let error = anyhow::anyhow!("the answer broke off: {error}");
                    if let Some(log) = &mut self.log {
                        log.cause = Some(error);
                    }
                }
                None => self.finish(),
            }
        }
        if let Poll::Ready(Some(Err(error))) = frame {
            self.broken = Some(error);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Lines(_) => false,
            Source::Container { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Lines(_) => SizeHint::new(),
            Source::Container { body, .. } => body.size_hint(),
        }
    }
}
