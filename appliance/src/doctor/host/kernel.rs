//! How old the host's kernel is. A kernel is the wall that all others stand on, and its faults become known.

use jiff::civil::{Date, Weekday};

use super::super::finding::{Finding, Severity};
use super::Files;

/// `uname -r` and `uname -v`.
const RELEASE: &str = "/proc/sys/kernel/osrelease";
const VERSION: &str = "/proc/sys/kernel/version";
/// A kernel older than this has missed what its distribution has put right several times over: stable kernels come out two or three times
/// a month (kernel.org/category/releases.html), and Debian's point releases, the slowest way to get them, about every two months
/// (wiki.debian.org/DebianReleases/PointReleases). So this is three of those.
const OLD_DAYS: i64 = 180;
/// Builds that are the same each time carry a made-up date: NixOS has 1980. No kernel of before this has what we need (cgroup version 2 is of
/// March 2016).
const OLDEST_BELIEVED: Date = Date::constant(2016, 3, 1);
/// Clocks of a host and of the machine that built its kernel differ a little, and time zones by a day.
const AHEAD_DAYS: i64 = 1;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const WEEKDAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];

pub fn look(files: &Files, today: Date) -> Finding {
    match (files.read(RELEASE), files.read(VERSION)) {
        (Some(release), Some(version)) => age(&release, &version, today),
        (_, None) => Finding::not_told("kernel", VERSION),
        (None, _) => Finding::not_told("kernel", RELEASE),
    }
}

fn age(release: &str, version: &str, today: Date) -> Finding {
    let built = built_on(version, today).filter(|built| *built >= OLDEST_BELIEVED);
    let Some(built) = built else {
        return Finding::unknown(
            "kernel",
            format!("{release}; when it was built is not told ({version})"),
        );
    };
    let days = days_between(built, today);
    if days < -AHEAD_DAYS {
        return Finding::weaker(
            "kernel",
            Severity::Medium,
            format!(
                "{release}, built on {built}, and it is {today} by this host's clock: the clock is wrong, and with it every token and certificate"
            ),
            "set the clock, and keep it right: timedatectl set-ntp true",
        );
    }
    let detail = format!("{release}, built on {built}, {} days ago", days.max(0));
    if days <= OLD_DAYS {
        return Finding::ok("kernel", detail);
    }
    Finding::weaker(
        "kernel",
        Severity::Medium,
        format!("{detail}: faults that are known by now are open in it"),
        "install the newest kernel of your distribution (Debian, Ubuntu: apt-get update && apt-get upgrade), then reboot; with kernels patched \
         while they run, see what patches are in",
    )
}

fn days_between(from: Date, to: Date) -> i64 {
    i64::from(from.until(to).map_or(0, |span| span.get_days()))
}

/// The date in `uname -v`. Debian has `(2026-11-05)`, others what `date` prints, and the text ends after 64 characters, which takes Ubuntu
/// the year.
fn built_on(version: &str, today: Date) -> Option<Date> {
    let words: Vec<&str> = version
        .split_whitespace()
        .map(|word| word.trim_matches([',', '(', ')']))
        .collect();
    if let Some(date) = words.iter().rev().find_map(|word| word.parse().ok()) {
        return Some(date);
    }
    let at = words.iter().position(|word| month(word).is_some())?;
    let month = month(words[at])?;
    let before = words.get(at.checked_sub(1)?)?;
    let after = words.get(at + 1)?;
    // `Wed Aug 21 07:44:08 UTC 2026`, or `Fri, 11 Oct 2024 19:45:23 +0000`.
    let (weekday, day, year) = match weekday(before) {
        Some(weekday) => (
            Some(weekday),
            after.parse().ok()?,
            words[at + 2..].iter().find_map(|word| year(word)),
        ),
        None => (None, before.parse().ok()?, year(after)),
    };
    match year {
        Some(year) => Date::new(year, month, day).ok(),
        None => latest(weekday?, month, day, today),
    }
}

/// The year was cut off: the latest one in which that day of the week fits. Older ones fit as well, five years before at the least.
fn latest(weekday: Weekday, month: i8, day: i8, today: Date) -> Option<Date> {
    (OLDEST_BELIEVED.year()..=today.year())
        .rev()
        .filter_map(|year| Date::new(year, month, day).ok())
        .find(|date| date.weekday() == weekday && days_between(*date, today) >= -AHEAD_DAYS)
}

fn month(word: &str) -> Option<i8> {
    let index = MONTHS.iter().position(|month| *month == word)?;
    i8::try_from(index + 1).ok()
}

fn weekday(word: &str) -> Option<Weekday> {
    let found = WEEKDAYS.iter().find(|(name, _)| *name == word)?;
    Some(found.1)
}

fn year(word: &str) -> Option<i16> {
    (word.len() == 4).then(|| word.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::*;

    const TODAY: Date = Date::constant(2026, 11, 22);

    /// `uname -v` of distributions as they are.
    #[test]
    fn date_is_read_as_each_distribution_writes_it() {
        for (version, date) in [
            (
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)",
                Some((2025, 11, 9)),
            ),
            (
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1~bpo12+1 (2025-11-17)",
                Some((2025, 11, 17)),
            ),
            // Fedora, RHEL, Amazon Linux.
            (
                "#1 SMP PREEMPT_DYNAMIC Wed Nov 15 04:22:15 UTC 2023",
                Some((2023, 11, 15)),
            ),
            (
                "#1 SMP PREEMPT_DYNAMIC Wed Aug 21 07:44:08 UTC 2024 (d3a5f83)",
                Some((2024, 8, 21)),
            ),
            // Arch.
            (
                "#1 SMP PREEMPT_DYNAMIC Fri, 11 Oct 2024 19:45:23 +0000",
                Some((2024, 10, 11)),
            ),
            // Ubuntu, cut off at 64 characters: 19 May was a Monday in 2025, and 12 February a Wednesday.
            (
                "#100~22.04.1-Ubuntu SMP PREEMPT_DYNAMIC Mon May 19 17:07:29 UTC",
                Some((2025, 5, 19)),
            ),
            (
                "#46~22.04.1-Ubuntu SMP PREEMPT_DYNAMIC Wed Feb 12 11:24:50 UTC 2",
                Some((2025, 2, 12)),
            ),
            // Made up by who builds the same bytes each time, or in no form that anybody knows.
            ("#1 SMP PREEMPT_DYNAMIC @0", None),
            ("#1-NixOS SMP PREEMPT_DYNAMIC", None),
            ("", None),
        ] {
            let expected = date.map(|(year, month, day)| Date::new(year, month, day).unwrap());
            assert_eq!(built_on(version, TODAY), expected, "{version}");
        }
    }

    #[test]
    fn kernel_is_old_after_three_point_releases() {
        let of = |date: &str| {
            age(
                "6.12.57-amd64",
                &format!("#1 SMP Debian 6.12 ({date})"),
                TODAY,
            )
        };
        assert_eq!(of("2026-11-05").verdict, Verdict::Ok);
        assert_eq!(of("2026-05-26").verdict, Verdict::Ok);
        let old = of("2026-05-25");
        assert_eq!(old.severity, Some(Severity::Medium), "{old:?}");
        assert!(old.detail.contains("181 days"), "{old:?}");
    }

    #[test]
    fn kernel_from_the_future_is_a_clock_that_is_wrong() {
        let of = |date: &str| age("6.12", &format!("#1 SMP ({date})"), TODAY);
        assert_eq!(of("2026-11-23").verdict, Verdict::Ok);
        let wrong = of("2027-01-01");
        assert!(wrong.detail.contains("clock is wrong"), "{wrong:?}");
        assert!(wrong.remedy.unwrap().contains("set-ntp"));
    }

    #[test]
    fn date_that_nobody_can_believe_is_none() {
        let nix = age("6.12", "#1-NixOS SMP Tue Jan  1 00:00:00 UTC 1980", TODAY);
        assert_eq!(nix.verdict, Verdict::Unknown, "{nix:?}");
    }
}
