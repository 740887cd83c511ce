//! An operator looks into a session: commands beside its container, and what the container has printed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use e2e::{TestAppliance, artifacts, pool::Pool};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

e2e::tests! {
    Shared: [
        command_in_a_session_sees_its_container_and_ends_as_it_would_in_a_shell,
        log_of_a_session_is_shown_and_followed,
        absent_pools_sessions_and_appliances_are_told_apart,
    ];
}

const POOL: &str = "inside";
const SESSION: &str = "user-1";

/// `cabana session CALL` about the session of these tests, without its last flags.
fn session_command(host: &TestAppliance, call: &str, identifier: &str) -> Command {
    let mut command = Command::new(artifacts::cabana());
    command.args([
        "session",
        call,
        "--name",
        POOL,
        "--identifier",
        identifier,
        "--root",
    ]);
    command.arg(host.root());
    command
}

/// Runs a command in the session with this input; its code, standard output and standard error.
fn exec(
    host: &TestAppliance,
    flags: &[&str],
    argv: &[&str],
    input: &[u8],
) -> (i32, Vec<u8>, String) {
    let mut command = session_command(host, "exec", SESSION);
    command.args(flags).arg("--").args(argv);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // A command that does not read is no failure.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), output.stdout, error)
}

fn python(host: &TestAppliance, flags: &[&str], text: &str, input: &[u8]) -> (i32, String) {
    let (code, out, err) = exec(host, flags, &["python3", "-c", text], input);
    assert_eq!(err, "", "{text}");
    (code, String::from_utf8(out).unwrap())
}

/// A pool of Debian with a web server of Python's, and its one session.
fn debian(host: &TestAppliance) -> Pool<'_> {
    let source = format!("oci-archive:{}", artifacts::python_image().display());
    let flags = [
        "--image",
        &source,
        "--target-port",
        "8000",
        "--cooldown-period",
        "600",
    ];
    let server = ["--env-vars", "MODE=test", "PYTHONUNBUFFERED=1"];
    let pool = host.pool(POOL).with(&flags).with(&server).create();
    assert_eq!(pool.session(SESSION).get("/").status, 200);
    pool
}

fn command_in_a_session_sees_its_container_and_ends_as_it_would_in_a_shell(host: &TestAppliance) {
    let pool = debian(host);
    let ids = "import os; print(os.getuid(), os.environ['MODE'], os.environ['MORE'], os.getcwd())";
    let (code, out) = python(host, &["--env", "MORE=1", "--workdir", "/tmp"], ids, b"");
    assert_eq!((code, out.as_str()), (0, "0 test 1 /tmp\n"));
    let user = "import os; print(os.getuid(), os.getgid())";
    assert_eq!(
        python(host, &["--user", "1234:77"], user, b"").1,
        "1234 77\n"
    );
    let processes =
        "import os; print(os.readlink('/proc/1/exe'), os.path.exists('/etc/debian_version'))";
    let (_, out) = python(host, &[], processes, b"");
    assert!(out.contains("/python3") && out.ends_with("True\n"), "{out}");

    let name = "import os; print(os.uname().nodename)";
    let (code, out, _) = exec(host, &[], &["cat", "/etc/hostname"], b"");
    assert_eq!(
        (code, out),
        (0, python(host, &[], name, b"").1.into_bytes())
    );

    assert_eq!(python(host, &[], "import sys; sys.exit(7)", b"").0, 7);
    assert_eq!(
        python(host, &[], "import os; os.kill(os.getpid(), 9)", b"").0,
        137
    );
    let (code, _, err) = exec(host, &[], &["no-such-program"], b"");
    assert_eq!(code, 127);
    assert!(
        err.starts_with("cabana: ") && err.contains("no-such-program"),
        "{err}"
    );

    let sent: Vec<u8> = (0..4u32 << 20)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let (code, got, err) = exec(host, &["--interactive"], &["cat"], &sent);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );

    terminal_of_a_command_is_the_operators(host);

    // A container that arranges its control groups as systemd does leaves no process in its own.
    let group = "open('/proc/self/cgroup').read()";
    assert_eq!(
        python(host, &[], &format!("print({group})"), b"").1,
        "0::/\n\n"
    );
    let arrange = "import os; g = '/sys/fs/cgroup/'; os.mkdir(g + 'inner')
for pid in '1', '0': open(g + 'inner/cgroup.procs', 'w').write(pid)
open(g + 'cgroup.subtree_control', 'w').write('+pids')";
    assert_eq!(python(host, &[], arrange, b""), (0, String::new()));
    assert_eq!(
        python(host, &[], &format!("print({group})"), b"").1,
        "0::/inner\n\n"
    );
    pool.delete();
}

/// The command's terminal is as large as ours; ours passes keys on as they are, and is put back.
fn terminal_of_a_command_is_the_operators(host: &TestAppliance) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let size = Winsize {
        ws_row: 33,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&ours, size).unwrap();
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let before = tcgetattr(&theirs).unwrap().local_modes;
    let end = || -> OwnedFd { theirs.try_clone().unwrap() };
    let text = "import os; print(os.get_terminal_size(), os.ttyname(0)); input(); print('bye')";
    let mut child = session_command(host, "exec", SESSION)
        .args(["--", "python3", "-c", text])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut terminal = File::from(ours);
    let seen = read_until(&mut terminal, "/dev/pts/");
    assert!(seen.contains("columns=99, lines=33"), "{seen}");
    let raw = tcgetattr(&theirs).unwrap().local_modes;
    assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ISIG));
    terminal.write_all(b"\r").unwrap();
    read_until(&mut terminal, "bye");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(tcgetattr(&theirs).unwrap().local_modes, before);
}

fn read_until(terminal: &mut File, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        let count = terminal.read(&mut chunk).unwrap();
        seen.extend_from_slice(&chunk[..count]);
        let so_far = String::from_utf8_lossy(&seen);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
        assert_ne!(count, 0, "{text:?} did not come: {so_far}");
    }
}

fn log_of_a_session_is_shown_and_followed(host: &TestAppliance) {
    let pool = debian(host);
    let session = pool.session(SESSION);
    assert_eq!(session.get("/first").status, 404);
    let shown = session_command(host, "logs", SESSION).output().unwrap();
    let text = String::from_utf8(shown.stderr).unwrap();
    assert!(
        shown.status.success() && text.contains("\"GET /first?"),
        "{text}"
    );

    let mut following = session_command(host, "logs", SESSION)
        .args(["--follow", "--tail", "1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value {
        serde_json::from_str(&lines.next().expect("it goes on").unwrap()).unwrap()
    };
    let last = next();
    assert!(
        last["line"].as_str().unwrap().contains("GET /first?"),
        "{last}"
    );
    session.get("/second");
    // The server says first that there is no such file.
    let [_, line] = [next(), next()];
    assert_eq!(line["stream"], "stderr");
    assert!(
        line["line"].as_str().unwrap().contains("GET /second?"),
        "{line}"
    );
    // What a command beside the container prints is not the container's, unless it is sent there. Control characters
    // are no business of the operator's terminal.
    let (code, _) = python(
        host,
        &[],
        "open('/proc/1/fd/1', 'w').write('\\x1b[2Jone\\n')",
        b"",
    );
    assert_eq!(code, 0);
    let line = next();
    assert_eq!(
        (&line["stream"], &line["line"]),
        (&"stdout".into(), &"\u{fffd}[2Jone".into())
    );
    pool.delete();
    ends(&mut following);
}

/// Within a time in which the guest can be gone.
fn ends(child: &mut Child) {
    let pidfd = e2e::process::open(child.id()).expect("it was not waited for");
    assert!(e2e::process::ends_within(&pidfd, Duration::from_secs(60)));
    assert!(child.wait().unwrap().success());
}

fn absent_pools_sessions_and_appliances_are_told_apart(host: &TestAppliance) {
    let refused = |command: &mut Command, code: i32, word: &str| {
        let ran = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(code), "{text}");
        assert!(
            text.starts_with("cabana: ") && text.contains(word),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    let exec = |identifier| {
        let mut command = session_command(host, "exec", identifier);
        command.args(["--", "true"]);
        command
    };
    let no_pool = "sessionPools/inside' under resource group 'default' was not found";
    refused(&mut exec(SESSION), 1, no_pool);
    let pool = host.pool(POOL).create();
    let absent = "no session \"user-9\" in session pool \"inside\"";
    refused(&mut exec("user-9"), 1, absent);
    refused(&mut session_command(host, "logs", "user-9"), 1, absent);
    refused(&mut exec("abc"), 64, "4 to 128 characters");
    let mut nowhere = Command::new(artifacts::cabana());
    nowhere.args([
        "session",
        "logs",
        "--name",
        "x",
        "--identifier",
        "user",
        "--root",
        "/nowhere",
    ]);
    refused(&mut nowhere, 69, "No appliance answers");
    pool.delete();
}
