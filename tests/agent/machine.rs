//! The host's half: a microVM with the shipped kernel and agent, and the control stream to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use backhand::compression::Compressor;
use backhand::{FilesystemCompressor, FilesystemWriter};
use tempfile::TempDir;
use vmm::{BlankMachine, BlockConfig, Filters, RateLimits, Vm, VmConfig};
use wire::{FrameError, GuestMessage, HostMessage};

use crate::{archive, guest};

/// A boot takes seconds on an emulated processor, an answer a moment.
const DEADLINE: Duration = Duration::from_secs(60);
const MEM_MIB: u32 = 256;
const DISK_BYTES: u64 = 1 << 30;

pub struct Machine {
    control: BufReader<UnixStream>,
    console: File,
    _vm: Vm,
    _folder: TempDir,
}

impl Machine {
    /// A guest whose kernel refuses or allows the reseed, and whose agent has said hello. `None`: no guest can run here.
    pub fn boot(reseed: &str) -> Option<Self> {
        let kvm = kvm()?;
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock.sock");
        let vsock = UnixListener::bind(&socket).unwrap();
        let console = tempfile::tempfile().unwrap();
        let config = VmConfig {
            machine: BlankMachine::create(&kvm, Filters::Off).unwrap(),
            memory: None,
            mem_mib: MEM_MIB,
            vcpus: 1,
            kernel: artefact("vmlinux"),
            initramfs: initramfs(),
            cmdline: format!("{}{reseed}", guest::WORD),
            blocks: vec![block(root_image(), true), block(scratch(), false)],
            vsock,
            console: console.try_clone().unwrap(),
            limits: RateLimits::default(),
        };
        // Asked for before the guest can be up.
        let mut control = UnixStream::connect(&socket).unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        writeln!(control, "LISTEN {}", wire::port::CONTROL).unwrap();
        let (vm, _) = Vm::start(config).unwrap();
        let mut machine = Self {
            control: BufReader::new(control),
            console,
            _vm: vm,
            _folder: folder,
        };
        let mut answer = String::new();
        let read = machine.control.read_line(&mut answer);
        if read.is_err() || !answer.starts_with("OK ") {
            machine.give_up(&format!("the agent did not connect: {answer:?}"));
        }
        match machine.next() {
            GuestMessage::Hello { .. } => Some(machine),
            other => machine.give_up(&format!("no hello but {other:?}")),
        }
    }

    pub fn send(&mut self, message: &HostMessage) {
        wire::write_frame(self.control.get_mut(), message).unwrap();
    }

    /// The next message that is not a line of output.
    #[track_caller]
    pub fn next(&mut self) -> GuestMessage {
        loop {
            match wire::read_frame(&mut self.control) {
                Ok(GuestMessage::Output { .. }) => {}
                Ok(message) => return message,
                Err(error) => self.give_up(&format!("no message: {error}")),
            }
        }
    }

    /// What comes until the guest closes the stream.
    pub fn rest(&mut self) -> Vec<GuestMessage> {
        let mut rest = Vec::new();
        loop {
            match wire::read_frame(&mut self.control) {
                Ok(message) => rest.push(message),
                Err(FrameError::Closed) => return rest,
                Err(error) => self.give_up(&format!("the stream broke: {error}")),
            }
        }
    }

    #[track_caller]
    fn give_up(&mut self, why: &str) -> ! {
        self.console.rewind().unwrap();
        let console = std::io::read_to_string(&self.console).unwrap_or_default();
        panic!("{why}; the guest's console:\n{console}")
    }
}

/// Opens KVM if it can run guests. Otherwise says why, or fails where it must work.
fn kvm() -> Option<File> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let usable = kvm.map_err(|error| error.to_string()).and_then(|kvm| {
        let probed = vmm::probe(&kvm).map_err(|error| error.to_string());
        probed.map(|_| kvm)
    });
    match usable {
        Ok(kvm) => Some(kvm),
        Err(why) if std::env::var_os("CABANA_REQUIRE_KVM").is_some_and(|value| value == "1") => {
            panic!("this machine should run guests, but /dev/kvm does not work: {why}")
        }
        Err(why) => {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            // Past the capture of the test harness, which hides what passing tests print.
            let _ = writeln!(std::io::stderr(), "\nSKIPPED: {test}: {why}");
            None
        }
    }
}

fn artefact(name: &str) -> File {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest");
    let folder = std::env::var_os("CABANA_GUEST_DIR").map_or(PathBuf::from(built), PathBuf::from);
    let path = folder.join(name);
    File::open(&path).unwrap_or_else(|error| {
        panic!(
            "cannot open {} (made by `cargo dev guest`): {error}",
            path.display()
        )
    })
}

/// The shipped one; behind it, this program in the place of the agent, and the agent elsewhere.
fn initramfs() -> File {
    let mut shipped = Vec::new();
    std::io::copy(&mut artefact("initramfs.cpio"), &mut shipped).unwrap();
    let agent = archive::member(&shipped, "init").expect("the shipped archive holds the agent");
    let program = fs::read("/proc/self/exe").unwrap();
    let name = guest::AGENT.trim_start_matches('/');
    shipped.extend(archive::with_programs(&[
        (name, &agent),
        ("init", &program),
    ]));
    file(&shipped)
}

/// A root image with nothing in it.
fn root_image() -> File {
    let mut writer = FilesystemWriter::default();
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, None).unwrap());
    let mut image = tempfile::tempfile().unwrap();
    writer.write(&mut image).unwrap();
    image
}

/// A writable layer as every session gets one.
fn scratch() -> File {
    let template = zstd::decode_all(artefact("scratch.ext4.zst")).unwrap();
    let disk = file(&template);
    disk.set_len(DISK_BYTES).unwrap();
    disk
}

fn block(file: File, read_only: bool) -> BlockConfig {
    BlockConfig {
        file,
        base: None,
        read_only,
    }
}

fn file(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}
