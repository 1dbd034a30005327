"""Slots as the contract has them, both ways."""

from __future__ import annotations

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import rollups_pb2 as pb
from services.common.exponential import SCALE
from services.tracestore.core.rollups import Counts, Slot, Worst


def message(slot: Slot) -> pb.Rollup:
    """A slot as the contract has it."""
    counts = slot.counts
    made = pb.Rollup(
        key=common_pb2.ModelKey(tenant=slot.tenant, name=slot.model),
        width_s=slot.width_s,
        outcomes=counts.outcomes,
        met=counts.met,
        missed=counts.missed,
        violated=counts.violated,
        within=[
            pb.WithinCount(objective_us=objective_us, met=met, missed=missed)
            for objective_us, (met, missed) in counts.within.items()
        ],
        scale=SCALE,
        latencies=[pb.LatencyBucket(index=index, count=count) for index, count in counts.latencies.items()],
        sum_us=counts.sum_us,
        kept=counts.kept,
        kept_violated=counts.kept_violated,
        causes=counts.causes,
        worst=[
            pb.WorstRequest(duration_us=each.duration_us, trace_id=each.trace_id, cause=each.cause)
            for each in counts.worst
        ],
    )
    made.start.seconds = slot.start_s
    return made


def slot_of(told: pb.Rollup) -> Slot:
    """The same, the other way."""
    counts = Counts(
        outcomes=dict(told.outcomes),
        met=told.met,
        missed=told.missed,
        violated=told.violated,
        within={each.objective_us: (each.met, each.missed) for each in told.within},
        latencies={each.index: each.count for each in told.latencies},
        sum_us=told.sum_us,
        kept=told.kept,
        kept_violated=told.kept_violated,
        causes=dict(told.causes),
        worst=[Worst(each.duration_us, each.trace_id, each.cause) for each in told.worst],
    )
    return Slot(told.key.tenant, told.key.name, told.start.seconds, told.width_s, counts)
