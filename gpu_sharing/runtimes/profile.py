"""Warm-up and the first profile of a model: how long a batch of so many rows takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpu_sharing.measurements import Profile, ProfilePoint, SegmentCost
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Tensors
from gpu_sharing.runtimes.warmup import bounds, check_warmup, finish, made_up
from gpu_sharing.tensors import Signature
from gpu_sharing.units import MS, Bytes, Nanoseconds

BUDGET_NS: Nanoseconds = 1_500 * MS
"""For all points together: a load must not hold up its worker for long; the estimates go on learning from real runs."""

POINT_BUDGET_NS: Nanoseconds = 250 * MS
LONG_BATCH_NS: Nanoseconds = 50 * MS
"""A batch that takes longer blocks its lane; larger ones are not worth knowing."""

LEAST_RUNS = 3
MOST_RUNS = 100

Clock = Callable[[], Nanoseconds]


@dataclass
class _Budget:
    clock: Clock
    ends: Nanoseconds

    def left(self) -> bool:
        return self.clock() < self.ends


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
    clock: Clock,
    on_stage: Callable[[str], None],
) -> tuple[Profile, Bytes]:
    """Warms the model up and measures it at 1, 2, 4 … rows. Returns the profile and an estimate of the largest activations.

    A model that rejects the made-up warm-up input gets a profile without points, unless the operator gave
    `config.warmup`: then ArtefactRefused says why. on_stage: told "warming up" and "profiling". clock: monotonic.
    """
    check_warmup(model.signature, config.warmup)
    on_stage("warming up")
    empty = Profile(digest=digest, device_kind=device_kind, weight_bytes=model.weight_bytes)
    try:
        finish(model.run(_inputs(model, config, 1)))
    except Exception as broken:  # whatever the model's kernels raise
        if config.warmup:
            raise ArtefactRefused(f"warmup: the model rejects it: {str(broken).strip()[:300]}") from broken
        return empty, 0
    on_stage("profiling")
    points: list[ProfilePoint] = []
    budget = _Budget(clock, clock() + BUDGET_NS)
    for rows in _row_counts(model.signature.max_batch_size):
        point = _point(model, config, rows, budget)
        if point is None:
            break
        points.append(point)
        if point.p50_ns > LONG_BATCH_NS or not budget.left():
            break
    segments = _segment_costs(model, _inputs(model, config, 1), clock)
    largest = max((point.activation_bytes for point in points), default=0)
    return Profile(digest, device_kind, model.weight_bytes, tuple(points), segments), largest


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


def _point(model: LoadedModel, config: LoadConfig, rows: int, budget: _Budget) -> ProfilePoint | None:
    inputs = _inputs(model, config, rows)
    try:
        outputs = finish(model.run(inputs))  # the first run of a shape pays for its plans and buffers
    except Exception:
        if rows == 1:
            raise
        return None
    took: list[Nanoseconds] = []
    ends = budget.clock() + POINT_BUDGET_NS
    while len(took) < MOST_RUNS and (len(took) < LEAST_RUNS or budget.clock() < ends):
        if rows > 1 and took and not budget.left():
            break
        started = budget.clock()
        finish(model.run(inputs))
        took.append(budget.clock() - started)
    return ProfilePoint(
        rows=rows,
        shape_bucket=shape_bucket(model.signature, {name: value.shape for name, value in inputs.items()}),
        compute_units=config.compute_units,
        p50_ns=_quantile(took, 0.5),
        p99_ns=_quantile(took, 0.99),
        runs=len(took),
        activation_bytes=_activations(model, inputs, outputs),
    )


def _quantile(took: Sequence[Nanoseconds], share: float) -> Nanoseconds:
    """The nearest rank, upwards: of few runs the 99th percentile is the longest."""
    ordered = sorted(took)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _activations(model: LoadedModel, inputs: Tensors, outputs: Tensors) -> Bytes:
    """What a runtime can tell of its intermediate tensors, else only inputs and outputs."""
    edges = sum(value.nbytes for value in (*inputs.values(), *outputs.values()))
    tell = getattr(model, "activation_bytes", None)
    return max(edges, int(tell(inputs))) if tell is not None else edges


def _segment_costs(model: LoadedModel, inputs: Tensors, clock: Clock) -> tuple[SegmentCost, ...]:
    """The median of each segment at one row; empty where a run does not have as many parts as the model names."""
    runs = [_segment_times(model, inputs, clock) for _ in range(LEAST_RUNS)]
    if any(len(times) != len(model.segments) for times in runs):
        return ()
    medians = [_quantile(times, 0.5) for times in zip(*runs, strict=True)]
    return tuple(SegmentCost(name, cost) for name, cost in zip(model.segments, medians, strict=True))


def _segment_times(model: LoadedModel, inputs: Tensors, clock: Clock) -> list[Nanoseconds]:
    run, times = model.run(inputs), []
    while True:
        started = clock()
        more = next(run, _ENDED) is not _ENDED
        times.append(clock() - started)
        if not more:
            return times


_ENDED = object()
