//! vsock: the only wire between a guest and its host.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` of `linux/vm_sockets.h`: a `struct timeval` with 64-bit fields.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;
/// How long a connect waits for the host to accept. Long, because the host accepts whenever it
/// likes, and finite, because the kernel wants a number.
const CONNECT_TIMEOUT_SECONDS: libc::time_t = 24 * 60 * 60;
/// Connections that the kernel holds until we accept them.
const BACKLOG: i32 = 128;

/// An address: a machine and a port in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct VsockAddr {
    cid: u32,
    port: u32,
}

impl VsockAddr {
    fn of(address: &SocketAddrAny) -> Option<Self> {
        let length = usize::try_from(address.addr_len()).ok()?;
        if address.address_family() != AddressFamily::VSOCK
            || length < size_of::<libc::sockaddr_vm>()
        {
            return None;
        }
        // SAFETY: `as_ptr` points to `addr_len()` initialised bytes (an invariant of
        // `SocketAddrAny`), which the check above made enough; any bytes are a valid `sockaddr_vm`,
        // and `read_unaligned` asks for no alignment.
        let raw = unsafe { ptr::read_unaligned(address.as_ptr().cast::<libc::sockaddr_vm>()) };
        Some(Self {
            cid: raw.svm_cid,
            port: raw.svm_port,
        })
    }
}

// SAFETY: `f` gets a pointer to a whole `sockaddr_vm` on this stack frame and its size, and the
// frame lives until `f` has returned.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let raw = libc::sockaddr_vm {
            svm_family: AddressFamily::VSOCK.as_raw(),
            svm_reserved1: 0,
            svm_port: self.port,
            svm_cid: self.cid,
            svm_zero: [0; 4],
        };
        const LENGTH: SocketAddrLen = 16;
        const _: () = assert!(size_of::<libc::sockaddr_vm>() == LENGTH as usize);
        f(ptr::from_ref(&raw).cast(), LENGTH)
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Begins to connect to a port of the host; the descriptor becomes writable when it is decided.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    set_connect_timeout(socket.as_fd())?;
    match rustix::net::connect(
        &socket,
        &VsockAddr {
            cid: libc::VMADDR_CID_HOST,
            port,
        },
    ) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn set_connect_timeout(socket: BorrowedFd<'_>) -> io::Result<()> {
    let timeout = libc::timeval {
        tv_sec: CONNECT_TIMEOUT_SECONDS,
        tv_usec: 0,
    };
    const LENGTH: libc::socklen_t = 16;
    const _: () = assert!(size_of::<libc::timeval>() == LENGTH as usize);
    // SAFETY: the kernel reads LENGTH bytes, the size of `timeout`, which lives until the call has
    // returned; `socket` is open as long as it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            ptr::from_ref(&timeout).cast(),
            LENGTH,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Listens on a port of this guest.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::bind(
        &socket,
        &VsockAddr {
            cid: libc::VMADDR_CID_ANY,
            port,
        },
    )?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connection from the host, `None` when there is none now. What the container itself
/// connects to this port (over vsock loopback, if the kernel has it) is dropped.
pub fn accept_from_host(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&listener, flags) {
            Ok((stream, peer)) => {
                let peer = peer.as_ref().and_then(VsockAddr::of);
                if peer.is_some_and(|peer| peer.cid == libc::VMADDR_CID_HOST) {
                    return Ok(Some(stream));
                }
            }
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_survives_the_form_that_the_kernel_takes() {
        let address = VsockAddr { cid: 2, port: 1025 };
        assert_eq!(VsockAddr::of(&address.as_any()), Some(address));
    }

    #[test]
    fn address_of_another_family_is_none() {
        let address = rustix::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1025);
        assert_eq!(VsockAddr::of(&address.as_any()), None);
    }
}
