//! A server that is as well as it is told to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::time::Instant;

use crate::query;
use crate::reply::{self, Reply};

/// Shared by all listeners.
pub struct Health {
    status: AtomicU16,
    /// Until then it is not well, whatever it was told.
    from: Instant,
}

impl Health {
    pub fn new(after: Duration) -> Arc<Self> {
        Arc::new(Self {
            status: AtomicU16::new(StatusCode::OK.as_u16()),
            from: Instant::now() + after,
        })
    }

    /// The status it was told, or 503 as long as it is starting.
    pub fn answer(&self) -> Reply {
        let status = if Instant::now() < self.from {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::from_u16(self.status.load(Ordering::Relaxed)).unwrap_or_default()
        };
        let mut reply = reply::text("this is how it is\n");
        *reply.status_mut() = status;
        reply
    }

    /// `status=N`: how it is from now on.
    pub fn set(&self, request: &Request<Incoming>) -> Reply {
        match query::number(request, "status", StatusCode::OK.as_u16()) {
            Ok(status @ 200..=599) => {
                self.status.store(status, Ordering::Relaxed);
                reply::empty(StatusCode::NO_CONTENT)
            }
            Ok(status) => reply::problem(
                StatusCode::BAD_REQUEST,
                &format!("status is from 200 to 599, not {status}"),
            ),
            Err(refusal) => *refusal,
        }
    }
}

/// Keeps the program's only thread busy for ever, a moment after this has been answered.
pub fn hang() -> Reply {
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        println!("demo: hanging on request");
        loop {
            std::hint::spin_loop();
        }
    });
    reply::empty(StatusCode::NO_CONTENT)
}
