//! The guest's network: loopback.

use std::fs;
use std::io;
use std::mem;

use rustix::fd::OwnedFd;
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::attempt::{Attempt, SetupError};

/// From `linux/sockios.h`.
const SIOCSIFFLAGS: Opcode = 0x8914;
/// As in other container runtimes: a program that is not root may listen on port 80, because
/// nobody else is there to be protected from it.
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Brings `lo` up, with 127.0.0.1 and ::1.
pub fn bring_up_loopback() -> Result<(), SetupError> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .attempt(|| "make a socket".into())?;
    set_flags(&socket, b"lo", libc::IFF_UP | libc::IFF_RUNNING)
        .attempt(|| "bring up the loopback interface".into())?;
    fs::write(FIRST_FREE_PORT, "0").attempt(|| format!("write 0 to {FIRST_FREE_PORT}"))
}

fn set_flags(socket: &OwnedFd, name: &[u8], flags: libc::c_int) -> io::Result<()> {
    // SAFETY: `ifreq` is made of integers and arrays of them (and of a pointer in a union that is
    // not read): all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `SIOCSIFFLAGS` reads one `struct ifreq`, whose libc definition is the kernel's, and
    // writes nothing.
    let setter = unsafe { Setter::<SIOCSIFFLAGS, libc::ifreq>::new(request) };
    // SAFETY: the pattern above describes this ioctl, and any descriptor is allowed: one that is
    // no socket is answered with an error.
    unsafe { ioctl(socket, setter) }?;
    Ok(())
}
