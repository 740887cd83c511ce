//! Images from registries: a name in, an image in the cache out.
//!
//! ```text
//! name ─▶ manifest (▶ index) ─▶ blobs, several at once, into files ─▶ image worker ─▶ cache
//! ```
//!
//! Runs in the appliance, which has the network and no rights. What is inside of layers it never looks at,
//! and of a manifest only which blobs there are: the worker gets the bytes as descriptors, and the digest of
//! the manifest that they must belong to.
//!
//! # Which image a name means
//! 1. A digest (`sha256:...`) means the image in the cache and nothing else.
//! 2. A name that was given by an import means that image, whatever registry it looks like.
//! 3. All other names are of a registry, which is asked each time: a tag may have moved. A name with a digest
//!    cannot, so it is asked for once.
//!
//! # Not here
//! Pushing, signatures, proxies, layers that are to be fetched from elsewhere (`urls`).

mod auth;
mod blobs;
mod client;
mod dns;
mod download;
mod name;
mod patience;
mod platform;
mod progress;
mod pull;
mod pulled;
mod settings;
mod tls;
mod transport;
mod turns;

#[cfg(test)]
pub mod tests;

pub use auth::{Credentials, Secret};
pub use dns::HostResolver;
pub use name::{Reference, RegistryHost};
pub use patience::Patience;
pub use progress::{Progress, Reporter};
pub use pull::{PullRequest, Puller};
pub use settings::{Mirror, Registries, RegistrySettings};
pub use tls::trusting;
