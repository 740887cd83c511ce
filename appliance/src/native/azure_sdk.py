"""Drives azure-mgmt-appcontainers against a running appliance, as a customer's program would.

Every check raises. What it needs comes as JSON on standard input. One program for all versions of the package: up to
4.x the properties of a model are its own, since 5.x there are models within models; and only later ones have probes.
"""

import json
import ssl
import sys
import time
import urllib.request

from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.mgmt.appcontainers import ContainerAppsAPIClient, models

GIVEN = json.load(sys.stdin)
NESTED = hasattr(models, "SessionPoolProperties")
GROUP = "rg1"
POOL = "sandboxes"
ENVIRONMENT = (
    f"/subscriptions/{GIVEN['subscription']}/resourceGroups/{GROUP}"
    "/providers/Microsoft.App/managedEnvironments/env1"
)


class Token:
    """The token of a role, for as long as this runs."""

    def __init__(self, text):
        self.text = text

    def get_token(self, *scopes, **options):
        return AccessToken(self.text, int(time.time()) + 3600)


def client(token):
    base = GIVEN["endpoint"]
    return ContainerAppsAPIClient(
        Token(token),
        GIVEN["subscription"],
        base_url=base,
        credential_scopes=[base + "/.default"],
        connection_verify=GIVEN["ca"],
    )


def container(**options):
    given = {"name": "main", "image": GIVEN["image"], "command": [GIVEN["program"]]}
    given["resources"] = models.SessionContainerResources(cpu=0.25, memory="0.5Gi")
    return models.SessionContainer(**{**given, **options})


def template(**options):
    return models.CustomContainerTemplate(
        containers=[container(**options)], ingress=models.SessionIngress(target_port=8080)
    )


def lifecycle(seconds):
    return models.DynamicPoolConfiguration(
        lifecycle_configuration=models.LifecycleConfiguration(
            lifecycle_type="Timed", cooldown_period_in_seconds=seconds
        )
    )


def wanted(**options):
    given = {
        "container_type": "CustomContainer",
        "pool_management_type": "Dynamic",
        "environment_id": ENVIRONMENT,
        "scale_configuration": models.ScaleConfiguration(
            max_concurrent_sessions=4, ready_session_instances=1
        ),
        "dynamic_pool_configuration": lifecycle(600),
        "custom_container_template": template(),
        "session_network_configuration": models.SessionNetworkConfiguration(
            status="EgressDisabled"
        ),
    }
    given.update(options)
    if NESTED:
        given = {"properties": models.SessionPoolProperties(**given)}
    return models.SessionPool(location="local", tags={"team": "one"}, **given)


def update(tags=None, **options):
    if NESTED and options:
        options = {"properties": models.SessionPoolUpdatablePropertiesProperties(**options)}
    if tags is not None:
        options["tags"] = tags
    return models.SessionPoolUpdatableProperties(**options)


def properties(pool):
    return pool.properties if NESTED else pool


def same(found, expected, what):
    assert found == expected, f"{what}: {found!r}, not {expected!r}"


def refused(kind, code, call):
    try:
        call()
    except HttpResponseError as error:
        assert isinstance(error, kind), f"{error!r} is no {kind}"
        found = error.error.code if error.error else None
        same(found, code, "the code of an error")
        return str(error.message)
    raise AssertionError(f"{code} was expected, and nothing was wrong")


def ask(pool, path):
    """The body that a session answers with."""
    url = f"{properties(pool).pool_management_endpoint}{path}"
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + GIVEN["executor"]})
    trusted = ssl.create_default_context(cafile=GIVEN["ca"])
    with urllib.request.urlopen(request, context=trusted, timeout=60) as answer:
        return answer.read().decode()


def made(pools):
    pool = pools.begin_create_or_update(GROUP, POOL, wanted()).result()
    same(pool.name, POOL, "name")
    same(pool.type, "Microsoft.App/sessionPools", "type")
    same(pool.location, "local", "location")
    same(pool.tags, {"team": "one"}, "tags")
    found = properties(pool)
    same(found.provisioning_state, "Succeeded", "state")
    same(found.environment_id, ENVIRONMENT, "environment")
    same(found.container_type, "CustomContainer", "container type")
    same(found.pool_management_type, "Dynamic", "management type")
    same(found.scale_configuration.max_concurrent_sessions, 4, "most sessions")
    same(found.scale_configuration.ready_session_instances, 1, "ready sessions")
    life = found.dynamic_pool_configuration.lifecycle_configuration
    same((life.lifecycle_type, life.cooldown_period_in_seconds), ("Timed", 600), "lifecycle")
    same(found.session_network_configuration.status, "EgressDisabled", "egress")
    inside = found.custom_container_template
    same(inside.ingress.target_port, 8080, "port")
    same(inside.containers[0].image, GIVEN["image"], "image")
    same(inside.containers[0].resources.memory, "0.5Gi", "memory")
    same(found.node_count, 1, "nodes")
    assert ask(pool, "/id?identifier=user-1"), "a session answers"
    return pool


def listed(pools, expected):
    same([pool.name for pool in pools.list_by_subscription()], expected, "pools of all")
    same([pool.name for pool in pools.list_by_resource_group(GROUP)], expected, "pools")
    same(list(pools.list_by_resource_group("elsewhere")), [], "pools elsewhere")


def updated(pools):
    change = lambda body: pools.begin_update(GROUP, POOL, body).result()
    same(change(update(tags={"team": "two"})).tags, {"team": "two"}, "tags")

    scale = models.ScaleConfiguration(max_concurrent_sessions=3, ready_session_instances=0)
    pool = change(update(scale_configuration=scale))
    same(properties(pool).scale_configuration.max_concurrent_sessions, 3, "most sessions")

    pool = change(update(dynamic_pool_configuration=lifecycle(900)))
    life = properties(pool).dynamic_pool_configuration.lifecycle_configuration
    same(life.cooldown_period_in_seconds, 900, "cooldown")

    secret = models.SessionPoolSecret(name="key", value="s3cret")
    pool = change(update(secrets=[secret]))
    same([(it.name, it.value) for it in properties(pool).secrets], [("key", None)], "secrets")

    env = [
        models.EnvironmentVar(name="MODE", value="x"),
        models.EnvironmentVar(name="KEY", secret_ref="key"),
    ]
    pool = change(update(custom_container_template=template(env=env)))
    shown = properties(pool).custom_container_template.containers[0].env
    same([(it.name, it.value, it.secret_ref) for it in shown],
         [("MODE", "x", None), ("KEY", None, "key")], "variables")
    inside = json.loads(ask(pool, "/env?identifier=user-2"))
    same((inside.get("MODE"), inside.get("KEY")), ("x", "s3cret"), "what the container has")

    network = models.SessionNetworkConfiguration(status="EgressDisabled")
    pool = change(update(session_network_configuration=network))
    same(properties(pool).session_network_configuration.status, "EgressDisabled", "egress")
    same(properties(pool).scale_configuration.max_concurrent_sessions, 3, "most sessions, still")

    if hasattr(models, "SessionProbe"):
        probe = models.SessionProbe(
            type="Startup", http_get=models.SessionProbeHttpGet(path="/", port=8080)
        )
        pool = change(update(custom_container_template=template(probes=[probe])))
        shown = properties(pool).custom_container_template.containers[0].probes
        same([(it.type, it.http_get.port, it.period_seconds) for it in shown],
             [("Startup", 8080, 10)], "probes")


def failures(pools):
    much = models.ScaleConfiguration(max_concurrent_sessions=2, ready_session_instances=3)
    said = refused(HttpResponseError, "SessionPoolInvalidProperty",
                   lambda: pools.begin_create_or_update(
                       GROUP, "bad", wanted(scale_configuration=much)).result())
    assert "from 0 to 2" in said, said
    said = refused(HttpResponseError, "SessionPoolInvalidProperty",
                   lambda: pools.begin_update(
                       GROUP, POOL, update(dynamic_pool_configuration=lifecycle(4000))).result())
    assert "cooldownPeriodInSeconds" in said and "to 3600" in said, said
    refused(ResourceNotFoundError, "ResourceNotFound", lambda: pools.get(GROUP, "nowhere"))
    refused(ResourceExistsError, "SessionPoolNameInUse",
            lambda: pools.begin_create_or_update("elsewhere", POOL, wanted()).result())
    refused(ClientAuthenticationError, "Unauthorized",
            lambda: client("nonsense").container_apps_session_pools.get(GROUP, POOL))
    reader = client(GIVEN["reader"]).container_apps_session_pools
    same(reader.get(GROUP, POOL).name, POOL, "what a reader sees")
    refused(HttpResponseError, "Forbidden",
            lambda: reader.begin_create_or_update(GROUP, POOL, wanted()).result())
    refused(HttpResponseError, "Forbidden", lambda: reader.begin_delete(GROUP, POOL).result())

    # The registry wants to know who asks: the operation fails, and nothing is left of the pool.
    private = template(image=GIVEN["private"])
    refused(HttpResponseError, "ImagePullUnauthorized",
            lambda: pools.begin_create_or_update(
                GROUP, "private", wanted(custom_container_template=private)).result())
    refused(ResourceNotFoundError, "ResourceNotFound", lambda: pools.get(GROUP, "private"))
    # And a pool that is there is as it was.
    before = properties(pools.get(GROUP, POOL)).custom_container_template.containers[0].image
    refused(HttpResponseError, "ImagePullUnauthorized",
            lambda: pools.begin_update(
                GROUP, POOL, update(custom_container_template=private)).result())
    after = properties(pools.get(GROUP, POOL))
    same(after.custom_container_template.containers[0].image, before, "image")
    same(after.provisioning_state, "Succeeded", "state")


def deleted(pools):
    pools.begin_delete(GROUP, POOL).result()
    refused(ResourceNotFoundError, "ResourceNotFound", lambda: pools.get(GROUP, POOL))
    pools.begin_delete(GROUP, POOL).result()
    listed(pools, [])


def environments(api):
    environment = api.managed_environments.get(GROUP, "env1")
    found = environment.properties if NESTED else environment
    same((environment.name, found.provisioning_state), ("env1", "Succeeded"), "environment")
    names = lambda found: [environment.name for environment in found]
    same(names(api.managed_environments.list_by_subscription()), ["env1"], "environments")
    same(names(api.managed_environments.list_by_resource_group(GROUP)), ["env1"], "environments")


def main():
    api = client(GIVEN["contributor"])
    pools = api.container_apps_session_pools
    listed(pools, [])
    made(pools)
    listed(pools, [POOL])
    environments(api)
    # What was answered can be sent back.
    again = pools.begin_create_or_update(GROUP, POOL, pools.get(GROUP, POOL)).result()
    same(properties(again).provisioning_state, "Succeeded", "state")
    updated(pools)
    failures(pools)
    deleted(pools)


main()
