//! Tests against `/dev/kvm`, through the crate's public interface only.
//!
//! On a host whose KVM cannot run guests each test prints `SKIPPED: <test>: <why>` and passes, unless
//! `CABANA_REQUIRE_KVM=1` says that this host has to: then it fails. [`boot`] and [`snapshot::linux`] also need the
//! guest kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod boot;
mod guest_programs;
mod returns;
mod snapshot;
mod start;
mod support;
