"""Which objective can be had: asked of the scheduler for what has been pushed, worked out here for what has not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.cli import remote, show
from services.cli.errors import CommandError, usage
from services.cli.options import Mesh
from services.cli.profiles.measuring import Measured
from services.common.errors import Refusal
from services.common.objective_messages import answer_to, points_from
from services.common.objectives import Ask, Lane, answer, checked, lane_worth

QUANTUM_NS = 5_000_000
"""What an executor keeps slices within unless told otherwise: supposed where no mesh tells its own."""
FLAGS = {
    "rate": "--rate",
    "burst": "--burst",
    "rows": "--rows",
    "error": "--error",
    "reservation.millidevices": "--reserve",
    "objective_us": "--slo-ms",
    "way_us": "--way-ms",
}
ORDER = list(pb.ObjectiveVerdict.values())
HARMLESS = (pb.OBJECTIVE_VERDICT_NOT_MEASURED, pb.OBJECTIVE_VERDICT_NOTHING_RESERVED)


def check(ask: Ask) -> Ask:
    """The same. Raises CommandError that names the flag and its limit."""
    try:
        return checked(ask)
    except Refusal as refusal:
        flag = FLAGS.get(refusal.field or "", refusal.field)
        raise usage(f"{flag}: {refusal.message.partition(': ')[2]}") from None


def millis(flag: str, value: float) -> int:
    """Milliseconds as nanoseconds. Raises CommandError for what is none."""
    if not math.isfinite(value) or not 0 <= value <= 1e9:
        raise usage(f"{flag}: {value:g} is not within 0 to 1e+09 milliseconds")
    return round(value * 1e6)


async def ask_scheduler(mesh: Mesh, request: Any) -> Any:
    """The scheduler's GetObjectiveResponse. CommandError, naming the flag, where it refuses."""
    try:
        async with remote.scheduler(mesh) as stub:
            return await stub.GetObjective(request, timeout=remote.CALL_S)
    except remote.Refused as refused:
        field, _, problem = refused.message.partition(": ")
        if field in FLAGS:
            raise usage(f"{FLAGS[field]}: {problem}") from None
        raise


async def of_version(mesh: Mesh, key: Any, version: int) -> Any | None:
    """What the model's own objective comes to on the lanes that serve a version, the one that promises least; None where
    nobody can say."""
    try:
        told = await ask_scheduler(mesh, pb.GetObjectiveRequest(key=key, version=version))
    except CommandError:
        return None
    return worst(each for each in told.answers if each.serves)


def worst(answers: Iterable[Any]) -> Any | None:
    """The answer that promises least."""
    return max(answers, key=lambda each: (ORDER.index(each.verdict), each.least_objective_us), default=None)


def say(found: Any, *, quiet: bool = False) -> None:
    """Tells whoever pushed a model with an objective whether it is promised. quiet: only where it is not."""
    if found.verdict == pb.OBJECTIVE_VERDICT_PROMISED:
        if quiet:
            return
        show.out.print(f"the objective is promised: {found.message}", markup=False)
        return
    word = "note" if found.verdict in HARMLESS else "warning"
    show.err.print(f"[yellow]{word}:[/] {plain(found.message)}")


def plain(text: str) -> str:
    """Text that is not to be read as markup."""
    return text.replace("[", "\\[")


def print_answers(answers: Iterable[Any]) -> None:
    """Each kind of lane with its figures and the sentence that says it."""
    for each in answers:
        units = f"{each.compute_units} compute unit{'' if each.compute_units == 1 else 's'}"
        serves = ", serves there" if each.serves else ""
        lane = show.share(each.lane.millidevices)
        show.out.print(f"[bold]{plain(each.device_kind)}[/]  a lane of {units}, worth {lane} devices{serves}")
        if each.cost_us:
            show.out.print(f"  a request takes {show.duration(each.cost_us * 1000)} of device time (p99)")
        promised = each.verdict == pb.OBJECTIVE_VERDICT_PROMISED
        show.out.print(f"  {'' if promised else '[yellow]'}{plain(each.message)}{'' if promised else '[/]'}")


def here(measured: Measured, fleet: Any | None, ask: Ask) -> tuple[list[Any], str]:
    """Answers for what was measured on this machine, as the scheduler would give them, and what they hold for.

    fleet: the mesh's, for its lanes that are like the measured one; None: no mesh was reached.
    """
    kind, units = measured.profile.device_kind, measured.profile.points[0].compute_units
    counted = f"{units} compute unit{'' if units == 1 else 's'}"
    lanes = _lanes(fleet, kind, units) if fleet is not None else []
    if lanes:
        holds = f"measured here; holds for the mesh's lanes of {counted} of {kind}"
    else:
        lanes = [Lane(kind, units, 1000, QUANTUM_NS)]
        why = "no mesh was reached" if fleet is None else "no lane of the mesh is like it: push the model to ask there"
        holds = f"measured here; holds for a device of {counted} of {kind} with one lane; {why}"
    _check_fits(ask, lanes)
    points = points_from(measured.profile)
    return [answer_to(answer(points, lane, ask)) for lane in lanes], holds


def _check_fits(ask: Ask, lanes: list[Lane]) -> None:
    most = max(lane.worth for lane in lanes)
    if ask.reservation > most:
        raise usage(
            f"--reserve: {ask.reservation / 1000:g} devices are more than such a lane is worth, {most / 1000:g}"
        )


def _lanes(fleet: Any, kind: str, units: int) -> list[Lane]:
    """Its lanes of that size on such devices, each kind once."""
    found = []
    for one in fleet.executors:
        device = one.device
        whole = max(device.compute_units, sum(lane.compute_units for lane in device.lanes))
        if one.attached and device.device_kind == kind and any(lane.compute_units == units for lane in device.lanes):
            found.append(Lane(kind, units, lane_worth(units, whole), device.quantum_ns, not device.arrival_order))
    return list(dict.fromkeys(found))
