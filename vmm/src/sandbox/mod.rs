//! What each thread of a worker may ask of the kernel: an allow-list of system calls for each class of threads (seccomp(2)).
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`filter`] | rules, and how they become a program at build time |
//! | [`classes`] | the rules of each class of a worker's threads, each with its reason |
//! | [`common`] | rules that classes share |
//! | [`ioctls`] | the numbers of KVM's calls |
//!
//! # Threads
//! A filter belongs to a thread and to those that it starts, and is never taken off. So each thread of a microVM installs its own as
//! the first thing it does; the thread that owns the microVM has two, a wide one while it makes a guest of files that may lie, and a narrow
//! one from before the guest's first instruction on.
//!
//! # Trust
//! Threads share their memory, so whoever has taken over one of them may reach what the others may. Taken together they may
//! not open, connect, execute, trace or signal anything, nor make memory executable.
//!
//! # Not here
//! User ids, namespaces, limits: the worker's.

pub mod classes;
pub mod common;
pub mod filter;
pub mod ioctls;

use std::ffi::c_ulong;
use std::io;

use libc::sock_fprog;

pub use classes::ThreadClass;
use filter::{IF_EQUAL, OWN_PROCESS, Program};

/// Whether the threads of a microVM install their filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filters {
    On,
    /// For hosts that have no seccomp, and for tests that look into a worker.
    Off,
}

impl Filters {
    /// Installs the filter of `class` on this thread, for good.
    pub fn install(self, class: ThreadClass) -> io::Result<()> {
        match self {
            Self::On => class.install(),
            Self::Off => Ok(()),
        }
    }
}

/// Installs a program of [`filter::compile`] on this thread, for good. It adds to those that the thread has: a call must be allowed by all.
///
/// The process must have given up to gain privileges (`no_new_privs`), or the kernel refuses.
pub fn install<const N: usize>(program: &Program<N>) -> io::Result<()> {
    let mut steps = program.0;
    let own = std::process::id();
    for step in &mut steps {
        if step.code == IF_EQUAL && step.k == OWN_PROCESS {
            step.k = own;
        }
    }
    let program = sock_fprog {
        len: u16::try_from(steps.len()).map_err(io::Error::other)?,
        filter: steps.as_mut_ptr(),
    };
    // No flags: other threads have filters of their own, and older kernels keep the speculation of a filtered thread in check.
    let flags: c_ulong = 0;
    // SAFETY: the kernel copies the program that `program` points to, of the length it says, and checks it.
    // What changes is what this thread may ask for from now on; a call that it may not make ends the process and returns
    // nowhere, so that no code sees half of one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
