"""Which objective a model can be promised in this fleet, and which models have one that is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from services.common.errors import Reason, Refusal, invalid
from services.common.objectives import Answer, Ask, Lane, Verdict, answer, checked, worst
from services.scheduler.core.catalogue import Key, Model, Ref, TrafficClass, Version
from services.scheduler.core.fleet import Executor
from services.scheduler.core.placement import spread
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.state import State

_ANYTHING = Ask(0)


@dataclass(frozen=True, slots=True)
class Question:
    """About a version of a model; 0: the highest. None: as the tenant and the model have it. Otherwise see objectives.Ask."""

    key: Key
    version: int = 0
    reservation: int | None = None
    objective_us: int | None = None
    ask: Ask = _ANYTHING


@dataclass(frozen=True, slots=True)
class Found:
    """For one kind of lane. serves: a replica of the version is on such a lane."""

    answer: Answer
    serves: bool


@dataclass(frozen=True, slots=True)
class Unpromised:
    """A version that serves, and whose model's objective is not promised."""

    key: Key
    version: int
    verdict: Verdict
    message: str


def missing(key: Key) -> Refusal:
    """The refusal of a model that is not there, or is not there for whoever asks: nobody can tell which."""
    return Refusal(Reason.MODEL_NOT_FOUND, f"key: tenant {key.tenant!r} has no model {key.name!r}", field="key")


def find(state: State, question: Question) -> tuple[int, list[Found]]:
    """The version's number and the answer for each kind of lane that the fleet has. Refusal where the question makes no sense."""
    model = state.models.get(question.key)
    if model is None:
        raise missing(question.key)
    highest = max((each.number for each in model.versions), default=0)
    version = model.version(question.version or highest)
    if version is None:
        raise Refusal(
            Reason.VERSION_NOT_FOUND, f"version: {model.key} has no version {question.version}", field="version"
        )
    ask = checked(_ask(state, model, question))
    serving, kinds = _serving(state, model.ref(version), state.fleet.by_ref()), _lanes(state)
    most = max((lane.worth for lane in kinds), default=0) * ask.spread
    if kinds and ask.reservation > most:
        limit = f"no more than {most / 1000:g} fit the fleet's lanes"
        raise invalid("reservation.millidevices", f"{ask.reservation / 1000:g} devices are asked for, and {limit}")
    return version.number, [Found(_answer(state, model, version, lane, ask), lane in serving) for lane in kinds]


def unpromised(state: State) -> Iterator[Unpromised]:
    """Versions that serve with an objective that is not promised, by key."""
    held = state.fleet.by_ref()
    for key, model in sorted(state.models.items()):
        if model.slo.objective_us is None or model.traffic_class is TrafficClass.BATCH:
            continue
        ask = _ask(state, model, Question(key))
        for version in model.versions:
            found = worst(
                _answer(state, model, version, lane, ask) for lane in _serving(state, model.ref(version), held)
            )
            if found is not None and found.verdict is not Verdict.PROMISED:
                yield Unpromised(key, version.number, found.verdict, found.message)


def _ask(state: State, model: Model, question: Question) -> Ask:
    given = question.reservation
    objective_us = question.objective_us if question.objective_us is not None else model.slo.objective_us
    return replace(
        question.ask,
        reservation=state.tenant(model.key.tenant).reservation if given is None else given,
        objective_ns=None if objective_us is None else objective_us * 1_000,
        spread=spread(model, len(state.fleet.usable())),
        beside=sum(key.tenant == model.key.tenant for key in state.models) - 1,
    )


def _answer(state: State, model: Model, version: Version, lane: Lane, ask: Ask) -> Answer:
    known = state.with_learnt(model.ref(version), version)
    # What was learnt last comes last, and counts.
    points = (point for each in known.profiles if each.device_kind == lane.device_kind for point in each.points)
    return answer(points, lane, ask)


def _lanes(state: State) -> list[Lane]:
    """Every kind of lane that there is, once."""
    lanes = [_lane(executor, each.number) for executor in state.fleet.usable() for each in executor.hello.device.lanes]
    return list(dict.fromkeys(lanes))


def _serving(state: State, ref: Ref, held: Mapping[Ref, list[Replica]]) -> set[Lane]:
    """The kinds of lanes on which a version serves."""
    ready = [each for each in held.get(ref, []) if each.phase is Phase.READY]
    return {_lane(state.fleet.executors[each.executor_id], each.lane) for each in ready}


def _lane(executor: Executor, number: int) -> Lane:
    device = executor.hello.device
    lane = device.lane(number)
    units = lane.compute_units if lane is not None else 0
    return Lane(device.kind, units, device.capacity(number), device.quantum_ns, not device.arrival_order)
