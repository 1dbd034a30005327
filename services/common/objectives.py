"""Which objective a tenant can be promised for a model, from what was measured of it. PURE: figures in, figures out.

The promise (docs/sharing.md; gpu_sharing/arbiter says why it holds, gpu_sharing/simulation/promise.py judges runs by it): a
tenant whose arrivals ask for at most σ + ρ·t of device time in any t, with ρ ≤ its fraction U of the lane, and whose
objective is at least

    σ / U  +  two longest slices of the lane  +  the estimates' error

is neither refused nor late at its worker, whatever the others do. Here σ is `burst` requests at once, each as long as its
profile's p99, and ρ is `rate` of them. `error` multiplies every cost, as there. What a slice of somebody else's may take is
told from the executor's quantum alone, so that no answer tells anything of a neighbour. An objective counts from the frontend,
so that the way to the worker and back is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from services.common.errors import invalid

WAY_NS = 2_000_000
"""What the way from the frontend to the worker and back is taken to need, unless told otherwise."""

MOST_RATE = 1e6
MOST_BURST = 1_000_000
MOST_ROWS = 4_096
MOST_ERROR = 100.0
MOST_WAY_NS = 60_000_000_000
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Point:
    """What a profile says of batches of `rows` at one shape on `compute_units`. longest_segment_ns: by its median; 0: not known."""

    rows: int
    shape_bucket: str
    compute_units: int
    p50_ns: int
    p99_ns: int
    longest_segment_ns: int = 0

    @property
    def longest_slice_ns(self) -> int:
        """The longest segment, stretched as the whole batch is from its median to its p99; all of it where none is known."""
        if not self.longest_segment_ns:
            return self.p99_ns
        return min(self.p99_ns, math.ceil(self.longest_segment_ns * max(1.0, self.p99_ns / max(1, self.p50_ns))))


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane on which the model would run. worth: in millidevices. quantum_ns: what slices of others fit in; 0: any length.

    promises: False where work is served in the order of its arrival.
    """

    device_kind: str
    compute_units: int
    worth: int
    quantum_ns: int = 0
    promises: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """What a tenant means to do. reservation: in millidevices, over `spread` lanes of as many devices.

    rate: requests a second in all; None: as many as the reservation holds. burst: requests that come at once. objective_ns:
    wanted; None: the least there is. shape_bucket: of its requests; "": the costliest that was measured. beside: other models
    of the tenant's, which draw on the same reservation.
    """

    reservation: int
    rate: float | None = None
    burst: int = 1
    rows: int = 1
    objective_ns: int | None = None
    error: float = 1.0
    way_ns: int = WAY_NS
    spread: int = 1
    shape_bucket: str = ""
    beside: int = 0


class Verdict(Enum):
    """What can be said of an objective, the best first."""

    PROMISED = "promised"
    NOT_MEASURED = "not measured"
    NOTHING_RESERVED = "nothing reserved"
    DOES_NOT_FIT = "does not fit"
    RATE_TOO_HIGH = "rate too high"
    TOO_TIGHT = "too tight"
    BELOW_COST = "below cost"


@dataclass(frozen=True, slots=True)
class Answer:
    """For one kind of lane. Zero and None where a figure means nothing.

    on_lane: millidevices reserved there. cost_ns: of one request. burst_ns, slices_ns, way_ns: what least_ns consists of.
    most_rate: requests a second that the reservation holds, over all its lanes. needed: the millidevices that would do for what
    was asked; None: no lane of this kind is enough. least_whole_ns: the least objective with a whole lane.
    """

    lane: Lane
    verdict: Verdict
    message: str
    on_lane: int = 0
    cost_ns: int = 0
    burst_ns: int = 0
    slices_ns: int = 0
    way_ns: int = 0
    least_ns: int | None = None
    most_rate: float = 0.0
    needed: int | None = None
    least_whole_ns: int = 0


def lane_worth(units: int, of_device: int) -> int:
    """Millidevices of a lane of so many of a device's compute units."""
    return 1000 * units // max(of_device, 1)


def checked(ask: Ask) -> Ask:
    """The same. Raises Refusal (FIELD_INVALID), naming the field and its limit, where it makes no sense."""
    if ask.rate is not None:
        _within("rate", ask.rate, 0.0, MOST_RATE, above=True)
    _within("burst", ask.burst, 1, MOST_BURST)
    _within("rows", ask.rows, 1, MOST_ROWS)
    _within("error", ask.error, 1.0, MOST_ERROR)
    _within("way_us", ask.way_ns / 1_000, 0, MOST_WAY_NS // 1_000)
    _within("reservation.millidevices", ask.reservation, 0, 64_000)
    if ask.objective_ns is not None and ask.objective_ns < 1:
        raise invalid("objective_us", f"must be above 0, and is {ask.objective_ns / 1_000:g}")
    return ask


def answer(points: Iterable[Point], lane: Lane, ask: Ask) -> Answer:
    """What can be promised on such a lane. points: all of the profile's that were measured on such a device."""
    units = [each for each in points if each.compute_units == lane.compute_units]
    shapes = _shapes(each for each in units if ask.shape_bucket in ("", each.shape_bucket))
    if not shapes:
        return Answer(lane, Verdict.NOT_MEASURED, f"nothing was measured on {_units(lane)}{_shape(ask)}")
    shape = max(shapes, key=lambda each: _p99(each, ask.rows))
    cost = math.ceil(_p99(shape, ask.rows) * ask.error)
    slices = 2 * math.ceil(_longest_slice(shape, lane, ask.rows) * ask.error)
    whole = ask.burst * cost + slices + ask.way_ns
    needed = _needed(ask, lane, cost, slices)
    on_lane = -(-ask.reservation // ask.spread)
    if not lane.promises or not on_lane or on_lane > lane.worth:
        found = Answer(
            lane, Verdict.NOTHING_RESERVED, "", on_lane, cost, 0, slices, ask.way_ns, None, 0.0, needed, whole
        )
    else:
        burst = -(-ask.burst * cost * lane.worth // on_lane)
        rate = ask.spread * on_lane / lane.worth * _SECOND / cost
        least = burst + slices + ask.way_ns
        found = Answer(lane, Verdict.PROMISED, "", on_lane, cost, burst, slices, ask.way_ns, least, rate, needed, whole)
    return _judged(found, ask)


def _judged(found: Answer, ask: Ask) -> Answer:
    """With the verdict, and the sentence that says it."""
    wanted = ask.objective_ns
    if wanted is not None and wanted < found.cost_ns:
        return replace(found, verdict=Verdict.BELOW_COST, message=_below_cost(found, wanted))
    if found.least_ns is None:
        fits = found.on_lane <= found.lane.worth
        verdict = Verdict.NOTHING_RESERVED if fits else Verdict.DOES_NOT_FIT
        return replace(found, verdict=verdict, message=_unpromised(found, ask))
    if ask.rate is not None and ask.rate > found.most_rate:
        message = (
            f"{ask.rate:g} requests/s are more than {_reserved(found, ask)} hold, {found.most_rate:.1f}/s of {_text(found.cost_ns)} "
            f"each; {_would(found, ask)}"
        )
        return replace(found, verdict=Verdict.RATE_TOO_HIGH, message=message)
    if wanted is not None and wanted < found.least_ns:
        message = f"the objective of {_text(wanted)} cannot be promised: {_least(found, ask)}; {_would(found, ask)}"
        return replace(found, verdict=Verdict.TOO_TIGHT, message=message)
    return replace(found, message=_least(found, ask))


def worst(answers: Iterable[Answer]) -> Answer | None:
    """Of a model's lanes, the one that promises least: where its requests go is not for the tenant to say."""
    order = list(Verdict)
    return max(answers, key=lambda each: (order.index(each.verdict), each.least_ns or 0), default=None)


def _needed(ask: Ask, lane: Lane, cost: int, slices: int) -> int | None:
    """Millidevices over all lanes that would do for the objective, the burst and the rate; None: nothing would."""
    per_lane = 1
    if ask.objective_ns is not None:
        left = ask.objective_ns - slices - ask.way_ns
        if left <= 0:
            return None
        per_lane = max(per_lane, -(-ask.burst * cost * lane.worth // left))
    if ask.rate is not None:
        per_lane = max(per_lane, math.ceil(ask.rate * cost * lane.worth / ask.spread / _SECOND))
    return per_lane * ask.spread if lane.promises and per_lane <= lane.worth else None


def _longest_slice(shape: Sequence[Point], lane: Lane, rows: int) -> int:
    """Of this model and of anybody else on the lane. Without a quantum only what this model's own largest batch shows."""
    own = _on_line(shape, rows, [each.longest_slice_ns for each in shape])
    if lane.quantum_ns:
        return max(own, lane.quantum_ns)
    return max(own, *(each.longest_slice_ns for each in shape))


def _shapes(points: Iterable[Point]) -> list[list[Point]]:
    """By shape, with rising rows. Of two that were measured at the same place, the later one counts."""
    shapes: dict[str, dict[int, Point]] = {}
    for point in points:
        shapes.setdefault(point.shape_bucket, {})[point.rows] = point
    return [[by_rows[rows] for rows in sorted(by_rows)] for by_rows in shapes.values()]


def _p99(shape: Sequence[Point], rows: int) -> int:
    """As the arbiter's estimates read a profile: no batch takes less than one of fewer rows."""
    rising: list[int] = []
    for point in shape:
        rising.append(max(point.p99_ns, rising[-1] if rising else 1))
    return _on_line(shape, rows, rising)


def _on_line(shape: Sequence[Point], rows: int, values: Sequence[int]) -> int:
    """Between two points in a straight line, beyond the last in proportion."""
    place = next((index for index, each in enumerate(shape) if each.rows >= rows), None)
    if place is None:
        return -(-values[-1] * rows // max(1, shape[-1].rows))
    if place == 0 or shape[place].rows == rows:
        return values[place]
    before, after = shape[place - 1], shape[place]
    step = (values[place] - values[place - 1]) * (rows - before.rows)
    return values[place - 1] + -(-step // (after.rows - before.rows))


def _within(field: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    """NaN is within nothing."""
    if not least <= value <= most or (above and value == least):
        limits = f"above {least:g} and at most {most:g}" if above else f"{least:g} to {most:g}"
        raise invalid(field, f"must be {limits}, and is {value:g}")


def _least(found: Answer, ask: Ask) -> str:
    """What is promised, with what it consists of."""
    burst = "a request" if ask.burst == 1 else f"a burst of {ask.burst}"
    parts = f"{burst} {_text(found.burst_ns)} + two slices {_text(found.slices_ns)} + the way {_text(found.way_ns)}"
    return f"{_reserved(found, ask)} hold {found.most_rate:.1f} requests/s and promise {_text(found.least_ns or 0)} at the least ({parts}){_beside(ask)}"


def _beside(ask: Ask) -> str:
    if not ask.beside:
        return ""
    others = "1 other model leaves" if ask.beside == 1 else f"{ask.beside} other models leave"
    return f" where the tenant's {others} it all of that"


def _below_cost(found: Answer, wanted: int) -> str:
    return (
        f"the objective of {_text(wanted)} is below the model's own p99 of {_text(found.cost_ns)} on {_units(found.lane)}: "
        "requests will miss it on an idle device, too"
    )


def _unpromised(found: Answer, ask: Ask) -> str:
    if not found.lane.promises:
        return f"nothing is promised on {_units(found.lane)}: requests are served there in the order of their arrival"
    if not found.on_lane:
        return f"nothing is promised: there is no reservation, and requests get only what others leave; {_would(found, ask)}"
    return f"{_reserved(found, ask)} do not fit a lane, which is worth {_devices(found.lane.worth)}"


def _would(found: Answer, ask: Ask) -> str:
    """What would do, or that nothing does."""
    if found.needed is None:
        best = (
            f"a whole lane of {_devices(found.lane.worth)} devices promises {_text(found.least_whole_ns)} at the least"
        )
        whole = ask.spread * _SECOND / found.cost_ns
        return f"no reservation on {_units(found.lane)} would do: {best}, up to {whole:.1f} requests/s"
    rate = found.needed / found.lane.worth * _SECOND / found.cost_ns
    wanted = "it" if ask.objective_ns is None else _text(ask.objective_ns)
    return f"{_devices(found.needed)} devices would do for {wanted}, up to {rate:.1f} requests/s"


def _reserved(found: Answer, ask: Ask) -> str:
    on_each = f" on each of {ask.spread} lanes" if ask.spread > 1 else ""
    return f"{_devices(found.on_lane)} devices{on_each}"


def _devices(millidevices: int) -> str:
    return f"{millidevices / 1000:g}"


def _units(lane: Lane) -> str:
    return f"{lane.compute_units} compute unit{'' if lane.compute_units == 1 else 's'} of {lane.device_kind}"


def _shape(ask: Ask) -> str:
    return f" for the shape {ask.shape_bucket!r}" if ask.shape_bucket else ""


def _text(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e3:.0f} µs" if nanoseconds < 1e6 else f"{nanoseconds / 1e6:.1f} ms"
