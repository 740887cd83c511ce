//! The stop signal: its name, and whether the container would notice it.

use rustix::process::{Pid, Signal};

use super::exec;

/// Real-time signals count from here in names such as `SIGRTMIN+3`.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

const NAMES: [(&str, Signal); 31] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
];

/// Reads a name with or without `SIG`, a number, or `SIGRTMIN+n` and `SIGRTMAX-n`. Empty means
/// `SIGTERM`.
pub fn parse(text: &str) -> Option<Signal> {
    if text.is_empty() {
        return Some(Signal::TERM);
    }
    if let Ok(number) = text.parse() {
        return exec::signal(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, signal)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*signal);
    }
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => SIGRTMIN,
        (_, Some("")) => SIGRTMAX,
        (Some(offset), _) => {
            SIGRTMIN
                + offset
                    .strip_prefix('+')?
                    .parse::<u8>()
                    .map(i32::from)
                    .ok()?
        }
        (_, Some(offset)) => {
            SIGRTMAX
                - offset
                    .strip_prefix('-')?
                    .parse::<u8>()
                    .map(i32::from)
                    .ok()?
        }
        (None, None) => return None,
    };
    (SIGRTMIN..=SIGRTMAX)
        .contains(&number)
        .then(|| exec::signal(number))
        .flatten()
}

/// Whether the kernel would throw `signal` away instead of ending the process with it.
///
/// PID 1 of a namespace is not ended by a signal that it leaves to its default: most programs, as
/// they do not expect to be PID 1, would sit out their whole grace period. Anywhere else the signal
/// would have ended them at once, so the caller does that in its place.
pub fn is_lost_on_init(pid: Pid, signal: Signal) -> bool {
    let ends_a_process = !matches!(
        signal,
        Signal::CHILD
            | Signal::CONT
            | Signal::URG
            | Signal::WINCH
            | Signal::STOP
            | Signal::TSTP
            | Signal::TTIN
            | Signal::TTOU
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()));
    ends_a_process && status.is_ok_and(|status| leaves_to_default(&status, signal.as_raw()))
}

/// Whether `/proc/PID/status` says that the signal is neither caught, ignored nor blocked (a
/// blocked one is kept for `sigwait` and `signalfd`).
fn leaves_to_default(status: &str, signal: i32) -> bool {
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let masks = [mask("SigBlk:"), mask("SigIgn:"), mask("SigCgt:")];
    masks
        .iter()
        .all(|mask| mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_is_read_by_name_and_by_number() {
        for text in ["", "SIGTERM", "TERM", "sigterm", "15"] {
            assert_eq!(parse(text), Some(Signal::TERM), "{text:?}");
        }
        assert_eq!(parse("SIGWINCH"), Some(Signal::WINCH));
        let number = |text| parse(text).map(Signal::as_raw);
        assert_eq!(number("SIGRTMIN+3"), Some(37));
        assert_eq!(number("RTMAX-1"), Some(63));
        assert_eq!(number("34"), Some(34));
    }

    #[test]
    fn text_that_is_no_signal_is_none() {
        for text in [
            "SIGNONE", "0", "-9", "65", "32", "SIG", "RTMIN+31", "RTMAX+1", "9 ",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_named_signal_has_the_number_of_its_place() {
        for (index, (name, signal)) in NAMES.iter().enumerate() {
            assert_eq!(
                usize::try_from(signal.as_raw()).unwrap(),
                index + 1,
                "{name}"
            );
        }
    }

    #[test]
    fn signal_is_left_to_its_default_unless_caught_ignored_or_blocked() {
        let status = |blocked: u64, ignored: u64, caught: u64| {
            format!(
                "Name:\tx\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        let term = 1 << 14;
        assert!(leaves_to_default(&status(0, 0, 0), 15));
        assert!(leaves_to_default(&status(!term, !term, !term), 15));
        assert!(!leaves_to_default(&status(term, 0, 0), 15));
        assert!(!leaves_to_default(&status(0, term, 0), 15));
        assert!(!leaves_to_default(&status(0, 0, term), 15));
        assert!(!leaves_to_default("", 15));
    }
}
