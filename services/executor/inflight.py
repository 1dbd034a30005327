"""A request in hand, the replica it is for, and the lane that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Millidevices, Nanoseconds
from gpu_sharing.worker.client import WorkerClient
from services._proto.apportion.v1.executor_pb2 import Infer, Result, Stages
from services.executor.core.replica_events import Queueing
from services.executor.core.statistics import Counts
from services.executor.core.turns import Part
from services.executor.decode import Decoded, Decoder
from services.executor.encode import Encoder

_US = 1_000


class Phase(Enum):
    """Where a call is. RECEIVING: its chunks come. CHECKING: its elements are walked. RUNNING: the worker has it.
    ANSWERED: its result is on its way; only its output memory may still be held."""

    RECEIVING = 1
    CHECKING = 2
    RUNNING = 3
    ANSWERED = 4


class Caller(Protocol):
    """Where a call came from. key: unlike any other's."""

    key: int

    def answer(self, result: Result) -> None:
        """Sends the one result of a call."""
        ...

    def transfer(self, call: Call, parts: Sequence[Part], batch: Batch) -> None:
        """Sends a large result, as credit allows; `Calls.sent` is called once the last of it has been copied."""
        ...

    def returned(self, call: Call) -> None:
        """The call's input memory is free: what it drew is granted again."""
        ...


class Lane:
    """A lane's worker, and the calls that depend on it. client: None while there is none."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client: WorkerClient | None = None
        self.calls: dict[int, Call] = {}


class Serving:
    """A replica that takes requests, or still finishes some. outstanding: its calls that are not answered. counts: of its
    version, which it may share with other replicas."""

    def __init__(
        self,
        replica: int,
        tenant: str,
        model: str,
        version: int,
        lane: Lane,
        bandwidth: Millidevices,
        decoder: Decoder,
        encoder: Encoder,
        counts: Counts | None = None,
        queueing: Queueing | None = None,
    ) -> None:
        assert lane.client is not None
        self.replica, self.tenant, self.model, self.version = replica, tenant, model, version
        self.lane, self.client, self.bandwidth = lane, lane.client, bandwidth
        self.decoder, self.encoder = decoder, encoder
        self.counts = Counts() if counts is None else counts
        self.queueing = queueing or Queueing()
        self.owner = lane.client.inputs.owner(tenant)
        self.outstanding = 0
        self.service_ns: Nanoseconds = 0
        self.outcomes: dict[str, int] = {}
        self.rows = self.batched_requests = self.queue_ns = self.compute_ns = 0


class Call:
    """One request. It keeps nothing of its message, whose payload would stay in memory with it.

    number: the executor's own; call: the frontend's. deadline: dropped past it. objective: None: class `batch`.
    blocks: what it holds of the input arena; base: where chunks are written to.
    complete: when the last of its payload had come. copy_ns: what copying that into shared memory took, chunks apart.
    announced: when a large answer's length was told, its tenant's credit having allowed it; 0: it was not.
    """

    __slots__ = (
        "announced",
        "arrived",
        "base",
        "blocks",
        "bulk_bytes",
        "call",
        "caller",
        "complete",
        "copy_ns",
        "deadline",
        "decoded",
        "handed",
        "number",
        "objective",
        "phase",
        "priority",
        "received_bytes",
        "rows",
        "serving",
        "span",
        "wanted",
    )

    def __init__(self, number: int, caller: Caller, infer: Infer, serving: Serving, arrived: Nanoseconds) -> None:
        self.number, self.caller, self.call, self.serving = number, caller, infer.call, serving
        self.arrived = self.complete = self.handed = arrived
        self.copy_ns = self.announced = 0
        self.deadline = arrived + infer.deadline_us * _US if infer.HasField("deadline_us") else None
        self.objective = arrived + infer.objective_us * _US if infer.HasField("objective_us") else None
        self.priority, self.bulk_bytes = infer.priority, infer.bulk_bytes
        self.span = (infer.span.trace_id, infer.span.span_id) if infer.HasField("span") else None
        self.received_bytes = self.base = self.rows = 0
        self.blocks: tuple[int, ...] = ()
        self.decoded: Decoded | None = None
        self.phase = Phase.RECEIVING
        self.wanted = True


def stages(call: Call, batch: Batch | None, now: Nanoseconds) -> Stages:
    """Where the call's time went; without a batch, it all went to decoding and the queue."""
    decode_ns = call.handed - call.arrived
    if batch is None:
        queue_ns = 0 if call.handed == call.arrived else max(0, now - call.handed)
        return Stages(decode_ns=decode_ns, queue_ns=queue_ns, lane=call.serving.lane.number)
    return Stages(
        decode_ns=decode_ns,
        queue_ns=max(0, batch.started - call.handed),
        batch_ns=max(0, batch.waited_for_others),
        compute_ns=max(0, batch.ended - batch.started),
        preempted_ns=max(0, batch.preempted),
        encode_ns=max(0, now - batch.ended),
        batch_rows=max(0, batch.rows),
        lane=max(0, batch.lane),
        rows=call.rows,
        batch_requests=max(0, batch.requests),
    )
