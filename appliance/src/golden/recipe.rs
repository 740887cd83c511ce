//! What a pool's golden is made from, and what the forks of it run.

use std::fs::File;
use std::sync::Arc;

use wire::ContainerSpec;

use super::builder::GoldenError;
use super::files::StoreError;
use super::manifest::{Host, Manifest, Template, sha256};
use crate::images::{self, ImageRecord};
use crate::pool::PoolName;
use crate::pool::container::{self, ImageDefaults};
use crate::pool::probe::Probe;
use crate::store::PoolRecord;
use crate::vault::Vault;
use crate::worker::spec::{ForkPoint, RateLimits};

/// Everything for one golden, or for one session.
#[derive(Debug)]
pub struct Recipe {
    /// For logs: pools may share a golden.
    pub pool: PoolName,
    pub manifest: Manifest,
    pub container: ContainerSpec,
    /// Succeeds before a golden with a running container is held.
    pub startup: Option<Probe>,
    pub cpu_millis: u32,
    pub limits: RateLimits,
    pub root_image: File,
    /// The image stays in the cache for as long as it is made something of.
    pub _hold: Option<images::Hold>,
}

impl Recipe {
    /// Another descriptor of the root image.
    pub fn root_image(&self) -> Result<File, GoldenError> {
        self.root_image.try_clone().map_err(|source| {
            GoldenError::Store(StoreError::System {
                what: "copy the descriptor of",
                path: self.manifest.template.root_image.clone().into(),
                source,
            })
        })
    }
}

/// Reads recipes off pools.
pub trait Recipes: Send + Sync + 'static {
    /// In an error: why no session of this pool can be made at all.
    fn recipe(&self, pool: &PoolRecord) -> Result<Recipe, String>;
}

/// Recipes for pools whose images are in the cache.
pub struct Kitchen {
    pub images: images::Cache,
    pub host: Host,
    /// Opens the secrets that containers get.
    pub vault: Arc<Vault>,
}

impl Recipes for Kitchen {
    fn recipe(&self, pool: &PoolRecord) -> Result<Recipe, String> {
        let digest = pool.image_digest.parse::<images::Digest>();
        let hold = self
            .images
            .hold(&digest.map_err(|error| error.to_string())?);
        let image = self
            .images
            .require(&pool.image_digest)
            .map_err(|error| error.to_string())?;
        let container = container::spec(&defaults(&image), pool, &self.vault)
            .map_err(|error| error.to_string())?;
        let template = template(pool, &container)?;
        Ok(Recipe {
            pool: pool.name.clone(),
            manifest: Manifest::new(&self.host, template),
            container,
            startup: pool.probes.startup.clone(),
            cpu_millis: pool.cpu_millis,
            limits: pool.rate_limits,
            root_image: image.open_root().map_err(|error| error.to_string())?,
            _hold: Some(hold),
        })
    }
}

/// The part of a manifest that is the pool's.
pub fn template(pool: &PoolRecord, container: &ContainerSpec) -> Result<Template, String> {
    let vcpus = pool.cpu_millis.div_ceil(1000);
    // Before the container starts, nothing in the guest depends on it.
    let container = match pool.fork_point {
        ForkPoint::BeforeStart => None,
        ForkPoint::AfterReady => {
            let startup = pool.probes.startup.as_ref();
            let text = serde_json::to_vec(&(container, startup));
            Some(sha256(&text.map_err(|error| error.to_string())?))
        }
    };
    Ok(Template {
        root_image: pool.image_digest.clone(),
        vcpus: u8::try_from(vcpus).map_err(|_| format!("{vcpus} vCPUs are too many"))?,
        mem_mib: pool.mem_mib,
        disk_bytes: u64::from(pool.disk_mib) << 20,
        fork_point: pool.fork_point,
        container,
    })
}

/// What of an image's configuration matters to a pool.
pub fn defaults(image: &ImageRecord) -> ImageDefaults {
    let config = image.config.clone();
    ImageDefaults {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir,
        user: config.user,
        stop_signal: config.stop_signal.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::probe::{Check, Probes};
    use crate::store::EnvVar;
    use crate::store::tests::pool;

    fn of(pool: &PoolRecord) -> Template {
        let image = ImageDefaults {
            cmd: vec!["/demo".into()],
            ..Default::default()
        };
        let vault = Vault::new(&[7; crate::vault::KEY_BYTES]).unwrap();
        template(pool, &container::spec(&image, pool, &vault).unwrap()).unwrap()
    }

    #[test]
    fn pools_of_one_image_and_shape_share_a_golden_unless_their_container_runs_in_it() {
        let alpha = pool("alpha");
        let mut beta = PoolRecord {
            target_port: 9,
            env: vec![EnvVar {
                name: "SECRET".into(),
                value: "x".into(),
                secret_ref: None,
            }],
            cpu_millis: alpha.cpu_millis + 250,
            rate_limits: RateLimits {
                disk_iops: std::num::NonZeroU64::new(100),
                ..RateLimits::default()
            },
            ..pool("beta")
        };
        assert_eq!(of(&alpha), of(&beta));
        let running = PoolRecord {
            fork_point: ForkPoint::AfterReady,
            ..alpha.clone()
        };
        beta.fork_point = ForkPoint::AfterReady;
        assert_ne!(of(&running), of(&alpha));
        assert_ne!(of(&running), of(&beta));
        assert!(!format!("{:?}", of(&beta)).contains("SECRET"));
    }

    #[test]
    fn startup_probe_decides_a_golden_that_has_passed_it_and_no_other() {
        let probe = |port| Probe {
            check: Check::TcpSocket { port },
            initial_delay_seconds: 0,
            period_seconds: 1,
            timeout_seconds: 1,
            failure_threshold: 1,
            success_threshold: 1,
            termination_grace_seconds: None,
        };
        let with = |fork_point, startup, liveness| {
            let probes = Probes { startup, liveness };
            of(&PoolRecord {
                fork_point,
                probes,
                ..pool("alpha")
            })
        };
        let after = |startup, liveness| with(ForkPoint::AfterReady, startup, liveness);
        let before = |startup| with(ForkPoint::BeforeStart, startup, None);
        let different = [
            after(None, None),
            after(Some(probe(1)), None),
            after(Some(probe(2)), None),
        ];
        for (index, one) in different.iter().enumerate() {
            assert!(!different[..index].contains(one));
        }
        // Liveness begins in the fork, and before the start nothing is asked.
        assert_eq!(after(None, Some(probe(1))), after(None, None));
        assert_eq!(before(Some(probe(1))), before(None));
    }

    #[test]
    fn shape_and_storage_of_a_pool_decide_its_golden() {
        let alpha = pool("alpha");
        for other in [
            PoolRecord {
                cpu_millis: 1250,
                ..alpha.clone()
            },
            PoolRecord {
                mem_mib: alpha.mem_mib + 1,
                ..alpha.clone()
            },
            PoolRecord {
                disk_mib: alpha.disk_mib + 1,
                ..alpha.clone()
            },
            PoolRecord {
                image_digest: "sha256:e".into(),
                ..alpha.clone()
            },
        ] {
            assert_ne!(of(&other), of(&alpha), "{other:?}");
        }
    }
}
