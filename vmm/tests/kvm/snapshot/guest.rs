//! The guest's half of the tests with a real kernel.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::boot::guest::say;
use crate::boot::vsock;

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(50);
/// What a kernel says that thinks it stood still.
const TROUBLE: [&str; 5] = ["lockup", "stall", "hung", "jiffies", "Watchdog"];
/// What it says when it was told that it is a copy.
const FORKED: &str = "crng reseeded due to virtual machine fork";

/// Does what `test` names, if it is one of these.
pub fn run(test: &str) -> bool {
    match test {
        "tick" => tick(),
        "flood" => flood(),
        "write" => write(),
        "echo" => echo(),
        _ => return false,
    }
    true
}

fn monotonic_ms() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// A thread on each processor that does nothing but wake up.
fn pulses() -> Vec<Arc<AtomicU64>> {
    let count = std::thread::available_parallelism().unwrap().get();
    let pulse = |cpu| {
        let pulse = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&pulse);
        std::thread::spawn(move || {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).unwrap();
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        pulse
    };
    (0..count).map(pulse).collect()
}

/// The kernel's messages since the last call.
struct Messages(File);

impl Messages {
    fn new() -> Self {
        let mut options = File::options();
        let nonblocking = libc::O_NONBLOCK;
        let mut file = options
            .read(true)
            .custom_flags(nonblocking)
            .open("/dev/kmsg");
        // What was said before is not this test's.
        let file = file.as_mut().unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Self(file.try_clone().unwrap())
    }

    fn new_ones(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        // One read is one message.
        while let Ok(count) = self.0.read(&mut buffer) {
            lines.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        lines
    }
}

/// How many ticks a processor may take to show that it works.
const MOST_WAITS: u32 = 1000;

/// Says at each tick what time it is, and tells of trouble and of being a copy.
fn tick() -> ! {
    let pulses = pulses();
    let mut messages = Messages::new();
    let mut seen = vec![0; pulses.len()];
    for number in 0_u64.. {
        let before = monotonic_ms();
        // Until every processor has been at work. Counted and not timed: the clock goes on while the guest is
        // paused.
        let mut waits = 0;
        while pulses
            .iter()
            .zip(&seen)
            .any(|(pulse, seen)| pulse.load(Ordering::Relaxed) == *seen)
        {
            waits += 1;
            if waits > MOST_WAITS {
                say("trouble: a processor does nothing");
                break;
            }
            std::thread::sleep(TICK);
        }
        seen = pulses
            .iter()
            .map(|pulse| pulse.load(Ordering::Relaxed))
            .collect();
        for message in messages.new_ones() {
            if message.contains(FORKED) {
                let mut random = [0; 16];
                rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                    .unwrap();
                say(&format!("forked, random {}", u128::from_le_bytes(random)));
            }
            if TROUBLE.iter().any(|trouble| message.contains(trouble)) {
                say(&format!("trouble: {}", message.trim()));
            }
        }
        let after = monotonic_ms();
        if after < before {
            say(&format!("trouble: {after} ms after {before} ms"));
        }
        say(&format!("tick {number} at {after} ms"));
    }
    unreachable!("a u64 does not run out")
}

/// Prints much.
fn flood() {
    for number in 0..super::linux::FLOOD {
        say(&format!("line {number}"));
    }
}

/// Writes numbers to the disk for ever, each as soon as the last one is on it.
fn write() -> ! {
    let disk = File::options()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open("/dev/vda")
        .unwrap();
    for number in 0_u64.. {
        let place = number % 128 * 512;
        disk.write_all_at(&number.to_le_bytes(), place).unwrap();
        if number == 32 {
            say("writing");
        }
    }
    unreachable!("a u64 does not run out")
}

/// Answers each connection until it ends, and says how it ended.
fn echo() -> ! {
    let listener = vsock::listen(1025);
    say("listening");
    loop {
        let mut stream = vsock::accept(&listener);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let end = loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break "end".to_owned(),
                    Ok(count) => stream.write_all(&buffer[..count]).unwrap(),
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                        break "reset".to_owned();
                    }
                    Err(error) => break error.to_string(),
                }
            };
            say(&format!("connection: {end}"));
        });
    }
}
