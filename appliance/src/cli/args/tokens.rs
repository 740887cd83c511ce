//! `cabana token` and its flags.

use clap::{Args, Subcommand};

use super::{Connection, Output};
use crate::access::{IdentifierRule, Role};
use crate::cli::values;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a new token and nothing else
    Create(CreateToken),
    /// List the tokens that were made here and have not expired; never the tokens themselves
    #[command(visible_alias = "ls")]
    List(ListTokens),
    /// Show what one token is good for
    Show(OneToken),
    /// End a token, or all of them, at once
    Revoke(RevokeToken),
    /// Sign new tokens with a new key; those that are out stay good until they expire
    RotateKey(RotateKey),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana token create --pool demo --ttl 8h
  TOKEN=$(cabana token create --label ci)
  cabana token create --role reader --role pool-contributor --resource-group default
  cabana token create --pool demo --identifier user-42 --ttl 15m
  cabana token create --pool demo --identifier 'team-7-*'

A token that is bound to identifiers can neither use, show, list nor stop any other session. A * at the end of
--identifier stands for any rest, so an identifier that ends in * itself cannot be bound to.")]
pub struct CreateToken {
    /// What it may do: session-executor (use sessions), pool-contributor (make, change and delete pools) or reader (look
    /// at pools); may be repeated. Without it: session-executor
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<Role>,
    /// Only good for this pool; may be repeated. Without it: for every pool
    #[arg(long = "pool", value_name = "NAME")]
    pub pools: Vec<String>,
    /// Only good in this subscription; may be repeated
    #[arg(long = "subscription", value_name = "ID")]
    pub subscriptions: Vec<String>,
    /// Only good in this resource group; may be repeated
    #[arg(long = "resource-group", short = 'g', value_name = "NAME")]
    pub resource_groups: Vec<String>,
    /// Only good for the session with this identifier, or for those that begin so; may be repeated
    #[arg(long = "identifier", value_name = "ID|PREFIX*")]
    pub identifiers: Vec<IdentifierRule>,
    /// What to call it in lists
    #[arg(long = "label", visible_alias = "name", value_name = "TEXT")]
    pub label: Option<String>,
    /// How long it is good for: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = values::duration_seconds)]
    pub ttl: u64,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ListTokens {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct OneToken {
    /// The id in `cabana token list`, which is the claim `jti` of the token
    pub id: uuid::Uuid,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana token revoke 6fd1b5c4-3f4b-4b0c-9d0f-0d4a1f4f7c11
  cabana token revoke --all

A token that is revoked is refused from the next request on, and stays so after a restart. Requests that are open
go on. Tokens of trusted issuers are not in the list: they end where they were made, or with the issuer's entry in
the configuration.")]
pub struct RevokeToken {
    /// The id in `cabana token list`, which is the claim `jti` of the token
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub id: Option<uuid::Uuid>,
    /// Every token that was ever made here, whether there is a record of it or not
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cabana token rotate-key
  cabana token rotate-key --revoke-old

An older key checks tokens until the last one that it has signed has expired.")]
pub struct RotateKey {
    /// Drop the older keys at once, and every token that they have signed with them
    #[arg(long)]
    pub revoke_old: bool,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: Output,
}
