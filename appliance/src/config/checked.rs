//! Values that were judged once; nobody validates them again.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Paths;
use super::limits::FrontLimits;
use super::raw::RawConfig;
use super::tls::{self, TlsSource};
use super::{access, images, limits as front_limits};
use crate::access::IssuerSettings;
use crate::dns_name::is_dns_name;
use crate::images::Limits;
use crate::images::registry::Registries;

const DEFAULT_LISTEN: &str = "0.0.0.0:8443";
/// The least cooldown that the cloud service accepts.
const DEFAULT_MIN_COOLDOWN_SECONDS: u32 = 300;
const DEFAULT_START_TIMEOUT_SECONDS: u32 = 60;
/// The longest cooldown: a session that nobody could ask for so long would have ended anyway.
const DEFAULT_ORPHAN_LIMIT_SECONDS: u32 = 3600;
/// Less than a start takes on a slow host would end sessions that are about to be adopted.
const MIN_ORPHAN_LIMIT_SECONDS: u32 = 10;
/// A day.
const MAX_ORPHAN_LIMIT_SECONDS: u32 = 86_400;
/// The first user id of the appliance and its workers. systemd's UIDS-GIDS document leaves the
/// range from 1879048192 to 2147483647 unused.
const DEFAULT_UID_BASE: u32 = 2_000_000_000;
/// Ids from `uid_base` on: one for the appliance, the rest for workers and image workers, one each.
pub const UID_COUNT: u32 = 65_536;

const MAX_SPARE_WORKERS: u32 = 64;
const MAX_PARALLEL_STARTS: u32 = 256;
/// One spare for so much of the host's memory. It takes less than a hundredth of that (`cabana bench memory`).
const MIB_PER_SPARE_WORKER: u64 = 64;
/// A guest that comes up waits now and then; more at once would only wait for each other.
const PARALLEL_STARTS_PER_CORE: u32 = 2;

/// A guest whose memory is not there is killed by the kernel, so nothing is promised twice.
const DEFAULT_MEMORY_OVERCOMMIT: f64 = 1.0;
/// Sessions wait for their callers most of the time.
const DEFAULT_CPU_OVERCOMMIT: f64 = 8.0;

/// What the appliance runs with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    pub listen: SocketAddr,
    /// Pools answer at `<pool>.<domain>` too when this is set.
    pub domain: Option<String>,
    /// What tokens may be for, beside the appliance's own addresses.
    pub audiences: Vec<String>,
    /// Whose tokens are taken beside its own.
    pub issuers: Vec<IssuerSettings>,
    /// A pool with a shorter cooldown is refused.
    pub min_cooldown: Duration,
    /// From the launch of a worker until its container's port accepts.
    pub start_timeout: Duration,
    /// How long workers with a guest live on without an appliance.
    pub orphan_limit_seconds: u32,
    /// The appliance's own user and group id when it is started as root.
    pub uid_base: u32,
    /// Workers made ahead.
    pub spare_workers: u32,
    /// Guests that come up at the same time.
    pub parallel_starts: u32,
    /// How often the host's memory and CPUs may be promised to sessions.
    pub memory_overcommit: f64,
    pub cpu_overcommit: f64,
    /// How many bytes of root images are kept; `None`: a share of the file system that they are on.
    pub image_cache_limit: Option<u64>,
    pub registries: Registries,
    /// What an image may take while it is pulled, imported and unpacked.
    pub image_limits: Limits,
    /// What the front door lets clients take.
    pub limits: FrontLimits,
    /// Whose certificate the front door shows.
    pub tls: TlsSource,
    /// Whether workers are kept from the host. Not in the file: nobody shall find out later that they were not.
    pub confined: bool,
    pub paths: Paths,
}

/// What the command line may set; it wins over the file.
#[derive(Debug, Default)]
pub struct Overrides {
    pub listen: Option<String>,
    pub unconfined: bool,
}

/// Why there is no usable configuration. Each message is one line and names the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("Cannot read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("`{key}` must be {expected}, not {found}")]
    Value {
        key: std::borrow::Cow<'static, str>,
        expected: String,
        found: String,
    },
    #[error("`{missing}` is missing: `{present}` is of no use without it, so name both or neither")]
    Half {
        missing: &'static str,
        present: &'static str,
    },
    #[error(
        "`{one}` and {other} are both there: the front door shows one or the other, so remove one of them"
    )]
    Together {
        one: &'static str,
        other: &'static str,
    },
    #[error("Cannot make --root {} absolute", root.display())]
    Root {
        root: PathBuf,
        source: std::io::Error,
    },
    #[error("--root {} is too long: it may have {spare} bytes so that socket names fit", root.display())]
    RootTooLong { root: PathBuf, spare: usize },
}

/// Reads the file and checks it. Without `file` the default one is read, and may be absent.
pub fn load(
    root: &Path,
    file: Option<&Path>,
    overrides: &Overrides,
) -> Result<Checked, ConfigError> {
    let paths = Paths::under(root)?;
    let path = file.unwrap_or(&paths.config_file).to_owned();
    let raw = match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
            RawConfig::default()
        }
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    check(raw, paths, overrides)
}

fn parse(path: &Path, text: &str) -> Result<RawConfig, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
        message: error.message().replace('\n', " "),
    })
}

fn check(raw: RawConfig, paths: Paths, overrides: &Overrides) -> Result<Checked, ConfigError> {
    let listen = match &overrides.listen {
        Some(value) => address("--listen", &toml::Value::String(value.clone()))?,
        None => {
            let default = || toml::Value::String(DEFAULT_LISTEN.to_owned());
            address("listen", &raw.listen.unwrap_or_else(default))?
        }
    };
    let min_cooldown = integer(
        "min_cooldown_seconds",
        raw.min_cooldown_seconds,
        DEFAULT_MIN_COOLDOWN_SECONDS,
        1..=3600,
    )?;
    let start_timeout = integer(
        "start_timeout_seconds",
        raw.start_timeout_seconds,
        DEFAULT_START_TIMEOUT_SECONDS,
        1..=3600,
    )?;
    let orphan_limit_seconds = integer(
        "orphan_limit_seconds",
        raw.orphan_limit_seconds,
        DEFAULT_ORPHAN_LIMIT_SECONDS,
        MIN_ORPHAN_LIMIT_SECONDS..=MAX_ORPHAN_LIMIT_SECONDS,
    )?;
    // 0 would keep root, and the ids of a host's own users end well below 65536.
    let highest = u32::MAX >> 1;
    let uid_base = integer(
        "uid_base",
        raw.uid_base,
        DEFAULT_UID_BASE,
        UID_COUNT..=highest - UID_COUNT + 1,
    )?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let spare_workers = integer(
        "spare_workers",
        raw.spare_workers,
        default_spare_workers(host_mib()),
        0..=MAX_SPARE_WORKERS,
    )?;
    let parallel_starts = integer(
        "parallel_starts",
        raw.parallel_starts,
        default_parallel_starts(cores),
        1..=MAX_PARALLEL_STARTS,
    )?;
    Ok(Checked {
        listen,
        domain: raw.domain.map(domain).transpose()?,
        audiences: access::audiences(raw.audiences)?,
        issuers: access::issuers(raw.issuers)?,
        min_cooldown: Duration::from_secs(min_cooldown.into()),
        start_timeout: Duration::from_secs(start_timeout.into()),
        orphan_limit_seconds,
        uid_base,
        spare_workers,
        parallel_starts,
        memory_overcommit: number(
            "memory_overcommit",
            raw.memory_overcommit,
            DEFAULT_MEMORY_OVERCOMMIT,
            0.1..=100.0,
        )?,
        cpu_overcommit: number(
            "cpu_overcommit",
            raw.cpu_overcommit,
            DEFAULT_CPU_OVERCOMMIT,
            0.1..=1000.0,
        )?,
        image_cache_limit: raw
            .image_cache_limit
            .map(|value| bytes("image_cache_limit", &value))
            .transpose()?,
        registries: images::registries(raw.registries)?,
        image_limits: images::limits(raw.image_limits)?,
        limits: front_limits::limits(raw.limits)?,
        tls: tls::source(raw.tls)?,
        confined: !overrides.unconfined,
        paths,
    })
}

/// A burst that finds all its workers made takes half the time of one that does not, so there are as many as cost next to nothing.
fn default_spare_workers(host_mib: u64) -> u32 {
    let affordable = host_mib / MIB_PER_SPARE_WORKER;
    u32::try_from(affordable).map_or(MAX_SPARE_WORKERS, |count| count.min(MAX_SPARE_WORKERS))
}

/// The memory of this host.
pub fn host_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram * u64::from(info.mem_unit)) >> 20
}

fn default_parallel_starts(cores: u32) -> u32 {
    cores
        .saturating_mul(PARALLEL_STARTS_PER_CORE)
        .min(MAX_PARALLEL_STARTS)
}

fn integer(
    key: &'static str,
    value: Option<toml::Value>,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, ConfigError> {
    let Some(value) = value else {
        return Ok(default);
    };
    value
        .as_integer()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| ConfigError::Value {
            key: key.into(),
            expected: format!("a whole number from {} to {}", range.start(), range.end()),
            found: shown(&value),
        })
}

fn number(
    key: &'static str,
    value: Option<toml::Value>,
    default: f64,
    range: RangeInclusive<f64>,
) -> Result<f64, ConfigError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let whole = || value.as_integer().map(|number| number as f64);
    value
        .as_float()
        .or_else(whole)
        .filter(|number| range.contains(number))
        .ok_or_else(|| ConfigError::Value {
            key: key.into(),
            expected: format!("a number from {} to {}", range.start(), range.end()),
            found: shown(&value),
        })
}

/// `"512Mi"`, `"20Gi"`, `"1.5Ti"`: as pools say memory, at least 1Mi.
fn bytes(key: &'static str, value: &toml::Value) -> Result<u64, ConfigError> {
    let parse = |text: &str| {
        let units = [("Mi", 20), ("Gi", 30), ("Ti", 40)];
        let mut units = units.into_iter();
        let (number, shift) =
            units.find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let is_digits = |text: &str| {
            (1..=6).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit())
        };
        if !is_digits(whole) || !is_digits(part) {
            return None;
        }
        let scale = 10u64.pow(u32::try_from(part.len()).ok()?);
        let parts = whole.parse::<u64>().ok()? * scale + part.parse::<u64>().ok()?;
        let bytes = (u128::from(parts) << shift) / u128::from(scale);
        u64::try_from(bytes).ok().filter(|bytes| *bytes >= 1 << 20)
    };
    value
        .as_str()
        .and_then(parse)
        .ok_or_else(|| ConfigError::Value {
            key: key.into(),
            expected: "an amount of at least 1Mi in Mi, Gi or Ti, like \"20Gi\"".to_owned(),
            found: shown(value),
        })
}

fn address(key: &'static str, value: &toml::Value) -> Result<SocketAddr, ConfigError> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| ConfigError::Value {
            key: key.into(),
            expected: "an address with a port, like \"0.0.0.0:8443\" or \"[::]:8443\"".to_owned(),
            found: shown(value),
        })
}

/// A DNS name in lower case.
fn domain(value: toml::Value) -> Result<String, ConfigError> {
    match value.as_str() {
        // A pool's name and a dot come in front; 253 is the limit of a whole name.
        Some(text) if text.len() <= 253 - 64 && is_dns_name(text) => Ok(text.to_owned()),
        _ => Err(ConfigError::Value {
            key: "domain".into(),
            expected: "a DNS name in lower case, like \"sessions.example.org\"".to_owned(),
            found: shown(&value),
        }),
    }
}

/// The value as the file had it, cut so that a message stays one line.
pub(super) fn shown(value: &toml::Value) -> String {
    let text: String = value
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsFiles;

    fn checked(text: &str) -> Result<Checked, ConfigError> {
        let raw = parse(Path::new("cabana.toml"), text)?;
        check(raw, Paths::under(Path::new("/r"))?, &Overrides::default())
    }

    fn refusal(text: &str) -> String {
        checked(text).unwrap_err().to_string()
    }

    /// What the README shows, and the beginning of every key.
    fn examples() -> Vec<Vec<u8>> {
        let readme = include_str!("../../README.md");
        let blocks = readme.split("```toml\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```").next());
        blocks.map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn fuzz_config() {
        let words = [
            "listen = \"0.0.0.0:8443\"\n",
            "domain = ",
            "uid_base = ",
            "[tls]\n",
            "[tls.acme]\n",
            "[limits]\n",
            "[images]\n",
            "[registries.",
            "[[issuers.\"https://a.example\".grants]]\n",
            "memory_overcommit = ",
            "image_cache_limit = \"1Gi\"\n",
            "spare_workers = ",
            "orphan_limit_seconds = ",
            "min_cooldown_seconds = ",
            "inf",
            "nan",
            "-1",
            "9223372036854775807",
            "9223372036854775808",
            "\"\"",
            "[]",
            "{}",
            "[[",
            "]]",
            " = ",
            "\n",
            "\"",
            "1979-05-27",
            "\\u0000",
            "1e400",
            "true",
        ];
        ::fuzz::Target::new("config")
            .seeds(examples())
            .words(&words)
            .run(6000, |input| {
                let Ok(text) = std::str::from_utf8(input) else {
                    return false;
                };
                match ::fuzz::allocation::within(8 << 20, || checked(text)) {
                    Ok(config) => {
                        assert!(config.uid_base >= UID_COUNT);
                        assert!(
                            config.memory_overcommit.is_finite() && config.memory_overcommit > 0.0
                        );
                        assert!((1..=3600).contains(&config.min_cooldown.as_secs()));
                        true
                    }
                    Err(error) => {
                        // One line for the operator.
                        let message = error.to_string();
                        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
                        false
                    }
                }
            });
    }

    #[test]
    fn empty_file_gives_the_documented_defaults() {
        let config = checked("").unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:8443");
        assert_eq!(config.min_cooldown, Duration::from_secs(300));
        assert_eq!(config.start_timeout, Duration::from_secs(60));
        assert_eq!(config.orphan_limit_seconds, 3600);
        assert_eq!((config.domain, config.uid_base), (None, 2_000_000_000));
        assert_eq!(
            [1, 64, u32::MAX].map(default_parallel_starts),
            [2, 128, 256]
        );
        assert_eq!(
            [63, 64, 2048, 4096, u64::MAX].map(default_spare_workers),
            [0, 1, 32, 64, 64]
        );
    }

    #[test]
    fn workers_made_ahead_may_be_none_and_starts_at_once_may_not() {
        let config = checked("spare_workers = 0\nparallel_starts = 1").unwrap();
        assert_eq!((config.spare_workers, config.parallel_starts), (0, 1));
    }

    #[test]
    fn host_is_promised_once_and_its_cpus_eight_times_unless_told_otherwise() {
        let factors = |text| {
            let config = checked(text).unwrap();
            (config.memory_overcommit, config.cpu_overcommit)
        };
        assert_eq!(factors(""), (1.0, 8.0));
        assert_eq!(
            factors("memory_overcommit = 2\ncpu_overcommit = 0.5"),
            (2.0, 0.5)
        );
    }

    #[test]
    fn limit_of_the_image_cache_is_an_amount_with_a_unit() {
        let limit = |text: &str| {
            let text = format!("image_cache_limit = \"{text}\"");
            checked(&text).unwrap().image_cache_limit
        };
        assert_eq!(checked("").unwrap().image_cache_limit, None);
        assert_eq!(limit("20Gi"), Some(20 << 30));
        assert_eq!(limit("1.5Ti"), Some(3 << 39));
        assert_eq!(limit("1Mi"), Some(1 << 20));
    }

    #[test]
    fn unknown_key_is_refused_by_name_with_its_line() {
        let line = refusal("listen = \"[::]:1\"\nlissten = \"0.0.0.0:1\"\n");
        assert!(
            line.starts_with("cabana.toml:2: ") && line.contains("`lissten`"),
            "{line}"
        );
    }

    #[test]
    fn every_bad_value_is_refused_in_one_line_that_names_its_key() {
        let cases = [
            ("listen", "8443"),
            ("listen", "\"localhost\""),
            ("domain", "\"-x.example\""),
            ("domain", "\"Example.org\""),
            ("domain", "\"a..b\""),
            ("domain", "[\n1,\n2]"),
            ("audiences", "[]"),
            ("audiences", "\"https://dynamicsessions.io\""),
            ("audiences", "[\"\"]"),
            ("audiences", "[\"a b\"]"),
            ("min_cooldown_seconds", "0"),
            ("min_cooldown_seconds", "\"300\""),
            ("min_cooldown_seconds", "-1"),
            ("start_timeout_seconds", "99999999999"),
            ("start_timeout_seconds", "1.5"),
            ("orphan_limit_seconds", "9"),
            ("orphan_limit_seconds", "86401"),
            ("spare_workers", "65"),
            ("spare_workers", "-1"),
            ("parallel_starts", "0"),
            ("parallel_starts", "257"),
            ("memory_overcommit", "0"),
            ("memory_overcommit", "100.5"),
            ("memory_overcommit", "nan"),
            ("cpu_overcommit", "0.09"),
            ("cpu_overcommit", "1001"),
            ("cpu_overcommit", "\"8\""),
            ("image_cache_limit", "20"),
            ("image_cache_limit", "\"20G\""),
            ("image_cache_limit", "\"0Gi\""),
            ("image_cache_limit", "\"-1Gi\""),
            ("image_cache_limit", "\"1e3Mi\""),
            ("image_cache_limit", "\"99999999Ti\""),
            ("uid_base", "0"),
            ("uid_base", "4294967295"),
            ("registries", "3"),
            ("registries.\"no host\"", "{}"),
            ("registries.\"a.example\"", "[]"),
            ("registries.\"a.example\".ca_file", "\"relative.pem\""),
            ("registries.\"a.example\".allow_http", "\"yes\""),
            ("registries.\"a.example\".mirrors", "\"m.example\""),
            (
                "registries.\"a.example\".mirrors",
                "[\"https://m.example\"]",
            ),
            ("registries.\"a.example\".password", "\"x\""),
            ("image_limits.files", "0"),
            ("image_limits.layer_mib", "-1"),
            ("image_limits.path_bytes", "4096"),
            ("image_limits.layers", "1"),
            ("tls", "3"),
            ("tls.key", "\"key\""),
            ("tls.certificate", "1"),
            ("tls.acme", "3"),
            ("tls.acme.domains", "[\"*.a.example\"]"),
            ("limits", "3"),
            ("limits.header_bytes", "1023"),
            ("limits.request_seconds", "0"),
            ("limits.request", "1"),
        ];
        for (key, value) in cases {
            let line = refusal(&format!("{key} = {value}"));
            assert!(
                line.contains(&format!("`{key}`")) && !line.contains('\n'),
                "{key} = {value}: {line}"
            );
        }
    }

    #[test]
    fn certificate_and_key_are_said_together() {
        let config = checked("[tls]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\n").unwrap();
        let files = TlsFiles {
            certificate: "/c.pem".into(),
            key: "/k.pem".into(),
        };
        assert_eq!(config.tls, TlsSource::Files(files));
        assert_eq!(checked("").unwrap().tls, TlsSource::Own);
        for half in ["key = \"/k.pem\"", "certificate = \"/c.pem\""] {
            let line = refusal(&format!("[tls]\n{half}"));
            assert!(line.contains("both or neither"), "{line}");
        }
        let line = refusal("[tls]\npassword = \"x\"");
        assert!(line.contains("certificate and key, or acme"), "{line}");
    }

    #[test]
    fn registries_and_limits_of_images_are_read() {
        let config = checked(
            "[registries.\"docker.io\"]\nmirrors = [\"m.example:1/hub\"]\n\
             [registries.\"r.example\"]\nca_file = \"/ca.pem\"\nallow_http = true\n\
             [image_limits]\nlayer_mib = 1\nimage_mib = 2\nunpacked_mib = 3\nfiles = 4\npath_bytes = 5\n",
        )
        .unwrap();
        let of = |host: &str| config.registries.of(&host.parse().unwrap());
        assert_eq!(of("docker.io").mirrors.len(), 1);
        assert_eq!(of("r.example").ca_file.unwrap(), Path::new("/ca.pem"));
        assert!(
            config
                .registries
                .may_be_plain(&"r.example".parse().unwrap())
        );
        let limits = config.image_limits;
        assert_eq!(
            (limits.layer_bytes, limits.archive_bytes),
            (1 << 20, 2 << 20)
        );
        assert_eq!((limits.unpacked_bytes, limits.files), (3 << 20, 4));
        assert_eq!(limits.path_bytes, 5);
    }

    #[test]
    fn syntax_error_is_one_line_with_its_place() {
        let line = refusal("domain = \"x\"\nlisten = = 3\n");
        assert!(
            line.starts_with("cabana.toml:2: ") && !line.contains('\n'),
            "{line}"
        );
    }

    #[test]
    fn command_line_wins_over_the_file_and_is_checked_too() {
        let file = || parse(Path::new("f"), "listen = \"127.0.0.1:1\"").unwrap();
        let paths = Paths::under(Path::new("/r")).unwrap();
        let with = |value: &str| Overrides {
            listen: Some(value.to_owned()),
            unconfined: false,
        };
        let config = check(file(), paths.clone(), &with("127.0.0.1:2")).unwrap();
        assert_eq!(config.listen.port(), 2);
        let line = check(file(), paths, &with("x")).unwrap_err().to_string();
        assert!(line.contains("`--listen`"), "{line}");
    }

    #[test]
    fn named_file_must_exist_and_the_default_one_need_not() {
        let root = tempfile::tempdir().unwrap();
        load(root.path(), None, &Overrides::default()).unwrap();
        let missing = root.path().join("missing.toml");
        let error = load(root.path(), Some(&missing), &Overrides::default()).unwrap_err();
        assert!(matches!(error, ConfigError::Read { path, .. } if path == missing));
    }
}
