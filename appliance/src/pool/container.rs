//! What the container of a pool runs: the image's configuration under the pool's overrides.

use wire::ContainerSpec;

use crate::store::PoolRecord;

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

/// Everything that the agent needs to know.
pub fn spec(image: &ImageDefaults, pool: &PoolRecord) -> Result<ContainerSpec, NothingToRun> {
    let own = pool
        .env
        .iter()
        .map(|var| format!("{}={}", var.name, var.value));
    Ok(ContainerSpec {
        argv: argv(image, &pool.command, &pool.args)?,
        env: image.env.iter().cloned().chain(own).collect(),
        working_dir: image.working_dir.clone(),
        user: image.user.clone(),
        stop_signal: image.stop_signal.clone(),
        target_port: pool.target_port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let spec = spec(&image, &pool).unwrap();
        assert_eq!(spec.env, words("MODE=x A=1 MODE=a=b"));
    }
}
