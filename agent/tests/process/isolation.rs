//! A container with namespaces and a root of its own, as in a guest. Needs root and busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use wire::{ContainerSpec, Exit};

use crate::harness::{Agent, DEADLINE, shell};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 15] = [
    "sh", "cat", "chmod", "echo", "ls", "id", "hostname", "sleep", "stat", "ps", "mount", "setsid",
    "grep", "readlink", "test",
];

/// An agent whose containers live in an image of busybox alone. `None` where that cannot be.
pub fn isolated(image: &Path) -> Option<Agent> {
    isolated_with(image, &[])
}

/// The same, with more arguments for the agent.
pub fn isolated_with(image: &Path, arguments: &[&Path]) -> Option<Agent> {
    let skip = |reason: &str| {
        eprintln!("skipped: {reason}");
        None
    };
    let may = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "true"])
        .output();
    if !may.is_ok_and(|output| output.status.success()) {
        return skip("this user may not make namespaces");
    }
    if !Path::new(BUSYBOX).exists() {
        return skip("there is no /bin/busybox (package busybox-static)");
    }
    for directory in ["bin", "etc", "home/app"] {
        fs::create_dir_all(image.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, image.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n";
    fs::write(image.join("etc/passwd"), passwd).unwrap();
    fs::write(image.join("etc/group"), "app:x:1235:\nextra:x:77:app\n").unwrap();
    symlink("../nowhere", image.join("etc/resolv.conf")).unwrap();
    let isolated: [&Path; 3] = ["--root".as_ref(), image, "--isolate".as_ref()];
    Some(Agent::start_with(&[&isolated, arguments].concat()))
}

fn lines_of(spec: ContainerSpec) -> Option<Vec<String>> {
    let image = tempfile::tempdir().unwrap();
    let agent = isolated(image.path())?;
    let (out, err, exit) = agent.run(spec).until_exit();
    assert_eq!((err, exit), (vec![], Exit::Code(0)));
    Some(out)
}

#[test]
fn isolated_container_is_pid_1_and_sees_no_process_but_its_own() {
    let Some(out) = lines_of(shell("echo $$; ls -d /proc/[0-9]* | cat")) else {
        return;
    };
    assert_eq!(out[..2], ["1", "/proc/1"]);
    assert!(out.len() <= 4, "{out:?}");
}

#[test]
fn isolated_container_sees_its_own_root_and_a_normal_dev() {
    let script = "ls / | cat; cd /dev; ls | cat; echo > null && echo x > full; \
        stat -c %a:%t:%T null; readlink ptmx; test -c pts/ptmx && echo ptmx";
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    let (out, err, exit) = agent.run(shell(script)).until_exit();
    let mut expected = vec!["bin", "dev", "etc", "home", "proc", "sys"];
    expected.extend(["fd", "full"]);
    if Path::new("/dev/fuse").exists() {
        expected.push("fuse");
    }
    expected.extend([
        "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
    ]);
    expected.extend(["tty", "urandom", "zero", "666:1:3", "pts/ptmx", "ptmx"]);
    assert_eq!(out, expected);
    assert_eq!((err.len(), exit), (1, Exit::Code(0)), "{err:?}"); // nothing fits into "full"
}

#[test]
fn isolated_container_has_its_host_name_and_finds_it() {
    let before = rustix::system::uname().nodename().to_owned();
    let script = "hostname; cat /etc/hostname /etc/hosts; grep -c . /etc/resolv.conf";
    let Some(out) = lines_of(shell(script)) else {
        return;
    };
    let hosts = [
        "127.0.0.1\tlocalhost s-1",
        "::1\tlocalhost s-1 ip6-localhost ip6-loopback",
    ];
    assert_eq!(out, ["s-1", "s-1", hosts[0], hosts[1], "1"]);
    assert_eq!(
        rustix::system::uname().nodename(),
        &*before,
        "the host's own name changed"
    );
}

#[test]
fn isolated_container_runs_as_the_images_user_with_its_groups_and_home() {
    let script = "id -u; id -g; id -G; echo $HOME";
    let user = |user: &str| ContainerSpec {
        user: user.into(),
        ..shell(script)
    };
    let Some(out) = lines_of(user("app")) else {
        return;
    };
    assert_eq!(out, ["1234", "1235", "1235 77", "/home/app"]);
    assert_eq!(lines_of(user("55:66")).unwrap(), ["55", "66", "66", "/"]);
}

#[test]
fn init_that_leaves_its_stop_signal_to_the_default_does_not_sit_out_its_grace() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    let mut control = agent.run(shell("echo up; exec sleep 1000"));
    assert_eq!(control.line(), "up");
    let begin = Instant::now();
    control.stop(Duration::from_secs(1000));
    assert_eq!(control.until_exit().2, Exit::Signal(9));
    assert!(begin.elapsed() < DEADLINE);
}

#[test]
fn init_that_handles_its_stop_signal_gets_it() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    let mut control = agent.run(shell(
        "trap 'exit 9' TERM; echo up; while :; do sleep 1; done",
    ));
    assert_eq!(control.line(), "up");
    control.stop(DEADLINE);
    assert_eq!(control.until_exit().2, Exit::Code(9));
}

#[test]
fn everything_in_the_namespace_ends_with_its_init() {
    let image = tempfile::tempdir().unwrap();
    let Some(agent) = isolated(image.path()) else {
        return;
    };
    // The background process holds the pipe of the output, whose end therefore shows its own.
    let mut control = agent.run(shell("setsid sleep 1000 & echo left; exit 3"));
    assert_eq!(
        control.until_exit(),
        (vec!["left".into()], vec![], Exit::Code(3))
    );
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid()));
    assert_eq!(children.unwrap(), "");
}

#[test]
fn root_that_does_not_exist_is_a_failure_that_names_it() {
    let agent = Agent::start_with(&["--root".as_ref(), "/no/such".as_ref()]);
    let (text, exit) = agent.greeted().failure();
    assert_eq!(exit, Exit::Code(125));
    assert!(
        text.starts_with("Cannot make /no/such the root: "),
        "{text}"
    );
}
