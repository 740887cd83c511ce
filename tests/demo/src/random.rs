//! `/random`: thirty-two bytes from one of the kernel's ways to give them.

use std::io;

use hyper::{Request, StatusCode};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::echo::hex;
use crate::reply::{self, Reply};
use crate::vdso;
use crate::{query, stamp};

/// Bytes of every answer.
pub const LENGTH: usize = 32;

/// `source=getrandom` (the default), `urandom`, `uuid` or `vdso`.
pub fn random<B>(request: &Request<B>) -> Reply {
    let source = query::parameter(request, "source").unwrap_or_else(|| "getrandom".to_owned());
    let bytes = match source.as_str() {
        "getrandom" => by_call(),
        "urandom" => by_device(),
        "uuid" => return by_uuid(),
        "vdso" => stamp::vdso(vdso::Random::bytes),
        other => {
            let message = format!("source is getrandom, urandom, uuid or vdso, not {other:?}");
            return reply::problem(StatusCode::BAD_REQUEST, &message);
        }
    };
    match bytes {
        Ok(bytes) => reply::text(&hex(&bytes)),
        // The kernel has no such thing, which is not the same as a failure.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            reply::problem(StatusCode::NOT_IMPLEMENTED, &format!("{source}: {error}"))
        }
        Err(error) => failed(&source, &error),
    }
}

pub fn by_call() -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    // Up to 256 bytes are given whole (getrandom(2)).
    match getrandom(&mut bytes[..], GetRandomFlags::empty())? {
        LENGTH => Ok(bytes),
        short => Err(io::Error::other(format!("only {short} bytes"))),
    }
}

fn by_device() -> io::Result<[u8; LENGTH]> {
    use io::Read as _;
    let mut bytes = [0; LENGTH];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A UUID that the kernel makes.
fn by_uuid() -> Reply {
    match std::fs::read_to_string("/proc/sys/kernel/random/uuid") {
        Ok(uuid) => reply::text(uuid.trim_end()),
        Err(error) => failed("uuid", &error),
    }
}

fn failed(source: &str, error: &io::Error) -> Reply {
    let message = format!("{source}: {error}");
    reply::problem(StatusCode::INTERNAL_SERVER_ERROR, &message)
}
