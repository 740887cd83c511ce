//! The appliance's side of the orders that a worker is given; `worker::orders` says what they are.

mod client;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub use ::worker::orders::server;
pub use ::worker::orders::{Answer, BadOrder, FirstPages, Order};
pub use client::Orders;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("The worker is gone")]
    Gone,
    #[error("The worker could not {what}: {message}")]
    Refused { what: &'static str, message: String },
    /// Nothing is known about the worker then, and it takes no other order.
    #[error("The worker did not {what} within {seconds} s")]
    TimedOut { what: &'static str, seconds: u64 },
    #[error("The order cannot be given")]
    Descriptors(#[from] BadOrder),
}
