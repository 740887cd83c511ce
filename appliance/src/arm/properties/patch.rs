//! Changing a part of a pool: JSON merge patch, RFC 7396.

use serde_json::{Map, Value};

use super::raw::{dotted, invalid, wrong};
use super::{Shape, lifecycle, not_an_object, render};
use crate::front::refusal::Refusal;
use crate::store::PoolRecord;

/// What a pool keeps for good. Saying again what it is, is no change.
const IMMUTABLE: [&str; 7] = [
    "/id",
    "/name",
    "/type",
    "/location",
    "/properties/environmentId",
    "/properties/containerType",
    "/properties/poolManagementType",
];

/// The pool's settings with `patch` applied, for [`draft`](super::draft). Lists are replaced whole, a
/// null brings the default back, and what the appliance says about a pool is ignored as in a PUT.
pub fn patched(pool: &PoolRecord, mut patch: Value, id: &str) -> Result<Value, Refusal> {
    if !patch.is_object() {
        return Err(not_an_object());
    }
    // In place of an object a patch would replace all that is in it.
    for path in ["/tags", "/properties"] {
        if let Some(found) = patch.pointer(path)
            && !found.is_object()
            && !(path == "/tags" && found.is_null())
        {
            return Err(wrong(path, "an object", found));
        }
    }
    let mut body = render(pool, &Shape::default());
    body["id"] = id.into();
    body["name"] = pool.name.as_str().into();
    body["type"] = crate::arm::resource::TYPE.into();
    for path in IMMUTABLE {
        if let Some(wanted) = patch.pointer(path)
            && !same(body.pointer(path), wanted)
        {
            return Err(cannot_change(path));
        }
    }
    lifecycle::prepare_patch(&mut patch, pool);
    merge(&mut body, patch);
    Ok(body)
}

/// As in a patch, of the body of a PUT: what is absent or null stays as it is, and so does what the pool never had.
pub fn refuse_other_identity(
    body: &Value,
    pool: &PoolRecord,
    paths: &[&str],
) -> Result<(), Refusal> {
    let current = render(pool, &Shape::default());
    for path in paths {
        let wanted = body.pointer(path).filter(|wanted| !wanted.is_null());
        let held = current.pointer(path);
        if let (Some(wanted), Some(_)) = (wanted, held)
            && !same(held, wanted)
        {
            return Err(cannot_change(path));
        }
    }
    Ok(())
}

fn cannot_change(path: &str) -> Refusal {
    let message = format!("{} of a pool cannot be changed", dotted(path));
    invalid(path, message)
}

/// Case of names is forgiven, as in paths.
fn same(current: Option<&Value>, wanted: &Value) -> bool {
    match (current.and_then(Value::as_str), wanted.as_str()) {
        (Some(current), Some(wanted)) => current.eq_ignore_ascii_case(wanted),
        _ => false,
    }
}

/// `MergePatch` of RFC 7396 section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The table of RFC 7396, appendix A.
    #[test]
    fn merge_does_what_the_examples_of_its_rfc_do() {
        for (original, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let mut merged = original.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, result, "{original} {patch}");
        }
    }
}
