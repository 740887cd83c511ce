//! System calls of workers, by ptrace(2): which of their rules they use, each call looked up in the table of its thread's class, and calls that
//! they would not make by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_long, c_void};
use std::fs;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use vmm::sandbox::ThreadClass;
use vmm::sandbox::filter::{Only, Rule};

/// The classes whose filters a thread has: one that was there before its own is asked as well.
type Threads = BTreeMap<c_int, Vec<ThreadClass>>;

/// What `ptrace` adds to the signal of a stop that is a system call's (`PTRACE_O_TRACESYSGOOD`).
const SYSTEM_CALL: c_int = libc::SIGTRAP | 0x80;

/// The number of a system call, in the registers as the kernel shows them (`struct user`, asm/user_64.h).
const ORIG_RAX: usize = std::mem::offset_of!(libc::user_regs_struct, orig_rax);

/// A rule by its system call and what it is there for; without a value it stands for itself, else for one of its values.
pub type Use = (c_long, &'static str, Option<u32>);

/// Follows processes until they have ended.
pub struct Recorder(JoinHandle<BTreeSet<Use>>);

/// Follows what a process starts until it is let go.
pub struct ParentRecorder {
    parent: c_int,
    let_go: Arc<AtomicBool>,
    follower: JoinHandle<BTreeSet<Use>>,
}

impl ParentRecorder {
    /// Of the processes that this one, of one thread, starts from now on with `role` as their first argument: what they do under their filter,
    /// of which these are the rules.
    pub fn start(parent: u32, role: &'static str, rules: Rules) -> Self {
        let (say, attached) = mpsc::channel();
        let parent = c_int::try_from(parent).unwrap();
        let let_go = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&let_go);
        let follower = std::thread::spawn(move || {
            let options = libc::PTRACE_O_TRACESYSGOOD
                | libc::PTRACE_O_TRACECLONE
                | libc::PTRACE_O_TRACEFORK
                | libc::PTRACE_O_TRACEVFORK
                | libc::PTRACE_O_TRACEEXEC;
            trace(
                libc::PTRACE_SEIZE,
                parent,
                usize::try_from(options).unwrap(),
            );
            say.send(()).unwrap();
            follow_children(parent, role, rules, &gone)
        });
        attached.recv().unwrap();
        Self {
            parent,
            let_go,
            follower,
        }
    }

    /// When none of its children runs. The parent goes on, and nobody looks: it may be a child of this process, which is to see its end.
    pub fn stop(self) -> BTreeSet<Use> {
        self.let_go.store(true, Ordering::SeqCst);
        // A signal that means nothing stops it for a moment, in which it can be let go.
        // SAFETY: the process is there as long as it is followed, and ignores this.
        let told = unsafe { libc::kill(self.parent, libc::SIGWINCH) };
        assert_eq!(told, 0, "{}", std::io::Error::last_os_error());
        self.follower.join().unwrap()
    }
}

impl Recorder {
    /// Of processes whose threads have their filters. What they do from the moment on at which this returns is recorded.
    pub fn start(processes: Vec<u32>) -> Self {
        let (say, attached) = mpsc::channel();
        // A thread is followed by the thread that has attached to it and by no other.
        let thread = std::thread::spawn(move || {
            let mut threads = Threads::new();
            for process in processes {
                attach(process, &mut threads);
            }
            say.send(()).unwrap();
            follow(threads)
        });
        attached.recv().unwrap();
        Self(thread)
    }

    /// Waits for the end of all processes.
    pub fn stop(self) -> BTreeSet<Use> {
        self.0.join().unwrap()
    }
}

/// A table of rules.
pub type Rules = &'static [&'static [Rule]];

/// All rules of all classes, as [`Use`]s.
pub fn all() -> BTreeSet<Use> {
    uses(ThreadClass::ALL.into_iter().flat_map(ThreadClass::rules))
}

/// These, as [`Use`]s.
pub fn uses(rules: impl Iterator<Item = &'static Rule>) -> BTreeSet<Use> {
    rules
        .flat_map(|rule| {
            let values = rule.only.iter().flat_map(|condition| match condition {
                Only::OneOf(_, values) => *values,
                Only::Within(..) | Only::OwnProcess(_) => &[],
            });
            let with_value = values.map(|value| (rule.call, rule.why, Some(*value)));
            with_value.chain([(rule.call, rule.why, None)])
        })
        .collect()
}

fn attach(process: u32, threads: &mut Threads) {
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap();
        let thread = task.file_name().to_str().unwrap().parse().unwrap();
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        let class = match name.trim() {
            "devices" => ThreadClass::Devices,
            "orders" => ThreadClass::Orders,
            "vcpu0" => ThreadClass::Vcpu,
            "maker" => ThreadClass::Maker,
            _ => ThreadClass::Owner,
        };
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
        trace(
            libc::PTRACE_SEIZE,
            thread,
            usize::try_from(options).unwrap(),
        );
        trace(libc::PTRACE_INTERRUPT, thread, 0);
        threads.insert(thread, vec![class]);
    }
}

fn follow(mut threads: Threads) -> BTreeSet<Use> {
    let mut used = BTreeSet::new();
    loop {
        let mut status = 0;
        // SAFETY: writes to `status` alone. It is about what this thread has attached to, and takes nobody's child.
        let thread =
            unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if thread < 0 {
            return used;
        }
        if !libc::WIFSTOPPED(status) {
            threads.remove(&thread);
            continue;
        }
        // One that was cloned has what its maker has.
        let classes = threads
            .entry(thread)
            .or_insert_with(|| vec![ThreadClass::Maker]);
        let mut signal = libc::WSTOPSIG(status);
        if signal == SYSTEM_CALL {
            if let Some((call, arguments)) = entered(thread) {
                for class in &*classes {
                    note(&mut used, class.rules(), call, arguments);
                }
                if call == libc::SYS_seccomp {
                    classes.push(ThreadClass::Vcpu);
                }
            }
            signal = 0;
        } else if status >> 16 != 0 {
            // A thread was cloned or has begun to be followed.
            signal = 0;
        }
        trace(
            libc::PTRACE_SYSCALL,
            thread,
            usize::try_from(signal).unwrap(),
        );
    }
}

/// What a process is that somebody started who is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Child {
    /// It has executed nothing of its own.
    Starting,
    /// It is one of those that are wanted, without its filter.
    Wanted,
    Confined,
}

fn follow_children(parent: c_int, role: &str, rules: Rules, let_go: &AtomicBool) -> BTreeSet<Use> {
    let mut used = BTreeSet::new();
    // By threads, and whether they are followed call by call depends on it.
    let mut children: BTreeMap<c_int, Child> = BTreeMap::new();
    loop {
        let mut status = 0;
        // SAFETY: writes to `status` alone. It is about what this thread has attached to, and takes nobody's child.
        let thread =
            unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if thread < 0 {
            return used;
        }
        if !libc::WIFSTOPPED(status) {
            children.remove(&thread);
            continue;
        }
        let (mut signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if thread == parent {
            if let_go.load(Ordering::SeqCst) {
                trace(libc::PTRACE_DETACH, thread, 0);
                return used;
            }
            signal = if event == 0 { signal } else { 0 };
            trace(libc::PTRACE_CONT, thread, usize::try_from(signal).unwrap());
            continue;
        }
        if event == libc::PTRACE_EVENT_EXEC {
            let command = fs::read(format!("/proc/{thread}/cmdline")).unwrap_or_default();
            if command.split(|byte| *byte == 0).nth(1) != Some(role.as_bytes()) {
                children.remove(&thread);
                trace(libc::PTRACE_DETACH, thread, 0);
                continue;
            }
            children.insert(thread, Child::Wanted);
        }
        // A thread that a confined one has started is confined: their process has the filter before its first thread.
        let confined = children.values().any(|child| *child == Child::Confined);
        let child = children.entry(thread).or_insert(match confined {
            true => Child::Confined,
            false => Child::Starting,
        });
        if signal == SYSTEM_CALL {
            signal = 0;
            match entered(thread) {
                Some((libc::SYS_seccomp, _)) => *child = Child::Confined,
                Some((call, arguments)) if *child == Child::Confined => {
                    note(&mut used, rules.iter().copied().flatten(), call, arguments);
                }
                _ => {}
            }
        } else if event != 0 {
            signal = 0;
        }
        let how = match *child {
            Child::Starting => libc::PTRACE_CONT,
            Child::Wanted | Child::Confined => libc::PTRACE_SYSCALL,
        };
        trace(how, thread, usize::try_from(signal).unwrap());
    }
}

fn note(
    used: &mut BTreeSet<Use>,
    mut rules: impl Iterator<Item = &'static Rule>,
    call: c_long,
    arguments: [u64; 6],
) {
    let Some(rule) = rules.find(|rule| rule.call == call) else {
        return;
    };
    used.insert((call, rule.why, None));
    for condition in rule.only {
        if let Only::OneOf(argument, _) = condition {
            let value = arguments[*argument as usize] & u64::from(u32::MAX);
            used.insert((call, rule.why, Some(u32::try_from(value).unwrap())));
        }
    }
}

/// Has the first thread of this process, which waits in the kernel, make this system call instead of the one that it waits in.
pub fn make_instead(process: u32, call: c_long) {
    let thread = c_int::try_from(process).unwrap();
    let options = usize::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap();
    let work = move || {
        trace(libc::PTRACE_SEIZE, thread, options);
        trace(libc::PTRACE_INTERRUPT, thread, 0);
        loop {
            let mut status = 0;
            // SAFETY: writes to `status` alone, and is about a thread that this one has attached to.
            let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
            assert!(waited == thread && libc::WIFSTOPPED(status), "it is gone");
            if libc::WSTOPSIG(status) == SYSTEM_CALL && entered(thread).is_some() {
                break;
            }
            trace(libc::PTRACE_SYSCALL, thread, 0);
        }
        let number = ptr::without_provenance_mut::<c_void>(usize::try_from(call).unwrap());
        let place = ptr::without_provenance_mut::<c_void>(ORIG_RAX);
        // SAFETY: it changes a register of the stopped thread, and no memory.
        let changed = unsafe { libc::ptrace(libc::PTRACE_POKEUSER, thread, place, number) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        trace(libc::PTRACE_DETACH, thread, 0);
    };
    // Whoever attaches is to be one thread from the first call to the last, and nobody else's.
    std::thread::spawn(work).join().unwrap();
}

/// The system call that a stopped thread is about to make; `None` when it comes back from one.
fn entered(thread: c_int) -> Option<(c_long, [u64; 6])> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
    let none = ptr::null_mut::<c_void>();
    // SAFETY: the kernel writes one structure of this type.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, none, registers.as_mut_ptr()) };
    // SAFETY: zeroes are good values of all its fields, should the kernel have written none.
    let registers = unsafe { registers.assume_init() };
    // The kernel has put this there before it looks at the number (arch/x86/entry).
    let before = (-i64::from(libc::ENOSYS)).cast_unsigned();
    if result != 0 || registers.rax != before {
        return None;
    }
    let arguments = [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ];
    Some((registers.orig_rax.cast_signed(), arguments))
}

fn trace(request: libc::c_uint, thread: c_int, data: usize) {
    // SAFETY: none of the requests above reads or writes memory of ours. A thread that has ended meanwhile is an error, and nothing to do.
    unsafe { libc::ptrace(request, thread, ptr::null_mut::<c_void>(), data) };
}
