"""Every object strictly against its schema: Kubernetes' own for each version, ours for the custom resources that the chart uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deploy.lint.chart import KUBERNETES, Finding, Manifest, named

_LABELS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "labels": _LABELS, "annotations": _LABELS},
}


def _closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


_WORD = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
_RELABELLING = _closed(
    "targetLabel",
    sourceLabels={"type": "array", "items": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
    targetLabel=_WORD,
    replacement=_WORD,
)
_RULE = {
    "type": "object",
    "required": ["expr"],
    "additionalProperties": False,
    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
    "properties": {
        "record": _WORD,
        "alert": _WORD,
        "expr": _WORD,
        "for": _DURATION,
        "labels": _LABELS,
        "annotations": _LABELS,
    },
}

# cert-manager's documented fields, and what its admission asks beyond them.
_HOURS = {"type": "string", "pattern": "^[1-9][0-9]*h$"}
_USAGES = ["digital signature", "cert sign", "crl sign", "server auth", "client auth"]
_NAMES = {"type": "array", "minItems": 1, "uniqueItems": True}
_HOST = {"type": "string", "pattern": "^(\\*\\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", "maxLength": 253}
_CERTIFICATE = _closed(
    "secretName issuerRef",
    secretName=_WORD,
    issuerRef=_closed("name", name=_WORD, kind=_WORD, group=_WORD),
    isCA={"type": "boolean"},
    commonName={"type": "string", "minLength": 1, "maxLength": 64},
    dnsNames={**_NAMES, "items": _HOST},
    uris={**_NAMES, "items": {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*://[^ ]+$"}},
    usages={**_NAMES, "items": {"enum": _USAGES}},
    duration=_HOURS,
    renewBefore=_HOURS,
    privateKey=_closed(
        "algorithm",
        algorithm={"const": "ECDSA"},
        size={"enum": [256, 384, 521]},
        rotationPolicy={"enum": ["Never", "Always"]},
    ),
) | {"anyOf": [{"required": [name]} for name in ("commonName", "dnsNames", "uris")]}
_ISSUER = _closed("", selfSigned=_closed(""), ca=_closed("secretName", secretName=_WORD)) | {
    "minProperties": 1,
    "maxProperties": 1,
}

CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _closed(
        "selector endpoints",
        selector=_closed("matchLabels", matchLabels=_LABELS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                "port",
                port=_WORD,
                interval=_DURATION,
                authorization=_closed(
                    "credentials", type=_WORD, credentials=_closed("name key", name=_WORD, key=_WORD)
                ),
                relabelings={"type": "array", "items": _RELABELLING},
            ),
        },
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _closed(
        "groups",
        groups={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                "name rules", name=_WORD, interval=_DURATION, rules={"type": "array", "minItems": 1, "items": _RULE}
            ),
        },
    ),
    ("cert-manager.io/v1", "Certificate"): _CERTIFICATE,
    ("cert-manager.io/v1", "Issuer"): _ISSUER,
    ("keda.sh/v1alpha1", "ScaledObject"): _closed(
        "scaleTargetRef triggers",
        scaleTargetRef=_closed("name", apiVersion=_WORD, kind=_WORD, name=_WORD),
        minReplicaCount={"type": "integer", "minimum": 0},
        maxReplicaCount={"type": "integer", "minimum": 1},
        pollingInterval={"type": "integer", "minimum": 1},
        cooldownPeriod={"type": "integer", "minimum": 0},
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                "type metadata",
                type={"const": "prometheus"},
                metricType={"enum": ["Value", "AverageValue"]},
                metadata=_closed("serverAddress query threshold", serverAddress=_WORD, query=_WORD, threshold=_WORD),
            ),
        },
    ),
}
"""The `spec` of the custom resources that the chart writes: the fields that it uses, of the operators' documented ones."""


def validated(name: str, manifests: Iterable[Manifest]) -> Iterator[Finding]:
    """What is wrong with objects. name: of the set of values they were rendered from."""
    for manifest in manifests:
        where = f"chart, {name}: {named(manifest)}"
        custom = CUSTOM.get((manifest["apiVersion"], manifest["kind"]))
        yield from _kubernetes(where, manifest) if custom is None else _custom(where, manifest, custom)


def _kubernetes(where: str, manifest: Manifest) -> Iterator[Finding]:
    import kubernetes_validate

    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            yield Finding(where, f"Kubernetes {version} knows no {manifest['kind']} in {manifest['apiVersion']}")
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.path))
            yield Finding(where, f"Kubernetes {version}: {path}: {error.message}")


def _custom(where: str, manifest: Manifest, spec: dict[str, Any]) -> Iterator[Finding]:
    import jsonschema

    whole = _closed("apiVersion kind metadata spec", apiVersion=_WORD, kind=_WORD, metadata=_METADATA, spec=spec)
    for error in jsonschema.Draft202012Validator(whole).iter_errors(manifest):
        yield Finding(where, f"{'.'.join(map(str, error.path))}: {error.message}")
