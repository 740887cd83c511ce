//! Shared by the tests that run guests: a host check, guests of a few bytes, and a console to wait on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use vmm::{
    BlankMachine, BlockConfig, Filters, FirstPages, RateLimits, RestoreConfig, RestoreError,
    SnapshotFiles, Steps, Vm, VmConfig, VmExit, VmHandle,
};

/// Nothing here takes a second on hardware; on an emulated CPU it may take some.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Opens KVM if it can run guests. Otherwise says why and returns `None`, or fails where it must work.
pub fn kvm() -> Option<File> {
    let usable = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| error.to_string());
    let usable = usable.and_then(|kvm| match vmm::probe(&kvm) {
        Ok(_) => Ok(kvm),
        Err(error) => Err(error.to_string()),
    });
    match usable {
        Ok(kvm) => Some(kvm),
        Err(why) if std::env::var_os("CABANA_REQUIRE_KVM").is_some_and(|value| value == "1") => {
            panic!("this machine should run guests, but /dev/kvm does not work: {why}")
        }
        Err(why) => {
            skip(&why);
            None
        }
    }
}

/// Says why a test does not run. Past the capture of the test harness, which hides what passing tests print.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {test}: {why}");
}

/// What the guest has printed so far.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<Printed>, Condvar)>);

#[derive(Default)]
struct Printed {
    bytes: Vec<u8>,
    /// There will be no more.
    ended: bool,
}

impl Console {
    /// Collects everything that comes out of `stream`.
    fn collect(mut stream: UnixStream) -> Self {
        let console = Self::default();
        let shared = console.clone();
        std::thread::spawn(move || {
            let (printed, changed) = &*shared.0;
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut printed = printed.lock().unwrap();
                printed.bytes.extend_from_slice(&buffer[..count]);
                changed.notify_all();
            }
            printed.lock().unwrap().ended = true;
            changed.notify_all();
        });
        console
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// What a guest that ended has printed, to the last byte.
    pub fn whole_text(&self) -> String {
        let ended = self.wait_until_printed(|printed| printed.ended);
        assert!(ended, "the console is still open");
        self.text()
    }

    /// Waits until the guest has printed `wanted`.
    pub fn wait_for(&self, wanted: &str) {
        let found = self.wait_until(|text| {
            text.windows(wanted.len())
                .any(|part| part == wanted.as_bytes())
        });
        assert!(
            found,
            "the guest did not print {wanted:?}; the end of its console:\n{}",
            self.tail()
        );
    }

    /// Waits until the guest has printed `count` bytes.
    pub fn wait_for_bytes(&self, count: usize) {
        let found = self.wait_until(|text| text.len() >= count);
        assert!(
            found,
            "the guest did not print {count} bytes; the end of its console:\n{}",
            self.tail()
        );
    }

    /// Waits for a whole line in which `find` finds something, and gives that.
    pub fn wait_for_line<T>(&self, wanted: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let search = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().find_map(|line| find(line.trim_end()))
        };
        let mut found = None;
        let in_time = self.wait_until(|text| {
            found = search(text);
            found.is_some()
        });
        match found {
            Some(found) if in_time => found,
            _ => panic!(
                "the guest did not print {wanted}; the end of its console:\n{}",
                self.tail()
            ),
        }
    }

    fn wait_until(&self, mut holds: impl FnMut(&[u8]) -> bool) -> bool {
        self.wait_until_printed(|printed| holds(&printed.bytes))
    }

    fn wait_until_printed(&self, mut holds: impl FnMut(&Printed) -> bool) -> bool {
        let (printed, changed) = &*self.0;
        let guard = printed.lock().unwrap();
        let (_guard, timeout) = changed
            .wait_timeout_while(guard, DEADLINE, |printed| !holds(printed))
            .unwrap();
        !timeout.timed_out()
    }

    fn tail(&self) -> String {
        const TAIL: usize = 4096;
        let text = &self.0.0.lock().unwrap().bytes;
        String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).into_owned()
    }
}

/// What a guest is made of, with small defaults.
pub struct GuestSpec {
    pub kernel: File,
    pub initramfs: File,
    pub mem_mib: u32,
    pub vcpus: u8,
    pub cmdline: String,
    pub blocks: Vec<BlockConfig>,
}

impl GuestSpec {
    pub fn program(code: &[u8]) -> Self {
        Self::with_kernel(elf(code))
    }

    pub fn with_kernel(kernel: File) -> Self {
        let initramfs = tempfile::tempfile().unwrap();
        Self {
            kernel,
            initramfs,
            mem_mib: 64,
            vcpus: 1,
            cmdline: String::new(),
            blocks: Vec::new(),
        }
    }
}

/// A guest under test.
pub struct Guest {
    vm: Vm,
    pub console: Console,
    /// The guest's memory, of a restored guest that from which it started.
    pub memory: File,
    vcpus: u8,
    mem_mib: u32,
    dir: TempDir,
}

impl Guest {
    pub fn start(kvm: File, spec: GuestSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let GuestSpec { vcpus, mem_mib, .. } = spec;
        let memory = vmm::memory::create(mem_mib).unwrap();
        let config = VmConfig {
            machine: BlankMachine::create(&kvm, Filters::Off).unwrap(),
            memory: Some(memory.try_clone().unwrap()),
            mem_mib,
            vcpus,
            kernel: spec.kernel,
            initramfs: spec.initramfs,
            cmdline: spec.cmdline,
            blocks: spec.blocks,
            vsock: UnixListener::bind(dir.path().join("vsock.sock")).unwrap(),
            console: File::from(std::os::fd::OwnedFd::from(near)),
            limits: RateLimits::default(),
        };
        let (vm, _) = Vm::start(config).unwrap();
        Self {
            vm,
            console: Console::collect(far),
            memory,
            vcpus,
            mem_mib,
            dir,
        }
    }

    /// Starts a guest of a few bytes, which begins in 64-bit mode.
    pub fn run_program(kvm: File, code: &[u8]) -> Self {
        Self::start(kvm, GuestSpec::program(code))
    }

    pub fn vm(&self) -> VmHandle {
        self.vm.handle()
    }

    /// The host's side of vsock.
    pub fn connect_vsock(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("vsock.sock")).unwrap()
    }

    pub fn stop(self) -> Ended {
        self.vm.handle().stop();
        self.wait()
    }

    /// Waits for the end, but not for ever.
    pub fn wait(self) -> Ended {
        let Self {
            vm, console, dir, ..
        } = self;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(vm.wait()));
        match receiver.recv_timeout(DEADLINE) {
            Ok(exit) => Ended {
                exit,
                console,
                _dir: dir,
            },
            Err(_) => panic!(
                "the guest did not end; the end of its console:\n{}",
                console.tail()
            ),
        }
    }
}

/// A guest as files.
pub struct Snapshot {
    pub files: SnapshotFiles,
    /// Of the guest.
    pub vcpus: u8,
    pub mem_mib: u32,
    /// Prefetched by copies from now on.
    pub working_set: Option<File>,
    /// Copies are made to record one.
    pub recorded: bool,
}

impl Snapshot {
    /// Pauses `guest` and saves it.
    pub fn of(guest: &Guest, disks: usize) -> Self {
        Self::of_in(guest, disks, &std::env::temp_dir())
    }

    /// The same on the file system of `folder`.
    pub fn of_in(guest: &Guest, disks: usize, folder: &Path) -> Self {
        let file = || tempfile::tempfile_in(folder).unwrap();
        let files = SnapshotFiles {
            state: file(),
            memory: file(),
            disks: (0..disks).map(|_| file()).collect(),
        };
        guest.vm().pause().unwrap();
        guest.vm().save(&files).unwrap();
        Self {
            files,
            vcpus: guest.vcpus,
            mem_mib: guest.mem_mib,
            working_set: None,
            recorded: false,
        }
    }

    /// A guest that goes on from here. It has no disks.
    pub fn restore(&self, kvm: &File) -> Guest {
        self.restore_with(kvm, Vec::new()).unwrap().0
    }

    /// A guest that goes on from here, or why there can be none.
    pub fn restore_with(
        &self,
        kvm: &File,
        blocks: Vec<BlockConfig>,
    ) -> Result<(Guest, Steps), RestoreError> {
        let dir = tempfile::tempdir().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let (vm, steps) = Vm::restore(RestoreConfig {
            machine: BlankMachine::create(kvm, Filters::Off).unwrap(),
            state: self.files.state.try_clone().unwrap(),
            memory: self.files.memory.try_clone().unwrap(),
            blocks,
            vsock: UnixListener::bind(dir.path().join("vsock.sock")).unwrap(),
            console: File::from(std::os::fd::OwnedFd::from(near)),
            vcpus: self.vcpus,
            mem_mib: self.mem_mib,
            first_pages: match &self.working_set {
                Some(file) => FirstPages::Prefetched(file.try_clone().unwrap()),
                None if self.recorded => FirstPages::Recorded,
                None => FirstPages::AsNeeded,
            },
            limits: RateLimits::default(),
        })?;
        let guest = Guest {
            vm,
            console: Console::collect(far),
            memory: self.files.memory.try_clone().unwrap(),
            vcpus: self.vcpus,
            mem_mib: self.mem_mib,
            dir,
        };
        Ok((guest, steps))
    }

    /// Bytes of the guest's memory below 3 GiB.
    pub fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.files
            .memory
            .read_exact_at(&mut bytes, address)
            .unwrap();
        bytes
    }
}

/// How it ended.
pub struct Ended {
    pub exit: VmExit,
    pub console: Console,
    _dir: TempDir,
}

/// A kernel file whose only segment, at 1 MiB, is `code`.
pub fn elf(code: &[u8]) -> File {
    const HEADERS: u64 = 64 + 56;
    const ADDRESS: u64 = 0x10_0000;
    let mut bytes = vec![0; 120];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]); // executable, x86-64
    put(24, &ADDRESS.to_le_bytes()); // entry
    put(32, &64_u64.to_le_bytes()); // program headers
    put(54, &[56, 0, 1, 0]); // one of them
    put(64, &[1, 0, 0, 0, 7]); // load, rwx
    put(64 + 8, &HEADERS.to_le_bytes());
    put(64 + 24, &ADDRESS.to_le_bytes());
    put(64 + 32, &(code.len() as u64).to_le_bytes());
    put(64 + 40, &0x1000_u64.to_le_bytes());
    bytes.extend_from_slice(code);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

/// An initramfs: Documentation/driver-api/early-userspace/buffer-format.rst. All files are executable.
pub fn cpio(dirs: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    const DIR: u32 = 0o40755;
    const FILE: u32 = 0o100_755;
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, data: &[u8]| {
        let (size, name_size) = (data.len(), name.len() + 1);
        let header = [0, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        archive.extend_from_slice(b"070701");
        header
            .iter()
            .for_each(|field| archive.extend_from_slice(format!("{field:08x}").as_bytes()));
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    dirs.iter().for_each(|name| add(name, DIR, b""));
    files.iter().for_each(|(name, data)| add(name, FILE, data));
    add("TRAILER!!!", 0, b"");
    archive
}
