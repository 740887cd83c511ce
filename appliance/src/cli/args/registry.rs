//! Who somebody is to a registry.

use clap::Args;

/// The flags of `az`, and a way for the password that no other user of the host can see.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryFlags {
    /// The registry that user name and password are for [default: the image's]
    #[arg(long, value_name = "HOST", requires = "registry_username")]
    pub registry_server: Option<String>,
    /// User name for the registry
    #[arg(long, value_name = "NAME")]
    pub registry_username: Option<String>,
    /// Password for the registry; other users of this host can see it while the command runs
    #[arg(
        long,
        value_name = "PASSWORD",
        requires = "registry_username",
        conflicts_with = "registry_password_stdin"
    )]
    pub registry_password: Option<String>,
    /// Read the password for the registry from standard input
    #[arg(long, requires = "registry_username")]
    pub registry_password_stdin: bool,
}
