//! The guest's half: this program as `/init`.

use std::ffi::CString;
use std::fs;
use std::io;

use rustix::mount::UnmountFlags;
use rustix::mount::{MountFlags, mount, unmount};

/// Where the agent is in the guest's first file system.
pub const AGENT: &str = "/agent";
/// The word of the kernel's command line that says what this program does before it becomes the agent.
pub const WORD: &str = "reseed=";

/// `RNDRESEEDCRNG` of `linux/random.h`: take a new key for the random numbers at once.
const RESEED: u32 = 0x5207;

/// Called by the C library before `main`. Does nothing unless this is the first process of a guest.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTRY: extern "C" fn() = enter;

extern "C" fn enter() {
    if std::process::id() == 1 {
        match become_agent() {
            Ok(never) => match never {},
            // The kernel panics when its first process ends, and its console then says why.
            Err(error) => eprintln!("test: cannot become the agent: {error}"),
        }
        std::process::abort();
    }
}

fn become_agent() -> io::Result<std::convert::Infallible> {
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    // The agent finds the machine as the kernel leaves it.
    unmount("/proc", UnmountFlags::empty())?;
    let mut words = cmdline.split_whitespace();
    match words.find_map(|word| word.strip_prefix(WORD)) {
        Some("refused") => refuse(RESEED)?,
        Some("allowed") => {}
        other => return Err(io::Error::other(format!("{WORD} is {other:?}"))),
    }
    let agent = CString::new(AGENT)?;
    let name = CString::new("/init")?;
    let arguments = [name.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: both lists end with a null pointer and live until the call has returned, which it does only to fail.
    unsafe { libc::execve(agent.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// From now on this process, and whatever it becomes, is refused one ioctl with `EPERM` (seccomp(2)).
fn refuse(request: u32) -> io::Result<()> {
    /// Offsets in `struct seccomp_data`: the system call's number, the lower half of its second argument.
    const NUMBER: u32 = 0;
    const SECOND_ARGUMENT: u32 = 24;
    let code = |code: u32| u16::try_from(code).map_err(io::Error::other);
    let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS)?;
    let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K)?;
    let give = code(libc::BPF_RET | libc::BPF_K)?;
    let ioctl = u32::try_from(libc::SYS_ioctl).map_err(io::Error::other)?;
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(load, NUMBER, 0, 0),
        step(equal, ioctl, 0, 3),
        step(load, SECOND_ARGUMENT, 0, 0),
        step(equal, request, 0, 1),
        step(give, refused, 0, 0),
        step(give, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, which lives until the call has returned.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
