//! What the container of a pool runs: the image's configuration under the pool's overrides.

use wire::ContainerSpec;

use crate::store::{EnvVar, PoolRecord};
use crate::vault::{Vault, WrongKey};

/// The part of an image's configuration that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
}

/// The image and the pool together name nothing to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The image has neither Entrypoint nor Cmd, and the pool sets no command")]
pub struct NothingToRun;

/// Entrypoint and command, by the rules of Kubernetes: `command` replaces the entrypoint and drops
/// the image's command; `args` replaces the command.
pub fn argv(
    image: &ImageDefaults,
    command: &[String],
    args: &[String],
) -> Result<Vec<String>, NothingToRun> {
    let first = if command.is_empty() {
        &image.entrypoint[..]
    } else {
        command
    };
    let rest = match (command.is_empty(), args.is_empty()) {
        (_, false) => args,
        (true, true) => &image.cmd[..],
        (false, true) => &[],
    };
    let argv: Vec<_> = first.iter().chain(rest).cloned().collect();
    if argv.is_empty() {
        Err(NothingToRun)
    } else {
        Ok(argv)
    }
}

/// Why there is nothing to say to the agent.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    NothingToRun(#[from] NothingToRun),
    #[error("The secret {name:?} cannot be read, {source}: give its value again")]
    Secret { name: String, source: WrongKey },
}

/// Everything that the agent needs to know. Variables that are secrets are opened here and nowhere else: neither the
/// store nor an answer has their values.
pub fn spec(
    image: &ImageDefaults,
    pool: &PoolRecord,
    vault: &Vault,
) -> Result<ContainerSpec, SpecError> {
    let mut env = image.env.clone();
    for var in &pool.env {
        env.push(variable(var, pool, vault)?);
    }
    Ok(ContainerSpec {
        argv: argv(image, &pool.command, &pool.args)?,
        env,
        working_dir: image.working_dir.clone(),
        user: image.user.clone(),
        stop_signal: image.stop_signal.clone(),
        target_port: pool.target_port,
    })
}

fn variable(var: &EnvVar, pool: &PoolRecord, vault: &Vault) -> Result<String, SpecError> {
    let Some(reference) = &var.secret_ref else {
        return Ok(format!("{}={}", var.name, var.value));
    };
    let secret = pool.secrets.iter().find(|it| it.name == *reference);
    let value = secret.map_or(Err(WrongKey), |secret| {
        vault.open(pool.name.as_str(), secret)
    });
    let value = value.map_err(|source| SpecError::Secret {
        name: reference.clone(),
        source,
    })?;
    Ok(format!("{}={}", var.name, value.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::KEY_BYTES;

    fn vault() -> Vault {
        Vault::new(&[7; KEY_BYTES]).unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The table of the Kubernetes documentation, "Define a Command and Arguments for a Container".
    #[test]
    fn command_replaces_the_entrypoint_and_args_replace_the_command() {
        let image = ImageDefaults {
            entrypoint: words("ep-1"),
            cmd: words("foo bar"),
            ..Default::default()
        };
        for (command, args, runs) in [
            ("", "", "ep-1 foo bar"),
            ("ep-2", "", "ep-2"),
            ("", "zoo boo", "ep-1 zoo boo"),
            ("ep-2", "zoo boo", "ep-2 zoo boo"),
        ] {
            let argv = argv(&image, &words(command), &words(args)).unwrap();
            assert_eq!(argv, words(runs), "command {command:?}, args {args:?}");
        }
    }

    #[test]
    fn image_without_anything_to_run_needs_a_command() {
        let image = ImageDefaults::default();
        assert_eq!(argv(&image, &[], &[]), Err(NothingToRun));
        assert_eq!(argv(&image, &words("sh"), &[]).unwrap(), words("sh"));
    }

    #[test]
    fn variables_of_the_pool_come_after_those_of_the_image() {
        let image = ImageDefaults {
            cmd: words("sh"),
            env: words("MODE=x A=1"),
            ..Default::default()
        };
        let pool = crate::store::tests::pool("alpha");
        let spec = spec(&image, &pool, &vault()).unwrap();
        assert_eq!(spec.env, words("MODE=x A=1 MODE=a=b"));
    }

    #[test]
    fn variable_that_is_a_secret_has_its_value_and_needs_the_key() {
        let image = ImageDefaults {
            cmd: words("sh"),
            ..Default::default()
        };
        let pool = PoolRecord {
            env: vec![EnvVar {
                name: "KEY".into(),
                secret_ref: Some("api-key".into()),
                ..EnvVar::default()
            }],
            secrets: vec![vault().seal("alpha", "api-key", "s e c").unwrap()],
            ..crate::store::tests::pool("alpha")
        };
        let opened = spec(&image, &pool, &vault()).unwrap();
        assert_eq!(opened.env, ["KEY=s e c"]);
        let other = Vault::new(&[8; KEY_BYTES]).unwrap();
        for (pool, vault) in [
            (pool.clone(), &other),
            (
                PoolRecord {
                    secrets: Vec::new(),
                    ..pool
                },
                &vault(),
            ),
        ] {
            let error = spec(&image, &pool, vault).unwrap_err().to_string();
            assert!(error.contains("\"api-key\" cannot be read"), "{error}");
        }
    }
}
