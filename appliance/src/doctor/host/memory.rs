//! Where a session's memory may be seen or left behind: merged pages, swap, and bits that flip.

use super::super::finding::{Finding, Severity};
use super::Files;

const KSM: &str = "/sys/kernel/mm/ksm/run";
const SWAPS: &str = "/proc/swaps";
const MEMORY_CONTROLLERS: &str = "/sys/devices/system/edac/mc";

pub fn look(files: &Files) -> Vec<Finding> {
    let dm_uuid = |device: &str| files.read(&format!("/sys/class/block/{device}/dm/uuid"));
    vec![
        ksm(files.read(KSM).as_deref()),
        swap(files.read(SWAPS).as_deref(), dm_uuid),
        ecc(&files.names(MEMORY_CONTROLLERS)),
    ]
}

/// Documentation/admin-guide/mm/ksm.rst: 0 leaves merged pages as they are, 1 merges, 2 undoes it all.
fn ksm(run: Option<&str>) -> Finding {
    match run {
        Some("0") => Finding::ok("ksm", "off"),
        Some("2") => Finding::ok("ksm", "off, and what was merged is apart again"),
        Some("1") => Finding::weaker(
            "ksm",
            Severity::Medium,
            "on: where pages of a process are merged, the time of a write tells what another one holds. Workers do not ask for it, but a \
             service manager can (MemoryKSM=)",
            "echo 2 > /sys/kernel/mm/ksm/run; for good: systemctl disable --now ksm ksmtuned, or whatever switches it on",
        ),
        _ => Finding::not_told("ksm", KSM),
    }
}

/// `dm_uuid`: what device-mapper calls a device; it begins with `CRYPT-` for what dm-crypt makes.
fn swap(swaps: Option<&str>, dm_uuid: impl Fn(&str) -> Option<String>) -> Finding {
    let Some(swaps) = swaps else {
        return Finding::not_told("swap", SWAPS);
    };
    let places: Vec<&str> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if places.is_empty() {
        return Finding::ok("swap", "none");
    }
    // Kept in memory, and gone with it.
    let on_disk: Vec<&str> = places
        .iter()
        .copied()
        .filter(|place| !place.starts_with("/dev/zram"))
        .collect();
    if on_disk.is_empty() {
        return Finding::ok("swap", format!("in memory only: {}", places.join(", ")));
    }
    let encrypted = |place: &str| {
        place
            .strip_prefix("/dev/")
            .and_then(&dm_uuid)
            .is_some_and(|uuid| uuid.starts_with("CRYPT-"))
    };
    let open: Vec<&str> = on_disk
        .iter()
        .copied()
        .filter(|place| !encrypted(place))
        .collect();
    if open.is_empty() {
        return Finding::ok("swap", format!("encrypted: {}", on_disk.join(", ")));
    }
    Finding::weaker(
        "swap",
        Severity::Low,
        format!(
            "{}: not encrypted as far as can be seen from here (what lies below it may be). Workers stay out of it (memory.swap.max=0, with \
             root and the memory controller); the appliance's own memory does not",
            open.join(", ")
        ),
        "swapoff --all; for good: take it out of /etc/fstab, or put it on a dm-crypt device with a key of each boot (man 5 crypttab: swap)",
    )
}

/// Drivers of memory controllers come up where the memory corrects errors (Documentation/driver-api/edac.rst).
fn ecc(controllers: &[String]) -> Finding {
    let found = controllers
        .iter()
        .filter(|name| {
            name.strip_prefix("mc").is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
        .count();
    if found == 0 {
        return Finding::unknown(
            "ecc",
            format!(
                "not told by this kernel: no driver under {MEMORY_CONTROLLERS}. Memory that corrects errors is the wall before Rowhammer"
            ),
        );
    }
    Finding::ok("ecc", format!("{found} memory controllers report errors"))
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::*;

    const HEADER: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    fn swaps(lines: &str, uuid: Option<&str>) -> Finding {
        swap(Some(&format!("{HEADER}{lines}")), |_| {
            uuid.map(str::to_owned)
        })
    }

    #[test]
    fn merging_is_weak_and_merged_no_more_is_not() {
        assert_eq!(ksm(Some("0")).verdict, Verdict::Ok);
        assert_eq!(ksm(Some("2")).verdict, Verdict::Ok);
        let on = ksm(Some("1"));
        assert_eq!(on.severity, Some(Severity::Medium));
        assert!(on.remedy.unwrap().contains("echo 2 >"));
        assert_eq!(ksm(None).verdict, Verdict::Unknown);
    }

    #[test]
    fn swap_on_a_disk_is_weak_and_said_to_be_open_only_as_far_as_can_be_seen() {
        let disk = swaps("/dev/sda2   partition\t8388604\t0\t-2\n", None);
        assert_eq!(disk.severity, Some(Severity::Low), "{disk:?}");
        assert!(
            disk.detail
                .starts_with("/dev/sda2: not encrypted as far as")
        );
        let file = swaps("/swap.img   file\t4194300\t0\t-2\n", None);
        assert_eq!(file.verdict, Verdict::Weaker, "{file:?}");
        // A logical volume is of device-mapper, too.
        let volume = swaps("/dev/dm-1 partition 976892 0 -2\n", Some("LVM-abc"));
        assert_eq!(volume.verdict, Verdict::Weaker, "{volume:?}");
    }

    #[test]
    fn swap_that_is_encrypted_in_memory_or_absent_is_fine() {
        assert_eq!(swaps("", None).detail, "none");
        let crypt = swaps(
            "/dev/dm-0 partition 976892 0 -2\n",
            Some("CRYPT-PLAIN-cryptswap1"),
        );
        assert_eq!(crypt.verdict, Verdict::Ok, "{crypt:?}");
        let memory = swaps("/dev/zram0 partition 8388604 0 100\n", None);
        assert_eq!(memory.verdict, Verdict::Ok, "{memory:?}");
        let both = swaps(
            "/dev/zram0 partition 8388604 0 100\n/dev/sda2 partition 1 0 -2\n",
            None,
        );
        assert!(both.detail.starts_with("/dev/sda2:"), "{both:?}");
        assert_eq!(swap(None, |_| None).verdict, Verdict::Unknown);
    }

    #[test]
    fn memory_controllers_that_report_errors_are_counted() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let found = ecc(&names(&["mc0", "mc1", "power", "uevent"]));
        assert_eq!(found.detail, "2 memory controllers report errors");
        assert_eq!(ecc(&names(&["power", "mc"])).verdict, Verdict::Unknown);
    }
}
