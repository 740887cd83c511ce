//! `cabana`: one binary, several kinds of process. See `cli` for the ways in.
#![forbid(unsafe_code)]

mod access;
mod admin;
mod appliance;
mod arm;
mod bench;
mod cli;
mod config;
mod dns_name;
mod doctor;
mod front;
mod golden;
mod guest;
mod images;
#[cfg(test)]
mod native;
mod network_filter;
mod openapi;
mod pool;
mod service;
mod store;
mod telemetry;
mod vault;
mod warden;
mod worker;

use ::worker::{exit, privileges};

fn main() -> std::process::ExitCode {
    cli::run()
}
