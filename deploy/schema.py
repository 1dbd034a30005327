"""`python -m deploy.schema`: writes the chart's values.schema.json, the settings of the services included; `--check` compares.

What the services can be told is read from their settings classes, so that the chart knows every setting, and no other.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from services.common.settings import ServiceSettings

TARGET = Path(__file__).parent / "helm" / "apportion" / "values.schema.json"
COMPONENTS = ("frontend", "registry", "scheduler", "executor")
# What the templates set by values of their own: twice would be once too often.
BY_THE_CHART: dict[str, frozenset[str]] = {
    "": frozenset(
        [
            "listen",
            "metrics_listen",
            "metrics_token",
            "mesh_token",
            "otlp_endpoint",
            "log_format",
            "log_level",
            "ready_file",
            "drain_s",
            "drain_notice_s",
            "tls_certificate",
            "tls_key",
            "tls_ca",
            "health_listen",
        ]
    ),
    "frontend": frozenset(
        ["scheduler", "registry", "trace_sample", "shared_memory", "shared_memory_folder", "anonymous"]
    ),
    "registry": frozenset(["database_url", "data", "artefacts_url"]),
    "scheduler": frozenset({"registry"}),
    "executor": frozenset(["advertise", "executor_id", "scheduler", "registry", "cache", "books", "cores", "layouts"]),
}

STRING: dict[str, Any] = {"type": "string"}
WORD: dict[str, Any] = {"type": "string", "minLength": 1}
FLAG: dict[str, Any] = {"type": "boolean"}
LIST: dict[str, Any] = {"type": "array"}
OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
WORDS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
ANYTHING: dict[str, Any] = {"type": "object"}
PORT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 65535}
SECONDS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 3600}
QUANTITY: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
HOURS: dict[str, Any] = {"type": "string", "pattern": "^[1-9][0-9]*h$"}
ADDRESS: dict[str, Any] = {"type": "string", "pattern": "^$|^[^\\s/]+:[0-9]{1,5}$"}


def number(kind: str, least: float, most: float | None = None) -> dict[str, Any]:
    """A number of a kind within limits."""
    return {"type": kind, "minimum": least} | ({} if most is None else {"maximum": most})


def one_of(*choices: str) -> dict[str, Any]:
    """One of these words."""
    return {"type": "string", "enum": list(choices)}


def closed(**properties: dict[str, Any]) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def settings_class(service: str) -> type[ServiceSettings]:
    """The settings of a service."""
    module = import_module(f"services.{service}.settings")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == module.__name__
    )
    return found


def settings(service: str) -> dict[str, Any]:
    """Every setting of a service that the chart has no value of its own for."""
    owned = BY_THE_CHART[""] | BY_THE_CHART[service]
    known = settings_class(service).model_json_schema()["properties"]
    assert owned - {"ready_file"} <= known.keys() | BY_THE_CHART[""], f"{service}: {sorted(owned - known.keys())}"
    return closed(**{name: _plain(schema) for name, schema in sorted(known.items()) if name not in owned})


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without what only repeats it."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "default", "format")}
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "anyOf" in kept:
        kept["anyOf"] = [_plain(part) for part in kept["anyOf"] if part.get("type") != "null"]
    return kept


def component(service: str, /, **more: dict[str, Any]) -> dict[str, Any]:
    """The values of one service."""
    return closed(
        resources=closed(requests=ANYTHING, limits=ANYTHING, claims=OBJECTS),
        settings=settings(service),
        extraEnv=OBJECTS,
        extraVolumes=OBJECTS,
        extraVolumeMounts=OBJECTS,
        podAnnotations=WORDS,
        podLabels=WORDS,
        nodeSelector=WORDS,
        tolerations=OBJECTS,
        affinity=ANYTHING,
        priorityClassName=STRING,
        drainSeconds=SECONDS,
        **({} if service == "executor" else {"drainNoticeSeconds": SECONDS}),
        **more,
    )


REPLICAS = number("integer", 1, 1000)
BUDGET = closed(
    enabled=FLAG,
    maxUnavailable={"anyOf": [number("integer", 1), {"type": "string", "pattern": "^[1-9][0-9]?%$"}]},
)
IMAGE = closed(repository=WORD, tag=STRING, digest={"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"})
PEERS = closed(to=OBJECTS, port=PORT)


def gpu() -> dict[str, Any]:
    """Where an executor's devices come from."""
    return closed(
        allocation=one_of("none", "devicePlugin", "mig", "timeSlicing", "mps", "dra"),
        resourceName={"type": "string", "pattern": "^$|^[a-z0-9.-]+/[a-z0-9.-]+$"},
        count=number("integer", 1, 16),
        runtimeClassName=STRING,
        mps=closed(daemon=one_of("plugin", "host"), pipeDirectory={"type": "string", "pattern": "^/"}),
        dra=closed(deviceClassName=WORD, selectors={"type": "array", "items": WORD}, existingTemplate=STRING),
    ) | {
        # Each size of a MIG instance is a resource of its own: there is none to assume.
        "if": {"properties": {"allocation": {"const": "mig"}}, "required": ["allocation"]},
        "then": {"properties": {"resourceName": {"type": "string", "pattern": "^[a-z0-9.-]+/mig-"}}},
    }


def executor() -> dict[str, Any]:
    """The executor's values."""
    scaling = closed(
        kind=one_of("none", "keda", "hpa"),
        minReplicas=REPLICAS,
        maxReplicas=REPLICAS,
        queueDelaySeconds={"type": "number", "exclusiveMinimum": 0, "maximum": 60},
        prometheusAddress={"type": "string", "pattern": "^https?://"},
        externalMetric=WORD,
    )
    return component(
        "executor",
        kind=one_of("StatefulSet", "DaemonSet"),
        replicas=REPLICAS,
        cores=WORD,
        layouts=STRING,
        gpu=gpu(),
        storage=closed(persistent=FLAG, storageClassName=STRING, size=QUANTITY, hostPath=STRING),
        minReadySeconds=SECONDS,
        podDisruptionBudget=BUDGET,
        autoscaling=scaling,
    )


def frontend() -> dict[str, Any]:
    """The frontend's values."""
    return component(
        "frontend",
        replicas=REPLICAS,
        traceSample=number("number", 0, 1),
        service=closed(type=one_of("ClusterIP", "NodePort", "LoadBalancer"), port=PORT, annotations=WORDS),
        headlessService=FLAG,
        podDisruptionBudget=BUDGET,
        autoscaling=closed(
            kind=one_of("none", "hpa"),
            minReplicas=REPLICAS,
            maxReplicas=REPLICAS,
            targetCpuPercent=number("integer", 1, 100),
        ),
    )


def tls() -> dict[str, Any]:
    """Where certificates come from. Every service needs one where they are given."""
    by_cert_manager = closed(
        issuerRef=closed(name=STRING, kind=WORD, group=WORD),
        duration=HOURS,
        renewBefore=HOURS,
        hosts={"type": "array", "items": {"type": "string", "pattern": "^(\\*\\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}},
        operator={"type": "string", "pattern": "^[^/]*$"},
    )
    given = closed(**dict.fromkeys(COMPONENTS, STRING))
    return closed(
        mode=one_of("none", "existingSecrets", "certManager"), existingSecrets=given, certManager=by_cert_manager
    ) | {
        "if": {"properties": {"mode": {"const": "existingSecrets"}}, "required": ["mode"]},
        "then": {"properties": {"existingSecrets": {"properties": dict.fromkeys(COMPONENTS, WORD)}}},
    }


def mesh() -> dict[str, dict[str, Any]]:
    """What all services share."""
    return {
        "nameOverride": STRING,
        "fullnameOverride": STRING,
        "global": ANYTHING,
        "imageRegistry": STRING,
        "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
        "imagePullSecrets": OBJECTS,
        "images": closed(services=IMAGE, executor=IMAGE),
        "meshToken": closed(existingSecret=STRING, key=WORD),
        "log": closed(level=one_of("debug", "info", "warning", "error"), format=one_of("json", "text")),
        "telemetry": closed(otlpEndpoint=ADDRESS, tls=one_of("none", "public", "mesh")),
        "tls": tls(),
        "metrics": closed(
            token=closed(existingSecret=STRING, key=WORD),
            serviceMonitor=closed(enabled=FLAG, interval=WORD, labels=WORDS),
            prometheusRule=closed(enabled=FLAG, labels=WORDS),
            dashboards=closed(enabled=FLAG, labels=WORDS),
        ),
        "serviceAccount": closed(create=FLAG, name=STRING, annotations=WORDS),
        "podSecurity": closed(
            **{name: number("integer", 1) for name in ("runAsUser", "runAsGroup", "fsGroup")},
        ),
        "topologySpread": closed(
            enabled=FLAG,
            topologyKeys={"type": "array", "items": WORD, "minItems": 1},
            maxSkew=number("integer", 1),
            whenUnsatisfiable=one_of("ScheduleAnyway", "DoNotSchedule"),
        ),
    }


def outside() -> dict[str, dict[str, Any]]:
    """What the chart refers to, and who may be talked to."""
    migration = closed(
        enabled=FLAG, activeDeadlineSeconds=number("integer", 10), resources=closed(requests=ANYTHING, limits=ANYTHING)
    )
    return {
        "database": closed(existingSecret=WORD, key=WORD, migration=migration),
        "artefacts": closed(
            url={"type": "string", "pattern": "^[a-z0-9+]+://"},
            existingClaim=STRING,
            credentials=closed(existingSecret=STRING, accessKeyIdKey=WORD, secretAccessKeyKey=WORD),
            endpointUrl={"type": "string", "pattern": "^$|^https?://"},
            region=STRING,
        ),
        "networkPolicy": closed(
            enabled=FLAG,
            callers=OBJECTS,
            operators=OBJECTS,
            scrapers=OBJECTS,
            database=PEERS,
            storage=PEERS,
            collector=PEERS,
            dns=PEERS,
        ),
    }


def schema() -> dict[str, Any]:
    """The whole of it."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart apportion"}
    services = {
        "frontend": frontend(),
        "registry": component("registry", replicas=REPLICAS, podDisruptionBudget=BUDGET),
        "scheduler": component("scheduler"),
        "executor": executor(),
    }
    return head | closed(**mesh(), **outside(), **services)


def text() -> str:
    """The file as it should be."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes the file, or compares it; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text())
        return 0
    if TARGET.exists() and TARGET.read_text() == text():
        return 0
    print(f"{TARGET.relative_to(Path.cwd())} is stale: run `python -m deploy.schema`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
