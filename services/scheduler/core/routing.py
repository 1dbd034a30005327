"""The routes that follow from the state."""

from __future__ import annotations

from services.scheduler.core.catalogue import Key, Model, Ref, Version
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.routes import ReplicaRoute, Route, VersionRoute, VersionState, shares
from services.scheduler.core.state import State

UNLOADED = "by request; `apportion model load {name}`, or RepositoryModelLoad, has it served again"
"""What callers of a model that is unloaded are told."""


def routes(state: State) -> dict[Key, Route]:
    """The route of every model of the catalogue. Versions that get no traffic and are not loaded are left out.

    A replica is named while it is READY and its executor counts: also through the grace after its stream ended, since
    the executor serves on without it, but not once the executor has said that it is about to stop.
    """
    held = state.fleet.by_ref()
    return {key: _route(state, model, held) for key, model in state.models.items()}


def _route(state: State, model: Model, held: dict[Ref, list[Replica]]) -> Route:
    # Of an unloaded model those are told that loading would bring back.
    wanted = state.chosen(model)
    numbers = {split.version for split in wanted}
    versions = []
    for version in sorted(model.versions, key=lambda each: each.number):
        replicas = held.get(model.ref(version), [])
        refusal = state.refusal(model, version)
        if refusal is not None:
            versions.append(VersionRoute(version.number, VersionState.REFUSED, refusal))
        elif version.number in numbers or replicas:
            versions.append(_version(state, model, version, replicas))
    ready = [each.version for each in versions if each.state is VersionState.READY]
    known = [version.number for version in model.versions]
    splits = shares(wanted, ready, known)
    return Route(model.key, model.slo, model.traffic_class, tuple(versions), splits, model.revision)


def _version(state: State, model: Model, version: Version, replicas: list[Replica]) -> VersionRoute:
    ref = model.ref(version)
    serving = [replica for replica in replicas if replica.phase is Phase.READY]
    signature = state.with_learnt(ref, version).signature
    if serving:
        return VersionRoute(
            version.number, VersionState.READY, "", signature, tuple(_replica(state, each) for each in serving)
        )
    if model.unloaded:
        return VersionRoute(version.number, VersionState.UNLOADED, UNLOADED.format(name=model.key.name), signature)
    lacking, failures = state.unplaced.get(ref), state.failures.get(ref)
    if not replicas and lacking is not None and not lacking.waits:
        return VersionRoute(version.number, VersionState.UNPLACED, lacking.message, signature)
    message = "" if failures is None else f"failed {failures.count} times, last: {failures.message}"
    return VersionRoute(version.number, VersionState.LOADING, message, signature)


def _replica(state: State, replica: Replica) -> ReplicaRoute:
    executor = state.fleet.executors[replica.executor_id]
    return ReplicaRoute(replica.replica_id, replica.executor_id, executor.hello.address)
