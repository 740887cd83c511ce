//! An agent under test, and the host's ends of its streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wire::{ContainerSpec, Exit, FrameError, GuestMessage, HostMessage, Identity, Stream, port};

/// Nothing in these tests takes as long on a machine that works.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Refused on every machine these tests meet (tcpmux). Not a port that was free a moment ago:
/// another test may have got it since.
pub const CLOSED_PORT: u16 = 1;

/// An agent process; killed when dropped.
pub struct Agent {
    process: Child,
    directory: TempDir,
}

impl Agent {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// `TERM` and an ignored signal in the environment of every agent show that a container does
    /// not inherit them.
    pub fn start_with(arguments: &[&Path]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new("/bin/sh")
            .args([
                "-c",
                r#"trap '' HUP; exec "$0" "$@""#,
                env!("CARGO_BIN_EXE_agent"),
                "--socket",
            ])
            .arg(directory.path().join("s"))
            .args(arguments)
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("listening on "), "{line:?}");
        Self { process, directory }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A new connection that has said `line`.
    pub fn say(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// The control stream, before its first message.
    pub fn control(&self) -> Control {
        let mut stream = self.say(&format!("LISTEN {}\n", port::CONTROL));
        expect_ok(&mut stream);
        Control { stream }
    }

    /// The control stream of an agent that is ready for `Renew`.
    pub fn greeted(&self) -> Control {
        let mut control = self.control();
        let hello = control.next();
        assert!(
            matches!(
                hello,
                GuestMessage::Hello {
                    version: wire::VERSION,
                    ..
                }
            ),
            "{hello:?}"
        );
        control
    }

    /// The control stream of an agent that is ready for `Start`.
    pub fn renewed(&self) -> Control {
        let mut control = self.greeted();
        control.renew(identity(1));
        control
    }

    /// A control stream on which a container was started.
    pub fn run(&self, spec: ContainerSpec) -> Control {
        self.renewed().start(spec)
    }

    /// A stream to the container's port.
    pub fn stream(&self) -> UnixStream {
        let mut stream = self.say(&format!("CONNECT {}\n", port::STREAM));
        expect_ok(&mut stream);
        stream
    }

    /// A stream that has named this port; nothing of the answer has been read.
    pub fn loopback(&self, port: u16) -> UnixStream {
        let mut stream = self.say(&format!("CONNECT {}\n", port::LOOPBACK));
        expect_ok(&mut stream);
        stream.write_all(&port.to_be_bytes()).unwrap();
        stream
    }

    /// Waits until the agent sleeps, and answers whether only an event can wake it: a guest that is held to be
    /// forked must cost nothing.
    pub fn sleeps_without_a_timer(&self) -> bool {
        let path = format!("/proc/{}/syscall", self.pid());
        let mut numbers = Vec::new();
        wait_until("the agent sleeps", || {
            let text = std::fs::read_to_string(&path).unwrap();
            let parse = |field: &str| match field.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => field.parse().ok(),
            };
            // "running" while it does something.
            numbers = text.split_whitespace().map_while(parse).collect();
            numbers.len() > 4
        });
        // The number of the system call, then its arguments; the fourth is the timeout.
        match (numbers[0].cast_signed(), numbers[4]) {
            (libc::SYS_epoll_pwait2, pointer) => pointer == 0,
            (libc::SYS_epoll_wait | libc::SYS_epoll_pwait, milliseconds) => {
                milliseconds & u64::from(u32::MAX) == u64::from(u32::MAX)
            }
            _ => panic!("not a wait for events: {numbers:x?}"),
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the agent to end by itself.
    pub fn wait(mut self) -> (ExitStatus, TempDir) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let process =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let mut ended = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        let deadline = DEADLINE.try_into().unwrap();
        let count = rustix::event::poll(&mut ended, Some(&deadline)).unwrap();
        assert_eq!(count, 1, "the agent did not end");
        let status = self.process.wait().unwrap();
        (
            status,
            std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap()),
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // SIGINT and not SIGKILL: so the agent takes its container with it.
        if let Ok(None) = self.process.try_wait() {
            self.signal(rustix::process::Signal::INT);
            let _ = self.process.wait();
        }
    }
}

fn expect_ok(stream: &mut UnixStream) {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the agent answers");
        line.push(byte[0]);
    }
    assert!(
        line.starts_with(b"OK "),
        "{:?}",
        String::from_utf8_lossy(&line)
    );
}

/// The host's end of the control stream.
pub struct Control {
    pub stream: UnixStream,
}

impl Control {
    pub fn send(&mut self, message: &HostMessage) {
        wire::write_frame(&mut self.stream, message).unwrap();
    }

    pub fn renew(&mut self, identity: Identity) {
        self.send(&HostMessage::Renew(Box::new(identity)));
        assert_eq!(self.next(), GuestMessage::Renewed);
    }

    pub fn start(mut self, spec: ContainerSpec) -> Self {
        self.send(&HostMessage::Start(Box::new(spec)));
        let started = self.next();
        assert!(
            matches!(started, GuestMessage::Started { .. }),
            "{started:?}"
        );
        self
    }

    pub fn stop(&mut self, grace: Duration) {
        let grace_ms = grace.as_millis().try_into().unwrap();
        self.send(&HostMessage::Stop { grace_ms });
    }

    pub fn next(&mut self) -> GuestMessage {
        wire::read_frame(&mut self.stream).expect("the agent says something")
    }

    /// The next message, which must be a line of output.
    pub fn line(&mut self) -> String {
        match self.next() {
            GuestMessage::Output { line, .. } => line,
            other => panic!("not a line: {other:?}"),
        }
    }

    /// All messages up to the container's exit: lines of standard output, of standard error, and
    /// how it ended.
    pub fn until_exit(&mut self) -> (Vec<String>, Vec<String>, Exit) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                GuestMessage::Output {
                    stream: Stream::Stdout,
                    line,
                } => out.push(line),
                GuestMessage::Output {
                    stream: Stream::Stderr,
                    line,
                } => err.push(line),
                GuestMessage::Exited(ending) => return (out, err, ending.exit),
                other => panic!("not output: {other:?}"),
            }
        }
    }

    /// The text of a failure.
    pub fn refusal(&mut self) -> String {
        match self.next() {
            GuestMessage::Failed { message } => message,
            other => panic!("not a failure: {other:?}"),
        }
    }

    /// The text of a failure, and the exit code behind it.
    pub fn failure(&mut self) -> (String, Exit) {
        let message = self.refusal();
        match self.next() {
            GuestMessage::Exited(ending) => (message, ending.exit),
            other => panic!("not an exit: {other:?}"),
        }
    }

    pub fn expect_end(&mut self) {
        match wire::read_frame::<GuestMessage>(&mut self.stream) {
            Err(FrameError::Closed) => {}
            other => panic!("not the end of the stream: {other:?}"),
        }
    }
}

/// An identity like no other number's; the host name is `s-` and the number.
pub fn identity(number: u8) -> Identity {
    let id = format!("{number:02x}").repeat(16);
    let part = |range: std::ops::Range<usize>| &id[range];
    Identity {
        seed: vec![number; Identity::SEED_BYTES],
        unix_time_ns: 0,
        hostname: format!("s-{number}"),
        boot_id: [
            part(0..8),
            part(8..12),
            part(12..16),
            part(16..20),
            part(20..32),
        ]
        .join("-"),
        machine_id: id.clone(),
    }
}

/// A container that runs a shell script. Nothing listens on its port.
pub fn shell(script: &str) -> ContainerSpec {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned);
    ContainerSpec {
        argv: argv.into(),
        target_port: CLOSED_PORT,
        ..ContainerSpec::default()
    }
}

/// A container that waits to be stopped and whose port is served by the test.
pub fn idle(target: &TcpListener) -> ContainerSpec {
    let target_port = target.local_addr().unwrap().port();
    ContainerSpec {
        target_port,
        ..shell("exec sleep 1000")
    }
}

pub fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// Waits for something that nobody can be notified of.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::yield_now();
    }
}

pub fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}
