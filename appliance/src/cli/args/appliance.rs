//! Which appliance is asked, about which group, and how its answer is printed.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::client::{Endpoint, Remote, Whom};
use crate::cli::query::Query;
use crate::exit::{Exit, Failure};

/// There is no account to ask for another one.
const DEFAULT_SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";
const DEFAULT_GROUP: &str = "default";
const ENDPOINT: &str = "CABANA_ENDPOINT";
const TOKEN: &str = "CABANA_TOKEN";
const CA_FILE: &str = "CABANA_CA_FILE";

/// Flags of every command that talks to the appliance of this host.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The root that the appliance was started with
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// Flags of the commands that can talk to the appliance of another host as well.
#[derive(Debug, Clone, Default, Args)]
pub struct Appliance {
    /// The root that the appliance of this host was started with [default: /]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The appliance of another host: https://HOST:PORT [default: CABANA_ENDPOINT, else this host's]. The token for
    /// it is taken from CABANA_TOKEN
    #[arg(long, value_name = "URL", conflicts_with = "root")]
    pub endpoint: Option<Endpoint>,
    /// Certificates in PEM that are trusted beside the host's [default: CABANA_CA_FILE]
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

impl Appliance {
    /// Whom to ask: flags win over the environment.
    pub fn whom(&self) -> Result<Whom, Failure> {
        self.chosen(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn chosen(
        &self,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Whom, Failure> {
        let usage = |line: String| Failure::new(Exit::Usage, line);
        if let Some(root) = &self.root {
            return Ok(Whom::Local(root.clone()));
        }
        let endpoint = match (&self.endpoint, variable(ENDPOINT)) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(text)) => text
                .to_string_lossy()
                .parse()
                .map_err(|why| usage(format!("{ENDPOINT}: {why}")))?,
            (None, None) => return Ok(Whom::Local("/".into())),
        };
        let token = variable(TOKEN).and_then(|token| token.into_string().ok());
        let token = token.map(|token| token.trim().to_owned()).ok_or_else(|| {
            usage(format!(
                "{TOKEN} must hold a token for {endpoint}: `cabana token create --role pool-contributor` makes one there"
            ))
        })?;
        let ca_file = self.ca_file.clone();
        Ok(Whom::Remote(Remote {
            endpoint,
            token,
            ca_file: ca_file.or_else(|| variable(CA_FILE).map(PathBuf::from)),
        }))
    }
}

/// Where pools are.
#[derive(Debug, Clone, Args)]
pub struct Group {
    #[arg(long, short = 'g', default_value = DEFAULT_GROUP)]
    pub resource_group: String,
    #[arg(long, default_value = DEFAULT_SUBSCRIPTION, hide_default_value = true)]
    pub subscription: String,
}

/// Where lists of pools are.
#[derive(Debug, Clone, Args)]
pub struct Groups {
    /// Only those of this group
    #[arg(long, short = 'g')]
    pub resource_group: Option<String>,
    #[arg(long, default_value = DEFAULT_SUBSCRIPTION, hide_default_value = true)]
    pub subscription: String,
}

/// How an answer is printed.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// json, jsonc (the same), table, tsv, yaml or none [default: text for people; json with --query]
    #[arg(
        long,
        short,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub output: Option<Format>,
    /// The same as `--output json`
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Print only what this JMESPath finds in the answer, see jmespath.org
    #[arg(long, value_name = "JMESPATH")]
    pub query: Option<Query>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[value(alias = "jsonc")]
    Json,
    Table,
    Tsv,
    #[value(alias = "yamlc")]
    Yaml,
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(flags: &Appliance, variables: &[(&str, &str)]) -> Result<String, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).into())
        };
        let chosen = flags.chosen(variable).map_err(|failure| failure.line)?;
        Ok(match chosen {
            Whom::Local(root) => root.display().to_string(),
            Whom::Remote(remote) => format!("{} {:?}", remote.endpoint, remote.ca_file),
        })
    }

    #[test]
    fn flags_win_over_the_environment_and_a_token_is_needed_for_another_host() {
        let none = Appliance::default();
        let endpoint = (ENDPOINT, "https://a.example:1");
        let token = (TOKEN, "t");
        assert_eq!(chosen(&none, &[]), Ok("/".into()));
        assert_eq!(
            chosen(&none, &[endpoint, token, (CA_FILE, "/ca")]),
            Ok("https://a.example:1 Some(\"/ca\")".into())
        );
        let rooted = Appliance {
            root: Some("/srv".into()),
            ..Appliance::default()
        };
        assert_eq!(chosen(&rooted, &[endpoint, token]), Ok("/srv".into()));
        let named = Appliance {
            endpoint: Some("https://b.example".parse().unwrap()),
            ..Appliance::default()
        };
        assert_eq!(
            chosen(&named, &[endpoint, token]),
            Ok("https://b.example None".into())
        );
        let missing = chosen(&named, &[]).unwrap_err();
        assert!(
            missing.contains(TOKEN) && missing.contains("token create"),
            "{missing}"
        );
        let wrong = chosen(&none, &[(ENDPOINT, "a.example"), token]).unwrap_err();
        assert!(wrong.starts_with("CABANA_ENDPOINT: "), "{wrong}");
    }
}
