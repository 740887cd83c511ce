//! The process system calls that Rust cannot check. All unsafe code about processes is here.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use super::launch;

/// The first signal above the named ones, and the last one.
const FIRST_FREE_REALTIME_SIGNAL: i32 = 34;
const LAST_SIGNAL: i32 = 64;

/// Moves the calling thread into new namespaces. `flags` must not hold `FILES`.
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(
        !flags.contains(UnshareFlags::FILES),
        "threads must go on sharing their descriptors"
    );
    // SAFETY: the one danger is that a thread uses descriptors that another opened in a table that
    // is not its own any more. The assertion above rules `CLONE_FILES` out.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// Gives the calling process its own mounts, host name, IPC objects and view of the control groups.
/// For the stage, which has one thread.
pub fn unshare_all_but_pid_and_network() -> io::Result<()> {
    unshare(
        UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP,
    )
}

/// Goes on as two processes, the new one as PID 1 of a new PID namespace if `isolate` says so. `None` in the new one, which
/// has `stdio` and no other descriptor, and every signal as it was before anybody changed it: as a program has that was just
/// executed. For the agent, which has one thread.
///
/// Not `fork`, which cannot make a namespace: the namespace of an `unshare` would be that of all later children, too.
pub fn fork_stage(isolate: bool, stdio: [OwnedFd; 3]) -> io::Result<Option<Pid>> {
    let namespace = if isolate { libc::CLONE_NEWPID } else { 0 };
    // SAFETY: without a stack and without sharing memory the call is `fork`. What is dangerous about that is state that
    // another thread was just changing, such as a lock that stays locked in the child; there is no other thread. libc is
    // not told that the child has another number, which it would want for locks between threads only.
    let pid = unsafe { libc::syscall(libc::SYS_clone, namespace | libc::SIGCHLD, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => {}
        Ok(pid @ 1..) => return Ok(Pid::from_raw(pid)),
        Ok(_) | Err(_) => return Err(io::Error::last_os_error()),
    }
    // Before the descriptors are gone that handlers write to.
    reset_signal_dispositions();
    match keep_only(stdio) {
        Ok(()) => Ok(None),
        // The agent sees its end. To return would be to go on as a second agent.
        Err(_) => leave(launch::CANNOT_START),
    }
}

fn keep_only([stdin, stdout, stderr]: [OwnedFd; 3]) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    close_all_but_stdio()
}

/// Ends the stage. Not `exit`: what the agent has registered or buffered is not the stage's to finish.
pub fn leave(code: u8) -> ! {
    // SAFETY: `_exit` asks for nothing and returns to nobody.
    unsafe { libc::_exit(code.into()) }
}

/// For a process that uses nothing it had before.
fn close_all_but_stdio() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: what owned the descriptors is never used nor dropped in this process: it ends by [`leave`] or `execve`, neither
    // of which runs any of our code.
    match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes another program. Returns only if the kernel refuses.
///
/// Not `Command::exec`, which is `execvp`: that hands a file of an unknown format to `/bin/sh`, so a
/// program for another machine would end in a syntax error of the shell.
pub fn execute(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let [arguments, environment] = [arguments, environment].map(|strings| {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers
            .chain([ptr::null()])
            .collect::<Vec<*const c_char>>()
    });
    // SAFETY: `program` and every element of the arrays is a string that ends in NUL, borrowed for
    // the whole call; both arrays end in a null pointer. On success nothing of this process is
    // left that could be used wrongly, on failure nothing has changed.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default disposition. Handlers go at `exec` anyway, but "ignored" stays:
/// an agent under `nohup` would otherwise hand that on.
pub fn reset_signal_dispositions() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `SIG_DFL` installs no code of ours, so nothing can run at a bad moment. The call
        // fails for SIGKILL, SIGSTOP and the two that libc keeps, which have no other disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Goes on as two processes. `None` in the new one, which is the calling process's child. For the helper that enters a
/// container ([`super::enter`]), which has one thread.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: what is dangerous about `fork` is state that another thread was just changing, such as a lock that stays
    // locked in the child. The one caller is a process of ours that never starts a thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// A signal by its number, unless libc keeps it for itself.
pub fn signal(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number).or_else(|| {
        (FIRST_FREE_REALTIME_SIGNAL..=LAST_SIGNAL)
            .contains(&number)
            .then(|| {
                // SAFETY: the number is one of the real-time signals above those that libc reserves
                // (32 and 33 on Linux), see the range.
                unsafe { Signal::from_raw_unchecked(number) }
            })
    })
}
