"""Records to messages, and requests to what the rules and operations take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.common import signing
from services.common.errors import Reason, Refusal, invalid
from services.registry.core import names, quotas, rules
from services.registry.core.records import Isolation, Key, Model, NamedSlo, Quota, Slo, Tenant, TrafficClass, Version
from services.registry.core.versions import Outcome, Push, Wish

MOST_MESSAGE_CHARACTERS = 4096
MOST_KIND_CHARACTERS = 255


def tenant_message(record: Tenant, *, hashes: bool = False) -> registry_pb2.Tenant:
    """A tenant. hashes: with the hashes of its keys, for the mesh alone."""
    return registry_pb2.Tenant(
        name=record.name,
        reservation=common_pb2.Share(millidevices=record.reservation_millidevices),
        weight=record.weight,
        keys=[key_message(key, hashes=hashes) for key in record.keys],
        created_at=timestamp(record.created_at_us),
        revision=record.revision,
        quota=quota_message(record.quota) if record.quota.limits else None,
        signers=[registry_pb2.Signer(id=signer, pem=pem) for signer, pem in record.signers],
    )


def signers_of(told: Sequence[registry_pb2.Signer]) -> tuple[tuple[str, str], ...]:
    """Who signs, as (id, PEM) by id, checked."""
    if len(told) > signing.MOST_SIGNERS:
        raise invalid("signers", f"a tenant has at most {signing.MOST_SIGNERS}; got {len(told)}")
    found: dict[str, str] = {}
    for index, each in enumerate(told):
        try:
            signer = signing.signer_of(each.pem)
        except ValueError as error:
            raise invalid(f"signers[{index}].pem", str(error)) from None
        found[signer.id] = signer.pem
    return tuple(sorted(found.items()))


def quota_message(record: Quota) -> registry_pb2.Quota:
    """A quota."""
    return registry_pb2.Quota(
        millirequests_per_s=record.millirequests_per_s,
        burst=record.burst,
        concurrent_requests=record.concurrent_requests,
        device_ms=record.device_ms,
        device_interval_s=record.device_interval_s,
        memory_bytes=record.memory_bytes,
        stored_bytes=record.stored_bytes,
    )


def quota_of(message: registry_pb2.Quota) -> Quota:
    """A quota, checked, with its defaults filled in."""
    return quotas.quota(
        Quota(
            message.millirequests_per_s if message.HasField("millirequests_per_s") else None,
            message.burst,
            message.concurrent_requests if message.HasField("concurrent_requests") else None,
            message.device_ms if message.HasField("device_ms") else None,
            message.device_interval_s,
            message.memory_bytes if message.HasField("memory_bytes") else None,
            message.stored_bytes if message.HasField("stored_bytes") else None,
        )
    )


def key_message(record: Key, *, hashes: bool = False) -> registry_pb2.ApiKey:
    """A key. hashes: with its hash, for the mesh alone."""
    sha256 = record.sha256 if hashes else b""
    return registry_pb2.ApiKey(
        id=record.id,
        sha256=sha256,
        created_at=timestamp(record.created_at_us),
        role=cast(registry_pb2.KeyRole, int(record.role)),
        expires_at=None if record.expires_at_us is None else timestamp(record.expires_at_us),
    )


def model_message(record: Model, *, grants: bool = True) -> registry_pb2.Model:
    """A model with its versions. grants: with whom it is shared, which is its owner's to know."""
    return registry_pb2.Model(
        key=common_pb2.ModelKey(tenant=record.tenant, name=record.name),
        slo=slo_message(record.slo),
        traffic_class=cast(common_pb2.TrafficClass, int(record.traffic_class)),
        isolation=cast(registry_pb2.Isolation, int(record.isolation)),
        replicas=record.replicas,
        versions=[version_message(version) for version in record.versions],
        traffic=[registry_pb2.TrafficSplit(version=number, ppm=ppm) for number, ppm in record.traffic],
        revision=record.revision,
        unloaded=record.unloaded,
        slos=[registry_pb2.ModelSlo(name=each.name, slo=slo_message(each.slo)) for each in record.slos],
        shared_with=record.shared_with if grants else (),
    )


def version_message(record: Version) -> registry_pb2.ModelVersion:
    """A version with what inspection found."""
    return registry_pb2.ModelVersion(
        version=record.version,
        digest=record.digest,
        size_bytes=record.size_bytes,
        config=registry_pb2.VersionConfig.FromString(record.config),
        created_at=timestamp(record.created_at_us),
        inspection=cast(registry_pb2.Inspection, int(record.inspection)),
        inspection_message=record.inspection_message,
        signature=None if record.signature is None else common_pb2.Signature.FromString(record.signature),
        profiles=[common_pb2.Profile.FromString(body) for _, body in record.profiles],
        artefact_signature=record.artefact_signature,
    )


def slo_message(record: Slo) -> common_pb2.Slo:
    """An objective with its defaults filled in."""
    return common_pb2.Slo(objective_us=record.objective_us, ratio_ppm=record.ratio_ppm, window_s=record.window_s)


def timestamp(microseconds: int) -> Timestamp:
    """Microseconds since 1970 UTC."""
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made


def key_of(key: common_pb2.ModelKey) -> tuple[str, str]:
    """(tenant, name), both checked."""
    return names.name("key.tenant", key.tenant), names.name("key.name", key.name)


def push_of(request: registry_pb2.CreateVersionRequest) -> Push:
    """A CreateVersion, checked as far as the request alone allows."""
    tenant, name = key_of(request.key)
    number = names.version("version", request.version) if request.HasField("version") else None
    digest, bundle = names.digest("digest", request.digest), request.artefact_signature
    if len(bundle) > signing.MOST_BUNDLE_BYTES:
        raise invalid("artefact_signature", f"has {len(bundle)} bytes, more than {signing.MOST_BUNDLE_BYTES}")
    return Push(tenant, name, number, digest, config_of(request.config), wish_of(request), bundle)


def config_of(config: registry_pb2.VersionConfig) -> bytes:
    """A version's configuration, checked; equal ones give equal bytes."""
    if config.format not in registry_pb2.ArtefactFormat.values():
        raise invalid("config.format", f"{config.format} is none of {', '.join(registry_pb2.ArtefactFormat.keys())}")
    rules.config(
        config.max_batch_size if config.HasField("max_batch_size") else None,
        config.batch_axes,
        [(tensor.name, tensor.shape, len(tensor.data)) for tensor in config.warmup],
    )
    queue = config.queue
    rules.queue(queue.max_waiting, queue.deadline_us, queue.priority_levels, queue.default_priority)
    for side in (config.declared.inputs, config.declared.outputs):
        rules.declared([(tensor.name, tensor.datatype, tensor.labels) for tensor in side])
    return config.SerializeToString(deterministic=True)


def wish_of(request: registry_pb2.CreateVersionRequest | registry_pb2.UpdateModelRequest) -> Wish:
    """How the model is to be served, checked."""
    slo = request.slo
    return Wish(
        rules.slo(slo.objective_us if slo.HasField("objective_us") else None, slo.ratio_ppm, slo.window_s)
        if request.HasField("slo")
        else None,
        rules.choice("traffic_class", TrafficClass, request.traffic_class),
        rules.choice("isolation", Isolation, request.isolation),
        rules.replicas(request.replicas) if request.HasField("replicas") else None,
        request.unloaded
        if isinstance(request, registry_pb2.UpdateModelRequest) and request.HasField("unloaded")
        else None,
    )


def named_slo_of(told: registry_pb2.ModelSlo) -> NamedSlo:
    """An objective to judge by, checked."""
    slo = told.slo
    objective_us = slo.objective_us if slo.HasField("objective_us") else None
    return NamedSlo(names.name("slo.name", told.name), rules.slo(objective_us, slo.ratio_ppm, slo.window_s))


def splits_of(splits: Sequence[registry_pb2.TrafficSplit]) -> list[tuple[int, int]]:
    """(version, ppm) of each."""
    return [(split.version, split.ppm) for split in splits]


def outcome_of(request: registry_pb2.RecordInspectionRequest) -> Outcome:
    """What a worker found, checked. Text is cut to what the table holds; NUL is no text to PostgreSQL."""
    if request.WhichOneof("outcome") == "refused":
        return Outcome(message=request.refused.message.replace("\0", "\ufffd")[:MOST_MESSAGE_CHARACTERS])
    if request.WhichOneof("outcome") != "passed":
        raise invalid("outcome", "must be passed or refused")
    passed = request.passed
    profile = profile_of(passed.profile) if passed.HasField("profile") else None
    return Outcome(passed.signature.SerializeToString(deterministic=True), profile)


def profile_of(profile: common_pb2.Profile) -> tuple[str, bytes]:
    """(device kind, body) of a profile."""
    kind = profile.device_kind
    if not 1 <= len(kind) <= MOST_KIND_CHARACTERS or "\0" in kind:
        raise invalid("passed.profile.device_kind", f"must be 1 to {MOST_KIND_CHARACTERS} characters")
    return kind, profile.SerializeToString(deterministic=True)


def joined(outcome: Outcome, version: Version | None) -> Outcome:
    """The outcome with what the version's profile from the same kind of device says of lanes of other sizes and other shapes.

    What is new counts at the same place, and where the model is cut differently by now it counts alone.
    """
    before = dict(version.profiles).get(outcome.profile[0]) if version is not None and outcome.profile else None
    if outcome.profile is None or before is None:
        return outcome
    held, told = common_pb2.Profile.FromString(before), common_pb2.Profile.FromString(outcome.profile[1])
    if [each.name for each in held.segments] != [each.name for each in told.segments]:
        return outcome
    points = {(each.compute_units, each.shape_bucket, each.rows): each for each in (*held.points, *told.points)}
    whole = common_pb2.Profile(
        digest=told.digest,
        device_kind=told.device_kind,
        weight_bytes=told.weight_bytes,
        points=[points[place] for place in sorted(points)],
        segments=told.segments,
    )
    return replace(outcome, profile=(outcome.profile[0], whole.SerializeToString(deterministic=True)))


def same_digest(profile: common_pb2.Profile, digest: str) -> None:
    """Refuses a profile that was measured on another artefact."""
    if profile.digest not in ("", digest):
        raise invalid("passed.profile.digest", f"{profile.digest[:80]!r} is not the version's digest {digest}")


def header_of(request: registry_pb2.UploadArtefactRequest) -> registry_pb2.ArtefactHeader:
    """The header of an upload, which must be its first message."""
    if request.WhichOneof("part") != "header":
        raise Refusal(Reason.FIELD_INVALID, "header: must be the upload's first message", field="header")
    return request.header
