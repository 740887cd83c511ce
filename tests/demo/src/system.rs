//! `/clock`, `/statvfs` and `/isn`: what the guest's kernel says.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use hyper::{Request, StatusCode};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::query;
use crate::reply::{self, Reply};
use crate::stamp::unix_ns;

/// Linux, `include/uapi/linux/tcp.h`.
const TCP_SEND_QUEUE: i32 = 2;

/// The wall clock, and the one that never goes back.
pub fn clock() -> Reply {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let monotonic = i128::from(monotonic.tv_sec) * 1_000_000_000 + i128::from(monotonic.tv_nsec);
    reply::json(&json!({
        "unixNs": unix_ns(),
        "monotonicNs": u64::try_from(monotonic).unwrap_or_default(),
    }))
}

/// The size of the file system at `path`, `/` by default.
pub fn file_system<B>(request: &Request<B>) -> Reply {
    let path = query::parameter(request, "path").unwrap_or_else(|| "/".to_owned());
    match rustix::fs::statvfs(path.as_str()) {
        Ok(found) => reply::json(&json!({
            "totalBytes": found.f_blocks * found.f_frsize,
            "freeBytes": found.f_bavail * found.f_frsize,
        })),
        Err(error) => reply::problem(StatusCode::NOT_FOUND, &format!("{path}: {error}")),
    }
}

/// The first sequence number of a TCP connection from the port `from` to this server, and the time before and after it was
/// chosen: the kernel adds the time to a secret of its own (Linux, `net/core/secure_seq.c`).
pub fn initial_sequence<B>(request: &Request<B>, port: u16) -> Reply {
    let from = match query::number(request, "from", 40_000_u16) {
        Ok(from) => from,
        Err(refusal) => return *refusal,
    };
    match connect_and_look(from, port) {
        Ok((sequence, before, after)) => reply::json(&json!({
            "sequence": sequence,
            "beforeUnixNs": before,
            "afterUnixNs": after,
        })),
        Err(error) => reply::problem(StatusCode::FORBIDDEN, &format!("port {from}: {error}")),
    }
}

fn connect_and_look(from: u16, port: u16) -> io::Result<(u32, u64, u64)> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, from))?;
    let before = unix_ns();
    connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    let after = unix_ns();
    // Tells the number of the next byte to be sent: one more than the first number, since nothing was sent but the SYN.
    set(&socket, libc::TCP_REPAIR, 1)?;
    set(&socket, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
    let next = get(&socket, libc::TCP_QUEUE_SEQ)?;
    // Or the server would never hear of the end.
    set(&socket, libc::TCP_REPAIR, 0)?;
    Ok((next.wrapping_sub(1), before, after))
}

fn set(socket: &impl std::os::fd::AsFd, option: i32, value: i32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let at = (&raw const value).cast();
    // SAFETY: the option's value is a number of four bytes, which is there for as long as the call takes.
    let answer = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, at, 4) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get(socket: &impl std::os::fd::AsFd, option: i32) -> io::Result<u32> {
    let (mut value, mut length) = (0_u32, 4);
    let fd = socket.as_fd().as_raw_fd();
    let at = (&raw mut value).cast();
    // SAFETY: the option's value is a number of four bytes, and so is the place for it.
    let answer = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, option, at, &raw mut length) };
    if answer == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
