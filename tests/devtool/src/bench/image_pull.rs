//! From a registry to a root image, and to a pool: a real image of 120 MB from Debian's registry on loopback.
//!
//! The shipped binary pulls with its own processes and no guest, see `appliance/src/native`. The others are `skopeo copy`,
//! `umoci unpack` and `mksquashfs` of the same image, one after the other, since each needs what the one before has made: in turns with
//! ours, on the same host, with the same compression.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::runner::{figure, json_lines};
use super::{Bench, Row};
use crate::cache::Cache;
use crate::progress::Step;
use crate::registry::{self, Registry};
use crate::{images, packages};

/// Of the others' time.
const MOST: f64 = 1.0;
/// Promised for a pool whose image is here, and for one whose image is not.
const CACHED_S: f64 = 1.0;
const NOT_CACHED_S: f64 = 30.0;
const NAME: &str = "debian/large:12";
const PER_MB: f64 = 1e6;

/// `cabana image pull` against the three.
pub fn image_pull(bench: &Bench) -> Result<Row> {
    let result = bench.pulled()?;
    let seconds = |what: &str| figure(result, &format!("/{what}/median"));
    let ours = seconds("pull")?;
    let theirs = [seconds("copy")?, seconds("unpack")?, seconds("pack")?];
    let row = Row::checked(
        "image_pull",
        ours / theirs.iter().sum::<f64>(),
        "ratio",
        MOST,
    );
    let megabytes = |what: &str| figure(result, &format!("/{what}")).map(|bytes| bytes / PER_MB);
    let detail = format!(
        "registry to root image / skopeo copy + umoci unpack + mksquashfs of the same, median of {} in turns; native",
        result["rounds"]
    );
    let [copy, unpack, pack] = theirs;
    let notes = vec![
        format!(
            "{:.1} MB of layers, {:.1} MB as a root image of ours, {:.1} MB as one of mksquashfs",
            megabytes("layerBytes")?,
            megabytes("rootImageBytes")?,
            megabytes("packedBytes")?
        ),
        format!(
            "ours {ours:.2} s; skopeo {copy:.2} s + umoci {unpack:.2} s + mksquashfs {pack:.2} s"
        ),
    ];
    Ok(row.with(detail, notes))
}

/// Two pools of an image that is here: the golden is made for the first, and found by the second. Times are in hundredths of a second.
const IN_LAB: &str = r#"
cabana serve > /tmp/serve.log 2>&1 &
until [ -S /run/cabana/admin.sock ]; do usleep 10000; done
cabana image import oci-archive:/demo.tar --name demo >&2 || exit
now() { cut -d ' ' -f 1 /proc/uptime; }
create() { cabana sessionpool create --name $1 --image demo --target-port 8080 --max-sessions 1 --ready-sessions 0 >&2; }
begun=$(now); create first || exit
first=$(now); create second || exit
second=$(now)
cabana stop >&2
echo "{\"begun\": $begun, \"first\": $first, \"second\": $second}"
"#;

/// What the `PUT` of a pool takes.
pub fn pool_create(bench: &Bench) -> Result<Row> {
    let result = bench.pulled()?;
    let cached = figure(result, "/createCached/median")?;
    let value = figure(result, "/createNotCached/median")?;
    let mut row = Row::checked("pool_create", value, "s", NOT_CACHED_S);
    row.ok = Some(value <= NOT_CACHED_S && cached <= CACHED_S);
    let detail = format!(
        "PUT of a pool, image of {:.0} MB not cached; cached {cached:.3} s (at most {CACHED_S:.1}); native, without the boot of a golden",
        figure(result, "/layerBytes")? / PER_MB
    );
    let mut notes = Vec::new();
    if !bench.runner.here {
        let step = Step::start("Measuring pools in the lab");
        let printed = bench.runner.in_lab(IN_LAB, &[])?;
        step.done("");
        let times = json_lines(&printed)
            .pop()
            .context("The lab printed no times")?;
        let at = |what: &str| figure(&times, &format!("/{what}"));
        let [begun, first, second] = [at("begun")?, at("first")?, at("second")?];
        notes.push(format!(
            "in the lab, image cached: {:.1} s with a golden to make (a boot, a snapshot, a fork), {:.1} s without",
            first - begun,
            second - first
        ));
    }
    Ok(row.with(detail, notes))
}

impl Bench<'_> {
    /// Measured once for both rows.
    fn pulled(&self) -> Result<&Value> {
        if let Some(known) = self.pulled.get() {
            return Ok(known);
        }
        let workspace = self.runner.workspace();
        packages::ensure(
            workspace,
            &[packages::IMAGES, registry::PACKAGES, &["squashfs-tools"]],
        )?;
        let cache = Cache::open()?;
        let archive = images::build(workspace, &cache, &images::LARGE)?;
        let storage = tempfile::tempdir().context("Cannot make a folder")?;
        let registry = Registry::start(storage.path())?;
        let step = Step::start("Filling the registry");
        let log = workspace.logs().join("registry.log");
        registry.push(&archive, images::LARGE.name, NAME, &log)?;
        step.done("");
        let image = format!("{}/{NAME}", registry.host);
        let result = self.runner.native_with(
            "native::bench_images::pulls_and_pools",
            &[("CABANA_BENCH_IMAGE", &image)],
        )?;
        Ok(self.pulled.get_or_init(|| result))
    }
}
