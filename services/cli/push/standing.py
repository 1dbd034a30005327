"""Where a pushed version stands, told from what the registry and the scheduler say. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2


@dataclass(frozen=True)
class Waiting:
    """Not yet: `stage` says what is being done, for people."""

    stage: str


@dataclass(frozen=True)
class Serving:
    """At least one replica serves."""

    signature: Any
    profile: Any | None
    executor_id: str
    lane: int


@dataclass(frozen=True)
class Refused:
    """A worker refused the artefact; that is final."""

    message: str


@dataclass(frozen=True)
class Unplaced:
    """There is no room now; the scheduler goes on trying."""

    message: str


Standing = Waiting | Serving | Refused | Unplaced

STAGES: dict[int, str] = {
    scheduler_pb2.REPLICA_STATE_LOADING: "loading",
    scheduler_pb2.REPLICA_STATE_DRAINING: "draining",
    scheduler_pb2.REPLICA_STATE_FAILED: "failed, trying again",
}


def standing(model: Any, version: int, fleet: Any) -> Standing:
    """Where `version` of `model` stands. model: registry's Model; fleet: scheduler's GetFleetResponse."""
    kept = next((one for one in model.versions if one.version == version), None)
    if kept is not None and kept.inspection == registry_pb2.INSPECTION_REFUSED:
        return Refused(kept.inspection_message)
    replicas = list(_replicas(model.key, version, fleet))
    for executor, replica in replicas:
        if replica.state == scheduler_pb2.REPLICA_STATE_READY:
            return Serving(*_measured(kept, replica), executor.executor_id, replica.lane)
    for _, replica in replicas:
        if replica.state == scheduler_pb2.REPLICA_STATE_REFUSED:
            return Refused(replica.message)
    for _, replica in replicas:
        stage = replica.stage or STAGES.get(replica.state, "waiting")
        return Waiting(f"{stage}: {replica.message}" if replica.message else stage)
    for unplaced in fleet.unplaced:
        if same(unplaced.key, model.key) and unplaced.version == version:
            return Unplaced(unplaced.message)
    return Waiting("waiting for a place")


def wanted(model: Any) -> list[int]:
    """Versions that are to be loaded: those that the traffic names, else the highest, of those that are not refused."""
    usable = [one.version for one in model.versions if one.inspection != registry_pb2.INSPECTION_REFUSED]
    parts = {split.version: split.ppm for split in model.traffic if split.version in usable}
    return sorted(parts) if any(parts.values()) else usable and [max(usable)]


def unloaded_note(key: Any) -> str:
    """What to do about a model that is unloaded by request."""
    whose = "" if key.tenant == "default" else f" --tenant {key.tenant}"
    return f"{key.tenant}/{key.name} is unloaded by request; `apportion model load {key.name}{whose}` has it served"


def same(one: Any, other: Any) -> bool:
    """Whether two keys name the same model."""
    return (one.tenant, one.name) == (other.tenant, other.name)


def at_one_row(profile: Any) -> Any | None:
    """The profile's point at the fewest rows; None where nothing was measured."""
    return min(profile.points, key=lambda point: point.rows, default=None) if profile is not None else None


def _replicas(key: Any, version: int, fleet: Any) -> Iterable[tuple[Any, Any]]:
    for executor in fleet.executors:
        if executor.attached:
            for replica in executor.report.replicas:
                if same(replica.key, key) and replica.version == version:
                    yield executor, replica


def _measured(kept: Any | None, replica: Any) -> tuple[Any, Any | None]:
    profile = replica.profile if replica.profile.points else None
    if profile is None and kept is not None and kept.profiles:
        profile = kept.profiles[0]
    signature = replica.signature if replica.signature.outputs else (kept.signature if kept is not None else None)
    return signature, profile
