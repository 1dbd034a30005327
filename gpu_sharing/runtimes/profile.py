"""Warm-up and profile of a model on a lane: how long a batch of so many rows takes at each shape, and each of its segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from gpu_sharing.measurements import Profile, ProfilePoint, SegmentCost
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Tensors
from gpu_sharing.runtimes.stopwatch import Clock, Stopwatch
from gpu_sharing.runtimes.warmup import bounds, check_warmup, finish, made_up, requests
from gpu_sharing.tensors import Signature
from gpu_sharing.units import MS, Bytes, Nanoseconds

BUDGET_NS: Nanoseconds = 1_500 * MS
"""For all points together: a load must not hold up its worker for long; the estimates go on learning from real runs."""

POINT_BUDGET_NS: Nanoseconds = 250 * MS
LONG_BATCH_NS: Nanoseconds = 50 * MS
"""A batch that takes longer blocks its lane; larger ones are not worth knowing."""

LEAST_RUNS = 3
MOST_RUNS = 100


@dataclass
class _Budget:
    clock: Clock
    ends: Nanoseconds
    point_ns: Nanoseconds

    def left(self) -> bool:
        return self.clock() < self.ends


class _Timed(NamedTuple):
    """One run: each segment's time, and whether the figures can be trusted."""

    segments_ns: tuple[Nanoseconds, ...]
    is_calm: bool

    @property
    def took(self) -> Nanoseconds:
        return sum(self.segments_ns)


def shape_bucket(signature: Signature, shapes: Mapping[str, Sequence[int]]) -> str:
    """The input shapes without their batch axes, in the signature's order, as text: "16x384,scalar"."""
    texts = []
    for spec in signature.inputs:
        if spec.name in shapes:
            kept = [str(extent) for axis, extent in enumerate(shapes[spec.name]) if axis != spec.batch_axis]
            texts.append("x".join(kept) or "scalar")
    return ",".join(texts)


def measure(
    model: LoadedModel,
    config: LoadConfig,
    *,
    digest: str,
    device_kind: str,
    stopwatch: Stopwatch,
    on_stage: Callable[[str], None],
) -> tuple[Profile, Bytes]:
    """Warms the model up and measures it at 1, 2, 4 … rows of each warm-up request.

    Returns the profile and an estimate of the largest activations. A model that rejects the made-up warm-up input gets a
    profile without points, unless the operator gave `config.warmup`: then ArtefactRefused says why. on_stage: told "warming
    up" and "profiling".
    """
    check_warmup(model.signature, config.warmup)
    on_stage("warming up")
    empty = Profile(digest=digest, device_kind=device_kind, weight_bytes=model.weight_bytes)
    each_of = [replace(config, warmup=warmup) for warmup in requests(config.warmup)]
    try:
        for one in each_of:
            finish(model.run(_inputs(model, one, 1)))
    except MemoryError:
        # A batch of one row is the least that it will be asked for.
        raise
    except Exception as broken:  # whatever the model's kernels raise
        if config.warmup:
            raise ArtefactRefused(f"warmup: the model rejects it: {str(broken).strip()[:300]}") from broken
        return empty, 0
    on_stage("profiling")
    points: list[ProfilePoint] = []
    for one in each_of:
        ends = stopwatch.clock() + BUDGET_NS // len(each_of)
        budget = _Budget(stopwatch.clock, ends, POINT_BUDGET_NS // len(each_of))
        points += _points(model, one, budget, stopwatch)
    costs = zip(model.segments, points[0].segments_ns, strict=True) if points[0].segments_ns else ()
    segments = tuple(SegmentCost(name, cost) for name, cost in costs)
    largest = max(point.activation_bytes for point in points)
    return Profile(digest, device_kind, model.weight_bytes, tuple(points), segments), largest


def _points(model: LoadedModel, config: LoadConfig, budget: _Budget, stopwatch: Stopwatch) -> Iterator[ProfilePoint]:
    """At one shape, up to the largest batch, or one that takes long or is rejected."""
    for rows in _row_counts(model.signature.max_batch_size):
        point = _point(model, config, rows, budget, stopwatch)
        if point is None:
            return
        yield point
        if point.p50_ns > LONG_BATCH_NS or not budget.left():
            return


def _row_counts(most: int) -> Iterator[int]:
    """1, 2, 4 … and the most itself."""
    rows = 1
    while rows < most:
        yield rows
        rows *= 2
    yield max(most, 1)


def _inputs(model: LoadedModel, config: LoadConfig, rows: int) -> dict[str, np.ndarray]:
    ranges, extent = bounds(model)
    return made_up(model.signature, rows, warmup=config.warmup, ranges=ranges, extent=extent)


def _point(
    model: LoadedModel, config: LoadConfig, rows: int, budget: _Budget, stopwatch: Stopwatch
) -> ProfilePoint | None:
    inputs = _inputs(model, config, rows)
    try:
        outputs = finish(model.run(inputs))  # the first run of a shape pays for its plans and buffers
    except Exception:
        if rows == 1:
            raise
        return None
    runs = _runs(model, inputs, budget, stopwatch, at_least=LEAST_RUNS if rows == 1 else 1)
    took = [run.took for run in runs]
    return ProfilePoint(
        rows=rows,
        shape_bucket=shape_bucket(model.signature, {name: value.shape for name, value in inputs.items()}),
        compute_units=config.compute_units,
        p50_ns=_quantile(took, 0.5),
        p99_ns=_quantile(took, 0.99),
        runs=len(took),
        activation_bytes=_activations(model, inputs, outputs),
        segments_ns=_medians(runs, len(model.segments)),
    )


def _runs(model: LoadedModel, inputs: Tensors, budget: _Budget, stopwatch: Stopwatch, *, at_least: int) -> list[_Timed]:
    """As many runs as the budget allows. Runs that something else disturbed are left out while enough calm ones are there."""
    runs: list[_Timed] = []
    ends = budget.clock() + budget.point_ns
    while len(runs) < MOST_RUNS and (len(runs) < LEAST_RUNS or budget.clock() < ends):
        if len(runs) >= at_least and not budget.left():
            break
        runs.append(_timed(model, inputs, stopwatch))
    calm = [run for run in runs if run.is_calm]
    return calm if len(calm) >= LEAST_RUNS else runs


def _timed(model: LoadedModel, inputs: Tensors, stopwatch: Stopwatch) -> _Timed:
    run, times, is_calm = model.run(inputs), [], True
    more = True
    while more:
        since = stopwatch.read()
        more = next(run, _ENDED) is not _ENDED
        until = stopwatch.read()
        times.append(stopwatch.took(since, until))
        is_calm = is_calm and stopwatch.is_calm(since, until)
    return _Timed(tuple(times), is_calm)


def _medians(runs: Sequence[_Timed], segments: int) -> tuple[Nanoseconds, ...]:
    """The median of each segment; empty where a run does not have as many parts as the model names."""
    if any(len(run.segments_ns) != segments for run in runs):
        return ()
    return tuple(_quantile(times, 0.5) for times in zip(*(run.segments_ns for run in runs), strict=True))


def _quantile(took: Sequence[Nanoseconds], share: float) -> Nanoseconds:
    """The nearest rank, upwards: of few runs the 99th percentile is the longest."""
    ordered = sorted(took)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _activations(model: LoadedModel, inputs: Tensors, outputs: Tensors) -> Bytes:
    """Of what a runtime tells, and inputs and outputs, the larger."""
    edges = sum(value.nbytes for value in (*inputs.values(), *outputs.values()))
    return max(edges, model.activation_bytes(inputs))


_ENDED = object()
