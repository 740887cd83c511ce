//! Connecting to the container's port, without blocking.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrV4, SocketAddrV6, SocketFlags, SocketType, ipproto, sockopt,
};

/// Which loopback address is tried. Version 4 comes first; a program that listens on version 6
/// alone is found by the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    V4,
    V6,
}

/// Begins to connect. The descriptor becomes writable when it is decided, see [`outcome`].
pub fn begin(loopback: Loopback, port: u16) -> io::Result<OwnedFd> {
    let family = match loopback {
        Loopback::V4 => AddressFamily::INET,
        Loopback::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // Requests are forwarded as they come, so waiting for more bytes only adds delay.
    sockopt::set_tcp_nodelay(&socket, true)?;
    let connected = match loopback {
        Loopback::V4 => {
            rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        }
        Loopback::V6 => {
            rustix::net::connect(&socket, &SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0))
        }
    };
    match connected {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// How a connect that was begun came out; `None` while it is undecided.
pub fn outcome(socket: impl AsFd) -> Option<io::Result<()>> {
    match sockopt::socket_error(&socket) {
        Ok(Ok(())) => {}
        Ok(Err(error)) | Err(error) => return Some(Err(error.into())),
    }
    match rustix::net::getpeername(&socket) {
        Ok(Some(_)) => Some(Ok(())),
        Ok(None) | Err(Errno::NOTCONN) => None,
        Err(error) => Some(Err(error.into())),
    }
}
