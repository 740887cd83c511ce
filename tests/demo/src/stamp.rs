//! `/stamp`: what this process has had in its memory since it was started, and a note that can be left there.
//!
//! A container that was started once and copied afterwards has the same stamp in every copy.

use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use crate::echo::hex;
use crate::random;
use crate::reply::{self, Reply};
use crate::vdso;

/// Made before the first connection is accepted.
static STAMP: LazyLock<Stamp> = LazyLock::new(Stamp::new);

struct Stamp {
    /// Random bytes of the start.
    start: String,
    started_unix_ns: u64,
    note: Mutex<String>,
    /// The state of the vDSO's generator, seeded at the start.
    vdso: Mutex<io::Result<vdso::Random>>,
}

impl Stamp {
    fn new() -> Self {
        let start = random::by_call().map_or_else(|e| e.to_string(), |bytes| hex(&bytes));
        let vdso = vdso::Random::new().and_then(|mut random| {
            random.bytes()?;
            Ok(random)
        });
        Self {
            start,
            started_unix_ns: unix_ns(),
            note: Mutex::default(),
            vdso: Mutex::new(vdso),
        }
    }
}

/// To be called at the start of the program.
pub fn make() {
    LazyLock::force(&STAMP);
}

pub async fn answer(request: Request<Incoming>) -> Reply {
    if request.method() == Method::PUT {
        let Ok(body) = request.into_body().collect().await else {
            return reply::problem(StatusCode::BAD_REQUEST, "the body ended early");
        };
        let note = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        *lock(&STAMP.note) = note;
    }
    let note = lock(&STAMP.note).clone();
    reply::json(&json!({
        "start": STAMP.start,
        "startedUnixNs": STAMP.started_unix_ns,
        "pid": std::process::id(),
        "note": note,
    }))
}

/// The generator that was seeded at the start.
pub fn vdso<T>(use_it: impl FnOnce(&mut vdso::Random) -> io::Result<T>) -> io::Result<T> {
    match &mut *lock(&STAMP.vdso) {
        Ok(random) => use_it(random),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// By the wall clock.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Enough until the year 2554.
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
