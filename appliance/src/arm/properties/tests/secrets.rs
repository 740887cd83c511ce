//! Secrets, logins of registries, and variables that are secrets.

use super::*;

/// A body with a secret and a login that uses it.
fn private() -> Value {
    let mut body = with(
        SECRETS,
        json!([{ "name": "pw", "value": "hunter2" }, { "name": "other", "value": "x" }]),
    );
    let login = json!({ "server": "https://Private.Example/", "username": "user", "passwordSecretRef": "pw" });
    body["properties"]["customContainerTemplate"]["registryCredentials"] = login;
    body
}

#[test]
fn password_of_a_registry_is_sealed_and_told_to_nobody() {
    let pool = check(&private()).unwrap();
    let kept = String::from_utf8(crate::store::encode(&pool)).unwrap();
    let answered = shown(&pool);
    for text in [kept, answered.to_string(), format!("{pool:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert_eq!(
        answered.pointer(SECRETS),
        Some(&json!([{ "name": "pw" }, { "name": "other" }]))
    );
    let login =
        json!({ "server": "private.example", "username": "user", "passwordSecretRef": "pw" });
    assert_eq!(answered.pointer(LOGIN), Some(&login));
    let address = Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    let order = drafted(&private(), &address, None).unwrap().order;
    let held = order.credentials.unwrap();
    assert_eq!(
        (held.server.as_str(), held.username.as_str()),
        ("private.example", "user")
    );
    assert_eq!(held.password.expose(), "hunter2");
    // What is shown can be sent back: a name without a value keeps the value.
    let again = drafted(&answered, &address, Some(&pool)).unwrap().order;
    assert_eq!(again.credentials.unwrap().password.expose(), "hunter2");
}

#[test]
fn patch_keeps_changes_and_removes_secrets() {
    let pool = check(&private()).unwrap();
    let address = || Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    let same = patched_pool(&pool, json!({ "tags": { "a": "b" } })).unwrap();
    assert_eq!(
        (&same.secrets, &same.registry),
        (&pool.secrets, &pool.registry)
    );
    let patch = json!({ "properties": { "secrets": [{ "name": "pw", "value": "new" }] } });
    let changed = patched_pool(&pool, patch).unwrap();
    assert_eq!(changed.secrets.len(), 1);
    let order = drafted(&shown(&changed), &address(), Some(&changed))
        .unwrap()
        .order;
    assert_eq!(order.credentials.unwrap().password.expose(), "new");
    assert!(
        changed.same_template(&pool),
        "a password is no part of what a session is made of"
    );
    let patch = json!({ "properties": { "secrets": null, "customContainerTemplate": { "registryCredentials": null } } });
    let public = patched_pool(&pool, patch).unwrap();
    assert_eq!((public.secrets.len(), public.registry), (0, None));
    let patch = json!({ "properties": { "secrets": null } });
    let refusal = patched_pool(&pool, patch).unwrap_err();
    assert_eq!(
        refusal.target.unwrap(),
        "properties.customContainerTemplate.registryCredentials.passwordSecretRef"
    );
}

#[test]
fn secrets_and_logins_that_are_wrong_are_refused_without_their_values() {
    for (path, value, target) in [
        (
            "/properties/secrets/0/value",
            json!(12345),
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/value",
            json!("12345\u{0}"),
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/value",
            Value::Null,
            "properties.secrets[0].value",
        ),
        (
            "/properties/secrets/0/name",
            json!("A b"),
            "properties.secrets[0].name",
        ),
        (
            "/properties/secrets/1/name",
            json!("pw"),
            "properties.secrets[1].name",
        ),
    ] {
        let mut body = private();
        *body.pointer_mut(path).unwrap() = value;
        let refusal = check(&body).unwrap_err();
        assert_eq!(refusal.code, Code::SessionPoolInvalidProperty, "{path}");
        assert_eq!(refusal.target.as_deref(), Some(target));
        assert!(!refusal.message.contains("12345"), "{}", refusal.message);
    }
    for (member, value) in [
        ("server", json!("not a host")),
        ("server", Value::Null),
        ("username", Value::Null),
        ("passwordSecretRef", json!("unknown")),
    ] {
        let mut body = private();
        body["properties"]["customContainerTemplate"]["registryCredentials"][member] = value;
        let refusal = check(&body).unwrap_err();
        let target = format!("properties.customContainerTemplate.registryCredentials.{member}");
        assert_eq!(refusal.target, Some(target), "{}", refusal.message);
    }
}

fn with_variable(variable: Value) -> Value {
    let mut body = private();
    body["properties"]["customContainerTemplate"]["containers"][0]["env"] = json!([variable]);
    body
}

#[test]
fn variable_that_is_a_secret_is_kept_by_name_and_opened_for_the_container() {
    let body = with_variable(json!({ "name": "KEY", "value": null, "secretRef": "other" }));
    let pool = check(&body).unwrap();
    assert_eq!(pool.env[0].secret_ref.as_deref(), Some("other"));
    let answered = shown(&pool);
    assert_eq!(
        answered.pointer(&super::container("env/0")),
        Some(&json!({ "name": "KEY", "secretRef": "other" }))
    );
    let image = Demo.find("demo").unwrap().defaults;
    let spec = crate::pool::container::spec(&image, &pool, &vault()).unwrap();
    assert_eq!(spec.env, ["KEY=x"]);
}

#[test]
fn secret_that_the_container_gets_is_part_of_the_template_and_the_same_value_is_no_change() {
    let body = |value: &str| {
        let mut body = with_variable(json!({ "name": "KEY", "secretRef": "other" }));
        body["properties"]["secrets"][1]["value"] = value.into();
        body
    };
    let address = Address {
        subscription: "s".into(),
        resource_group: "rg".into(),
        name: "alpha".into(),
    };
    let pool = check(&body("x")).unwrap();
    let put = |value| look_up_and_check(&body(value), address.clone(), Some(&pool)).unwrap();
    assert_eq!(put("x").secrets, pool.secrets);
    assert!(put("x").same_template(&pool));
    assert!(!put("y").same_template(&pool));
}

#[test]
fn variable_names_a_secret_that_is_there_or_has_a_value() {
    let env = "properties.customContainerTemplate.containers[0].env[0]";
    for (variable, target, says) in [
        (
            json!({ "name": "A", "secretRef": "none" }),
            format!("{env}.secretRef"),
            "names no secret",
        ),
        (
            json!({ "name": "A", "value": "x", "secretRef": "pw" }),
            env.to_owned(),
            "not both",
        ),
        (
            json!({ "name": "A", "secretRef": 7 }),
            format!("{env}.secretRef"),
            "a string",
        ),
    ] {
        let body = with_variable(variable);
        refused(&body, Code::SessionPoolInvalidProperty, &target, says);
    }
    // Nor may it lose the secret that it names.
    let pool = check(&with_variable(json!({ "name": "A", "secretRef": "other" }))).unwrap();
    let patch = json!({ "properties": { "secrets": [{ "name": "pw" }] } });
    let refusal = patched_pool(&pool, patch).unwrap_err();
    assert!(
        refusal.message.contains("names no secret"),
        "{}",
        refusal.message
    );
}
