//! The records, and how they are versioned.
//!
//! A row is JSON: `{"version": N, "record": {...}}`. A change that an older build could misread
//! raises [`VERSION`]; a new optional field does not. A row of a newer version is refused and never
//! half read.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::access::Grant;
use crate::pool::probe::Probes;
use crate::pool::{Identifier, PoolName};
use crate::worker::spec::{ForkPoint, RateLimits};

/// The version of rows that this build writes, and the newest that it reads.
pub const VERSION: u32 = 2;
/// The size of a session's writable layer, where nothing else was said.
pub const DEFAULT_DISK_MIB: u32 = 8 << 10;

/// Why a row is not a record.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Written by a newer build.
    #[error(
        "It has version {found}, this build reads up to {VERSION}; use the build that wrote it"
    )]
    Version { found: u32 },
    /// Not JSON, or not the JSON of such a record.
    #[error("It is malformed")]
    Malformed(#[source] serde_json::Error),
}

#[derive(Serialize)]
struct Row<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct RawRow {
    version: u32,
    record: serde_json::Value,
}

/// The bytes of a row.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Plain structs of strings and numbers: there is nothing in them that JSON cannot hold.
    serde_json::to_vec(&Row {
        version: VERSION,
        record,
    })
    .unwrap_or_default()
}

/// The record in a row.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SchemaError> {
    let (_, record) = open(bytes)?;
    serde_json::from_value(record).map_err(SchemaError::Malformed)
}

/// The record at the beginning of `bytes`, whatever follows, if there is such a record.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut rows = serde_json::Deserializer::from_slice(bytes).into_iter::<RawRow>();
    let row = rows.next()?.ok().filter(|row| row.version <= VERSION)?;
    serde_json::from_value(row.record).ok()
}

/// Version and record of a row, whatever record it is.
pub fn open(bytes: &[u8]) -> Result<(u32, serde_json::Value), SchemaError> {
    let row: RawRow = serde_json::from_slice(bytes).map_err(SchemaError::Malformed)?;
    if row.version > VERSION {
        return Err(SchemaError::Version { found: row.version });
    }
    Ok((row.version, row.record))
}

/// The bytes of a row that another build may have written: [`open`] the other way round.
pub fn sealed(version: u32, record: &serde_json::Value) -> Vec<u8> {
    serde_json::to_vec(&Row { version, record }).unwrap_or_default()
}

/// As JSON; for records as for [`encode`] nothing can go wrong.
pub fn to_value<T: Serialize>(record: &T) -> serde_json::Value {
    serde_json::to_value(record).unwrap_or_default()
}

/// A pool as its owner asked for it, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolRecord {
    pub name: PoolName,
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
    #[serde(default)]
    pub tags: std::collections::BTreeMap<String, String>,
    /// Changes with every change of what a session is made of.
    #[serde(with = "uuid_text")]
    pub revision: Uuid,
    pub container_name: String,
    /// The image as it was named, for people.
    pub image: String,
    /// What the name meant when the revision was made.
    pub image_digest: String,
    pub cpu_millis: u32,
    pub mem_mib: u32,
    /// The size of the writable layer.
    #[serde(default = "default_disk_mib")]
    pub disk_mib: u32,
    #[serde(default)]
    pub fork_point: ForkPoint,
    #[serde(default)]
    pub rate_limits: RateLimits,
    pub target_port: u16,
    /// Replaces the image's entrypoint (and its command) when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    pub max_sessions: u32,
    /// How many slots wait for a caller, with their container up.
    #[serde(default)]
    pub ready_sessions: u32,
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Of a pool whose lifecycle is `Timed`.
    pub cooldown_seconds: u64,
    #[serde(default)]
    pub probes: Probes,
    /// What the image is pulled with. No part of what a session is made of: the digest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryLogin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<PoolSecret>,
    /// The id of the environment that the caller put it into. It means nothing here, and is told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

/// A user of a registry. The password is one of the pool's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryLogin {
    pub server: String,
    pub username: String,
    pub password_secret_ref: String,
}

/// A secret that only the appliance of this store can read: `crate::vault`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSecret {
    pub name: String,
    pub sealed: SealedText,
}

/// Base64 of nonce, ciphertext and tag.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedText(pub String);

impl std::fmt::Debug for SealedText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealedText")
    }
}

impl PoolRecord {
    /// The secrets that the container gets as variables.
    fn env_secrets(&self) -> impl Iterator<Item = &PoolSecret> {
        let named = |secret: &&PoolSecret| {
            let name = Some(&secret.name);
            self.env.iter().any(|var| var.secret_ref.as_ref() == name)
        };
        self.secrets.iter().filter(named)
    }

    /// Whether a session of `other` would be made of the same things.
    pub fn same_template(&self, other: &Self) -> bool {
        let template = |pool: &Self| {
            (
                pool.container_name.clone(),
                pool.image_digest.clone(),
                (pool.cpu_millis, pool.mem_mib, pool.disk_mib),
                (pool.fork_point, pool.target_port, pool.rate_limits),
                (pool.command.clone(), pool.args.clone(), pool.env.clone()),
                pool.probes.clone(),
                // Sealed: `arm::properties` keeps the text of one whose value is said again.
                pool.env_secrets().cloned().collect::<Vec<_>>(),
            )
        };
        template(self) == template(other)
    }
}

/// When a session ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Lifecycle {
    /// When nobody used it for the pool's cooldown period, or its container exits.
    #[default]
    Timed,
    /// When its container exits, and after this time at the latest.
    #[serde(rename_all = "camelCase")]
    OnContainerExit { max_alive_seconds: u64 },
}

fn default_disk_mib() -> u32 {
    DEFAULT_DISK_MIB
}

/// One variable of a container's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    /// Empty if it is a secret's.
    pub value: String,
    /// Which of the pool's secrets has the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<String>,
}

/// A change of a pool that a caller was told of before it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationRecord {
    #[serde(with = "uuid_text")]
    pub id: Uuid,
    pub kind: OperationKind,
    pub subscription: String,
    pub resource_group: String,
    pub pool: PoolName,
    /// What the pool's settings are when it has succeeded, as a digest. Absent: not known yet, or it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub begun_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<OperationEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationKind {
    Create,
    Update,
    Delete,
}

/// How an operation ended, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationEnd {
    pub at_ms: u64,
    /// Absent: it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<OperationFailure>,
}

/// What the caller is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationFailure {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Who owns a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    pub pool: PoolName,
    pub identifier: Identifier,
    #[serde(with = "uuid_text")]
    pub session: Uuid,
    #[serde(with = "uuid_text")]
    pub worker: Uuid,
    /// The revision that the session was made from.
    #[serde(with = "uuid_text")]
    pub revision: Uuid,
    pub created_at_ms: u64,
}

/// A token that this appliance has issued. The token itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    #[serde(with = "uuid_text")]
    pub id: Uuid,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub grant: Grant,
    /// The id of the key that has signed it.
    pub key: String,
    /// Seconds since the Unix epoch, as in tokens.
    pub made_at: u64,
    pub expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

/// When a session was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// Milliseconds since the Unix epoch.
    pub last_used_at_ms: u64,
    /// A request or stream was open when this was written.
    #[serde(default)]
    pub in_use: bool,
}

/// What is written down beside a worker that has become a slot: what it was made of. Who owns it says the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotNote {
    pub pool: PoolRecord,
}

/// A UUID as text; the crate's own `serde` feature is not needed for this one use.
mod uuid_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub fn serialize<S: Serializer>(id: &Uuid, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The key of a session's row: no pool name contains a zero byte, so pools cannot mix.
pub fn session_key(pool: &PoolName, identifier: &Identifier) -> Vec<u8> {
    let mut key = pool.as_str().as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(identifier.as_bytes());
    key
}

/// The key of an operation's row.
pub fn operation_key(id: Uuid) -> Vec<u8> {
    id.to_string().into_bytes()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn pool(name: &str) -> PoolRecord {
        PoolRecord {
            name: name.parse().unwrap(),
            subscription: "00000000-0000-0000-0000-000000000000".into(),
            resource_group: "default".into(),
            location: "local".into(),
            tags: [("team".to_owned(), "π".to_owned())].into(),
            revision: Uuid::from_u128(7),
            container_name: name.into(),
            image: "demo:latest".into(),
            image_digest: format!("sha256:{}", "ab".repeat(32)),
            cpu_millis: 500,
            mem_mib: 512,
            disk_mib: DEFAULT_DISK_MIB,
            fork_point: ForkPoint::BeforeStart,
            rate_limits: RateLimits::default(),
            target_port: 8080,
            command: vec![],
            args: vec!["--verbose".into()],
            env: vec![EnvVar {
                name: "MODE".into(),
                value: "a=b".into(),
                secret_ref: None,
            }],
            max_sessions: 10,
            ready_sessions: 0,
            lifecycle: Lifecycle::Timed,
            cooldown_seconds: 300,
            probes: Probes::default(),
            registry: None,
            secrets: Vec::new(),
            environment_id: None,
            created_at_ms: 1,
            modified_at_ms: 2,
        }
    }

    pub fn session(pool: &str, identifier: &str) -> SessionRecord {
        SessionRecord {
            pool: pool.parse().unwrap(),
            identifier: identifier.parse().unwrap(),
            session: Uuid::from_u128(1),
            worker: Uuid::from_u128(2),
            revision: Uuid::from_u128(7),
            created_at_ms: 3,
        }
    }

    #[test]
    fn record_written_and_read_back_is_the_same() {
        let record = pool("alpha");
        assert_eq!(decode::<PoolRecord>(&encode(&record)).unwrap(), record);
        let record = session("alpha", "user-1");
        assert_eq!(decode::<SessionRecord>(&encode(&record)).unwrap(), record);
    }

    /// The bytes of version 1 as the first release wrote them: this test may be added to, not changed.
    #[test]
    fn row_of_version_1_stays_readable() {
        let row = r#"{"version":1,"record":{"pool":"alpha","identifier":"user-1",
            "session":"00000000-0000-0000-0000-000000000001","worker":"00000000-0000-0000-0000-000000000002",
            "revision":"00000000-0000-0000-0000-000000000007","createdAtMs":3}}"#;
        assert_eq!(
            decode::<SessionRecord>(row.as_bytes()).unwrap(),
            session("alpha", "user-1")
        );
    }

    /// As above, of a pool: what came later has its default.
    #[test]
    fn pool_of_version_1_stays_readable() {
        let row = r#"{"version":1,"record":{"name":"alpha","subscription":"00000000-0000-0000-0000-000000000000",
            "resourceGroup":"default","location":"local","tags":{"team":"π"},"revision":"00000000-0000-0000-0000-000000000007",
            "containerName":"alpha","image":"demo:latest",
            "imageDigest":"sha256:abababababababababababababababababababababababababababababababab","cpuMillis":500,
            "memMib":512,"targetPort":8080,"command":[],"args":["--verbose"],"env":[{"name":"MODE","value":"a=b"}],
            "maxSessions":10,"cooldownSeconds":300,"createdAtMs":1,"modifiedAtMs":2}}"#;
        assert_eq!(decode::<PoolRecord>(row.as_bytes()).unwrap(), pool("alpha"));
    }

    #[test]
    fn fork_point_and_storage_are_part_of_the_template() {
        let alpha = pool("alpha");
        let later = PoolRecord {
            fork_point: ForkPoint::AfterReady,
            ..alpha.clone()
        };
        let larger = PoolRecord {
            disk_mib: 1024,
            ..alpha.clone()
        };
        assert!(!alpha.same_template(&later) && !alpha.same_template(&larger));
        assert_eq!(decode::<PoolRecord>(&encode(&later)).unwrap(), later);
    }

    #[test]
    fn row_of_a_newer_build_is_refused_whatever_it_holds() {
        let row = br#"{"version":3,"record":"something else"}"#;
        let error = decode::<SessionRecord>(row).unwrap_err();
        assert!(
            matches!(error, SchemaError::Version { found: 3 }),
            "{error}"
        );
    }

    #[test]
    fn record_with_a_field_that_breaks_its_rules_is_malformed() {
        let row = String::from_utf8(encode(&session("alpha", "user-1"))).unwrap();
        for (from, to) in [("user-1", "u"), ("alpha", "Al pha")] {
            let error = decode::<SessionRecord>(row.replace(from, to).as_bytes()).unwrap_err();
            assert!(matches!(error, SchemaError::Malformed(_)), "{error}");
        }
    }
}
