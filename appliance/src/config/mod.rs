//! The configuration file and the places on disk.
//!
//! Two lives: [`raw`] mirrors the file and takes anything, [`checked`] cannot be built wrong. The
//! warden reads the file once and hands the checked values to the appliance process, so that both
//! always mean the same.

mod access;
mod checked;
mod images;
mod limits;
mod paths;
mod raw;
mod tls;

pub use checked::{Checked, ConfigError, Overrides, UID_COUNT, host_mib, load};
pub use limits::{FrontLimits, LONGEST_HEAD};
pub use paths::Paths;
pub use tls::{AcmeChallenge, AcmeSettings, ExternalAccount, TlsFiles, TlsSource};
