//! The worker's executable, which is inside this binary.
//!
//! It is unpacked once, into memory that is sealed afterwards, and every worker is started from that one descriptor: all share its clean
//! pages, and none can change what the next one runs. On a host that executes nothing from such memory (`vm.memfd_noexec=2`,
//! Documentation/admin-guide/sysctl/vm.rst) it is a file of the state folder instead, which has no name and, once it is written, no writer.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;

static PACKED: &[u8] = include_bytes!(concat!(env!("CABANA_WORKER_DIR"), "/cabana-worker.zst"));

/// What `/proc/<pid>/exe` of a worker shows, as `/memfd:cabana-worker (deleted)`.
const NAME: &str = "cabana-worker";

/// Why no worker could be started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("Cannot unpack the worker")]
    Unpack(#[source] io::Error),
    #[error(
        "This host executes nothing from memory (vm.memfd_noexec = 2), and the worker cannot be written to {} instead",
        folder.display()
    )]
    File { folder: PathBuf, source: io::Error },
    #[error(
        "This host executes nothing from memory (vm.memfd_noexec = 2) and nothing from {}: set that to 0 or 1, or mount \
         the file system without `noexec`",
        folder.display()
    )]
    NoExec { folder: PathBuf },
}

/// The worker as it is embedded, to be told from others.
pub fn packed() -> &'static [u8] {
    PACKED
}

/// It is a few instructions, on a host with so much to do that they have to wait.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(1);

/// An executable that children are started from, wherever they are by then.
#[derive(Debug)]
pub struct Program(File);

impl Program {
    /// The worker. `folder`: where it goes when it cannot be in memory.
    pub fn unpack(folder: &Path) -> Result<Self, ProgramError> {
        match in_memory() {
            Ok(file) => Ok(Self(file)),
            // What the kernel says when `vm.memfd_noexec` is 2.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok(Self(in_folder(folder)?))
            }
            Err(error) => Err(ProgramError::Unpack(error)),
        }
    }

    /// The running file itself, even when an upgrade has put another one at its path.
    pub fn ourselves() -> io::Result<Self> {
        Self::at("/proc/self/exe")
    }

    pub fn at(path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self(file.into()))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits until a child that is being started has this program's memory and not ours any more.
    ///
    /// The kernel lets the parent of a `vfork` go on when the child lets go of the old memory, which is a moment before it has the
    /// new one (`exec_mmap`, fs/exec.c). Until then `/proc/<pid>` is about the memory of the parent.
    pub fn wait_until_run_by(&self, pid: u32) -> io::Result<()> {
        let path = format!("/proc/{pid}/exe");
        let wanted = rustix::fs::fstat(&self.0)?;
        let deadline = Instant::now() + EXCHANGE_LIMIT;
        loop {
            let found = rustix::fs::stat(&path)?;
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
    }
}

fn in_memory() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Linux before 6.3 does not know the flag, and executes what is in memory without it.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        made => made,
    };
    let mut file = File::from(memory?);
    zstd::stream::copy_decode(PACKED, &mut file)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file)
}

/// The kernel does not execute what somebody has open for writing, so the descriptor that is kept is another one.
fn in_folder(folder: &Path) -> Result<File, ProgramError> {
    let failed = |source| ProgramError::File {
        folder: folder.to_owned(),
        source,
    };
    let at = rustix::fs::statvfs(folder).map_err(|error| failed(error.into()))?;
    if at.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(ProgramError::NoExec {
            folder: folder.to_owned(),
        });
    }
    write_nameless(folder).map_err(failed)
}

fn write_nameless(folder: &Path) -> io::Result<File> {
    let mut written = crate::guest::nameless_file(folder)?;
    zstd::stream::copy_decode(PACKED, &mut written)?;
    rustix::fs::fchmod(&written, Mode::RUSR | Mode::XUSR)?;
    let path = format!("/proc/self/fd/{}", written.as_raw_fd());
    let readable = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(readable.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::Command;

    /// What it says when it is not started by a warden, which is all that it can do here.
    fn run(program: &Program) -> String {
        let path = format!("/proc/self/fd/{}", program.fd().as_raw_fd());
        let mut command = Command::new(path);
        command.stdin(std::process::Stdio::null());
        let deadline = Instant::now() + Duration::from_secs(20);
        let output = loop {
            match command.output() {
                // A child that another test starts just now has a copy of the descriptor that it was written with.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < deadline => {}
                output => break output.unwrap(),
            }
        };
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn worker_in_memory_runs_and_cannot_be_changed() {
        let file = in_memory().unwrap();
        let mut other = file.try_clone().unwrap();
        let program = Program(file);
        assert!(run(&program).contains("cabana serve"));
        other.write_all(b"x").unwrap_err();
        other.set_len(0).unwrap_err();
    }

    #[test]
    fn worker_in_a_folder_runs_cannot_be_changed_and_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = in_folder(folder.path()).unwrap();
        let mut other = file.try_clone().unwrap();
        let program = Program(file);
        assert!(run(&program).contains("cabana serve"));
        other.write_all(b"x").unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn child_is_the_program_and_not_its_parent_when_it_was_waited_for() {
        use crate::warden::spawn::{Output, Place, Process};
        let program = Program::at("/bin/cat").unwrap();
        let ours = std::env::current_exe().unwrap();
        let process =
            Process::start(&program, c"-", &[], Output::Nowhere, Place::default()).unwrap();
        program.wait_until_run_by(process.id()).unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.id())).unwrap();
        // Its own is not mapped yet, perhaps.
        assert!(!maps.contains(ours.to_str().unwrap()), "{maps}");
    }

    #[test]
    fn folder_that_nothing_is_executed_from_is_named() {
        // Linux mounts it so: what is in it is no file.
        let folder = Path::new("/proc");
        let error = in_folder(folder).unwrap_err();
        let text = crate::exit::chain(&error);
        assert!(text.contains("/proc"), "{text}");
    }

    /// The memory of each of its segments that is written to, and the kinds of all segments (elf(5)).
    fn segments(elf: &[u8]) -> (Vec<u64>, Vec<u32>) {
        const WRITABLE: u32 = 2;
        let u32_at = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
        let count = usize::from(u16::from_le_bytes(elf[56..58].try_into().unwrap()));
        let table = usize::try_from(u64_at(32)).unwrap();
        let headers: Vec<usize> = (0..count).map(|index| table + index * 56).collect();
        let kinds = headers.iter().map(|at| u32_at(*at)).collect();
        let written = headers
            .iter()
            .filter(|at| u32_at(**at) == PT_LOAD && u32_at(**at + 4) & WRITABLE != 0)
            .map(|at| u64_at(*at + 40))
            .collect();
        (written, kinds)
    }
    const PT_LOAD: u32 = 1;
    const PT_INTERP: u32 = 3;

    #[test]
    fn worker_is_static_and_has_little_that_each_process_writes_to() {
        let elf = zstd::decode_all(PACKED).unwrap();
        let (written, kinds) = segments(&elf);
        assert!(kinds.contains(&PT_LOAD) && !kinds.contains(&PT_INTERP));
        // Relocated pointers are most of it. It was 75 KiB when this was written, of which each process touched 64; what brings
        // a library along brings tables of pointers as well.
        let bytes: u64 = written.iter().sum();
        assert!(bytes > 0 && bytes < 96 << 10, "{bytes} bytes");
    }
}
