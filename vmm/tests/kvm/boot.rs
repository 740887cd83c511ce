//! The real kernel on a real KVM, with the guest half of each test in the same file.
//!
//! The test program itself is `/init` of the guest: it is static, and [`guest::ENTRY`] runs before `main`.
//! The kernel is the one in `$CABANA_GUEST_DIR`, or in `target/guest`, as `cargo dev guest` leaves it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::support::{DEADLINE, Ended, Guest, GuestSpec, cpio, kvm, skip};
use vmm::{BlockConfig, VmExit};

/// Where the kernel is, if it has been built.
pub fn kernel() -> Option<File> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest");
    let dir = std::env::var_os("CABANA_GUEST_DIR").map_or(PathBuf::from(built), PathBuf::from);
    let path = dir.join("vmlinux");
    match File::open(&path) {
        Ok(file) => Some(file),
        Err(error) if std::env::var_os("CABANA_REQUIRE_KVM").is_some_and(|value| value == "1") => {
            panic!("no guest kernel at {}: {error}", path.display())
        }
        Err(error) => {
            skip(&format!("no guest kernel at {}: {error}", path.display()));
            None
        }
    }
}

/// A guest whose `/init` does what `guest::run` has under `test`.
fn spec(kernel: File, test: &str) -> GuestSpec {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let initramfs = tempfile::tempfile().unwrap();
    initramfs
        .write_all_at(&cpio(&["dev", "proc", "sys"], &[("init", &program)]), 0)
        .unwrap();
    let cmdline = format!("test={test}");
    GuestSpec {
        initramfs,
        mem_mib: 256,
        cmdline,
        ..GuestSpec::with_kernel(kernel)
    }
}

/// Starts a guest that does `test`.
pub fn boot(test: &str, change: impl FnOnce(&mut GuestSpec)) -> Option<Guest> {
    let (kvm, kernel) = (kvm()?, kernel()?);
    let mut spec = spec(kernel, test);
    change(&mut spec);
    Some(Guest::start(kvm, spec))
}

/// A disk of `sectors` sectors, each filled with its own number.
fn disk(sectors: u8) -> File {
    let file = tempfile::tempfile().unwrap();
    let sector = |number: u8| [number; 512];
    file.write_all_at(&(0..sectors).flat_map(sector).collect::<Vec<u8>>(), 0)
        .unwrap();
    file
}

fn say_of(guest: Ended, exit: &VmExit) -> Vec<String> {
    assert_eq!(&guest.exit, exit, "its console:\n{}", guest.console.text());
    guest.console.wait_for("guest says: bye");
    let text = guest.console.text();
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix("guest says: "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn kernel_boots_to_init_with_the_memory_processors_and_clock_that_it_was_given() {
    let Some(guest) = boot("machine", |spec| (spec.vcpus, spec.mem_mib) = (3, 256)) else {
        return;
    };
    let said = say_of(guest.wait(), &VmExit::PowerOff);
    assert_eq!(
        said[..4],
        [
            "cpus 3",
            "clock kvm-clock",
            "nested virtualisation false",
            "generation id vmgenid"
        ]
    );
    let memory = said[4]
        .strip_prefix("memory MiB ")
        .unwrap()
        .parse::<u64>()
        .unwrap();
    assert!((200..256).contains(&memory), "{memory} MiB");
}

#[test]
fn healthy_kernel_is_silent_until_init_speaks() {
    let Some(guest) = boot("random", |_| ()) else {
        return;
    };
    let ended = guest.wait();
    ended.console.wait_for("guest says: bye");
    let text = ended.console.text();
    assert!(text.starts_with("guest says: "), "{text}");
}

#[test]
fn guest_reads_its_disks_and_cannot_write_to_the_read_only_one() {
    let (first, second) = (disk(8), disk(16));
    let blocks = [(&first, true), (&second, false)];
    let blocks = blocks.map(|(file, read_only)| BlockConfig {
        file: file.try_clone().unwrap(),
        base: None,
        read_only,
    });
    let Some(guest) = boot("disks", |spec| spec.blocks = blocks.into()) else {
        return;
    };
    let said = say_of(guest.wait(), &VmExit::PowerOff);
    let expected = [
        "vda 4096 bytes, last 7",
        "vdb 8192 bytes, last 15",
        "vda write failed true",
        "vdb write failed false",
    ];
    assert_eq!(said[..4], expected);
    let mut sectors = [0; 1024];
    second.read_exact_at(&mut sectors, 0).unwrap();
    assert_eq!(
        (sectors[511], sectors[512]),
        (0xaa, 1),
        "the first sector and no other was written"
    );
}

#[test]
fn random_device_gives_the_guest_different_bytes_each_time() {
    let Some(guest) = boot("random", |_| ()) else {
        return;
    };
    let said = say_of(guest.wait(), &VmExit::PowerOff);
    assert_eq!(said[..2], ["source virtio_rng.0", "two reads differ true"]);
}

#[test]
fn guest_and_host_talk_over_vsock_in_both_directions() {
    let Some(guest) = boot("vsock", |_| ()) else {
        return;
    };
    // The guest calls the host: the host side is an acceptor that has announced itself.
    let mut called = guest.connect_vsock();
    called.set_read_timeout(Some(DEADLINE)).unwrap();
    called.write_all(b"LISTEN 1024\n").unwrap();
    let mut greeting = BufReader::new(called.try_clone().unwrap());
    let mut line = String::new();
    greeting.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    line.clear();
    greeting.read_line(&mut line).unwrap();
    assert_eq!(line, "guest calls host\n");
    // The host calls the guest, which echoes until it sees the end and then closes.
    let mut caller = guest.connect_vsock();
    caller.set_read_timeout(Some(DEADLINE)).unwrap();
    caller.write_all(b"CONNECT 1025\n").unwrap();
    let mut answer = BufReader::new(caller.try_clone().unwrap());
    line.clear();
    answer.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    caller.write_all(b"echo this\n").unwrap();
    caller.shutdown(Shutdown::Write).unwrap();
    let mut echoed = String::new();
    answer.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, "echo this\n");
    say_of(guest.wait(), &VmExit::PowerOff);
}

#[test]
fn kernel_panic_is_on_the_console_and_ends_in_a_reset() {
    let Some(guest) = boot("panic", |_| ()) else {
        return;
    };
    let ended = guest.wait();
    ended
        .console
        .wait_for("Kernel panic - not syncing: Attempted to kill init!");
    assert_eq!(ended.exit, VmExit::Reset);
}

#[test]
fn guest_that_reboots_ends_in_a_reset() {
    let Some(guest) = boot("reboot", |_| ()) else {
        return;
    };
    say_of(guest.wait(), &VmExit::Reset);
}

#[test]
fn booted_guest_that_does_nothing_can_be_stopped() {
    let Some(guest) = boot("idle", |spec| spec.vcpus = 2) else {
        return;
    };
    guest.console.wait_for("guest says: idle");
    assert_eq!(guest.stop().exit, VmExit::Stopped);
}

#[test]
fn init_that_is_not_there_is_a_panic_with_its_reason() {
    let Some(guest) = boot("none", |spec| spec.initramfs.set_len(0).unwrap()) else {
        return;
    };
    let ended = guest.wait();
    ended.console.wait_for("Unable to mount root fs");
    assert_eq!(ended.exit, VmExit::Reset);
}

/// What runs inside.
pub mod guest {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use rustix::mount::{MountFlags, mount};
    use rustix::system::{RebootCommand, reboot};

    use super::vsock;

    /// Called by the C library before `main`. Does nothing unless this is the first process of a guest.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static ENTRY: extern "C" fn() = enter;

    extern "C" fn enter() {
        if std::process::id() == 1 {
            let end = run();
            say("bye");
            let _ = reboot(end);
        }
    }

    fn run() -> RebootCommand {
        for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
            mount(kind, at, kind, MountFlags::empty(), None).unwrap();
        }
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap();
        match cmdline
            .split_whitespace()
            .find_map(|word| word.strip_prefix("test="))
            .unwrap()
        {
            "machine" => machine(),
            "disks" => disks(),
            "random" => random(),
            "vsock" => talk(),
            "reboot" => return RebootCommand::Restart,
            "idle" => idle(),
            "panic" => std::process::exit(1),
            other if crate::snapshot::guest::run(other) => {}
            other => say(&format!("no test {other}")),
        }
        RebootCommand::PowerOff
    }

    pub fn say(text: &str) {
        println!("guest says: {text}");
    }

    fn machine() {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
        say(&format!("cpus {}", cpuinfo.matches("processor\t").count()));
        let clock =
            fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap();
        say(&format!("clock {}", clock.trim()));
        say(&format!(
            "nested virtualisation {}",
            has("svm") || has("vmx")
        ));
        let driver =
            fs::read_link("/sys/bus/platform/devices/CABN0001:00/driver").unwrap_or_default();
        say(&format!(
            "generation id {}",
            driver.file_name().unwrap_or_default().display()
        ));
        say(&format!(
            "memory MiB {}",
            rustix::system::sysinfo().totalram >> 20
        ));
    }

    fn disks() {
        let open = |name: &str| File::options().read(true).write(true).open(name);
        for name in ["vda", "vdb"] {
            let mut bytes = Vec::new();
            File::open(format!("/dev/{name}"))
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            say(&format!(
                "{name} {} bytes, last {}",
                bytes.len(),
                bytes[bytes.len() - 1]
            ));
        }
        for name in ["vda", "vdb"] {
            let write = |disk: File| {
                disk.write_all_at(&[0xaa; 512], 0)
                    .and_then(|()| disk.sync_all())
            };
            let failed = open(&format!("/dev/{name}")).and_then(write).is_err();
            say(&format!("{name} write failed {failed}"));
        }
    }

    fn random() {
        let source = fs::read_to_string("/sys/class/misc/hw_random/rng_current").unwrap();
        say(&format!("source {}", source.trim()));
        let mut device = File::open("/dev/hwrng").unwrap();
        let (mut first, mut second) = ([0; 32], [0; 32]);
        device.read_exact(&mut first).unwrap();
        device.read_exact(&mut second).unwrap();
        say(&format!("two reads differ {}", first != second));
    }

    fn talk() {
        let listener = vsock::listen(1025);
        vsock::connect(1024)
            .write_all(b"guest calls host\n")
            .unwrap();
        let mut stream = vsock::accept(&listener);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    }

    fn idle() -> ! {
        say("idle");
        loop {
            std::thread::park();
        }
    }
}

/// The few calls that the standard library lacks for vsock.
pub mod vsock {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    const HOST: u32 = 2;
    const LEN: libc::socklen_t = 16;
    const _: () = assert!(LEN as usize == size_of::<libc::sockaddr_vm>());
    const FAMILY: libc::sa_family_t = 40;
    const _: () = assert!(FAMILY as i32 == libc::AF_VSOCK);

    fn socket() -> OwnedFd {
        // SAFETY: no memory is involved; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        owned(fd)
    }

    fn owned(fd: i32) -> OwnedFd {
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
        libc::sockaddr_vm {
            svm_family: FAMILY,
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        }
    }

    /// Connects to a port of the host.
    pub fn connect(port: u32) -> File {
        let (socket, address) = (socket(), address(HOST, port));
        // SAFETY: the kernel reads `LEN` bytes of `address`, which lives past the call.
        let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) };
        assert_eq!(result, 0, "connect: {}", io::Error::last_os_error());
        File::from(socket)
    }

    pub fn listen(port: u32) -> OwnedFd {
        let (socket, address) = (socket(), address(libc::VMADDR_CID_ANY, port));
        // SAFETY: the kernel reads `LEN` bytes of `address`, which lives past the call.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) };
        assert_eq!(result, 0, "bind: {}", io::Error::last_os_error());
        // SAFETY: no memory is involved; the result is checked.
        let result = unsafe { libc::listen(socket.as_raw_fd(), 1) };
        assert_eq!(result, 0, "listen: {}", io::Error::last_os_error());
        socket
    }

    pub fn accept(listener: &OwnedFd) -> File {
        // SAFETY: null pointers tell the kernel not to write an address.
        let fd = unsafe {
            libc::accept(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        File::from(owned(fd))
    }
}
