"""Leads most of the calls that Schemathesis makes from the document to something that is there.

What is generated knows the shapes of names and of pools, but no name that exists and no image. So most calls get the names
of what the test has made before, and most pools all that a pool needs; the rest, and every value that the document forbids,
stay as they were generated. The choice depends on the call alone.
"""

import copy
import json
import os
import zlib

import requests
import schemathesis

GIVEN = json.loads(os.environ["CABANA_DOCUMENT_TEST"])
# One in so many calls goes to names that were made up.
MADE_UP = 8
PROPERTIES = "properties"
SCALE = "scaleConfiguration"
TEMPLATE = "customContainerTemplate"


def digest(*what):
    return zlib.crc32(repr(what).encode())


def pick(names, *what):
    return names[digest(names, *what) % len(names)]


def pool_of(operation):
    """Those that are deleted are the ones that were made, so that the others stay."""
    if operation in ("createOrUpdateSessionPool", "deleteSessionPool"):
        return GIVEN["passing"]
    return [GIVEN["changed"]] if operation == "updateSessionPool" else [GIVEN["kept"]]


def spare(operation, case):
    """Generated calls also take names from earlier answers: what others need is not for those that change pools."""
    changes = operation.endswith("SessionPool") and operation != "getSessionPool"
    name = (case.path_parameters or {}).get("sessionPoolName")
    if changes and str(name).lower() in (GIVEN["kept"], GIVEN["changed"]):
        case.path_parameters["sessionPoolName"] = pick(pool_of(operation), name)


def container():
    return {"name": "main", "image": GIVEN["image"], "command": [GIVEN["program"]]}


def whole():
    return {
        "location": "local",
        PROPERTIES: {
            SCALE: {"maxConcurrentSessions": 1},
            TEMPLATE: {"containers": [container()], "ingress": {"targetPort": 8080}},
        },
    }


def bounded(body):
    """What a test may ask of its machine: no image but ours, and few sessions."""
    properties = body[PROPERTIES]
    scale = properties.get(SCALE)
    if isinstance(scale, dict):
        for name in ("maxConcurrentSessions", "readySessionInstances"):
            if isinstance(scale.get(name), int) and not isinstance(scale[name], bool):
                scale[name] = min(scale[name], 1)
    template = properties.get(TEMPLATE)
    containers = template.get("containers") if isinstance(template, dict) else None
    for given in containers if isinstance(containers, list) else []:
        if isinstance(given, dict) and isinstance(given.get("image"), str):
            given.update(container())
    return body


def completed(body, all_of_it):
    """One part of what was generated, in a pool that is well otherwise."""
    parts = sorted(name for name in body[PROPERTIES] if name != TEMPLATE)
    pool = whole() if all_of_it else {PROPERTIES: {}}
    if parts:
        part = pick(parts, body)
        pool[PROPERTIES][part] = body[PROPERTIES][part]
    return pool


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation.definition.raw["operationId"]
    seen = digest(operation, case.path_parameters, case.query, case.body)
    if seen % MADE_UP:
        known = {
            "subscriptionId": [GIVEN["subscription"]],
            "resourceGroupName": [GIVEN["group"]],
            "sessionPoolName": pool_of(operation),
            "operationId": GIVEN["operations"],
            "path": GIVEN["paths"],
        }
        for name in case.path_parameters or {}:
            if name in known:
                case.path_parameters[name] = pick(known[name], seen, name)
        identifier = (case.query or {}).get("identifier")
        if isinstance(identifier, str) and 4 <= len(identifier) <= 128:
            identifiers = GIVEN["ended" if operation == "stopSession" else "identifiers"]
            case.query["identifier"] = pick(identifiers, seen)
            if operation == "stopSession":
                begin(case.query["identifier"])
    spare(operation, case)
    if isinstance(case.body, dict) and isinstance(case.body.get(PROPERTIES), dict):
        body = copy.deepcopy(case.body)
        if seen % 2:
            body = completed(body, operation == "createOrUpdateSessionPool")
        case.body = bounded(body)


def begin(identifier):
    """There must be a session, for there to be one that is ended."""
    answer = requests.get(
        GIVEN["endpoint"],
        params={"identifier": identifier},
        headers={"Authorization": "Bearer " + GIVEN["token"]},
        verify=GIVEN["ca"],
        timeout=60,
    )
    answer.raise_for_status()


@schemathesis.hook
def after_call(context, case, response):
    operation = case.operation.definition.raw["operationId"]
    # Methods that the document does not name are tried as well, and are nothing to succeed with.
    if case.method.upper() != case.operation.method.upper():
        return
    with open(GIVEN["calls"], "a", encoding="utf-8") as calls:
        calls.write(f"{operation} {response.status_code}\n")


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """What a container answers is its own affair, with whatever status; what we answer in its place says so."""
    forwarded = case.operation.definition.raw["operationId"].startswith("forward")
    return not forwarded or "x-ms-error-code" in response.headers
