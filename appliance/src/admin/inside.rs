//! An operator looks into a session: a command beside its container, and what that has printed.
//!
//! `POST .../sessionPools/{pool}/sessions/{identifier}/exec` changes the protocol to `cabana-exec`: from then on the
//! connection carries the frames of [`wire::exec`] between the operator and the agent, and nothing in between reads
//! them. `GET .../logs` answers lines of JSON.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Admin;
use super::sessions::{checked, no_such_session};
use crate::arm::call::{allow, query_value};
use crate::arm::caller::Caller;
use crate::arm::path::{Target, target};
use crate::arm::properties::Address;
use crate::front::answer::{AnswerBody, RequestLog, refuse};
use crate::front::refusal::{Code, OPERATION_ID_HEADER, Refusal};
use crate::pool::Lease;
use crate::worker::{Entry, LogReader, tame};

/// What an exec call upgrades to.
pub const EXEC_PROTOCOL: &str = "cabana-exec";
/// How long the guest may take to end a command whose operator has gone. Longer than the agent gives the command.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);
/// Pieces of a log that wait for their reader; what comes behind stays in the log, which is bounded.
const PIECES: usize = 4;

/// What is to be looked at, as the path of a call names it.
pub struct Place {
    pool: Address,
    identifier: String,
    view: View,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Exec,
    Logs,
}

impl Place {
    /// `None`: the path is about something else.
    pub fn of(path: &str) -> Option<Self> {
        let (session, view) = path.rsplit_once('/')?;
        let view = match view {
            view if view.eq_ignore_ascii_case("exec") => View::Exec,
            view if view.eq_ignore_ascii_case("logs") => View::Logs,
            _ => return None,
        };
        match target(session) {
            Ok(Target::Session(pool, identifier)) => Some(Self {
                pool,
                identifier,
                view,
            }),
            _ => None,
        }
    }
}

/// What was found there.
enum Found {
    Exec(Box<Lease>, UnixStream),
    Logs { reader: LogReader, raw: bool },
}

impl Admin {
    /// Answers a call about the inside of a session.
    pub(super) async fn look_inside(
        &self,
        mut request: Request<Incoming>,
        place: &Place,
        mut log: RequestLog,
    ) -> Response<AnswerBody> {
        let trace = log.trace.clone();
        let found = match self.find_inside(&request, place, &mut log).await {
            Ok(found) => found,
            Err(refusal) => return refuse(refusal, &trace, log),
        };
        let mut response = match found {
            Found::Exec(lease, guest) => {
                log.session = Some(lease.session);
                log.status = StatusCode::SWITCHING_PROTOCOLS;
                let operator = hyper::upgrade::on(&mut request);
                tokio::spawn(relay(operator, guest, *lease, log));
                switching()
            }
            Found::Logs { reader, raw } => {
                let (sender, lines) = mpsc::channel(PIECES);
                tokio::spawn(send_lines(reader, raw, sender));
                let mut response = Response::new(AnswerBody::lines(lines, log));
                let kind = HeaderValue::from_static("application/x-ndjson");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
        };
        if let Ok(trace) = trace.parse() {
            response.headers_mut().insert(OPERATION_ID_HEADER, trace);
        }
        response
    }

    async fn find_inside(
        &self,
        request: &Request<Incoming>,
        place: &Place,
        log: &mut RequestLog,
    ) -> Result<Found, Refusal> {
        let query = request.uri().query();
        Caller::Local.version(query_value(query, "api-version").as_deref())?;
        log.pool = Some(self.arm.pool(&place.pool)?.name.clone());
        let pool = self.driver(&place.pool)?;
        let identifier = checked(&place.identifier)?;
        let absent = || no_such_session(&place.pool, &place.identifier);
        match place.view {
            View::Exec => {
                allow(request, &[Method::POST])?;
                check_upgrade(request)?;
                let lease = pool.visit(identifier).await.ok_or_else(absent)?;
                let guest = lease.upstream.guest();
                let stream = guest.connect_exec().await.map_err(no_commands)?;
                Ok(Found::Exec(Box::new(lease), stream))
            }
            View::Logs => {
                allow(request, &[Method::GET])?;
                let tail = tail(query_value(query, "tail").as_deref())?;
                let is = |name| query_value(query, name).is_some_and(|value| value == "true");
                let guest = pool.guest(identifier).await.ok_or_else(absent)?;
                Ok(Found::Logs {
                    reader: guest.log().read(tail, is("follow")),
                    raw: is("raw"),
                })
            }
        }
    }
}

/// A session lives through upgrades of the appliance, and its guest stays what it was.
fn no_commands(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::Unsupported {
        return Refusal::new(Code::SessionUnreachable, error.to_string());
    }
    let message = "The guest of the session does not take commands";
    Refusal::new(Code::SessionUnreachable, message).cause(error)
}

fn tail(text: Option<&str>) -> Result<Option<usize>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let count = text.parse().map_err(|_| {
        let message = format!("tail must be a number of lines, not {text:?}");
        Refusal::new(Code::InvalidRequestContent, message).target("tail")
    })?;
    Ok(Some(count))
}

fn check_upgrade(request: &Request<Incoming>) -> Result<(), Refusal> {
    let wanted = crate::front::upgrade_wanted(request.headers(), request.version());
    if wanted.is_some_and(|wanted| {
        wanted
            .as_bytes()
            .eq_ignore_ascii_case(EXEC_PROTOCOL.as_bytes())
    }) {
        return Ok(());
    }
    let message = format!("A command needs a connection of its own: send Upgrade: {EXEC_PROTOCOL}");
    Err(Refusal::new(Code::InvalidRequestContent, message).target("Upgrade"))
}

fn switching() -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::own(Bytes::new(), None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(EXEC_PROTOCOL));
    response
}

/// Carries bytes both ways until the command has ended or the operator has gone. A guest that does not end a command
/// then is not waited for: its session would never become idle.
async fn relay(operator: OnUpgrade, guest: UnixStream, lease: Lease, mut log: RequestLog) {
    let operator = match operator.await {
        Ok(operator) => TokioIo::new(operator),
        Err(error) => {
            log.cause = Some(anyhow::Error::new(error).context("changing the protocol"));
            return;
        }
    };
    let (mut from_operator, mut to_operator) = split(operator);
    let (mut from_guest, mut to_guest) = guest.into_split();
    {
        let up = async {
            // Either way nothing more will come.
            let _ = copy(&mut from_operator, &mut to_guest).await;
            let _ = to_guest.shutdown().await;
        };
        let mut down = std::pin::pin!(copy(&mut from_guest, &mut to_operator));
        let out = tokio::select! {
            out = &mut down => Some(out),
            () = up => tokio::time::timeout(HANG_UP_LIMIT, down).await.ok(),
        };
        match out {
            Some(Ok(bytes)) => {
                log.bytes_out = bytes;
                log.complete = true;
            }
            Some(Err(error)) => log.cause = Some(error.into()),
            None => {}
        }
    }
    let _ = to_operator.shutdown().await;
    drop(lease);
}

/// Each piece is some whole lines. Ends when the guest is gone, or the reader.
async fn send_lines(mut reader: LogReader, raw: bool, sender: mpsc::Sender<Bytes>) {
    loop {
        let entries = tokio::select! {
            entries = reader.next() => entries,
            () = sender.closed() => return,
        };
        let Some(entries) = entries else { return };
        let mut text = String::new();
        for entry in &entries {
            text.push_str(&line(entry, raw).to_string());
            text.push('\n');
        }
        if sender.send(text.into()).await.is_err() {
            return;
        }
    }
}

fn line(entry: &Entry, raw: bool) -> Value {
    match entry {
        Entry::Dropped(count) => json!({ "dropped": count }),
        Entry::Line(line) => {
            let at = i64::try_from(line.at_ms).ok();
            let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
            let text = if raw {
                line.text.clone()
            } else {
                tame(&line.text)
            };
            json!({ "time": at.map(|at| format!("{at:.3}")), "stream": line.stream, "line": text })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_about_the_inside_of_a_session_whatever_that_is_called() {
        let pools = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/sessionPools";
        let place = |path: &str| Place::of(&format!("{pools}/{path}"));
        for (path, identifier, view) in [
            ("p/sessions/a%2Fexec/exec", "a/exec", View::Exec),
            ("p/Sessions/exec/LOGS", "exec", View::Logs),
            ("sessions/sessions/logs/logs", "logs", View::Logs),
        ] {
            let place = place(path).unwrap();
            assert_eq!((place.identifier.as_str(), place.view), (identifier, view));
        }
        for other in [
            "p",
            "exec",
            "sessions/exec",
            "p/sessions/exec",
            "sessions/sessions/exec",
            "p/sessions/user/other",
            "p/sessions/user/exec/more",
            "p/slots/user/exec",
        ] {
            assert!(place(other).is_none(), "{other}");
        }
    }
}
