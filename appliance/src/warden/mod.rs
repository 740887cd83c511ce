//! The warden: the one process that may be privileged.
//!
//! `cabana serve` is the warden. It has no network, no async runtime and a single thread that
//! sleeps in `poll`. It opens `/dev/kvm`, makes cgroup leaves, spawns the appliance and, on its
//! request, workers and image workers; it reaps them all.
//!
//! # Trust
//! The appliance talks to the world, so every request of it is judged as if it were hostile
//! (`protocol`). Descriptors that it sends are handed on and never read. What a worker reports is
//! passed on as text and never parsed here.
//!
//! # Ends
//! Every child's standard input is a socket whose other end is held here. When the warden dies,
//! however it dies, the kernel closes these and every child ends itself, but for workers with a
//! guest: they wait for the next warden, which finds them by what was written down (`records`,
//! `proof`, `takeover`), and for an appliance that adopts them (`adopted`).

mod adopted;
mod appliance;
mod cgroup;
mod children;
pub mod client;
mod confinement;
mod folders;
mod io_max;
mod leftovers;
pub mod program;
mod proof;
pub mod protocol;
mod records;
mod respawn;
mod run;
mod serve;
mod signals;
mod spawn;
pub mod starts;
mod takeover;
mod usage;
mod watch;

pub use ::worker::channel;
pub use ::worker::landlock::version as landlock_version;
pub use cgroup::controllers as cgroup_controllers;
pub use cgroup::{is_version_2 as cgroup_version_2, release as release_cgroup};
pub use confinement::{Confinement, look as look_at_confinement};
pub use leftovers::{LeftoverError, end_leftovers};
pub use serve::{Task, serve};
