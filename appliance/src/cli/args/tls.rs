//! Flags of `cabana tls`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Connection, Output};

#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Say whose certificates are served, for which names and until when
    Show(ShowTls),
    /// Print the certificate of the appliance's own authority, which clients trust
    Ca(TlsAuthority),
    /// Ask the ACME server for a certificate now, and wait for it
    #[command(after_help = "Examples:
  cabana tls renew

For when what was wrong has been mended and the next try is far off: `cabana tls show` says when it is.")]
    Renew(ShowTls),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana tls show
  cabana tls show --query \"certificates[0].notAfter\" --output tsv")]
pub struct ShowTls {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana tls ca --out cabana-ca.pem
  curl --cacert cabana-ca.pem https://localhost:8443/openapi.json

Everybody may have it: the front door serves it as /ca.pem. Who fetches it from there cannot check the connection yet, and \
compares its fingerprint with this one's.")]
pub struct TlsAuthority {
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub connection: Connection,
}
