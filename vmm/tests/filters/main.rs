//! Each filter, tried on the kernel: a child installs it, makes one system call, and the way it ends tells what the filter said.
//!
//! A program of its own, because a child has a copy of every descriptor for as long as it lives: tests beside it that close a socket would
//! not see it closed.
#![allow(
    clippy::unwrap_used,
    reason = "everything here is a test; a panic is how it fails"
)]

mod child;

use std::arch::asm;
use std::ffi::c_long;
use std::io;

use child::{End, Filter, NONSENSE, allowed, call, under};
use vmm::sandbox::filter::Rule;
use vmm::sandbox::{ThreadClass, ioctls};

impl Filter for ThreadClass {
    fn install(self) -> io::Result<()> {
        ThreadClass::install(self)
    }

    fn rules(self) -> Vec<&'static Rule> {
        ThreadClass::rules(self).collect()
    }
}

#[test]
fn system_call_that_no_rule_names_ends_the_process_in_every_class() {
    ThreadClass::ALL
        .into_iter()
        .for_each(child::assert_others_end_the_process);
}

#[test]
fn rule_allows_each_of_its_values_and_ends_the_process_for_each_other_one() {
    ThreadClass::ALL
        .into_iter()
        .for_each(child::assert_values_are_looked_at);
}

#[test]
fn call_that_is_to_fail_fails_with_its_number_and_the_process_lives() {
    ThreadClass::ALL
        .into_iter()
        .for_each(child::assert_failures_are_harmless);
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
            assert!(class.rule(number).is_none(), "{class:?} may call {number}");
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
