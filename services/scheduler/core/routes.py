"""Routes: where each model can be reached; their revisions, and a bounded log of changes for those who watch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from services.scheduler.core.catalogue import MILLION, Key, Slo, Split, TrafficClass


class VersionState(Enum):
    """Where a version stands for its callers."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    UNPLACED = "unplaced"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """A replica that serves."""

    replica_id: int
    executor_id: str
    address: str


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """One version of a model. message names no other tenant: its readers are the model's callers."""

    version: int
    state: VersionState
    message: str = ""
    signature: bytes | None = None
    replicas: tuple[ReplicaRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a model. revision: the model's in the catalogue by which this was decided; 0: not told."""

    key: Key
    slo: Slo
    traffic_class: TrafficClass
    versions: tuple[VersionRoute, ...]
    splits: tuple[Split, ...]
    revision: int = 0


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """What one decision changed: the routes of `upserts` are new or different, those of `removals` are gone."""

    revision: int
    upserts: tuple[Route, ...] = ()
    removals: tuple[Key, ...] = ()


class RouteLog:
    """The routes as they are, and the last changes that led here: at most `length`, and, but for the very last, no more than
    take about `most_bytes` and none of longer than `kept_s` ago. Revisions count up from 1."""

    def __init__(self, length: int = 1024, most_bytes: int = 4 << 20, kept_s: float = 120.0) -> None:
        self.revision = 1
        self._most, self._most_bytes, self._bytes, self._kept_s = length, most_bytes, 0, kept_s
        self._routes: dict[Key, Route] = {}
        self._changes: deque[RoutesChanged] = deque()
        self._made_at: deque[float] = deque()

    def publish(self, routes: Mapping[Key, Route], now: float) -> RoutesChanged | None:
        """Takes the routes in place of those before; the difference as one change, None where there is none."""
        upserts = tuple(route for key, route in sorted(routes.items()) if self._routes.get(key) != route)
        removals = tuple(sorted(self._routes.keys() - routes.keys()))
        if not upserts and not removals:
            return None
        self.revision += 1
        self._routes = dict(routes)
        change = RoutesChanged(self.revision, upserts, removals)
        self._changes.append(change)
        self._made_at.append(now)
        self._bytes += size_bytes(change)
        self.forget_old(now)
        return change

    def forget_old(self, now: float) -> None:
        """Drops the oldest changes until those that are left are few, small and young enough."""
        while len(self._changes) > 1 and (
            len(self._changes) > self._most or self._bytes > self._most_bytes or self._made_at[0] < now - self._kept_s
        ):
            self._made_at.popleft()
            self._bytes -= size_bytes(self._changes.popleft())

    def snapshot(self) -> tuple[int, tuple[Route, ...]]:
        """The revision, and every route at it, by key."""
        return self.revision, tuple(route for _, route in sorted(self._routes.items()))

    def after(self, revision: int) -> tuple[RoutesChanged, ...] | None:
        """The changes after `revision`, oldest first; None where they are not all held, or it lies ahead."""
        missing = self.revision - revision
        if missing < 0 or missing > len(self._changes):
            return None
        return tuple(self._changes)[len(self._changes) - missing :] if missing else ()


_OBJECT_BYTES = 160
"""About what one of the small objects takes that routes are made of, with what refers to it."""


def size_bytes(change: RoutesChanged) -> int:
    """About what a change takes in memory; what it shares with another counts for both."""
    versions = [version for route in change.upserts for version in route.versions]
    objects = 1 + len(change.removals) + sum(2 + len(route.splits) for route in change.upserts)
    objects += sum(1 + len(version.replicas) for version in versions)
    texts = sum(len(version.message) + len(version.signature or b"") for version in versions)
    return _OBJECT_BYTES * objects + texts


def shares(wanted: Sequence[Split], ready: Sequence[int], known: Sequence[int]) -> tuple[Split, ...]:
    """Who gets the requests that name no version; parts add up to a million, empty only where no version is known.

    wanted: the parts asked for. ready: versions that serve. known: all versions with a route.
    A version that is not ready gets nothing while another one is: first the wanted ones share in proportion, then the
    highest that serves stands in, so that a version on its way never takes its model down.
    """
    wanted = [split for split in wanted if split.ppm > 0]
    serving = [split for split in wanted if split.version in ready]
    if serving:
        return scaled(serving)
    if ready:
        return (Split(max(ready), MILLION),)
    if wanted:
        return scaled(wanted)
    return (Split(max(known), MILLION),) if known else ()


def scaled(splits: Sequence[Split]) -> tuple[Split, ...]:
    """The same proportions, adding up to exactly a million; what rounding leaves goes to the largest part."""
    total = sum(split.ppm for split in splits)
    parts = {split.version: split.ppm * MILLION // total for split in splits}
    largest = max(parts, key=lambda version: (parts[version], version))
    parts[largest] += MILLION - sum(parts.values())
    return tuple(Split(version, ppm) for version, ppm in sorted(parts.items()) if ppm > 0)
