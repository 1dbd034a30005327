"""The metrics that Triton's users graph, under Triton's names, beside our own: this frontend's share of the requests.

Sums over all frontends are the whole: also of executions, since each request counts the part of its batch that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.common.errors import Reason
from services.frontend.core.verdict import LATE, OK

REJECTED, CANCELED, BACKEND, OTHER = "REJECTED", "CANCELED", "BACKEND", "OTHER"
FAILURES: dict[str, str] = {
    Reason.OVERLOADED: REJECTED,
    Reason.QUOTA_EXCEEDED: REJECTED,
    Reason.DEADLINE_EXCEEDED: REJECTED,
    Reason.CANCELLED: CANCELED,
    Reason.MODEL_FAILED: BACKEND,
    Reason.OUT_OF_MEMORY: BACKEND,
    Reason.WORKER_LOST: BACKEND,
    Reason.EXECUTOR_LOST: BACKEND,
}
"""Triton's reason of a failure; whatever is not here is OTHER."""
_NS_PER_US = 1_000


class Served:
    """The requests of one version. Times in nanoseconds, of requests that were answered."""

    __slots__ = ("encode", "executions", "failures", "infer", "input", "queue", "request", "rows", "successes")

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.successes = self.rows = self.request = self.queue = self.input = self.infer = self.encode = 0
        self.executions = 0.0


class TritonMetrics(Collector):
    """Counts by tenant, model and version; only of models that exist, so that callers cannot make up labels."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, int], Served] = {}
        self.pending: Callable[[], Iterator[tuple[str, str, int]]] = lambda: iter(())
        """(tenant, model, requests in hand) of every model."""

    def close(self, key: tuple[str, str, int], outcome: str, elapsed_ns: int, stages: Any | None) -> None:
        """Counts a request that is over. key: tenant, model, version. stages: what its executor said of its time."""
        if not key[1]:
            return
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = Served()
        if outcome not in (OK, LATE):
            reason = FAILURES.get(outcome, OTHER)
            served.failures[reason] = served.failures.get(reason, 0) + 1
            return
        served.successes += 1
        served.request += elapsed_ns
        if stages is not None:
            served.rows += stages.rows or 1
            served.executions += 1 / (stages.batch_requests or 1)
            served.queue += stages.queue_ns
            served.input += stages.decode_ns
            served.infer += stages.compute_ns
            served.encode += stages.encode_ns

    def __len__(self) -> int:
        return len(self._served)

    def keep(self, exists: Callable[[str, str, int], bool]) -> None:
        """Lets go of the counts of versions that are gone."""
        for key in list(self._served):
            if not exists(*key):
                del self._served[key]

    def collect(self) -> Iterator[Metric]:
        """The counts as metrics. Called by the metrics thread."""
        served = list(self._served.items())
        yield _metric("nv_inference_request_success", "Requests that were answered.", _of(served, "successes"))
        failures = _empty("nv_inference_request_failure", "Requests that were not, by reason.")
        for key, each in served:
            for reason, count in list(each.failures.items()):
                failures.add_sample(failures.name, {**_labels(key), "reason": reason}, count)
        yield failures
        yield _metric("nv_inference_count", "Rows that were inferred.", _of(served, "rows"))
        yield _metric("nv_inference_exec_count", "Batches that ran.", _of(served, "executions"))
        for name, slot, told in (
            ("request", "request", "From arrival to answer."),
            ("queue", "queue", "Waiting for a batch."),
            ("compute_input", "input", "Decoding, checks, copy."),
            ("compute_infer", "infer", "In batches."),
            ("compute_output", "encode", "Encoding."),
        ):
            values = [(key, getattr(each, slot) / _NS_PER_US) for key, each in served]
            yield _metric(f"nv_inference_{name}_duration_us", f"{told} Summed over requests, in microseconds.", values)
        pending = _empty("nv_inference_pending_request_count", "Requests that wait for their answer.")
        for tenant, model, count in self.pending():
            pending.add_sample(pending.name, {"tenant": tenant, "model": model}, count)
        yield pending


Values = list[tuple[tuple[str, str, int], float]]


def _of(served: list[tuple[tuple[str, str, int], Served]], slot: str) -> Values:
    return [(key, getattr(each, slot)) for key, each in served]


def _metric(name: str, told: str, values: Values) -> Metric:
    metric = _empty(name, told)
    for key, value in values:
        metric.add_sample(name, _labels(key), value)
    return metric


def _empty(name: str, told: str) -> Metric:
    # Not a counter to the client library: that would end the name in _total, which nobody's graphs have.
    return Metric(name, told, "unknown")


def _labels(key: tuple[str, str, int]) -> dict[str, str]:
    tenant, model, version = key
    return {"tenant": tenant, "model": model, "version": str(version)}
