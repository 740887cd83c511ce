//! `cabana bench`: turns its flags into a plan and runs that instead of the service.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use super::args::{BenchCommand, BenchDistinct, BenchFork, BenchImage, Output};
use super::source::{Source, Transport};
use crate::bench::{Measure, Plan, distinct, fork, image, jail, shapes};
use crate::config::{self, Overrides};
use crate::exit::{Exit, Failure};
use crate::images;
use crate::warden::Task;
use crate::warden::starts::StartsError;

/// The least that a configuration may say.
const ORPHAN_LIMIT_SECONDS: u32 = 10;

/// Runs in a folder of its own, so that it may run beside an appliance.
pub fn run(command: BenchCommand) -> Result<Exit, Failure> {
    let spares = spares(&command);
    let plan = match wanted(command)? {
        Wanted::Guests(plan) => plan,
        Wanted::Starts(plan, json) => return starts(plan, json),
    };
    if let Measure::Shapes(shapes) = &plan.measure
        && shapes.rounds == 0
    {
        return build_only(shapes, plan.json);
    }
    let failed = |error: io::Error| Failure::of(Exit::Failed, &error);
    let root = tempfile::Builder::new()
        .prefix("cabana-bench-")
        .tempdir()
        .map_err(failed)?;
    // The appliance process is another user and must get through.
    std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).map_err(failed)?;
    let mut config = config::load(root.path(), None, &Overrides::default())
        .map_err(|error| Failure::of(Exit::Usage, &error))?;
    // Should this process be killed, nobody will come for its guests.
    config.orphan_limit_seconds = ORPHAN_LIMIT_SECONDS;
    config.spare_workers = spares.unwrap_or(config.spare_workers);
    super::run_warden(config, Task::Bench(plan))
}

fn starts(plan: jail::Plan, json: bool) -> Result<Exit, Failure> {
    let folder = std::env::temp_dir();
    let uid = config::load(&folder, None, &Overrides::default());
    let uid = uid
        .map_err(|error| Failure::of(Exit::Usage, &error))?
        .uid_base;
    let report = jail::run(plan, &folder, uid).map_err(|error| {
        let exit = match error {
            StartsError::NotRoot => Exit::Permission,
            _ => Exit::Failed,
        };
        Failure::of(exit, &error)
    })?;
    let flags = Output {
        json,
        ..Output::default()
    };
    super::output::print(&flags, &report.json(), |_| report.text())?;
    Ok(Exit::Ok)
}

/// Needs no guests, and so no other process.
fn build_only(plan: &shapes::Plan, json: bool) -> Result<Exit, Failure> {
    let report = shapes::build(plan)
        .map_err(|error| Failure::new(Exit::Failed, format!("{error:#}").replace('\n', " ")))?;
    let flags = Output {
        json,
        ..Output::default()
    };
    super::output::print(&flags, &report.json(), |_| report.text())?;
    Ok(Exit::Ok)
}

fn shapes_plan(bench: BenchImage) -> Result<shapes::Plan, Failure> {
    Ok(shapes::Plan {
        image: image_source(bench.image, bench.target_port)?,
        shapes: bench.shapes,
        rounds: bench.rounds,
    })
}

fn spares(command: &BenchCommand) -> Option<u32> {
    match command {
        BenchCommand::ColdBoot { spares, .. } => *spares,
        BenchCommand::Fork(fork) => fork.spares,
        BenchCommand::Distinct(_)
        | BenchCommand::Memory { .. }
        | BenchCommand::Image(_)
        | BenchCommand::Jail { .. } => None,
    }
}

/// What is to be measured.
enum Wanted {
    /// By an appliance.
    Guests(Plan),
    /// By this process, perhaps as JSON.
    Starts(jail::Plan, bool),
}

fn wanted(command: BenchCommand) -> Result<Wanted, Failure> {
    let (measure, json) = match command {
        BenchCommand::ColdBoot { count, json, .. } => (Measure::ColdBoot { count }, json),
        BenchCommand::Fork(fork) => {
            let json = fork.json;
            (Measure::Fork(fork_plan(fork)?), json)
        }
        BenchCommand::Distinct(distinct) => {
            let json = distinct.json;
            (Measure::Distinct(distinct_plan(distinct)?), json)
        }
        BenchCommand::Image(image) => {
            let json = image.json;
            (Measure::Shapes(shapes_plan(image)?), json)
        }
        BenchCommand::Memory { forks, json } => (Measure::Memory { forks }, json),
        BenchCommand::Jail {
            count,
            parallel,
            json,
        } => return Ok(Wanted::Starts(jail::Plan { count, parallel }, json)),
    };
    Ok(Wanted::Guests(Plan { measure, json }))
}

fn fork_plan(fork: BenchFork) -> Result<fork::Plan, Failure> {
    let image = fork
        .image
        .map(|source| image_source(source, fork.target_port))
        .transpose()?;
    Ok(fork::Plan {
        count: fork.count,
        parallel: fork.parallel,
        point: fork.fork_point,
        image,
    })
}

fn distinct_plan(distinct: BenchDistinct) -> Result<distinct::Plan, Failure> {
    Ok(distinct::Plan {
        forks: distinct.forks,
        parallel: distinct.parallel,
        point: distinct.fork_point,
        image: image_source(distinct.image, distinct.target_port)?,
        path: distinct.path,
    })
}

fn image_source(source: Source, target_port: u16) -> Result<image::Source, Failure> {
    let transport = match source.transport {
        Transport::OciArchive => images::Transport::OciArchive,
        Transport::DockerArchive => images::Transport::DockerArchive,
        Transport::OciFolder => {
            let line = "A benchmark takes its image from an archive: oci-archive:FILE or docker-archive:FILE";
            return Err(Failure::new(Exit::Usage, line.to_owned()));
        }
    };
    Ok(image::Source {
        transport,
        path: source.path,
        reference: source.reference,
        target_port,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Cli, Command};
    use super::*;
    use crate::worker::spec::ForkPoint;

    fn plan_of(arguments: &[&str]) -> Result<Plan, Failure> {
        let cli = Cli::try_parse_from([&["cabana", "bench"], arguments].concat()).unwrap();
        let Command::Bench(command) = cli.command else {
            panic!("another command");
        };
        match wanted(command)? {
            Wanted::Guests(plan) => Ok(plan),
            Wanted::Starts(plan, _) => panic!("{plan:?}"),
        }
    }

    #[test]
    fn flags_become_a_plan() {
        let memory = plan_of(&["memory", "--forks", "1,10", "--json"]).unwrap();
        assert_eq!(
            memory,
            Plan {
                measure: Measure::Memory { forks: vec![1, 10] },
                json: true
            }
        );
        let flags = ["fork", "--count", "3", "--fork-point", "afterReady"];
        let image = ["--image", "oci-archive:/demo.tar", "--target-port", "81"];
        let fork = plan_of(&[&flags[..], &image].concat()).unwrap();
        let Measure::Fork(fork) = fork.measure else {
            panic!("{fork:?}");
        };
        assert_eq!((fork.count, fork.parallel), (3, 20));
        assert_eq!(fork.point, ForkPoint::AfterReady);
        let image = fork.image.unwrap();
        assert_eq!(image.path, std::path::Path::new("/demo.tar"));
        assert_eq!(image.target_port, 81);
    }

    #[test]
    fn folder_is_refused_in_one_line() {
        let refused = plan_of(&["fork", "--image", "oci:/folder"]).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(
            refused.line.contains("oci-archive:FILE"),
            "{}",
            refused.line
        );
    }
}
