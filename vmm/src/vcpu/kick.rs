//! Gets a vCPU thread out of the guest.
//!
//! A signal ends `KVM_RUN`, but one that arrives just before it would be lost. So the handler also sets
//! `immediate_exit` in the page that the thread shares with KVM, and the next `KVM_RUN` returns at once
//! (Documentation/virt/kvm/api.rst, 5. "The kvm_run structure").

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs, if any.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The first real-time signal that libc leaves to programs.
pub(crate) fn signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: sets one byte that KVM reads at its next entry.
        // - Valid: `Kickable` points it into a mapping that its `VcpuFd` keeps, and clears it before that goes.
        // - Same thread: a signal handler interrupts its own thread only, and the pointer is thread-local.
        // - Volatile: like KVM itself, it writes behind the references that `VcpuFd` hands out.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once per process.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = INSTALLED
        .get_or_init(|| register_signal_handler(signal(), on_kick).map_err(|error| error.errno()));
    result.map_err(io::Error::from_raw_os_error)
}

/// While this lives, kicks of the current thread reach the given vCPU. It cannot leave its thread.
pub struct Kickable<'a> {
    fd: &'a mut VcpuFd,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl<'a> Kickable<'a> {
    pub fn new(fd: &'a mut VcpuFd) -> io::Result<Self> {
        IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        // The creator may have blocked signals for all its threads.
        unblock_signal(signal()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self {
            fd,
            stays_on_its_thread: PhantomData,
        })
    }

    pub fn fd(&mut self) -> &mut VcpuFd {
        self.fd
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Kicks the vCPU that `thread` runs. A thread that has ended needs no kick, so errors mean nothing.
pub fn kick<T>(thread: &JoinHandle<T>) {
    let _ = thread.kill(signal());
}
