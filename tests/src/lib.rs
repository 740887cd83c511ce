//! Drives the shipped `cabana` binary from outside, through its command line, HTTPS and the admin socket.
//!
//! - `harness`: runs the tests and looks after the appliance that they share.
//! - `appliance`: one running `cabana serve` with its own root, and what it leaves behind.
//! - `cli`: one run of a client command.
//! - `pool`: pools and sessions as the tests see them.
//! - `client`: HTTPS, HTTP/1.1 and HTTP/2, and the bare TLS stream for malformed requests.
//! - `artifacts`: the binary and the images, named by the environment.
//! - `process`, `traces`, `log`, `golden`: what can be seen of the appliance on the host.
//! - `registry`: Debian's registry with the images of real servers.
//! - `service`: a host with systemd, for the unit.
//! - `audit`: the host before the first test and after the last one.
//!
//! Nothing here sleeps and hopes: everything waits for an event, or looks again and again where there is none, with a deadline that
//! says what did not happen.

pub mod appliance;
pub mod artifacts;
pub mod audit;
pub mod cli;
pub mod client;
pub mod golden;
pub mod harness;
pub mod log;
pub mod pool;
pub mod process;
pub mod registry;
pub mod service;
pub mod traces;

pub use appliance::TestAppliance;
pub use cli::Cli;
pub use client::Client;
pub use golden::Golden;
pub use pool::{Pool, Session};
pub use registry::Registry;
