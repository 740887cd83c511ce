//! How much memory a process takes, as the kernel counts it.

use std::io;

use super::protocol::Usage;

/// Reads `/proc/<pid>/smaps_rollup`, which the kernel has summed up over all mappings.
pub fn of(pid: u32) -> io::Result<Usage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
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
    fn this_process_has_memory_of_its_own() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.rss >= usage.pss && usage.private > 0, "{usage:?}");
        assert_eq!(of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
