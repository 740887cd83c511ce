//! One cgroup v2 leaf per worker.
//!
//! Under systemd with `Delegate=yes` the leaves are made in the service's own cgroup, elsewhere in
//! `/sys/fs/cgroup/cabana`. A cgroup that passes controllers on may hold no process itself
//! (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), so the warden moves
//! into a leaf of its own first.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use super::io_max::Disk;
use crate::worker::spec::WorkerSpec;
use ::worker::limits::OTHER_THREADS;

const MOUNT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Where systemd puts warden and appliance from 254 on (`DelegateSubgroup=` of the unit).
const GIVEN_LEAF: &str = "appliance";
/// Where they move themselves otherwise.
const OWN_LEAF: &str = "warden";
/// Where systemd runs the commands of a service that it has delegated a cgroup to (systemd, `docs/CGROUP_DELEGATION.md`).
const CONTROL_LEAF: &str = ".control";
/// Of all processors that are contended, as much as there is (`cpu.weight` is 1 to 10000, and 100 for each worker): hundreds of busy guests
/// must not make callers wait for the front door, which takes little and takes it at once.
const OWN_WEIGHT: &str = "10000";
/// The controllers that the children of a cgroup have.
const PASSED_ON: &str = "cgroup.subtree_control";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Missing, it is missed by pools that limit their disks only, and workers keep to those limits by themselves.
const IO: &str = "io";
/// The period of `cpu.max`, the kernel's default.
const PERIOD_US: u32 = 100_000;
/// What a worker may take over its guest's memory: device queues, the kernel's page tables for the
/// guest, and page cache of its disks before that is reclaimed. Generous: the limit is there to stop
/// a worker that leaks, not to press a guest.
const OVERHEAD_MIB: u64 = 256;
/// What a worker without a guest may take: more than it ever needs, and what most guests need, so that there is little to change then.
const SPARE_VCPUS: u8 = 1;
/// What an image worker may take: names and attributes of the files of an image (`images::Limits`, 512 MiB; more than
/// twice while the image is made), a few MiB for each thread that compresses, and page cache of what it reads and writes, which is reclaimed. In MiB.
const IMAGE_WORKER_MIB: u64 = 2048;
/// Threads of an image worker besides those that compress, one for each processor.
const IMAGE_WORKER_OTHER_THREADS: u32 = 8;
/// Guests' memory is never written to the host's swap: whoever reads that disk later reads what was theirs, and what a worker takes would be
/// bounded by nothing but all of it.
const SWAP: (&str, &str) = ("memory.swap.max", "0");

/// Why workers run without limits from the host. The appliance runs all the same.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("the appliance was not started as root")]
    NotRoot,
    #[error("{MOUNT} is not a cgroup v2 file system")]
    NotVersion2,
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The folder that holds the leaves.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
    /// Under sessions' disks.
    disk: Option<Disk>,
}

/// The cgroup of one worker.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
}

impl Cgroups {
    /// `disks` is where sessions' disks are.
    pub fn prepare(disks: &Path) -> Result<Self, CgroupError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CgroupError::NotRoot);
        }
        if !is_version_2() {
            return Err(CgroupError::NotVersion2);
        }
        let (base, own) = match own_service() {
            Some(Service { base, given_leaf }) => {
                let own = base.join(if given_leaf { GIVEN_LEAF } else { OWN_LEAF });
                if !given_leaf {
                    make(&own)?;
                    write(&own.join("cgroup.procs"), &std::process::id().to_string())?;
                }
                (base, Some(own))
            }
            None => {
                enable(Path::new(MOUNT))?;
                let base = shared_base();
                make(&base)?;
                // We are not among the workers there: one of many, and they are one together.
                (base, None)
            }
        };
        enable(&base)?;
        if let Some(own) = own {
            set(&own, "cpu.weight", OWN_WEIGHT)?;
        }
        remove_leaves(&base);
        let disk = Disk::under(disks);
        tracing::debug!(?disk, "Sessions' disks");
        Ok(Self { base, disk })
    }

    /// What `io.max` of a leaf can limit.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// A new leaf for a worker without a guest.
    pub fn leaf(&self, id: Uuid) -> Result<Leaf, CgroupError> {
        let leaf = self.make_leaf(id)?;
        leaf.set(SWAP.0, SWAP.1)?;
        leaf.set_memory(0)?;
        // The first quota on a host makes the kernel patch its own code, and the last one that goes patches it back
        // (`cfs_bandwidth_usage_inc` in kernel/sched/fair.c): not while somebody waits.
        leaf.set_vcpus(SPARE_VCPUS)?;
        Ok(leaf)
    }

    /// A new leaf for an image worker. It takes processor time that nobody else wants more: it has no quota.
    pub fn image_leaf(&self, id: Uuid) -> Result<Leaf, CgroupError> {
        let leaf = self.make_leaf(id)?;
        leaf.set("memory.max", &(IMAGE_WORKER_MIB << 20).to_string())?;
        leaf.set("pids.max", &image_worker_threads().to_string())?;
        Ok(leaf)
    }

    fn make_leaf(&self, id: Uuid) -> Result<Leaf, CgroupError> {
        let path = self.base.join(id.simple().to_string());
        match make(&path) {
            // Another appliance that ended found the folder empty and removed it.
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(&self.base)?;
                enable(&self.base)?;
                make(&path)?;
            }
            made => made?,
        }
        Ok(Leaf { path })
    }
}

/// The most threads that an image worker may have.
pub fn image_worker_threads() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores)
        .unwrap_or(u32::MAX)
        .saturating_add(IMAGE_WORKER_OTHER_THREADS)
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Refused while a worker or another appliance uses it, and then it must stay.
        if self.base == shared_base() {
            let _ = fs::remove_dir(&self.base);
        }
    }
}

/// Removes what workers without a warden have left outside of a service. In one, the service manager does that.
pub fn remove_leftovers() {
    remove_leaves(&shared_base());
    let _ = fs::remove_dir(shared_base());
}

/// Leaves of workers that ended without a warden. One with a process in it cannot be removed.
fn remove_leaves(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.len() == 32
            && name
                .to_str()
                .is_some_and(|name| Uuid::try_parse(name).is_ok())
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn shared_base() -> PathBuf {
    Path::new(MOUNT).join("cabana")
}

impl Leaf {
    /// Of a worker that runs already, wherever an earlier warden has put it. `None`: that one had no leaves.
    pub fn of(id: Uuid, pid: u32) -> Option<Self> {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = Path::new(MOUNT).join(version_2_path(&own)?);
        path.ends_with(id.simple().to_string())
            .then_some(Self { path })
    }

    /// Sets every limit again: what enforces them may have been switched off meanwhile, and they were lost then.
    pub fn restore(
        &self,
        spec: &WorkerSpec,
        cpu_limited: bool,
        disk: Option<&Disk>,
    ) -> Result<(), CgroupError> {
        self.set_memory(spec.mem_mib)?;
        self.limit_disk(spec, disk)?;
        self.set_vcpus(spec.vcpus)?;
        if cpu_limited {
            self.limit_cpu(spec)?;
        }
        Ok(())
    }

    /// For a process that is to be born in it.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|error| CgroupError::File {
            what: "open",
            path: self.path.clone(),
            source: error.into(),
        })
    }

    /// Makes room for a guest. The CPU is limited to whole vCPUs until [`Leaf::limit_cpu`].
    pub fn shape(&self, spec: &WorkerSpec, disk: Option<&Disk>) -> Result<(), CgroupError> {
        self.set_memory(spec.mem_mib)?;
        self.limit_disk(spec, disk)?;
        if spec.vcpus == SPARE_VCPUS {
            return Ok(());
        }
        self.set_vcpus(spec.vcpus)
    }

    /// From now on the worker gets its share and no more.
    pub fn limit_cpu(&self, spec: &WorkerSpec) -> Result<(), CgroupError> {
        self.set("cpu.max", &cpu_max(spec.cpu_millis))
    }

    fn limit_disk(&self, spec: &WorkerSpec, disk: Option<&Disk>) -> Result<(), CgroupError> {
        match disk.and_then(|disk| disk.limited_to(&spec.limits)) {
            Some(line) => self.set("io.max", &line),
            None => Ok(()),
        }
    }

    fn set_memory(&self, guest_mib: u32) -> Result<(), CgroupError> {
        let bytes = (u64::from(guest_mib) + OVERHEAD_MIB) << 20;
        self.set("memory.max", &bytes.to_string())
    }

    fn set_vcpus(&self, vcpus: u8) -> Result<(), CgroupError> {
        let threads = u32::from(vcpus) + OTHER_THREADS;
        self.set("pids.max", &threads.to_string())?;
        self.set("cpu.max", &cpu_max(u32::from(vcpus) * 1000))
    }

    fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        set(&self.path, file, value)
    }

    /// Possible once every process in it is reaped.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }
}

/// Whether the one hierarchy of version 2 is mounted where everybody expects it.
pub fn is_version_2() -> bool {
    rustix::fs::statfs(MOUNT).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC)
}

/// What the host's control groups can limit.
pub fn controllers() -> Vec<String> {
    let text = fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers"));
    let names = text.unwrap_or_default();
    names.split_whitespace().map(str::to_owned).collect()
}

fn cpu_max(millis: u32) -> String {
    // The kernel refuses a quota below one millisecond.
    let quota = (u64::from(millis) * u64::from(PERIOD_US) / 1000).max(1000);
    format!("{quota} {PERIOD_US}")
}

/// The cgroup of the service that we are.
struct Service {
    base: PathBuf,
    /// We are in a leaf of it already.
    given_leaf: bool,
}

/// Our service, if we are one and it is only ours.
fn own_service() -> Option<Service> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = version_2_path(&own)?;
    let folder = Path::new(MOUNT).join(path);
    let procs = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
    let alone = procs
        .split_whitespace()
        .eq([std::process::id().to_string()]);
    service_of(path).filter(|_| alone).map(|service| Service {
        base: Path::new(MOUNT).join(service),
        given_leaf: service != path,
    })
}

/// The part of `/proc/<pid>/cgroup` that is about version 2, below the mount.
fn version_2_path(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The service that a process which has just started in this cgroup is of.
fn service_of(path: &str) -> Option<&str> {
    let service = path
        .strip_suffix(GIVEN_LEAF)
        .and_then(|path| path.strip_suffix('/'))
        .unwrap_or(path);
    service.ends_with(".service").then_some(service)
}

/// Lets a process into the service's own cgroup again, for the service manager that calls this after each end of the service.
///
/// Workers that were left sit in leaves below it, and a cgroup that passes controllers on takes no process in (`EBUSY`), while systemd
/// before 254 puts the next main process there first. So nothing is passed on until the next warden has moved into its leaf; it then sets
/// all limits again. Not being called so is no error: there is nothing to do then, and neither is there where systemd knows a leaf to
/// put the next one into.
pub fn release() -> Result<(), CgroupError> {
    let path = Path::new("/proc/self/cgroup");
    let own = fs::read_to_string(path).map_err(|source| CgroupError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    match version_2_path(&own).and_then(service_of_control) {
        Some(service) => release_service(&Path::new(MOUNT).join(service)),
        None => Ok(()),
    }
}

/// The service that a command of the service manager is run for: those have a leaf of their own next to the delegated ones.
fn service_of_control(path: &str) -> Option<&str> {
    let service = path.strip_suffix(CONTROL_LEAF)?.strip_suffix('/')?;
    service.ends_with(".service").then_some(service)
}

fn release_service(folder: &Path) -> Result<(), CgroupError> {
    if folder.join(GIVEN_LEAF).exists() {
        return Ok(());
    }
    pass_nothing_on(folder)
}

fn pass_nothing_on(folder: &Path) -> Result<(), CgroupError> {
    let path = folder.join(PASSED_ON);
    let passed = fs::read_to_string(&path).map_err(|source| CgroupError::File {
        what: "read",
        path: path.clone(),
        source,
    })?;
    passed
        .split_whitespace()
        .try_for_each(|controller| write(&path, &format!("-{controller}")))
}

/// Passes on to the children of `folder` what it has itself.
fn enable(folder: &Path) -> Result<(), CgroupError> {
    let path = folder.join("cgroup.controllers");
    let has = fs::read_to_string(&path).map_err(|source| CgroupError::File {
        what: "read",
        path,
        source,
    })?;
    for controller in CONTROLLERS {
        if has.split_whitespace().any(|name| name == controller) {
            write(&folder.join(PASSED_ON), &format!("+{controller}"))?;
        } else {
            tracing::warn!(
                "cgroup controller {controller} is missing: workers run without that limit"
            );
        }
    }
    if has.split_whitespace().any(|name| name == IO) {
        write(&folder.join(PASSED_ON), &format!("+{IO}"))?;
    }
    Ok(())
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::File {
            what: "make",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// A controller that the host does not give is not there, and then there is nothing to set.
fn set(group: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    match write(&group.join(file), value) {
        Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Never makes a file: on a cgroup file system nobody can, and the kernel says so in its own way (`EACCES`).
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written = fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| CgroupError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_the_share_of_the_period() {
        assert_eq!(cpu_max(250), "25000 100000");
        assert_eq!(cpu_max(2000), "200000 100000");
        assert_eq!(cpu_max(1), "1000 100000");
    }

    #[test]
    fn service_is_found_from_its_own_cgroup_and_from_the_leaf_in_it() {
        let service = "system.slice/cabana.service";
        assert_eq!(service_of(service), Some(service));
        let leaf = format!("{service}/{GIVEN_LEAF}");
        assert_eq!(service_of(&leaf), Some(service));
        for other in ["", "appliance", "user.slice/session-1.scope", "a.service/b"] {
            assert_eq!(service_of(other), None, "{other}");
        }
        let control = format!("{service}/.control");
        assert_eq!(service_of_control(&control), Some(service));
        for other in ["", service, "a.slice/.control", "b.service.control"] {
            assert_eq!(service_of_control(other), None, "{other}");
        }
        assert_eq!(version_2_path("1:cpu:/x\n0::/a/b\n"), Some("a/b"));
    }

    #[test]
    fn every_controller_that_is_passed_on_is_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(PASSED_ON);
        fs::write(&file, "cpu\n").unwrap();
        release_service(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "-cpu");
        fs::write(&file, "").unwrap();
        release_service(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
    }

    #[test]
    fn limits_stay_where_the_service_manager_has_a_leaf_for_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(PASSED_ON);
        fs::write(&file, "cpu\n").unwrap();
        fs::create_dir(folder.path().join(GIVEN_LEAF)).unwrap();
        release_service(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "cpu\n");
    }

    const FILES: [&str; 3] = ["memory.max", "pids.max", "cpu.max"];

    /// A folder in the place of a cgroup, with files for these controllers.
    fn leaf(files: &[&str]) -> (tempfile::TempDir, Leaf) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let path = folder.path().to_owned();
        (folder, Leaf { path })
    }

    /// What a spare and then a guest may take. All values of one file are of one length: they are written over each other.
    fn limits(leaf: &Leaf, mem_mib: u32, vcpus: u8) -> Vec<String> {
        for file in FILES {
            fs::write(leaf.path.join(file), "").unwrap();
        }
        leaf.set_vcpus(SPARE_VCPUS).unwrap();
        let spec = WorkerSpec {
            vcpus,
            cpu_millis: 250,
            mem_mib,
            limits: crate::worker::spec::RateLimits::NONE,
        };
        let spare = FILES.map(|file| fs::read_to_string(leaf.path.join(file)).unwrap());
        leaf.shape(&spec, None).unwrap();
        let shaped = FILES.map(|file| fs::read_to_string(leaf.path.join(file)).unwrap());
        [spare, shaped].concat()
    }

    #[test]
    fn guest_of_any_shape_has_limits_that_fit_it() {
        let (_folder, leaf) = leaf(&FILES);
        let memory = |mib: u64| ((mib + OVERHEAD_MIB) << 20).to_string();
        let one = ["33", "100000 100000"];
        let spare = ["", one[0], one[1]];
        let shaped = |memory: String, cpu: [&str; 2]| {
            let expected = [&spare[..], &[memory.as_str(), cpu[0], cpu[1]]].concat();
            expected
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<String>>()
        };
        assert_eq!(limits(&leaf, 512, 1), shaped(memory(512), one));
        let four = ["36", "400000 100000"];
        assert_eq!(limits(&leaf, 1024, 4), shaped(memory(1024), four));
    }

    #[test]
    fn limits_of_a_worker_that_was_taken_over_are_those_that_it_had() {
        let (_folder, leaf) = leaf(&FILES);
        let spec = WorkerSpec {
            vcpus: 4,
            cpu_millis: 250,
            mem_mib: 512,
            limits: crate::worker::spec::RateLimits::NONE,
        };
        let read = || FILES.map(|file| fs::read_to_string(leaf.path.join(file)).unwrap());
        let restored = |limited| {
            for file in FILES {
                fs::write(leaf.path.join(file), "").unwrap();
            }
            leaf.restore(&spec, limited, None).unwrap();
            read()
        };
        let memory = ((512 + OVERHEAD_MIB) << 20).to_string();
        assert_eq!(restored(false), [&memory, "36", "400000 100000"]);
        // Written over each other here, which the kernel does not do.
        assert_eq!(restored(true), [&memory, "36", "25000 1000000"]);
    }

    #[test]
    fn controller_that_the_host_does_not_give_is_left_out_and_no_file_is_made() {
        let (folder, leaf) = leaf(&[]);
        leaf.set_memory(512).unwrap();
        leaf.set_vcpus(2).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
