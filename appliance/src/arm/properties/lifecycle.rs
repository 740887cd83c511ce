//! When sessions end by themselves. Read nested in `lifecycleConfiguration`, as in 2025-01-01 and
//! later, or flat, as before; rendered as the api-version has it.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::raw::{Raw, dotted, invalid, wrong};
use super::{Rules, Shape};
use crate::front::refusal::Refusal;
use crate::openapi::schema::{Described, integer, nullable, object, word};
use crate::store::{Lifecycle, PoolRecord};

/// What the cloud service allows at most.
const MAX_COOLDOWN_SECONDS: u64 = 3600;
const DEFAULT_COOLDOWN_SECONDS: u64 = 300;
/// The cloud service does not say what it allows; its examples go up to a day. Thirty days.
const MAX_ALIVE_SECONDS: RangeInclusive<u64> = 1..=30 * 24 * 3600;
/// As `az` has it.
const DEFAULT_MAX_ALIVE_SECONDS: u64 = 3600;

const BASE: &str = "/properties/dynamicPoolConfiguration";
const NESTED: &str = "lifecycleConfiguration";
const COOLDOWN: &str = "cooldownPeriodInSeconds";
const MAX_ALIVE: &str = "maxAlivePeriodInSeconds";
const TYPE: &str = "lifecycleType";
/// What [`TYPE`] was called when it was flat.
const FLAT_TYPE: &str = "executionType";
const TIMED: &str = "Timed";
const ON_CONTAINER_EXIT: &str = "OnContainerExit";

/// The lifecycle, and the cooldown of a pool that is `Timed`.
pub fn read(raw: &Raw<'_>, rules: &Rules) -> Result<(Lifecycle, u64), Refusal> {
    let kind = either(raw, TYPE, FLAT_TYPE)?;
    let cooldown = either(raw, COOLDOWN, COOLDOWN)?;
    let max_alive = either(raw, MAX_ALIVE, MAX_ALIVE)?;
    let default_cooldown = DEFAULT_COOLDOWN_SECONDS.max(rules.min_cooldown_seconds);
    if is_on_container_exit(raw, kind.as_deref())? {
        if let Some(path) = cooldown {
            return Err(of_the_other(&path, TIMED, ON_CONTAINER_EXIT, MAX_ALIVE));
        }
        let seconds = match max_alive {
            Some(path) => raw.integer(&path, MAX_ALIVE_SECONDS)?,
            None => None,
        };
        let max_alive_seconds = seconds.unwrap_or(DEFAULT_MAX_ALIVE_SECONDS);
        let lifecycle = Lifecycle::OnContainerExit { max_alive_seconds };
        return Ok((lifecycle, default_cooldown));
    }
    if let Some(path) = max_alive {
        return Err(of_the_other(&path, ON_CONTAINER_EXIT, TIMED, COOLDOWN));
    }
    let range = rules.min_cooldown_seconds..=MAX_COOLDOWN_SECONDS;
    let seconds = match cooldown {
        Some(path) => raw.integer(&path, range)?,
        None => None,
    };
    Ok((Lifecycle::Timed, seconds.unwrap_or(default_cooldown)))
}

fn is_on_container_exit(raw: &Raw<'_>, path: Option<&str>) -> Result<bool, Refusal> {
    let Some(path) = path else {
        return Ok(false);
    };
    let text = raw.text(path)?.unwrap_or_default();
    if text.eq_ignore_ascii_case(TIMED) {
        Ok(false)
    } else if text.eq_ignore_ascii_case(ON_CONTAINER_EXIT) {
        Ok(true)
    } else {
        let expected = format!("{TIMED:?} or {ON_CONTAINER_EXIT:?}");
        Err(wrong(path, &expected, &text.into()))
    }
}

/// Where the property is, nested or flat. In both places it must be the same.
fn either(raw: &Raw<'_>, nested: &str, flat: &str) -> Result<Option<String>, Refusal> {
    let nested = format!("{BASE}/{NESTED}/{nested}");
    let flat = format!("{BASE}/{flat}");
    match (raw.get(&nested), raw.get(&flat)) {
        (Some(one), Some(other)) if one != other => {
            let message = format!(
                "{} and {} contradict each other; one of them is enough",
                dotted(&nested),
                dotted(&flat)
            );
            Err(invalid(&flat, message))
        }
        (Some(_), _) => Ok(Some(nested)),
        (None, Some(_)) => Ok(Some(flat)),
        (None, None) => Ok(None),
    }
}

fn of_the_other(path: &str, other: &str, own: &str, instead: &str) -> Refusal {
    let message = format!(
        "{} is for {TYPE} {other:?} only; a pool with {own:?} has {instead}",
        dotted(path)
    );
    invalid(path, message)
}

/// For the OpenAPI document. The bounds of the cooldown are those without a configuration.
pub fn schema() -> Described {
    let kind = || word("When a session ends by itself", &[TIMED, ON_CONTAINER_EXIT]);
    let cooldown = || {
        let range = DEFAULT_COOLDOWN_SECONDS..=MAX_COOLDOWN_SECONDS;
        integer("Timed: after so many seconds without a request", range)
    };
    let longest = || {
        integer(
            "OnContainerExit: after so many seconds at the latest",
            MAX_ALIVE_SECONDS,
        )
    };
    let nested = object("From 2025-01-01 on")
        .property(TYPE, nullable(kind()))
        .property(COOLDOWN, nullable(cooldown()))
        .property(MAX_ALIVE, nullable(longest()));
    object("When sessions end by themselves; nested, or flat as up to 2024-10-02-preview")
        .property(NESTED, nullable(nested))
        .property(FLAT_TYPE, nullable(kind()))
        .property(COOLDOWN, nullable(cooldown()))
        .property(MAX_ALIVE, nullable(longest()))
        .into()
}

pub fn render(pool: &PoolRecord, shape: &Shape) -> Value {
    let kind = if shape.nested_lifecycle {
        TYPE
    } else {
        FLAT_TYPE
    };
    let lifecycle = match pool.lifecycle {
        Lifecycle::Timed => json!({ kind: TIMED, COOLDOWN: pool.cooldown_seconds }),
        Lifecycle::OnContainerExit { max_alive_seconds } => {
            json!({ kind: ON_CONTAINER_EXIT, MAX_ALIVE: max_alive_seconds })
        }
    };
    if shape.nested_lifecycle {
        json!({ NESTED: lifecycle })
    } else {
        lifecycle
    }
}

/// Makes a patch fit for the nested form of the resource that it is for: flat properties move
/// inwards, and with another lifecycle the period of the old one goes, which nobody asked to keep.
pub fn prepare_patch(patch: &mut Value, pool: &PoolRecord) {
    let Some(base) = patch.pointer_mut(BASE).and_then(Value::as_object_mut) else {
        return;
    };
    let flat: Vec<_> = [
        (FLAT_TYPE, TYPE),
        (COOLDOWN, COOLDOWN),
        (MAX_ALIVE, MAX_ALIVE),
    ]
    .into_iter()
    .filter_map(|(flat, nested)| Some((nested, base.remove(flat)?)))
    .collect();
    if !flat.is_empty() && base.get(NESTED).is_none_or(Value::is_null) {
        // A null would have deleted all of it, but for what is said flat beside it.
        let deletes = base.contains_key(NESTED);
        let nulls = [TYPE, COOLDOWN, MAX_ALIVE].map(|name| (name.to_owned(), Value::Null));
        let empty = nulls.into_iter().filter(|_| deletes).collect();
        base.insert(NESTED.to_owned(), Value::Object(empty));
    }
    let Some(nested) = base.get_mut(NESTED).and_then(Value::as_object_mut) else {
        return;
    };
    for (name, value) in flat {
        let place = nested.entry(name).or_insert(Value::Null);
        if place.is_null() {
            *place = value;
        }
    }
    let (current, period) = match pool.lifecycle {
        Lifecycle::Timed => (TIMED, COOLDOWN),
        Lifecycle::OnContainerExit { .. } => (ON_CONTAINER_EXIT, MAX_ALIVE),
    };
    let changed = match nested.get(TYPE) {
        None => false,
        Some(kind) => !kind.as_str().unwrap_or(TIMED).eq_ignore_ascii_case(current),
    };
    if changed {
        nested.entry(period).or_insert(Value::Null);
    }
}
