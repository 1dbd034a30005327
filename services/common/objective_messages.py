"""Answers about objectives as the contracts have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.objectives import Answer, Point, Verdict

VERDICTS: Mapping[Verdict, pb.ObjectiveVerdict] = {
    each: cast("pb.ObjectiveVerdict", pb.ObjectiveVerdict.Value(f"OBJECTIVE_VERDICT_{each.name}")) for each in Verdict
}


def points_from(profile: common_pb2.Profile) -> tuple[Point, ...]:
    """What answers need of a profile."""
    return tuple(
        Point(
            each.rows,
            each.shape_bucket,
            each.compute_units,
            each.p50_ns,
            each.p99_ns,
            max(each.segments_ns, default=0),
        )
        for each in profile.points
    )


def answer_to(made: Answer, *, serves: bool = False) -> pb.ObjectiveAnswer:
    """What can be promised on one kind of lane. Times are rounded up."""
    message = pb.ObjectiveAnswer(
        device_kind=made.lane.device_kind,
        compute_units=made.lane.compute_units,
        lane=common_pb2.Share(millidevices=made.lane.worth),
        reservation=common_pb2.Share(millidevices=made.on_lane),
        verdict=VERDICTS[made.verdict],
        message=made.message,
        cost_us=_us(made.cost_ns),
        burst_us=_us(made.burst_ns),
        slices_us=_us(made.slices_ns),
        way_us=_us(made.way_ns),
        most_rate=made.most_rate,
        least_whole_us=_us(made.least_whole_ns),
        serves=serves,
    )
    if made.least_ns is not None:
        message.least_objective_us = _us(made.least_ns)
    if made.needed is not None:
        message.reservation_needed.millidevices = made.needed
    return message


def _us(nanoseconds: int) -> int:
    return -(-nanoseconds // 1_000)
