//! The address of a port of the host, as a guest's vsock names it.

use std::mem::size_of;
use std::ptr;

use rustix::net::AddressFamily;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};

/// A port of the host.
#[derive(Debug, Clone, Copy)]
pub struct HostPort(pub u32);

// SAFETY: `f` gets a pointer to a whole `sockaddr_vm` on this stack frame and its size, and the
// frame lives until `f` has returned.
unsafe impl SocketAddrArg for HostPort {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let raw = libc::sockaddr_vm {
            svm_family: AddressFamily::VSOCK.as_raw(),
            svm_reserved1: 0,
            svm_port: self.0,
            svm_cid: libc::VMADDR_CID_HOST,
            svm_zero: [0; 4],
        };
        const LENGTH: SocketAddrLen = 16;
        const _: () = assert!(size_of::<libc::sockaddr_vm>() == LENGTH as usize);
        f(ptr::from_ref(&raw).cast(), LENGTH)
    }
}
