"""What happens to a model: a push, an update, an inspection, a removal. Each takes the model as it is and returns it as it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common.errors import Reason, Refusal, invalid
from services.registry.core import rules
from services.registry.core.names import MOST_VERSION
from services.registry.core.records import Inspection, Isolation, Model, Slo, TrafficClass, Version


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model is to be served; None: as it is."""

    slo: Slo | None = None
    traffic_class: TrafficClass | None = None
    isolation: Isolation | None = None
    replicas: int | None = None
    unloaded: bool | None = None

    def applied(self, model: Model) -> Model:
        """The model with what is wished."""
        return replace(
            model,
            slo=model.slo if self.slo is None else self.slo,
            traffic_class=self.traffic_class or model.traffic_class,
            isolation=self.isolation or model.isolation,
            replicas=self.replicas or model.replicas,
            unloaded=model.unloaded if self.unloaded is None else self.unloaded,
        )


@dataclass(frozen=True, slots=True)
class Push:
    """A version to be made; number None: the next free one. config is serialised deterministically."""

    tenant: str
    name: str
    number: int | None
    digest: str
    config: bytes
    wish: Wish = Wish()
    artefact_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker found. signature is None: refused, and `message` says why. profile: (device kind, body)."""

    signature: bytes | None = None
    profile: tuple[str, bytes] | None = None
    message: str = ""


def model_missing(tenant: str, name: str) -> Refusal:
    """MODEL_NOT_FOUND."""
    return Refusal(Reason.MODEL_NOT_FOUND, f"key: tenant {tenant!r} has no model {name!r}", field="key")


def version_missing(model: Model, number: int) -> Refusal:
    """VERSION_NOT_FOUND, with what there is."""
    held = ", ".join(str(version.version) for version in model.versions) or "none"
    message = f"version: {model.tenant}/{model.name} has no version {number} (it has {held})"
    return Refusal(Reason.VERSION_NOT_FOUND, message, field="version")


def existing(model: Model | None, push: Push) -> Version | None:
    """The version that this push would make again; None where its number is free.

    Refuses with VERSION_EXISTS where the number is taken by other content: another digest or another configuration.
    """
    held = model.find(push.number) if model is not None and push.number is not None else None
    if held is None or (held.digest == push.digest and held.config == push.config):
        return held
    what = f"digest {held.digest}, not {push.digest}" if held.digest != push.digest else "another configuration"
    raise Refusal(
        Reason.VERSION_EXISTS,
        f"version: {push.tenant}/{push.name} has version {push.number} with {what}; versions are immutable, take another number",
        field="version",
        facts={"existing_digest": held.digest, "pushed_digest": push.digest, "version": held.version},
    )


def pushed(model: Model | None, push: Push, *, size_bytes: int, now_us: int) -> tuple[Model, int]:
    """The model with the new version, and the version's number. The number must be free: see `existing`."""
    model = model or Model(push.tenant, push.name)
    number = push.number or model.last_version + 1
    if number > MOST_VERSION:
        raise invalid("version", "no number is left; name a free one")
    version = Version(number, push.digest, size_bytes, push.config, now_us, artefact_signature=push.artefact_signature)
    versions = tuple(sorted((*model.versions, version), key=lambda held: held.version))
    model = replace(model, versions=versions, last_version=max(model.last_version, number))
    return push.wish.applied(model), number


def signed(model: Model, held: Version, artefact_signature: bytes) -> Model:
    """The model with another signature of one of its versions; where none is given, as it is."""
    if not artefact_signature:
        return model
    after = replace(held, artefact_signature=artefact_signature)
    return replace(model, versions=tuple(after if each is held else each for each in model.versions))


def updated(model: Model, wish: Wish, splits: Sequence[tuple[int, int]], expected_revision: int) -> Model:
    """The model after UpdateModel. REVISION_CONFLICT where it has moved on from `expected_revision` (0: not asked)."""
    if expected_revision and model.revision != expected_revision:
        raise Refusal(
            Reason.REVISION_CONFLICT,
            f"expected_revision: {model.tenant}/{model.name} is at revision {model.revision}, not {expected_revision}; read it again",
            field="expected_revision",
            facts={"revision": model.revision},
        )
    traffic = rules.traffic(splits, (version.version for version in model.versions)) if splits else model.traffic
    return replace(wish.applied(model), traffic=traffic)


def shared(model: Model, grantee: str, *, revoked: bool) -> Model:
    """The model shared with one more tenant, or with one fewer."""
    if grantee == model.tenant:
        raise invalid("with_tenant", "a model is its owner's already")
    kept = set(model.shared_with) - {grantee} if revoked else {*model.shared_with, grantee}
    if len(kept) > rules.MOST_GRANTS:
        raise invalid("with_tenant", f"a model may be shared with at most {rules.MOST_GRANTS} tenants")
    return replace(model, shared_with=tuple(sorted(kept)))


def without(model: Model, number: int) -> Model:
    """The model without one version. Refused while the version has a part of the traffic."""
    if model.find(number) is None:
        raise version_missing(model, number)
    ppm = dict(model.traffic).get(number, 0)
    if ppm:
        raise invalid("version", f"{number} gets {ppm} ppm of the traffic; change the split first", ppm=ppm)
    return replace(
        model,
        versions=tuple(version for version in model.versions if version.version != number),
        traffic=tuple(split for split in model.traffic if split[0] != number),
    )


def inspected(model: Model, number: int, outcome: Outcome) -> Model:
    """The model once a worker has inspected a version.

    A pass outranks a refusal whatever their order: what runs somewhere is not taken out of service by one worker that
    cannot run it, and telling the same again changes nothing.
    """
    version = model.find(number)
    if version is None:
        raise version_missing(model, number)
    after = _passed(version, outcome) if outcome.signature is not None else _refused(version, outcome.message)
    return replace(model, versions=tuple(after if held is version else held for held in model.versions))


def _passed(version: Version, outcome: Outcome) -> Version:
    profiles = dict(version.profiles)
    if outcome.profile is not None:
        kind, body = outcome.profile
        profiles[kind] = body
    return replace(
        version,
        inspection=Inspection.PASSED,
        inspection_message="",
        signature=outcome.signature,
        profiles=tuple(sorted(profiles.items())),
    )


def _refused(version: Version, message: str) -> Version:
    if version.inspection is Inspection.PASSED:
        return version
    return replace(version, inspection=Inspection.REFUSED, inspection_message=message)
