//! Workers that outlive the appliance that had them, and find another one.
//!
//! A worker with a guest is *left* when its appliance dies, or when its warden did and another one has taken it over. It lives on until
//! an appliance adopts it or says that it has all that it wanted.

use uuid::Uuid;

use super::cgroup::{Cgroups, Leaf};
use super::children::{Children, Running};
use super::protocol::Refused;
use super::records::Subject;
use super::spawn::Role;
use super::takeover::Survivor;

impl Children {
    /// Workers that an earlier warden had: they live on, within their limits, until it is known whether somebody wants them.
    pub fn take_over(&mut self, survivors: Vec<Survivor>) {
        for Survivor { process, entry } in survivors {
            let Subject::Worker {
                id,
                spec: Some(spec),
                cpu_limited,
            } = entry.subject().clone()
            else {
                continue;
            };
            let leaf = Leaf::of(id, process.id());
            let disk = self.terms.cgroups.as_ref().and_then(Cgroups::disk);
            if let Some(leaf) = &leaf
                && let Err(error) = leaf.restore(&spec, cpu_limited, disk)
            {
                tracing::warn!(worker = %id, "{}", crate::exit::chain(&error));
            }
            let ticket = match self.watch.add(id, &process) {
                Ok(ticket) => ticket,
                Err(error) => {
                    // Its end would never be seen.
                    tracing::error!(worker = %id, "Cannot watch a worker, which ends: {error}");
                    process.kill();
                    entry.remove();
                    continue;
                }
            };
            let uid = entry.identity().uid;
            self.uids.insert(uid);
            let running = Running {
                process,
                leaf,
                uid: Some(uid),
                role: Role::Worker,
                entry: Some(entry),
                spec: Some(spec),
                report: None,
                left: true,
                ticket,
            };
            self.running.insert(id, running);
        }
    }

    /// Gives a worker that was left to the appliance that asks for it.
    pub fn adopt(&mut self, id: Uuid) -> Result<(), Refused> {
        let worker = self.running.get_mut(&id).ok_or(Refused::NoSuchWorker)?;
        match (worker.left, worker.may_have_guest()) {
            (true, true) => worker.left = false,
            (true, false) => return Err(Refused::NoSuchWorker),
            (false, _) => return Err(Refused::IdInUse),
        }
        Ok(())
    }

    /// The appliance is gone. Workers with a guest wait for the next one, which nobody else can use.
    pub fn leave(&mut self) {
        for running in self.running.values_mut() {
            running.left = true;
            if !running.may_have_guest() {
                running.process.kill();
            }
        }
    }

    /// The appliance has all that it wanted: what is still left ends.
    pub fn settle(&mut self) {
        let left = self.running.values().filter(|running| running.left);
        let unwanted = left.filter(|running| running.may_have_guest()).count();
        if unwanted > 0 {
            tracing::warn!(workers = unwanted, "Not adopted and killed");
        }
        self.running
            .values()
            .filter(|running| running.left)
            .for_each(|running| running.process.kill());
    }

    /// Kills and reaps all but the workers with a guest, which it says the number of. They are on their own from here on.
    pub fn detach(&mut self) -> usize {
        let of_no_use =
            |(id, running): (&Uuid, &Running)| (!running.may_have_guest()).then_some(*id);
        let ids = self.running.iter().filter_map(of_no_use).collect();
        self.end(ids);
        let kept = self.running.len();
        self.running.clear();
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::super::children::tests::{SMALL, Sandbox, reaped, spawn};
    use super::super::protocol::{Event, Status};
    use super::super::records::Records;
    use super::super::takeover::take_over;
    use super::*;

    /// A worker with a guest, as far as this process knows.
    fn with_guest(children: &mut Children) -> Uuid {
        let id = Uuid::new_v4();
        spawn(children, id).unwrap();
        children.shape(id, SMALL).unwrap();
        id
    }

    fn pid(children: &Children, id: Uuid) -> u32 {
        children.running[&id].process.id()
    }

    fn runs(pid: u32) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit_once(')').map_or("", |(_, rest)| rest.trim());
        !state.is_empty() && !state.starts_with('Z')
    }

    /// What the next warden does: it knows nothing but what was written down.
    fn next_warden(before: &Sandbox) -> Sandbox {
        let mut next = Sandbox::new("/usr/bin/yes", None);
        let records = Records::open(before.state.path()).unwrap();
        next.take_over(take_over(&records).unwrap().workers);
        next
    }

    fn refused(result: Result<(), Refused>) -> Refused {
        result.unwrap_err()
    }

    #[test]
    fn worker_with_a_guest_outlives_its_appliance_and_is_adopted_once() {
        let mut children = Sandbox::new("/usr/bin/yes", None);
        let id = with_guest(&mut children);
        assert_eq!(refused(children.adopt(id)), Refused::IdInUse);
        children.leave();
        children.adopt(id).unwrap();
        assert_eq!(refused(children.adopt(id)), Refused::IdInUse);
        children.settle();
        children.kill(id);
        let status = Status::Signal(9);
        let report = None;
        let expected = Event::Exited { id, status, report };
        assert_eq!(reaped(&mut children, id), expected);
    }

    #[test]
    fn appliance_can_do_nothing_to_a_worker_that_it_has_not_adopted() {
        let mut children = Sandbox::new("/usr/bin/yes", None);
        let id = with_guest(&mut children);
        children.leave();
        children.kill(id);
        assert!(children.usage(id).is_none());
        assert!(children.shape(id, SMALL).is_err());
        assert!(runs(pid(&children, id)), "it was killed");
    }

    #[test]
    fn spares_and_image_workers_end_with_their_appliance_and_nobody_is_told() {
        let mut children = Sandbox::new("/usr/bin/yes", None);
        let (spare, image) = (Uuid::new_v4(), Uuid::new_v4());
        spawn(&mut children, spare).unwrap();
        children
            .spawn_image_worker(image, String::new(), &[])
            .unwrap();
        children.leave();
        for id in [spare, image] {
            assert_eq!(refused(children.adopt(id)), Refused::NoSuchWorker);
            let process = &mut children.running.get_mut(&id).unwrap().process;
            assert!(
                process
                    .ends_within(std::time::Duration::from_secs(20))
                    .unwrap()
            );
            assert_eq!(children.reap(id), None, "the next appliance was told");
        }
        assert!(children.running.is_empty());
    }

    #[test]
    fn worker_that_is_not_adopted_ends_when_the_appliance_has_settled() {
        let mut children = Sandbox::new("/usr/bin/yes", None);
        let (wanted, other) = (with_guest(&mut children), with_guest(&mut children));
        children.leave();
        children.adopt(wanted).unwrap();
        children.settle();
        let process = &mut children.running.get_mut(&other).unwrap().process;
        assert!(
            process
                .ends_within(std::time::Duration::from_secs(20))
                .unwrap()
        );
        assert_eq!(children.reap(other), None);
        assert!(runs(pid(&children, wanted)));
        assert_eq!(children.recorded(), 1);
    }

    #[test]
    fn detached_worker_is_taken_over_by_the_next_warden_and_its_end_is_told() {
        let mut before = Sandbox::new("/usr/bin/yes", None);
        let id = with_guest(&mut before);
        let spare = Uuid::new_v4();
        spawn(&mut before, spare).unwrap();
        let (worker, spare) = (pid(&before, id), pid(&before, spare));
        assert_eq!(before.detach(), 1);
        assert!(runs(worker) && !runs(spare));
        assert_eq!(before.recorded(), 1);

        let mut next = next_warden(&before);
        let uid = next.running[&id].uid;
        assert!(
            uid.is_some_and(|uid| next.uids.contains(&uid)),
            "its id is given away"
        );
        next.adopt(id).unwrap();
        assert!(next.usage(id).is_some());
        next.kill(id);
        let expected = Event::Exited {
            id,
            status: Status::Unknown,
            report: None,
        };
        assert_eq!(reaped(&mut next, id), expected);
        assert_eq!(before.recorded(), 0);
    }

    #[test]
    fn everything_ends_with_a_stop_workers_of_an_earlier_warden_too() {
        let mut before = Sandbox::new("/usr/bin/yes", None);
        let id = with_guest(&mut before);
        let worker = pid(&before, id);
        before.detach();
        let mut next = next_warden(&before);
        let own = with_guest(&mut next);
        let own = pid(&next, own);
        assert_eq!(next.busy(), 2);
        next.end_all();
        assert!(!runs(worker) && !runs(own));
        assert_eq!(before.recorded() + next.recorded(), 0);
    }
}
