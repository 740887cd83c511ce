//! Each filter, tried on the kernel: a child installs it, makes one system call, and the way it ends tells what the filter said.
//!
//! A program of its own, because a child has a copy of every descriptor for as long as it lives: tests beside it that close a socket would
//! not see it closed.
#![allow(
    clippy::unwrap_used,
    reason = "everything here is a test; a panic is how it fails"
)]

use std::arch::asm;
use std::ffi::{c_int, c_long};

use vmm::sandbox::filter::{Answer, Only, Rule};
use vmm::sandbox::{ThreadClass, ioctls};

/// Above all numbers that there are.
const NUMBERS: std::ops::Range<c_long> = 0..600;
/// `uretprobe` and `uprobe`: the kernel calls them itself from code that it puts into a process, and asks no filter (`seccomp_uprobe_exception`,
/// kernel/seccomp.c). From elsewhere they are SIGILL.
const KERNELS_OWN: [c_long; 2] = [335, 336];
/// No pointer, no descriptor, no length that is any good: a call that is allowed fails and does nothing.
const NONSENSE: u64 = u64::MAX;
/// A child that is not done by then waits for what never comes.
const DEADLINE_SECONDS: u32 = 30;

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// By the filter.
    Refused,
    /// It came to its end, and what it did answered so.
    Done(bool),
    Signal(c_int),
    Exit(c_int),
}

/// Does `act` in a child that has the filter of `class`.
fn under(class: ThreadClass, act: impl FnOnce() -> bool) -> End {
    // SAFETY: the child has this thread alone and does not return from here. What it calls is system calls, and in some tests the C library's
    // allocator, which the C library makes usable after a fork.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no child");
    if child == 0 {
        confine(class);
        let answer = act();
        // Two ends that no filter can refuse, since neither is a system call: SIGILL and SIGTRAP.
        match answer {
            // SAFETY: it ends this process.
            true => unsafe { asm!("ud2") },
            // SAFETY: it ends this process.
            false => unsafe { asm!("int3") },
        }
        unreachable!();
    }
    let mut status = 0;
    // SAFETY: it writes to `status` alone, and the child is ours.
    let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(reaped, child);
    match (libc::WIFSIGNALED(status), libc::WTERMSIG(status)) {
        (true, libc::SIGSYS) => End::Refused,
        (true, libc::SIGILL) => End::Done(true),
        (true, libc::SIGTRAP) => End::Done(false),
        (true, libc::SIGALRM) => panic!("a call under the filter of {class:?} waits for ever"),
        (true, signal) => End::Signal(signal),
        (false, _) => End::Exit(libc::WEXITSTATUS(status)),
    }
}

fn confine(class: ThreadClass) {
    // SAFETY: concerns this process alone: no core file, an alarm, no privileges.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    // SAFETY: as above.
    unsafe { libc::alarm(DEADLINE_SECONDS) };
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if class.install().is_err() {
        // SAFETY: ends this process.
        unsafe { libc::_exit(99) };
    }
}

fn call(number: c_long, arguments: [u64; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: in a child that ends right after. Its arguments are nonsense, or what a rule allows beside nonsense.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Whether the filter lets the call through, whatever becomes of it then.
fn allowed(class: ThreadClass, number: c_long, arguments: [u64; 6]) -> bool {
    let end = under(class, || {
        call(number, arguments);
        true
    });
    assert_ne!(end, End::Exit(99), "no filter was installed");
    end != End::Refused
}

fn rule(class: ThreadClass, number: c_long) -> Option<&'static Rule> {
    class.rules().find(|rule| rule.call == number)
}

/// Values that a condition takes, and some that it does not.
fn samples(condition: &Only) -> (u32, Vec<u64>, Vec<u64>) {
    match *condition {
        Only::OneOf(argument, values) => {
            let good = values.iter().map(|value| u64::from(*value)).collect();
            // Neighbours, single bits more or less, and everything.
            let near = values
                .iter()
                .flat_map(|value| [0, 1, 2, 4, 8, 16, 31].map(|bit| value ^ (1 << bit)));
            let bad = near
                .chain([u32::MAX])
                .filter(|value| !values.contains(value))
                .map(u64::from);
            (argument, good, bad.collect())
        }
        Only::Within(argument, bits) => {
            let outside = (0..32)
                .map(|bit| 1_u32 << bit)
                .filter(|bit| bits & bit == 0);
            let bad = outside.map(|bit| u64::from(bits | bit));
            (argument, vec![0, u64::from(bits)], bad.collect())
        }
        // The child's own number is filled in there.
        Only::OwnProcess(argument) => (argument, vec![], vec![1, 0, NONSENSE]),
    }
}

/// Arguments that all conditions of a rule take.
fn good_arguments(rule: &Rule) -> [u64; 6] {
    let mut arguments = [NONSENSE; 6];
    for condition in rule.only {
        let (argument, good, _) = samples(condition);
        arguments[argument as usize] = good.first().copied().unwrap_or(OWN);
    }
    arguments
}

/// Stands for the child's number.
const OWN: u64 = 0x0bad_cafe;

/// As [`allowed`], with the child's number where [`OWN`] stands.
fn try_out(class: ThreadClass, number: c_long, arguments: [u64; 6]) -> bool {
    let end = under(class, || {
        let own = u64::from(std::process::id());
        call(
            number,
            arguments.map(|value| if value == OWN { own } else { value }),
        );
        true
    });
    assert_ne!(end, End::Exit(99), "no filter was installed");
    end != End::Refused
}

#[test]
fn system_call_that_no_rule_names_ends_the_process_in_every_class() {
    for class in ThreadClass::ALL {
        for number in NUMBERS {
            if rule(class, number).is_none() && !KERNELS_OWN.contains(&number) {
                assert!(
                    !allowed(class, number, [NONSENSE; 6]),
                    "{class:?} may call {number}"
                );
            }
        }
    }
}

#[test]
fn rule_allows_each_of_its_values_and_ends_the_process_for_each_other_one() {
    for class in ThreadClass::ALL {
        for rule in class.rules() {
            let number = rule.call;
            let good = good_arguments(rule);
            assert!(try_out(class, number, good), "{class:?} {rule:?}");
            for condition in rule.only {
                let (argument, values, others) = samples(condition);
                let with = |value| {
                    let mut arguments = good;
                    arguments[argument as usize] = value;
                    arguments
                };
                for value in values {
                    assert!(
                        try_out(class, number, with(value)),
                        "{class:?} {rule:?} {value:#x}"
                    );
                }
                for value in others {
                    assert!(
                        !try_out(class, number, with(value)),
                        "{class:?} {rule:?} {value:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn call_that_is_to_fail_fails_with_its_number_and_the_process_lives() {
    for class in ThreadClass::ALL {
        for rule in class.rules() {
            let Answer::Fail(errno) = rule.answer else {
                continue;
            };
            let end = under(class, || {
                let failed = call(rule.call, [NONSENSE; 6]) == -1;
                failed && std::io::Error::last_os_error().raw_os_error() == Some(errno.into())
            });
            assert_eq!(end, End::Done(true), "{class:?} {rule:?}");
        }
    }
}

/// Written out, so that a rule which adds one of them is a change of this list as well.
#[test]
fn no_class_may_reach_for_files_networks_processes_or_code() {
    let nowhere = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_creat,
        libc::SYS_open_by_handle_at,
        libc::SYS_memfd_create,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_perf_event_open,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_setup,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setuid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
        libc::SYS_personality,
        libc::SYS_pkey_mprotect,
        libc::SYS_shmat,
        libc::SYS_remap_file_pages,
        libc::SYS_modify_ldt,
        libc::SYS_arch_prctl,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_dup2,
        libc::SYS_splice,
        libc::SYS_vmsplice,
    ];
    for class in ThreadClass::ALL {
        for number in nowhere {
            assert!(rule(class, number).is_none(), "{class:?} may call {number}");
        }
    }
}

#[test]
fn no_class_may_make_memory_executable() {
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    for class in ThreadClass::ALL {
        for (number, flags) in [(libc::SYS_mmap, 0x22), (libc::SYS_mprotect, NONSENSE)] {
            for others in [0, 1, 3] {
                let arguments = [NONSENSE, NONSENSE, others | exec, flags, NONSENSE, 0];
                assert!(!allowed(class, number, arguments), "{class:?} {number}");
            }
        }
    }
}

#[test]
fn guest_is_run_by_vcpus_and_given_memory_by_its_maker_only() {
    use ThreadClass::{Devices, Maker, Orders, Owner, Vcpu};
    let may = |class, command: u32| {
        let mut arguments = [NONSENSE; 6];
        arguments[1] = command.into();
        allowed(class, libc::SYS_ioctl, arguments)
    };
    for class in [Owner, Orders, Devices] {
        assert!(!may(class, ioctls::RUN), "{class:?}");
    }
    for class in [Owner, Orders, Devices, Vcpu] {
        assert!(!may(class, ioctls::SET_USER_MEMORY_REGION), "{class:?}");
        assert!(!may(class, ioctls::CREATE_VCPU), "{class:?}");
    }
    assert!(may(Vcpu, ioctls::RUN) && may(Maker, ioctls::SET_USER_MEMORY_REGION));
}

#[test]
fn thread_is_cloned_by_the_maker_only_and_never_a_process_or_a_namespace() {
    for class in ThreadClass::ALL {
        let may = |flags: i32| {
            let flags = u64::from(flags.unsigned_abs());
            allowed(
                class,
                libc::SYS_clone,
                [flags, NONSENSE, NONSENSE, NONSENSE, NONSENSE, 0],
            )
        };
        for flags in [
            libc::SIGCHLD,
            libc::CLONE_VM | libc::CLONE_VFORK,
            libc::CLONE_NEWUSER,
        ] {
            assert!(!may(flags), "{class:?} {flags:#x}");
        }
    }
}

#[test]
fn system_call_of_another_convention_ends_the_process() {
    const GETPID_OF_32_BITS: i64 = 20;
    const X32: c_long = 1 << 30;
    for class in ThreadClass::ALL {
        let end = under(class, || {
            // SAFETY: asks for the number of this process, by the convention of 32-bit programs, which changes `rax` alone.
            unsafe {
                asm!("int 0x80", inlateout("rax") GETPID_OF_32_BITS => _, lateout("r8") _, lateout("r9") _,
                    lateout("r10") _, lateout("r11") _);
            }
            true
        });
        // A kernel without 32-bit programs refuses the instruction.
        assert!(
            [End::Refused, End::Signal(libc::SIGSEGV)].contains(&end),
            "{class:?} {end:?}"
        );
        assert!(!allowed(class, libc::SYS_getpid | X32, [0; 6]), "{class:?}");
    }
}

#[test]
fn process_that_gives_up_dies_of_sigabrt_and_not_of_its_filter() {
    for class in ThreadClass::ALL {
        let end = under(class, || std::process::abort());
        assert_eq!(end, End::Signal(libc::SIGABRT), "{class:?}");
    }
}

#[test]
fn fault_is_reported_as_a_fault() {
    for class in ThreadClass::ALL {
        let end = under(class, || {
            // SAFETY: no access at all is made: the address is none, and the process ends.
            unsafe {
                asm!("mov rax, [rax]", in("rax") 0x1000_0000_0000_0000_u64, lateout("rax") _)
            };
            true
        });
        assert_eq!(end, End::Signal(libc::SIGSEGV), "{class:?}");
    }
}

#[test]
fn maker_starts_a_vcpu_thread_that_has_a_filter_of_its_own() {
    let end = under(ThreadClass::Maker, || {
        let thread = std::thread::spawn(|| ThreadClass::Vcpu.install().is_ok());
        thread.join().unwrap_or(false)
    });
    assert_eq!(end, End::Done(true));
    // What its maker could do and the thread cannot.
    let end = under(ThreadClass::Maker, || {
        let thread = std::thread::spawn(|| {
            let installed = ThreadClass::Vcpu.install().is_ok();
            call(libc::SYS_userfaultfd, [0x80001; 6]);
            installed
        });
        thread.join().unwrap_or(false)
    });
    assert_eq!(end, End::Refused);
}
