//! The workers and image workers that run. `adopted` is about those of them that outlive an appliance.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ::worker::room::Room;
use uuid::Uuid;

use super::cgroup::{self, CgroupError, Cgroups, Leaf};
use super::channel;
use super::program::Program;
use super::protocol::{Event, Refused, Usage};
use super::records::{Entry, Records, Subject};
use super::spawn::{Output, Place, Process, Role};
use super::usage;
use super::watch::{News, Ticket, Watch};
use crate::privileges;
use crate::worker::spec::{ImageWorkerSetup, MAX_REPORT_BYTES, WorkerSetup, WorkerSpec};

/// The most processes at once; far above what one host can hold in memory.
const MAX_CHILDREN: usize = 4096;
/// Offset from `uid_base`: the appliance has 0. From here on, each worker and image worker has one of its own.
const FIRST_WORKER_UID: u32 = 1;

/// Why a child could not be started. Goes to the appliance as text.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("Cannot start the process")]
    Process(#[source] io::Error),
    #[error("Cannot confine the process")]
    Confine(#[source] CgroupError),
    #[error("Cannot write down which process it is")]
    Record(#[source] io::Error),
    #[error("Cannot hand the process its descriptors")]
    HandOver(#[source] io::Error),
}

#[derive(Debug)]
pub(super) struct Running {
    /// Dropped first: the leaf can only go once its process is reaped.
    pub process: Process,
    pub leaf: Option<Leaf>,
    pub uid: Option<u32>,
    pub role: Role,
    /// Of a worker.
    pub entry: Option<Entry>,
    /// Of a worker that has or may have a guest.
    pub spec: Option<WorkerSpec>,
    pub report: Option<String>,
    /// The appliance that had it is gone, and none has adopted it: nobody is told of its end.
    pub left: bool,
    pub ticket: Ticket,
}

impl Running {
    /// Whether it is worth something to another appliance.
    pub fn may_have_guest(&self) -> bool {
        self.role == Role::Worker && self.spec.is_some()
    }
}

/// What each of them is started with.
#[derive(Debug)]
pub struct Terms {
    pub worker: Program,
    /// What image workers are.
    pub ourselves: Program,
    /// Where they all are; absent when this process may not make one, or an operator wants none.
    pub room: Option<Room>,
    /// Whether they confine themselves as far as they can.
    pub confined: bool,
    pub cgroups: Option<Cgroups>,
    /// Absent when this process is not root and children keep its ids.
    pub uid_base: Option<u32>,
    pub orphan_limit_seconds: u32,
    pub records: Records,
}

/// All of them, by the id that the appliance gave.
#[derive(Debug)]
pub struct Children {
    pub(super) running: HashMap<Uuid, Running>,
    pub(super) terms: Terms,
    pub(super) watch: Watch,
    pub(super) uids: HashSet<u32>,
    /// All below are in use.
    lowest_free: u32,
    /// Leaves that the kernel would not let go of at once.
    leftovers: Vec<Leaf>,
}

impl Children {
    pub fn new(terms: Terms) -> io::Result<Self> {
        Ok(Self {
            running: HashMap::new(),
            watch: Watch::new()?,
            terms,
            uids: HashSet::new(),
            lowest_free: FIRST_WORKER_UID,
            leftovers: Vec::new(),
        })
    }

    /// User ids of processes that run already, whoever they are: they are given to nobody.
    pub fn reserve(&mut self, uids: HashSet<u32>) {
        self.uids.extend(uids);
    }

    /// What every process is written down in.
    pub fn records(&self) -> &Records {
        &self.terms.records
    }

    pub fn spawn_worker(
        &mut self,
        id: Uuid,
        fds: &[OwnedFd],
        kvm: &File,
    ) -> Result<(), StartError> {
        self.check_id(id)?;
        let leaf = match &self.terms.cgroups {
            Some(groups) => Some(groups.leaf(id).map_err(StartError::Confine)?),
            None => None,
        };
        let uid = self.free_uid();
        let setup = WorkerSetup {
            id,
            uid,
            confined: self.terms.confined,
            orphan_limit_seconds: self.terms.orphan_limit_seconds,
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).chain([kvm.as_fd()]).collect();
        self.start(id, Role::Worker, uid, leaf, &setup, &fds)
    }

    /// Gives a worker room for a guest, once: a second shape would change the limits of a guest
    /// that runs.
    pub fn shape(&mut self, id: Uuid, spec: WorkerSpec) -> Result<(), StartError> {
        let worker = self
            .running
            .get_mut(&id)
            .filter(|running| running.role == Role::Worker && !running.left)
            .ok_or(Refused::NoSuchWorker)?;
        if worker.spec.is_some() {
            return Err(Refused::ShapedAlready.into());
        }
        if let Some(leaf) = &worker.leaf {
            let disk = self.terms.cgroups.as_ref().and_then(Cgroups::disk);
            leaf.shape(&spec, disk).map_err(StartError::Confine)?;
        }
        if let Some(entry) = &mut worker.entry {
            entry.shaped(&spec).map_err(StartError::Record)?;
        }
        worker.spec = Some(spec);
        worker.process.outlive();
        Ok(())
    }

    pub fn usage(&self, id: Uuid) -> Option<Usage> {
        let worker = self.running.get(&id).filter(|worker| !worker.left)?;
        match usage::of(worker.process.id()) {
            Ok(usage) => Some(usage),
            Err(error) => {
                tracing::debug!(worker = %id, "Cannot read its memory: {error}");
                None
            }
        }
    }

    pub fn spawn_image_worker(
        &mut self,
        id: Uuid,
        job: String,
        fds: &[OwnedFd],
    ) -> Result<(), StartError> {
        self.check_id(id)?;
        let leaf = match &self.terms.cgroups {
            Some(groups) => Some(groups.image_leaf(id).map_err(StartError::Confine)?),
            None => None,
        };
        let uid = self.free_uid();
        let setup = ImageWorkerSetup {
            uid,
            confined: self.terms.confined,
            threads: cgroup::image_worker_threads(),
            job,
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.start(id, Role::ImageWorker, uid, leaf, &setup, &fds)
    }

    /// Unknown ids are no error: the child may have ended while the request was on its way.
    pub fn kill(&self, id: Uuid) {
        if let Some(running) = self.running.get(&id)
            && !running.left
        {
            running.process.kill();
        }
    }

    pub fn limit_cpu(&mut self, id: Uuid) {
        let Some(Running {
            leaf,
            spec: Some(spec),
            entry,
            left: false,
            ..
        }) = self.running.get_mut(&id)
        else {
            return;
        };
        if let Some(leaf) = leaf
            && let Err(error) = leaf.limit_cpu(spec)
        {
            tracing::warn!(worker = %id, "{}", crate::exit::chain(&error));
        }
        if let Some(entry) = entry
            && let Err(error) = entry.limited()
        {
            tracing::warn!(worker = %id, "Cannot write down its limit: {error}");
        }
    }

    /// What to wait on: readable when a child has ended or has something to say.
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.watch.fd()
    }

    /// Who has.
    pub fn news(&self) -> io::Result<Vec<(Uuid, News)>> {
        self.watch.news()
    }

    /// Takes a child's report, once. Its text is not looked at here.
    pub fn hear(&mut self, id: Uuid) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        let Some(socket) = &running.process.socket else {
            return;
        };
        match channel::receive(socket.as_fd(), true) {
            Ok(Some(message)) if message.bytes.len() <= MAX_REPORT_BYTES => {
                let text = String::from_utf8_lossy(&message.bytes).into_owned();
                running.report.get_or_insert(text);
            }
            Ok(Some(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => running.process.socket = None,
        }
    }

    /// The event to tell if the child has ended and somebody has it; everything of it is removed then.
    pub fn reap(&mut self, id: Uuid) -> Option<Event> {
        // Its last word may have come together with its end.
        self.hear(id);
        let status = match self.running.get_mut(&id)?.process.try_wait() {
            Ok(status) => status?,
            Err(error) => {
                tracing::error!(worker = %id, "Cannot wait for a child: {error}");
                return None;
            }
        };
        let (report, left) = self.forget(id)?;
        (!left).then_some(Event::Exited { id, status, report })
    }

    /// Kills and reaps all.
    pub fn end_all(&mut self) {
        let all = self.running.keys().copied().collect();
        self.end(all);
    }

    pub(super) fn end(&mut self, ids: Vec<Uuid>) {
        // All at once first, so that they die side by side.
        for id in &ids {
            if let Some(running) = self.running.get(id) {
                running.process.kill();
            }
        }
        for id in ids {
            if let Some(running) = self.running.get_mut(&id)
                && let Err(error) = running.process.wait()
            {
                tracing::error!(worker = %id, "Cannot wait for a child: {error}");
            }
            self.forget(id);
        }
        self.remove_leftovers();
    }

    /// Those that do something. A worker without a guest is none of them.
    pub fn busy(&self) -> usize {
        let busy = |running: &&Running| running.role != Role::Worker || running.may_have_guest();
        self.running.values().filter(busy).count()
    }

    fn check_id(&self, id: Uuid) -> Result<(), Refused> {
        if self.running.contains_key(&id) {
            return Err(Refused::IdInUse);
        }
        if self.running.len() >= MAX_CHILDREN {
            return Err(Refused::TooMany {
                limit: MAX_CHILDREN,
            });
        }
        Ok(())
    }

    fn start(
        &mut self,
        id: Uuid,
        role: Role,
        uid: Option<u32>,
        leaf: Option<Leaf>,
        setup: &impl serde::Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), StartError> {
        let program = match role {
            Role::Worker => &self.terms.worker,
            Role::Appliance | Role::ImageWorker => &self.terms.ourselves,
        };
        let room = self.terms.room.as_ref();
        let write_down = |process: &Process| match role {
            Role::Worker => {
                let records = &self.terms.records;
                let entry = records.write(Subject::spare(id), process.id(), uid);
                entry.map(Some).map_err(StartError::Record)
            }
            Role::Appliance | Role::ImageWorker => Ok(None),
        };
        let started = start_confined(program, role, leaf.as_ref(), room, write_down, setup, fds);
        let watched = started.and_then(|(process, entry)| match self.watch.add(id, &process) {
            Ok(ticket) => Ok((process, entry, ticket)),
            Err(error) => {
                if let Some(entry) = entry {
                    entry.remove();
                }
                Err(StartError::Process(error))
            }
        });
        match watched {
            Ok((process, entry, ticket)) => {
                self.running.insert(
                    id,
                    Running {
                        process,
                        leaf,
                        uid,
                        role,
                        entry,
                        spec: None,
                        report: None,
                        left: false,
                        ticket,
                    },
                );
                Ok(())
            }
            Err(error) => {
                self.release(leaf, uid);
                Err(error)
            }
        }
    }

    /// What it has reported, and whether nobody had it.
    fn forget(&mut self, id: Uuid) -> Option<(Option<String>, bool)> {
        let Running {
            process,
            leaf,
            uid,
            entry,
            report,
            left,
            ticket,
            ..
        } = self.running.remove(&id)?;
        drop(process);
        self.watch.forget(ticket);
        if let Some(entry) = entry {
            entry.remove();
        }
        self.release(leaf, uid);
        Some((report, left))
    }

    fn release(&mut self, leaf: Option<Leaf>, uid: Option<u32>) {
        if let Some(uid) = uid {
            self.uids.remove(&uid);
            self.lowest_free = self.lowest_free.min(uid);
        }
        self.leftovers.extend(leaf);
        self.remove_leftovers();
    }

    fn remove_leftovers(&mut self) {
        self.leftovers.retain(|leaf| leaf.remove().is_err());
    }

    /// One that no running worker has, so that workers cannot reach each other.
    fn free_uid(&mut self) -> Option<u32> {
        let first = self
            .lowest_free
            .max(self.terms.uid_base? + FIRST_WORKER_UID);
        let free = (first..).find(|uid| !self.uids.contains(uid))?;
        self.uids.insert(free);
        self.lowest_free = free + 1;
        Some(free)
    }
}

fn start_confined(
    program: &Program,
    role: Role,
    leaf: Option<&Leaf>,
    room: Option<&Room>,
    write_down: impl FnOnce(&Process) -> Result<Option<Entry>, StartError>,
    setup: &impl serde::Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(Process, Option<Entry>), StartError> {
    let group = leaf.map(Leaf::open).transpose();
    let group = group.map_err(StartError::Confine)?;
    let place = Place {
        cgroup: group.as_ref().map(AsFd::as_fd),
        room,
    };
    let process =
        Process::spawn(program, role, Output::Nowhere, place).map_err(StartError::Process)?;
    let entry = write_down(&process)?;
    // It has no `/proc`, and waits for this message, so it is still who it was started as.
    let pagemap = (role == Role::Worker).then(|| open_pagemap(process.id(), program));
    let pagemap = pagemap.and_then(|opened| {
        let log = |error: &io::Error| tracing::debug!("Cannot open a pagemap: {error}");
        opened.inspect_err(log).ok()
    });
    let fds: Vec<_> = fds
        .iter()
        .copied()
        .chain(pagemap.as_ref().map(AsFd::as_fd))
        .collect();
    match process.send_first(setup, &fds) {
        Ok(()) => Ok((process, entry)),
        Err(error) => {
            if let Some(entry) = entry {
                entry.remove();
            }
            Err(StartError::HandOver(error))
        }
    }
}

/// What a worker's pages are, without where they are: that is shown to who had `CAP_SYS_ADMIN` when it was opened
/// (Documentation/admin-guide/mm/pagemap.rst).
fn open_pagemap(pid: u32, program: &Program) -> io::Result<File> {
    let path = format!("/proc/{pid}/pagemap");
    // It stays with the memory that the process has when it is opened, and that must not be ours.
    privileges::without_admin(|| {
        program.wait_until_run_by(pid)?;
        File::open(path)
    })?
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::warden::protocol::Status;
    use rustix::event::{PollFd, PollFlags, Timespec};
    use std::ops::{Deref, DerefMut};

    const DEADLINE: Timespec = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };

    /// Children that are all ended when it is dropped, those with a guest too.
    pub struct Sandbox {
        children: Children,
        pub state: tempfile::TempDir,
    }

    impl Sandbox {
        pub fn new(program: &'static str, uid_base: Option<u32>) -> Self {
            let state = tempfile::tempdir().unwrap();
            let children = Children::new(Terms {
                worker: Program::at(program).unwrap(),
                ourselves: Program::at(program).unwrap(),
                room: None,
                confined: true,
                cgroups: None,
                uid_base,
                orphan_limit_seconds: 1,
                records: Records::open(state.path()).unwrap(),
            })
            .unwrap();
            Self { children, state }
        }

        /// Processes that are written down.
        pub fn recorded(&self) -> usize {
            std::fs::read_dir(self.state.path()).unwrap().count()
        }
    }

    impl Deref for Sandbox {
        type Target = Children;
        fn deref(&self) -> &Children {
            &self.children
        }
    }

    impl DerefMut for Sandbox {
        fn deref_mut(&mut self) -> &mut Children {
            &mut self.children
        }
    }

    impl Drop for Sandbox {
        fn drop(&mut self) {
            self.children.end_all();
        }
    }

    fn children(program: &'static str) -> Sandbox {
        Sandbox::new(program, None)
    }

    pub fn spawn(children: &mut Children, id: Uuid) -> Result<(), StartError> {
        let kvm = tempfile::tempfile().unwrap();
        children.spawn_worker(id, &[], &kvm)
    }

    pub const SMALL: WorkerSpec = WorkerSpec {
        vcpus: 1,
        cpu_millis: 250,
        mem_mib: 128,
        limits: crate::worker::spec::RateLimits::NONE,
    };

    /// Waits until the kernel says that the child has ended, and reaps it.
    pub fn reaped(children: &mut Children, id: Uuid) -> Event {
        let pidfd = children.running[&id].process.pidfd();
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&DEADLINE)).unwrap(),
            1,
            "it never ended"
        );
        let news = children.news().unwrap();
        assert!(news.contains(&(id, News::End)), "{news:?}");
        children
            .reap(id)
            .expect("the kernel said that it has ended")
    }

    #[test]
    fn child_that_ends_is_reported_once_with_its_status() {
        // `grep worker` looks for its name in the setup, finds none and ends with 1 at the end.
        let mut children = children("/bin/grep");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        children.running.get_mut(&id).unwrap().process.socket = None;
        let expected = Event::Exited {
            id,
            status: Status::Code(1),
            report: None,
        };
        assert_eq!(reaped(&mut children, id), expected);
        assert_eq!(children.running.len(), 0);
        assert!(children.reap(id).is_none());
    }

    #[test]
    fn child_that_runs_is_not_reaped_and_ends_when_it_is_killed() {
        // `yes worker` runs until somebody ends it.
        let mut children = children("/usr/bin/yes");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        assert!(children.reap(id).is_none());
        children.kill(Uuid::new_v4());
        assert!(children.reap(id).is_none(), "another id killed it");
        children.kill(id);
        let expected = Event::Exited {
            id,
            status: Status::Signal(9),
            report: None,
        };
        assert_eq!(reaped(&mut children, id), expected);
    }

    #[test]
    fn id_in_use_is_refused_and_free_again_afterwards() {
        let mut children = children("/usr/bin/yes");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        let error = spawn(&mut children, id).unwrap_err();
        assert!(
            matches!(error, StartError::Refused(Refused::IdInUse)),
            "{error}"
        );
        assert_eq!(children.running.len(), 1);
        children.end_all();
        spawn(&mut children, id).unwrap();
    }

    #[test]
    fn worker_is_shaped_once_and_then_counts_as_busy() {
        let mut children = children("/usr/bin/yes");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        assert_eq!(children.busy(), 0, "a spare is nothing to warn about");
        children.shape(id, SMALL).unwrap();
        assert_eq!(children.busy(), 1);
        let error = children.shape(id, SMALL).unwrap_err();
        assert!(
            matches!(error, StartError::Refused(Refused::ShapedAlready)),
            "{error}"
        );
    }

    #[test]
    fn shape_of_an_unknown_id_or_of_an_image_worker_is_refused() {
        let mut children = children("/usr/bin/yes");
        let image = Uuid::new_v4();
        children
            .spawn_image_worker(image, String::new(), &[])
            .unwrap();
        assert_eq!(children.busy(), 1);
        for id in [image, Uuid::new_v4()] {
            let error = children.shape(id, SMALL).unwrap_err();
            assert!(
                matches!(error, StartError::Refused(Refused::NoSuchWorker)),
                "{error}"
            );
        }
    }

    #[test]
    fn memory_of_a_child_is_told_while_it_runs() {
        let mut children = children("/usr/bin/yes");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        let usage = children.usage(id).unwrap();
        assert!(usage.rss > 0 && usage.pss <= usage.rss, "{usage:?}");
        assert_eq!(children.usage(Uuid::new_v4()), None);
    }

    #[test]
    fn program_that_cannot_be_executed_is_an_error_and_leaves_nothing() {
        let mut children = children("/etc/passwd");
        let error = spawn(&mut children, Uuid::new_v4()).unwrap_err();
        assert!(matches!(error, StartError::Process(_)), "{error}");
        assert_eq!(children.running.len(), 0);
    }

    #[test]
    fn worker_is_written_down_as_long_as_it_runs_and_an_image_worker_is_not() {
        let mut children = children("/usr/bin/yes");
        let id = Uuid::new_v4();
        spawn(&mut children, id).unwrap();
        assert_eq!(children.recorded(), 1);
        let image = Uuid::new_v4();
        children
            .spawn_image_worker(image, String::new(), &[])
            .unwrap();
        assert_eq!(children.recorded(), 1);
        children.kill(id);
        reaped(&mut children, id);
        assert_eq!(children.recorded(), 0);
    }

    #[test]
    fn worker_that_cannot_be_written_down_is_not_started() {
        let mut children = children("/usr/bin/yes");
        std::fs::remove_dir_all(children.state.path()).unwrap();
        let error = spawn(&mut children, Uuid::new_v4()).unwrap_err();
        assert!(matches!(error, StartError::Record(_)), "{error}");
        assert_eq!(children.running.len(), 0);
        std::fs::create_dir(children.state.path()).unwrap();
    }

    #[test]
    fn running_workers_have_different_ids_and_ids_are_used_again() {
        let nothing = "/etc/passwd";
        let mut children = Sandbox::new(nothing, Some(70_000));
        assert_eq!(children.free_uid(), Some(70_001));
        assert_eq!(children.free_uid(), Some(70_002));
        children.release(None, Some(70_001));
        assert_eq!(children.free_uid(), Some(70_001));
        // Of a process that is nobody's any more.
        children.reserve(HashSet::from([70_003, 70_005]));
        let free: Vec<_> = (0..2).map(|_| children.free_uid()).collect();
        assert_eq!(free, [Some(70_004), Some(70_006)]);
        assert_eq!(Sandbox::new(nothing, None).free_uid(), None);
    }

    #[test]
    fn all_children_are_ended_and_reaped_together() {
        let mut children = children("/usr/bin/yes");
        let ids: Vec<_> = (0..5).map(|_| Uuid::new_v4()).collect();
        ids.iter().for_each(|id| spawn(&mut children, *id).unwrap());
        let pids: Vec<u32> = children
            .running
            .values()
            .map(|child| child.process.id())
            .collect();
        children.end_all();
        for pid in pids {
            let folder = format!("/proc/{pid}");
            assert!(
                !std::path::Path::new(&folder).exists(),
                "{folder} is still there"
            );
        }
    }
}
