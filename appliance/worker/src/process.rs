//! The process that is one microVM.
//!
//! Its standard input is the warden's socket. The first message brings what every worker needs: the
//! host's ends of the guest's vsock and console, the orders socket, and `/dev/kvm`. It gives up
//! its privileges, makes a virtual machine with nothing in it, and waits: it is a spare. The order
//! to boot or to restore a guest brings the files that the guest is made of. A spare ends when the
//! warden's socket closes, whoever closed it. A worker with a guest lives on, so that the next
//! appliance can adopt it over the orders socket; if none comes, it stops the microVM and ends after
//! the orphan limit.
//!
//! It opens nothing by path: where it is, there is nothing (`room`). Its own pagemap is opened by the warden, without the right to
//! see physical addresses in it, and only a trial keeps it, which is ordered to write its guest's working set down.
//!
//! Threads: the first one hears what guest there shall be and waits for its end, one makes the guest and ends with that, one carries out orders and
//! watches who is there, the others are the microVM's. Each has a filter of its own for what it may ask of the kernel (`vmm::sandbox`) before it
//! reads a byte that somebody else than the warden has written.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use vmm::sandbox::ThreadClass;
use vmm::{
    BlankMachine, BlockConfig, Filters, FirstPages, IdleThread, RestoreConfig, SnapshotFiles, Vm,
    VmConfig, VmExit, VmHandle,
};

use worker::exit::{Exit, Failure, chain};
use worker::limits::Limits;
use worker::orders::server::{Desk, Heard};
use worker::orders::{self, Answer, Order, files};
use worker::setup::first_message;
use worker::spec::{MAX_REPORT_BYTES, WorkerFd, WorkerReport, WorkerSetup, WorkerSpec};
use worker::{channel, landlock, privileges, telemetry};

/// How long the vCPUs may take to stop once nobody is there to be told.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs until the guest ends or nobody is there for whom it should run.
pub fn run() -> Result<Exit, Failure> {
    let Some((socket, setup, fds)) = first_message::<WorkerSetup>(c"cabana:spare")? else {
        return Ok(Exit::Ok);
    };
    let internal = |error: &dyn std::error::Error| Failure::of(Exit::Internal, error);
    telemetry::start();
    telemetry::log_panics();
    confine(&setup).map_err(|error| internal(&error))?;
    let say = socket.try_clone().map_err(|error| internal(&error))?;
    let orphan_limit = Duration::from_secs(setup.orphan_limit_seconds.into());
    let filters = match setup.confined {
        true => Filters::On,
        false => Filters::Off,
    };
    let report =
        match guest(socket, fds, orphan_limit, filters).map_err(|error| internal(&error))? {
            Ok(None) => return Ok(Exit::Ok),
            Ok(Some(vm)) => report(vm.wait()),
            Err(what) => WorkerReport::NotStarted { what },
        };
    tracing::debug!(worker = %setup.id, ?report, "Guest ended");
    self::say(&say, report);
    Ok(Exit::Ok)
}

/// Gives up all that a worker never needs, before it has seen a byte of anybody but the warden.
fn confine(setup: &WorkerSetup) -> Result<(), privileges::DropError> {
    let failed = |what| move |source: io::Error| privileges::DropError::System { what, source };
    Limits::worker(setup.uid.is_some())
        .set()
        .map_err(|error| failed("set limits")(error.into()))?;
    privileges::drop_to(setup.uid)?;
    if setup.confined {
        let version = landlock::forbid_everything().map_err(failed("use landlock"))?;
        tracing::debug!(worker = %setup.id, landlock = version.unwrap_or(0), "Confined");
    }
    Ok(())
}

/// What there is of a microVM before anybody says what shall run in it.
struct Blank {
    machine: BlankMachine,
    vsock: UnixListener,
    console: File,
    /// What shows which pages of this process are in memory; `None` where the host did not let the warden open it.
    pagemap: Option<File>,
}

impl Blank {
    /// With the listening socket that orders come to.
    fn make(fds: Vec<OwnedFd>, filters: Filters) -> Result<(Self, OwnedFd), String> {
        // `WorkerFd::FROM_APPLIANCE`, and what the warden adds.
        const COUNT: usize = WorkerFd::FROM_APPLIANCE.len() + 1;
        let mut fds = fds;
        let pagemap = fds.drain(COUNT.min(fds.len())..).next();
        let Ok([vsock, console, orders, kvm]) = <[OwnedFd; COUNT]>::try_from(fds) else {
            return Err("The warden sent too few descriptors".to_owned());
        };
        let machine =
            BlankMachine::create(&File::from(kvm), filters).map_err(|error| chain(&error))?;
        let blank = Self {
            machine,
            vsock: vsock.into(),
            console: console.into(),
            pagemap: pagemap.map(File::from),
        };
        Ok((blank, orders))
    }

    fn boot(self, spec: &WorkerSpec, files: [File; 4]) -> Result<(Vm, Steps), String> {
        let [kernel, initramfs, root, scratch] = files;
        let (vm, steps) = Vm::start(VmConfig {
            machine: self.machine,
            memory: None,
            mem_mib: spec.mem_mib,
            vcpus: spec.vcpus,
            kernel,
            initramfs,
            cmdline: String::new(),
            blocks: vec![root_disk(root), writable_disk(scratch, None)],
            vsock: self.vsock,
            console: self.console,
            limits: spec.limits,
        })
        .map_err(|error| chain(&error))?;
        Ok((vm, steps.0))
    }

    fn restore(
        self,
        spec: &WorkerSpec,
        files: [File; 5],
        first_pages: FirstPages,
    ) -> Result<(Vm, Steps), String> {
        let [state, memory, root, base, disk] = files;
        let (vm, steps) = Vm::restore(RestoreConfig {
            machine: self.machine,
            state,
            memory,
            blocks: vec![root_disk(root), writable_disk(disk, Some(base))],
            vsock: self.vsock,
            console: self.console,
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            first_pages,
            limits: spec.limits,
        })
        .map_err(|error| chain(&error))?;
        Ok((vm, steps.0))
    }
}

/// Where the time went.
type Steps = Vec<(&'static str, Duration)>;

fn root_disk(file: File) -> BlockConfig {
    BlockConfig {
        file,
        base: None,
        read_only: true,
    }
}

fn writable_disk(file: File, base: Option<File>) -> BlockConfig {
    BlockConfig {
        file,
        base,
        read_only: false,
    }
}

/// Waits as a spare and becomes a guest; `None` when the warden goes away before. The outer error
/// is about this process, the inner one about the guest, and the appliance has been told.
fn guest(
    socket: OwnedFd,
    fds: Vec<OwnedFd>,
    orphan_limit: Duration,
    filters: Filters,
) -> io::Result<Result<Option<Vm>, String>> {
    let (mut blank, orders) = match Blank::make(fds, filters) {
        Ok(made) => made,
        Err(what) => return Ok(Err(what)),
    };
    // Made ahead and confined before they hear anything, as those of the microVM are: nothing of it is on the way of a fork.
    let thread = |name: &str, class| IdleThread::spawn(name.to_owned(), filters, class);
    let (clerk, maker) = (
        thread("orders", ThreadClass::Orders)?,
        thread("maker", ThreadClass::Maker)?,
    );
    // From here on this thread reads what others have written.
    filters.install(ThreadClass::Owner)?;
    let mut desk = Desk::new(socket, orders);
    let (order, fds) = loop {
        match desk.wait()? {
            Heard::End => return Ok(Ok(None)),
            Heard::Order(order @ (Order::Boot { .. } | Order::Restore { .. }), fds) => {
                break (order, fds);
            }
            Heard::Order(order, _) => desk.answer(&cannot(&order, "it has no guest")),
        }
    };
    let begun = Instant::now();
    // Only for people to look at.
    let _ = rustix::thread::set_name(c"cabana:worker");
    // Everybody else would only have one more thing that shows something.
    let pagemap = blank.pagemap.take().filter(|_| is_trial(&order));
    let (say, made) = mpsc::sync_channel(1);
    let maker = maker.start(move || drop(say.send(start(blank, order, fds))));
    let made = made.recv().map_err(io::Error::other)?;
    match made {
        Ok((vm, steps)) => {
            desk.outlive(orphan_limit);
            desk.answer(&done(steps, begun));
            // From here on nobody in this process can map memory or make a vCPU.
            let _ = maker.join();
            let handle = vm.handle();
            clerk.start(move || serve(desk, &handle, pagemap.as_ref()));
            Ok(Ok(Some(vm)))
        }
        Err(what) => {
            desk.answer(&Answer::Failed {
                message: what.clone(),
            });
            Ok(Err(what))
        }
    }
}

/// Whether its guest is there to be watched: the order to write its working set down comes later.
fn is_trial(order: &Order) -> bool {
    let recorded = orders::FirstPages::Recorded;
    matches!(order, Order::Restore { first_pages, .. } if *first_pages == recorded)
}

fn start(blank: Blank, order: Order, mut fds: Vec<OwnedFd>) -> Result<(Vm, Steps), String> {
    let bad = |error| chain(&error);
    match order {
        Order::Boot { spec } => blank.boot(&spec, files(fds).map_err(bad)?),
        Order::Restore { spec, first_pages } => {
            let first_pages = match (first_pages, fds.len()) {
                (orders::FirstPages::AsNeeded, _) => FirstPages::AsNeeded,
                (orders::FirstPages::Recorded, _) => FirstPages::Recorded,
                (orders::FirstPages::Prefetched, count) => {
                    let [file] = files(fds.split_off(count.saturating_sub(1))).map_err(bad)?;
                    FirstPages::Prefetched(file)
                }
            };
            blank.restore(&spec, files(fds).map_err(bad)?, first_pages)
        }
        Order::Pause | Order::Resume | Order::Save | Order::SaveWorkingSet => {
            Err("There is no guest".to_owned())
        }
    }
}

/// What the steps leave over goes by a name of its own, so that nothing is missing.
fn done(steps: Steps, begun: Instant) -> Answer {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let known: Duration = steps.iter().map(|(_, time)| *time).sum();
    let rest = begun.elapsed().saturating_sub(known);
    let steps = steps.into_iter().chain([("start guest", rest)]);
    Answer::Done {
        steps: steps
            .map(|(name, time)| (name.to_owned(), micros(time)))
            .collect(),
    }
}

fn cannot(order: &Order, why: &str) -> Answer {
    let message = format!("Cannot {}: {why}", order.what());
    Answer::Failed { message }
}

/// Carries out orders until nobody is there who could give one, and then stops the microVM.
fn serve(mut desk: Desk, vm: &VmHandle, pagemap: Option<&File>) {
    loop {
        match desk.wait() {
            Ok(Heard::Order(order, fds)) => {
                let answer = carry_out(vm, pagemap, &order, fds);
                desk.answer(&answer);
            }
            Ok(Heard::End) => {
                tracing::info!("Nobody has adopted this worker in time");
                break;
            }
            Err(error) => {
                tracing::error!("Cannot wait for orders: {error}");
                break;
            }
        }
    }
    vm.stop();
    std::thread::sleep(STOP_LIMIT);
    std::process::exit(Exit::Internal.code().into());
}

fn carry_out(vm: &VmHandle, pagemap: Option<&File>, order: &Order, fds: Vec<OwnedFd>) -> Answer {
    let result = match order {
        Order::Boot { .. } | Order::Restore { .. } => Err("it has a guest already".to_owned()),
        Order::Pause => vm.pause().map_err(|error| chain(&error)),
        Order::Resume => vm.resume().map_err(|error| chain(&error)),
        Order::Save => save(vm, fds),
        Order::SaveWorkingSet => save_working_set(vm, pagemap, fds),
    };
    match result {
        Ok(()) => Answer::Done { steps: Vec::new() },
        Err(why) => cannot(order, &why),
    }
}

fn save(vm: &VmHandle, fds: Vec<OwnedFd>) -> Result<(), String> {
    let [state, memory, disk] = files(fds).map_err(|error| chain(&error))?;
    let to = SnapshotFiles {
        state,
        memory,
        disks: vec![disk],
    };
    vm.save(&to).map_err(|error| chain(&error))
}

fn save_working_set(
    vm: &VmHandle,
    pagemap: Option<&File>,
    fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let [to] = files(fds).map_err(|error| chain(&error))?;
    let pagemap = pagemap.ok_or("It was not given its pagemap")?;
    vm.save_working_set(pagemap, &to)
        .map_err(|error| chain(&error))
}

fn report(exit: VmExit) -> WorkerReport {
    match exit {
        VmExit::PowerOff => WorkerReport::PowerOff,
        VmExit::Reset => WorkerReport::Reset,
        VmExit::TripleFault => WorkerReport::TripleFault,
        VmExit::Stopped => WorkerReport::Stopped,
        VmExit::Failed { what } => WorkerReport::Failed { what },
    }
}

/// The warden passes a report on only up to a limit, so the text is cut to fit.
fn say(socket: &OwnedFd, mut report: WorkerReport) {
    if let WorkerReport::Failed { what } | WorkerReport::NotStarted { what } = &mut report {
        *what = what
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_REPORT_BYTES / 8)
            .collect();
    }
    match serde_json::to_vec(&report) {
        // The warden may be gone, and then nobody asks.
        Ok(bytes) => drop(channel::send(socket.as_fd(), &bytes, &[], true)),
        Err(error) => tracing::error!("Cannot encode the report: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_report_still_fits_and_can_be_read() {
        let (ours, theirs) = channel::pair().unwrap();
        say(
            &ours,
            WorkerReport::Failed {
                what: "\u{1f980}\n\"".repeat(100_000),
            },
        );
        let message = channel::receive(theirs.as_fd(), true).unwrap().unwrap();
        assert!(
            message.bytes.len() <= MAX_REPORT_BYTES,
            "{}",
            message.bytes.len()
        );
        serde_json::from_slice::<WorkerReport>(&message.bytes).unwrap();
    }

    #[test]
    fn steps_of_an_answer_are_all_of_its_time() {
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        let Answer::Done { steps } = done(vec![("inner", Duration::from_millis(1))], begun) else {
            panic!("not done");
        };
        assert_eq!(steps[0], ("inner".to_owned(), 1000));
        assert!(steps.iter().map(|(_, micros)| micros).sum::<u64>() >= 2000);
    }
}
