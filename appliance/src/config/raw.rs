//! The file as written. Every value is taken as it comes; `checked` judges it by key.

use serde::Deserialize;

/// The top level of `cabana.toml`. A key that is not here is refused by name.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub listen: Option<toml::Value>,
    pub domain: Option<toml::Value>,
    pub audiences: Option<toml::Value>,
    pub issuers: Option<toml::Value>,
    pub min_cooldown_seconds: Option<toml::Value>,
    pub start_timeout_seconds: Option<toml::Value>,
    pub orphan_limit_seconds: Option<toml::Value>,
    pub uid_base: Option<toml::Value>,
    pub spare_workers: Option<toml::Value>,
    pub parallel_starts: Option<toml::Value>,
    pub memory_overcommit: Option<toml::Value>,
    pub cpu_overcommit: Option<toml::Value>,
    pub image_cache_limit: Option<toml::Value>,
    pub registries: Option<toml::Value>,
    pub image_limits: Option<toml::Value>,
    pub limits: Option<toml::Value>,
    pub tls: Option<toml::Value>,
}
