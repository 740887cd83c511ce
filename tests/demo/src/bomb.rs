//! `demo bomb KIND`: a tenant that takes all it can get of one thing, until somebody ends it.
//!
//! A program of its own, started with `/exec`, so that the server beside it goes on as long as the machine lets it. `demo start bomb KIND` does not
//! wait for its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::vsock::HostPort;

/// What is taken at once of memory and of a disk.
const CHUNK_BYTES: usize = 1 << 20;
/// Touching one byte in each is what takes a page.
const PAGE_BYTES: usize = 4096;
/// One line of the flood: of the length that servers' lines have.
const LINE_BYTES: usize = 100;
/// The standard output of the container, whoever writes to it.
const CONTAINER_OUTPUT: &str = "/proc/1/fd/1";
/// Ports of the host that are tried: the agent's own (1024), those that only the host connects to, and some that nobody has.
const HOST_PORTS: std::ops::Range<u32> = 1020..1036;
/// Sockets that are held at once: less than a process may have open.
const HELD_SOCKETS: usize = 900;

/// `demo bomb KIND [PATH]` and `demo spin MILLISECONDS`. `None`: no such command.
pub fn run(arguments: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["start", what @ ..] if !what.is_empty() => start(what),
        ["spin", millis] => spin(Duration::from_millis(millis.parse().ok()?)),
        ["bomb", "memory"] => memory(),
        ["bomb", "forks"] => forks(),
        ["bomb", "lines"] => lines(),
        ["bomb", "vsock"] => vsock(),
        ["bomb", "disk", path] => disk(Path::new(path)),
        ["reserve", path] => reserve(Path::new(path)),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    })
}

/// Runs this program with these arguments, and leaves it to the server.
fn start(what: &[&str]) -> io::Result<()> {
    Command::new("/proc/self/exe")
        .args(what)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// Takes all of a processor for so long, by the clock.
fn spin(time: Duration) -> io::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Ends when somebody ends it: until then it has more and more memory, and uses it.
fn memory() -> io::Result<()> {
    let mut taken = Vec::new();
    loop {
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        for page in chunk.chunks_mut(PAGE_BYTES) {
            page[0] = 1;
        }
        taken.push(std::hint::black_box(chunk));
    }
}

/// Each process starts others of its kind, and tries again when it gets none.
fn forks() -> io::Result<()> {
    loop {
        if start(&["bomb", "forks"]).is_err() {
            thread::yield_now();
        }
    }
}

/// Writes lines as fast as they are taken.
fn lines() -> io::Result<()> {
    let mut output = OpenOptions::new().write(true).open(CONTAINER_OUTPUT)?;
    let mut line = [b'x'; LINE_BYTES];
    line[LINE_BYTES - 1] = b'\n';
    let many = line.repeat(CHUNK_BYTES / LINE_BYTES);
    loop {
        output.write_all(&many)?;
    }
}

/// Opens connections to the host as fast as they are refused, and keeps those that are not.
fn vsock() -> io::Result<()> {
    let mut held: Vec<OwnedFd> = Vec::new();
    loop {
        for port in HOST_PORTS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
            match connect(&socket, &HostPort(port)) {
                Ok(()) | Err(Errno::INPROGRESS) => held.push(socket),
                // Refused, or out of resources: that is what is tried.
                Err(_) => {}
            }
        }
        if held.len() >= HELD_SOCKETS {
            // What has come of them is of no interest; new ones are.
            for socket in held.drain(..) {
                let _ = rustix::net::send(socket.as_fd(), b"x", rustix::net::SendFlags::NOSIGNAL);
            }
        }
    }
}

/// Writes one file until nothing more fits, then says how much did, removes it, and begins again.
fn disk(path: &Path) -> io::Result<()> {
    let chunk = vec![0xa5; CHUNK_BYTES];
    loop {
        let mut file = File::create(path)?;
        let mut written = 0_u64;
        let why = loop {
            match file.write(&chunk) {
                Ok(count) => written += count as u64,
                Err(error) => break error,
            }
        };
        println!("demo: {written} bytes, then {why}");
        fs::remove_file(path)?;
    }
}

/// Makes a file of blocks that are reserved and not written, until the disk has none left, and removes it. Says how many bytes it had, and the number
/// of the error that came then.
fn reserve(folder: &Path) -> io::Result<()> {
    /// Fits the smallest disk more than once, so that the end is found in few steps.
    const FIRST_BYTES: u64 = 256 << 20;
    let path = folder.join("reserved");
    let file = File::create(&path)?;
    let (mut reserved, mut step) = (0, FIRST_BYTES);
    let why = loop {
        match fallocate(&file, FallocateFlags::empty(), reserved, step) {
            Ok(()) => reserved += step,
            Err(Errno::NOSPC) if step > CHUNK_BYTES as u64 => step /= 2,
            Err(why) => break why,
        }
    };
    fs::remove_file(&path)?;
    println!("{reserved} {}", why.raw_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_command_are_not_taken_for_one() {
        for words in [
            &["bomb"][..],
            &["bomb", "nothing"],
            &["spin", "long"],
            &["start"],
            &[],
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert!(run(&words).is_none(), "{words:?}");
        }
    }

    #[test]
    fn spin_lasts_as_long_as_it_was_told() {
        let begun = Instant::now();
        spin(Duration::from_millis(20)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
