//! Pausing, saving and restoring.

pub mod guest;
mod linux;
mod programs;
mod shape;
mod vsock;
