//! The platform's own calls on a pool: show, list and stop sessions.
//!
//! They start nothing and do not touch a session's idle clock: only forwarded requests do.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde_json::{Value, json};

use super::answer::{AnswerBody, RequestLog};
use super::percent_decode;
use super::refusal::{Code, OPERATION_ID_HEADER, Refusal};
use super::route::{self, Route};
use crate::access::{Claims, Scope};
use crate::arm::resource::moment;
use crate::pool::view::{SessionState, SessionView};
use crate::pool::{Identifier, PoolHandle, PoolName};

/// Sessions in one answer.
const PAGE: usize = 300;

/// What is asked.
enum Call {
    GetSession(Identifier),
    ListSessions { skip: usize },
    StopSession(Identifier),
}

/// A successful answer.
pub struct Reply {
    content_type: &'static str,
    body: String,
}

/// A call, and where it came to.
pub struct Asked<'a> {
    pub route: &'a Route,
    /// As the client named it.
    pub host: &'a str,
    /// The whole path of the request.
    pub uri: &'a Uri,
    pub pool: &'a PoolHandle,
    pub caller: Caller<'a>,
}

/// Who asks, and where.
pub struct Caller<'a> {
    pub claims: &'a Claims,
    pub scope: Scope<'a>,
}

impl Caller<'_> {
    /// Before anything is said about the session.
    fn check(&self, identifier: &Identifier) -> Result<(), Refusal> {
        self.claims.permit_session(self.scope, identifier)
    }

    fn sees(&self, view: &SessionView) -> bool {
        self.claims.sees_session(self.scope, &view.identifier)
    }
}

/// Answers one call; the role was checked before.
pub async fn answer<B>(
    request: &Request<B>,
    asked: Asked<'_>,
    log: &mut RequestLog,
) -> Result<Reply, Refusal> {
    let pool = asked.pool;
    match call(request.method(), asked.route)? {
        Call::GetSession(identifier) => {
            asked.caller.check(&identifier)?;
            let found = pool.session(identifier).await.filter(is_there);
            let view = found.ok_or_else(|| no_session(&asked.route.pool))?;
            log.session = Some(view.session);
            Ok(Reply::json(&full(&view)))
        }
        Call::ListSessions { skip } => {
            let mut sessions = pool.sessions().await;
            sessions.retain(|view| is_there(view) && asked.caller.sees(view));
            Ok(Reply::json(&list(&sessions, skip, &asked)))
        }
        Call::StopSession(identifier) => {
            asked.caller.check(&identifier)?;
            let view = pool.stop(identifier).await;
            let view = view.ok_or_else(|| no_session(&asked.route.pool))?;
            log.session = Some(view.session);
            let name = String::from(view.identifier);
            Ok(Reply {
                content_type: "text/plain",
                body: format!(
                    "Session {name} in session pool {} stopped.",
                    asked.route.pool
                ),
            })
        }
    }
}

impl Reply {
    /// Certificates in PEM (RFC 8555 §9.1).
    pub fn certificate(pem: &str) -> Self {
        Self {
            content_type: "application/pem-certificate-chain",
            body: pem.to_owned(),
        }
    }

    fn json(body: &Value) -> Self {
        Self {
            content_type: "application/json",
            body: body.to_string(),
        }
    }

    /// The whole answer. It may hold identifiers, so nobody on the way may keep it.
    pub fn into_response(self, operation: &str, mut log: RequestLog) -> Response<AnswerBody> {
        log.status = StatusCode::OK;
        log.bytes_out = self.body.len() as u64;
        log.complete = true;
        let mut headers = HeaderMap::new();
        let content_type = HeaderValue::from_static(self.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(operation) = HeaderValue::from_str(operation) {
            headers.insert(OPERATION_ID_HEADER, operation);
        }
        let mut response = Response::new(AnswerBody::own(self.body.into(), Some(log)));
        *response.headers_mut() = headers;
        response
    }
}

/// What is asked, if the call exists and has all that it needs.
fn call(method: &Method, route: &Route) -> Result<Call, Refusal> {
    let name = route.management().unwrap_or_default();
    let known = ["getSession", "listSessions", "stopSession"];
    let Some(known) = known.iter().find(|known| name.eq_ignore_ascii_case(known)) else {
        let message = format!(
            "There is no such management call on a custom container pool; there are {}",
            known.join(", ")
        );
        return Err(Refusal::new(Code::SessionRequestNotSupported, message));
    };
    if method != Method::POST {
        let message = format!("{known} is called with POST, not {method}");
        return Err(invalid("method", message));
    }
    let query = route.rest.query();
    check_version(query)?;
    Ok(match *known {
        "getSession" => Call::GetSession(route::identifier(query)?),
        "stopSession" => Call::StopSession(route::identifier(query)?),
        _ => Call::ListSessions { skip: skip(query)? },
    })
}

/// Every version answers the same, so any well-formed one will do.
fn check_version(query: Option<&str>) -> Result<(), Refusal> {
    let Some(version) = parameter(query, "api-version")? else {
        let message = "The query parameter api-version is missing; 2025-10-02-preview will do";
        return Err(invalid("api-version", message));
    };
    let date = version.strip_suffix("-preview").unwrap_or(&version);
    if date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok() {
        return Ok(());
    }
    let message = "api-version must look like 2025-07-01 or 2025-10-02-preview";
    Err(invalid("api-version", message))
}

fn skip(query: Option<&str>) -> Result<usize, Refusal> {
    match parameter(query, "skip")? {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| {
            let message = "skip is the number of sessions to leave out, a whole number from 0 on";
            invalid("skip", message)
        }),
    }
}

/// The decoded value of a parameter that may be there once.
fn parameter(query: Option<&str>, wanted: &'static str) -> Result<Option<String>, Refusal> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if percent_decode(name).as_deref() != Some(wanted.as_bytes()) {
            continue;
        }
        let value = percent_decode(value).and_then(|bytes| String::from_utf8(bytes).ok());
        let value = value.ok_or_else(|| invalid(wanted, "The value is not encoded correctly"))?;
        if found.replace(value).is_some() {
            let message = format!("The query parameter {wanted} is there more than once");
            return Err(invalid(wanted, message));
        }
    }
    Ok(found)
}

fn invalid(target: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionRequestValidationFailed, message).target(target)
}

fn no_session(pool: &PoolName) -> Refusal {
    let message = format!("There is no session with this identifier in session pool {pool}");
    Refusal::new(Code::SessionWithIdentifierNotFound, message).target("identifier")
}

/// A session that ends takes no request any more: the next one with its name gets another.
fn is_there(view: &SessionView) -> bool {
    match view.state {
        SessionState::Starting | SessionState::Active => true,
        SessionState::Ending => false,
    }
}

fn list(sessions: &[SessionView], skip: usize, asked: &Asked<'_>) -> Value {
    let page: Vec<_> = sessions.iter().skip(skip).take(PAGE).map(brief).collect();
    let next = skip.saturating_add(PAGE);
    json!({
        "count": page.len(),
        "value": page,
        "nextLink": (next < sessions.len()).then(|| next_link(next, asked)),
    })
}

/// With everything that the next call needs, unlike the cloud service's, which lacks the version.
fn next_link(skip: usize, asked: &Asked<'_>) -> String {
    let version = parameter(asked.route.rest.query(), "api-version");
    let version = version.ok().flatten().unwrap_or_default();
    let (host, path) = (asked.host, asked.uri.path());
    format!("https://{host}{path}?api-version={version}&skip={skip}")
}

/// A session in a list.
fn brief(view: &SessionView) -> Value {
    // Clients know one or the other name.
    let expires = view.expires_at_ms.and_then(moment);
    json!({
        "identifier": view.identifier,
        "etag": view.session.simple().to_string(),
        "expiresAt": expires,
        "expireAt": expires,
    })
}

fn full(view: &SessionView) -> Value {
    let mut shown = brief(view);
    shown["createdAt"] = json!(moment(view.created_at_ms));
    shown["lastAccessedAt"] = json!(moment(view.last_accessed_at_ms));
    shown
}
