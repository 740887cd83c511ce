//! How much memory and processor time a process takes, as the kernel counts it.

use std::io;

use super::protocol::Usage;

/// Reads `/proc/<pid>/smaps_rollup`, which the kernel has summed up over all mappings.
pub fn of(pid: u32) -> io::Result<Usage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let usage = parse(&text).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Usage {
        cpu_ns: cpu_ns(pid),
        ..usage
    })
}

/// The sum over the threads that it has now, guests included. Not from `/proc/<pid>/stat`, which counts in units of 10 ms.
fn cpu_ns(pid: u32) -> Option<u64> {
    let mut sum: u64 = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // One that has just ended takes nothing any more.
        if let Ok(text) = std::fs::read_to_string(thread.ok()?.path().join("schedstat")) {
            sum = sum.checked_add(time_on_cpu(&text)?)?;
        }
    }
    // A thread that looks has run.
    (sum > 0).then_some(sum)
}

/// The first of three numbers (Documentation/scheduler/sched-stats.rst).
fn time_on_cpu(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Lines like `Pss:            1234 kB`, each once.
fn parse(text: &str) -> Option<Usage> {
    let bytes = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Usage {
        rss: bytes("Rss")?,
        pss: bytes("Pss")?,
        private: bytes("Private_Clean")?.checked_add(bytes("Private_Dirty")?)?,
        anonymous: bytes("Anonymous")?,
        cpu_ns: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Linux 6.12.
    const ROLLUP: &str = "\
55c1d0a00000-7ffd3a5fe000 ---p 00000000 00:00 0                          [rollup]
Rss:                5044 kB
Pss:                1230 kB
Pss_Dirty:           712 kB
Pss_Anon:            700 kB
Pss_File:            530 kB
Pss_Shmem:             0 kB
Shared_Clean:       4300 kB
Shared_Dirty:         12 kB
Private_Clean:        20 kB
Private_Dirty:       712 kB
Referenced:         5044 kB
Anonymous:           704 kB
KSM:                   0 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
";

    #[test]
    fn sums_of_the_kernel_are_read_by_their_whole_names() {
        let expected = Usage {
            rss: 5044 << 10,
            pss: 1230 << 10,
            private: (20 + 712) << 10,
            anonymous: 704 << 10,
            cpu_ns: None,
        };
        assert_eq!(parse(ROLLUP), Some(expected));
    }

    #[test]
    fn text_without_a_sum_is_no_usage() {
        assert_eq!(parse(""), None);
        assert_eq!(parse(&ROLLUP.replace("\nPss:", "\nPssX:")), None);
        assert_eq!(parse(&ROLLUP.replace("5044 kB", "many kB")), None);
        let huge = ROLLUP.replace("704 kB", "18446744073709551615 kB");
        assert_eq!(parse(&huge), None);
    }

    #[test]
    fn time_on_the_processor_is_the_first_number() {
        assert_eq!(time_on_cpu("12345678 90 12\n"), Some(12_345_678));
        assert_eq!(time_on_cpu(""), None);
        assert_eq!(time_on_cpu("-1 2 3"), None);
    }

    #[test]
    fn this_process_has_memory_of_its_own_and_has_run() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.rss >= usage.pss && usage.private > 0, "{usage:?}");
        let later = of(std::process::id()).unwrap();
        assert!(later.cpu_ns >= usage.cpu_ns, "{usage:?} {later:?}");
        assert_eq!(of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
