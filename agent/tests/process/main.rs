//! Drives the agent as an ordinary process, over the socket that a worker would serve.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must fail, wherever it is"
)]

mod control;
mod exec;
mod freeze;
mod harness;
mod isolation;
mod lifecycle;
mod output;
mod renew;
mod stop;
mod streams;
