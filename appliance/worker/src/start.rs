//! Starting a process in its control group, in one step.
//!
//! A process that is started first and then written to `cgroup.procs` makes the kernel wait until no processor reads the groups of any
//! process (`percpu_down_write` of `cgroup_threadgroup_rwsem`, an RCU grace period): 11 ms in the lab, in which the warden, which has one
//! thread, does nothing else. A process that is born in its group (`CLONE_INTO_CGROUP`, Linux 5.7) waits for nobody, and is never
//! outside of its limits.
//!
//! The standard library cannot do that, so this is the one piece of code outside of `vmm` and `agent` that is `unsafe`. It does
//! what `posix_spawn` of the C library does: the child borrows the memory and the stack of its parent, which stands still until the child
//! executes its program, so that nothing is copied whatever the size of the parent.

use std::arch::asm;
use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::room::Room;

/// What is started.
#[derive(Debug)]
pub struct Start<'a> {
    /// An open executable, and no path: where the child is by then, there may be none.
    pub program: BorrowedFd<'a>,
    pub arguments: &'a [&'a CStr],
    /// All of it, as `NAME=value`.
    pub environment: &'a [CString],
    /// None of the two may be 0, 1 or 2.
    pub stdin: BorrowedFd<'a>,
    /// Otherwise it is that of this process.
    pub stdout: Option<BorrowedFd<'a>>,
    /// The folder of a group of cgroup v2. Otherwise it is in the one of this process.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Where the child goes before it executes its program; processes are numbered for it alone there, and it is the first. Otherwise it
    /// is where this process is.
    pub room: Option<&'a Room>,
}

/// `struct clone_args` of linux/sched.h, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Handlers are code of this process, which the child does not have any more once it has executed its program (linux/sched.h).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// What a shell says of a program that it cannot execute.
const NOT_EXECUTED: c_int = 127;

/// All that the child needs, made before there is one: it must not allocate.
struct Child {
    program: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    stdin: c_int,
    stdout: Option<c_int>,
    /// Namespaces and their kinds.
    room: Option<[(c_int, c_int); 4]>,
    /// Why the program was not executed. Written by the child, into memory that it shares with its parent.
    error: c_int,
}

/// Starts a process in a process group of its own, with no signal blocked or handled. It has no descriptor but the three first ones, if all
/// others close on exec. Answers its number and a descriptor that means this process and never another one. It is the caller's to reap.
pub fn start(what: &Start<'_>) -> io::Result<(u32, OwnedFd)> {
    let arguments = pointers(what.arguments.iter().copied());
    let environment = pointers(what.environment.iter().map(CString::as_c_str));
    let mut child = Child {
        program: what.program.as_raw_fd(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        stdin: what.stdin.as_raw_fd(),
        stdout: what.stdout.map(|fd| fd.as_raw_fd()),
        room: what.room.map(Room::spaces),
        error: 0,
    };
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut args = CloneArgs {
        flags: u64::from(flags.unsigned_abs()) | CLONE_CLEAR_SIGHAND,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = what.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup =
            u64::try_from(cgroup.as_raw_fd()).expect("a descriptor is no negative number");
    }
    if what.room.is_some() {
        args.flags |= u64::from(libc::CLONE_NEWPID.unsigned_abs());
    }
    let pid = without_signals(|| {
        // SAFETY: `args` is a whole `struct clone_args` that asks for a child with our memory, while this thread stands still
        // (`CLONE_VFORK`), and `child` has what `become_program` asks for: `arguments`, `environment` and `what` live until the end of
        // this function, beyond the child's use of this memory.
        unsafe { clone_and_execute(&args, &mut child) }
    });
    let pid = u32::try_from(pid).map_err(|_| {
        // The negative number is the error's.
        io::Error::from_raw_os_error(i32::try_from(pid.unsigned_abs()).unwrap_or(libc::EIO))
    })?;
    // SAFETY: the kernel has just opened it for us (`CLONE_PIDFD`), and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: a read of our own variable, behind the compiler's back because the child has written to it.
    match unsafe { ptr::read_volatile(&raw const child.error) } {
        0 => Ok((pid, pidfd)),
        error => {
            reap(&pidfd);
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// With the null at the end. They live as long as what they point to.
fn pointers<'a>(texts: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    texts.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

/// It has ended, or is about to.
fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    // Nothing else than our own child can be meant, and the only error is an interruption.
    while waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .is_err_and(|error| error == rustix::io::Errno::INTR)
    {}
}

/// Runs `work` while no signal is delivered: its handler would run in the child as well, on what is not the child's.
fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: it fills the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: reads the set that was just filled, and writes the other one. It cannot fail with this `how`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let done = work();
    // SAFETY: reads the set that the call above has written, and writes nothing.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    done
}

/// Answers the child's number or a negative error. The child does not come back from here.
///
/// # Safety
/// `args` must ask for a child that shares our memory and lets us stand still, on the same stack. What `child` points to must be what
/// [`become_program`] asks for, until this returns.
unsafe fn clone_and_execute(args: &CloneArgs, child: &mut Child) -> i64 {
    let result: i64;
    // SAFETY: what the parent sees is one system call, which keeps to the clobbers that are declared: `clone3` changes what `rax`, `rcx` and `r11`
    // are, and memory.
    // The child begins behind the same instruction, with the same registers, zero in `rax` and the same stack. It calls a function that
    // does not return, and so writes below the stack pointer only: not to this function's frame or any above it (the block is not
    // `nostack`, so nobody keeps anything in the red zone, and the stack is aligned for a call). The parent goes on only when the
    // child has left this memory, with its own registers.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rdx",
            "call {child}",
            "ud2",
            "2:",
            child = sym become_program,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            in("rdx") child,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The child's whole life in our memory. It calls what is safe after a `fork` in a signal handler (signal-safety(7)), and system calls
/// that concern nobody but this thread.
///
/// # Safety
/// Runs in a child that shares its parent's memory, while that stands still. The pointers of `child` must be to lists of texts with a null
/// at their end.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "the calls share one reason"
)]
unsafe extern "C" fn become_program(child: &mut Child) -> ! {
    // SAFETY: each pointer is what the caller has promised, or to `none`; no call keeps one, and none touches other memory. What
    // this thread shares with its parent beside memory (`errno`) the parent does not look at before it has been changed again.
    unsafe {
        let mut none = MaybeUninit::uninit();
        let ready = libc::dup2(child.stdin, 0) >= 0
            && child.stdout.is_none_or(|fd| libc::dup2(fd, 1) >= 0)
            // A session of its own, with a group and without a terminal: Ctrl-C is for the warden, which ends things in order, and
            // nobody in here shall type into the shell that the warden was started from.
            && libc::setsid() >= 0
            // Rust ignores it in every program, which a child would inherit.
            && libc::signal(libc::SIGPIPE, libc::SIG_DFL) != libc::SIG_ERR
            && libc::sigemptyset(none.as_mut_ptr()) == 0
            && libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) == 0
            // What the C library does here beside the system call is nothing.
            && child.room.iter().flatten().all(|(space, kind)| libc::setns(*space, *kind) == 0);
        if ready {
            libc::syscall(
                libc::SYS_execveat,
                child.program,
                c"".as_ptr(),
                child.arguments,
                child.environment,
                libc::AT_EMPTY_PATH,
            );
        }
        ptr::write_volatile(&raw mut child.error, *libc::__errno_location());
        libc::_exit(NOT_EXECUTED)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    fn run(program: &str, arguments: &[&CStr], input: &str) -> io::Result<(String, Option<i32>)> {
        run_in(None, program, arguments, input)
    }

    fn run_in(
        room: Option<&Room>,
        program: &str,
        arguments: &[&CStr],
        input: &str,
    ) -> io::Result<(String, Option<i32>)> {
        let program = File::open(program)?;
        let (reader, mut writer) = io::pipe()?;
        let (mut answer, stdout) = io::pipe()?;
        let what = Start {
            program: program.as_fd(),
            arguments,
            environment: &[c"COLOR=blue".to_owned()],
            stdin: reader.as_fd(),
            stdout: Some(stdout.as_fd()),
            cgroup: None,
            room,
        };
        let (_, pidfd) = start(&what)?;
        drop((reader, stdout));
        writer.write_all(input.as_bytes())?;
        drop(writer);
        let mut said = String::new();
        answer.read_to_string(&mut said)?;
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        Ok((said, status.and_then(|status| status.exit_status())))
    }

    #[test]
    fn child_has_its_arguments_its_environment_and_its_ends() {
        let script = c"read word; echo $0 $1 $COLOR $word; exit 3";
        let ran = run(
            "/bin/sh",
            &[c"shell", c"-c", script, c"name", c"first"],
            "hello\n",
        );
        assert_eq!(
            ran.unwrap(),
            ("name first blue hello\n".to_owned(), Some(3))
        );
    }

    #[test]
    fn child_leads_a_group_and_neither_blocks_a_signal_nor_ignores_a_broken_pipe() {
        // Nothing that the shell would start: it blocks signals meanwhile.
        let script = c"while read line; do echo $line; done < /proc/$$/status; read pid name state parent group rest < /proc/$$/stat; [ $pid = $group ] && echo leads";
        let (said, _) = run("/bin/dash", &[c"dash", c"-c", script], "").unwrap();
        assert!(said.ends_with("leads\n"), "{said}");
        let set = |name| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        assert_eq!(set("SigBlk:"), 0);
        assert_eq!(set("SigIgn:") & (1 << (libc::SIGPIPE - 1)), 0);
    }

    #[test]
    fn program_that_cannot_be_executed_is_an_error_and_leaves_no_process() {
        let error = run("/nonexistent/program", &[c"x"], "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = run("/etc/passwd", &[c"x"], "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_is_no_control_group_is_refused() {
        let folder = File::open("/").unwrap();
        let null = File::open("/dev/null").unwrap();
        let program = File::open("/bin/true").unwrap();
        let what = Start {
            program: program.as_fd(),
            arguments: &[c"true"],
            environment: &[],
            stdin: null.as_fd(),
            stdout: None,
            cgroup: Some(folder.as_fd()),
            room: None,
        };
        start(&what).unwrap_err();
    }

    #[test]
    fn child_in_the_room_has_no_files_and_so_no_program_that_needs_some() {
        let room = match Room::make() {
            Ok(room) => room,
            Err(error) => return println!("SKIPPED: {error}"),
        };
        // It is executed from there, and then the loader and the libraries of this one are not to be found.
        let ran = run_in(Some(&room), "/bin/true", &[c"true"], "");
        assert_eq!(ran.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// The kernel ignores what the first process of a namespace sends itself, `SIGABRT` among it. Whoever gives up must be gone all the
    /// same.
    #[test]
    fn first_process_of_the_room_that_aborts_ends_by_a_signal() {
        const ITSELF: &CStr =
            c"start::tests::first_process_of_the_room_that_aborts_ends_by_a_signal";
        const INSIDE: &CStr = c"CABANA_TEST_ABORTS=1";
        if std::env::var_os("CABANA_TEST_ABORTS").is_some() {
            assert_eq!(std::process::id(), 1);
            std::process::abort();
        }
        let room = match Room::make() {
            Ok(room) => room,
            Err(error) => return println!("SKIPPED: {error}"),
        };
        let program = File::open("/proc/self/exe").unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        let (_, pidfd) = start(&Start {
            program: program.as_fd(),
            arguments: &[c"test", c"--exact", ITSELF],
            environment: &[INSIDE.to_owned()],
            stdin: null.as_fd(),
            stdout: Some(null.as_fd()),
            cgroup: None,
            room: Some(&room),
        })
        .unwrap();
        let limit = rustix::event::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        let ended = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(ended, 1, "it lives on");
        let signal = status.and_then(|status| status.terminating_signal());
        assert_eq!(signal, Some(libc::SIGSEGV));
    }

    #[test]
    fn parent_goes_on_as_before_whatever_its_children_do() {
        let numbers: Vec<u64> = (0..64).collect();
        for _ in 0..50 {
            assert_eq!(run("/bin/true", &[c"true"], "").unwrap().1, Some(0));
        }
        assert_eq!(numbers.iter().sum::<u64>(), 64 * 63 / 2);
    }
}
