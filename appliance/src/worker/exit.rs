//! How a worker ended, for the pool and for people.

use super::spec::WorkerReport;
use crate::warden::client::ProcessEnd;
use crate::warden::protocol::Status;

/// The first words of a kernel panic on the serial console (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// asm-generic/signal.h
const SIGSYS: i32 = 31;

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerExit {
    #[error("the guest powered off")]
    PowerOff,
    #[error("the guest reset itself")]
    Reset,
    /// With the line of the serial console that says why.
    #[error("the guest kernel panicked: {0}")]
    GuestPanic(String),
    #[error("the guest stopped with a triple fault")]
    TripleFault,
    /// The host ended it; this is no failure.
    #[error("the host stopped it")]
    Stopped,
    #[error("the microVM failed: {0}")]
    Failed(String),
    #[error("the microVM could not be started: {0}")]
    NotStarted(String),
    #[error(
        "its process was ended by SIGSYS: a thread of it asked the kernel for what its filter forbids; the kernel's log names the system call (journalctl --dmesg --grep type=1326)"
    )]
    ForbiddenCall,
    /// The process ended without a report: killed by the host's memory limit, by hand, or a bug.
    #[error("its process ended with {0}")]
    Died(Status),
    #[error("the warden is gone")]
    WardenGone,
}

impl WorkerExit {
    /// `killed`: we asked for it, so that a process without a report was not a surprise.
    pub(super) fn new(end: Option<ProcessEnd>, killed: bool, serial: &[String]) -> Self {
        let Some(end) = end else {
            return Self::WardenGone;
        };
        let report = end
            .report
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok());
        match report {
            Some(WorkerReport::PowerOff) => Self::PowerOff,
            Some(WorkerReport::Reset) => {
                match serial.iter().rev().find(|line| line.contains(PANIC)) {
                    Some(line) => Self::GuestPanic(line.clone()),
                    None => Self::Reset,
                }
            }
            Some(WorkerReport::TripleFault) => Self::TripleFault,
            Some(WorkerReport::Stopped) => Self::Stopped,
            Some(WorkerReport::Failed { what }) => Self::Failed(what),
            Some(WorkerReport::NotStarted { what }) => Self::NotStarted(what),
            None if killed => Self::Stopped,
            None if end.status == Status::Signal(SIGSYS) => Self::ForbiddenCall,
            None => Self::Died(end.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(status: Status, report: Option<&str>) -> Option<ProcessEnd> {
        Some(ProcessEnd {
            status,
            report: report.map(str::to_owned),
        })
    }

    #[test]
    fn reset_after_a_panic_names_the_panic() {
        let serial = [
            "[ 1.0] Kernel panic - not syncing: No init".to_owned(),
            "end".to_owned(),
        ];
        let reset = || end(Status::Code(0), Some(r#"{"end":"reset"}"#));
        assert_eq!(WorkerExit::new(reset(), false, &[]), WorkerExit::Reset);
        let WorkerExit::GuestPanic(line) = WorkerExit::new(reset(), false, &serial) else {
            panic!("not a panic");
        };
        assert!(line.contains("No init"));
    }

    #[test]
    fn process_without_a_usable_report_died_unless_we_killed_it() {
        let killed = || end(Status::Signal(9), None);
        assert_eq!(
            WorkerExit::new(killed(), false, &[]),
            WorkerExit::Died(Status::Signal(9))
        );
        assert_eq!(WorkerExit::new(killed(), true, &[]), WorkerExit::Stopped);
        let filtered = end(Status::Signal(31), None);
        let exit = WorkerExit::new(filtered, false, &[]);
        assert_eq!(exit, WorkerExit::ForbiddenCall);
        assert!(exit.to_string().contains("SIGSYS"), "{exit}");
        let nonsense = end(Status::Code(3), Some("{]"));
        assert_eq!(
            WorkerExit::new(nonsense, false, &[]),
            WorkerExit::Died(Status::Code(3))
        );
    }
}
