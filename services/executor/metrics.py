"""Prometheus metrics, read from the executor's state when they are asked for: nothing is counted twice on the hot path."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.executor.executor import Executor
from services.executor.spans import Spans

_NS_PER_S = 1e9
_MODEL = ("tenant", "model")
_LANE = ("lane",)


class ExecutorCollector(Collector):
    """Collects from one executor. Called from the exporter's thread: it only reads, and copies before it walks."""

    def __init__(self, executor: Executor, spans: Spans) -> None:
        self._executor, self._spans = executor, spans

    def collect(self) -> Iterator[Metric]:
        """Everything that this executor counts."""
        yield from self._usage()
        yield from self._requests()
        yield from self._lanes()
        yield from self._accounts()
        replicas = GaugeMetricFamily("apportion_executor_replicas", "Replicas by phase.", labels=("phase",))
        for phase, number in self._executor.phases.items():
            replicas.add_metric((phase,), number)
        yield replicas
        dropped = CounterMetricFamily(
            "apportion_executor_traces_dropped",
            "Requests whose part of a trace was let go of: no verdict came in time, too many waited for theirs, or it came for a "
            "request that was never over here.",
        )
        dropped.add_metric((), self._spans.dropped + self._spans.unheard)
        yield dropped
        held = GaugeMetricFamily("apportion_executor_traces_held", "Finished requests that wait for their verdict.")
        held.add_metric((), self._spans.held)
        yield held

    def _usage(self) -> Iterator[Metric]:
        device = CounterMetricFamily(
            "apportion_executor_device_seconds", "Device time by tenant and model.", labels=_MODEL
        )
        units = CounterMetricFamily(
            "apportion_executor_compute_unit_seconds", "Device time times the lane's compute units.", labels=_MODEL
        )
        batches = CounterMetricFamily("apportion_executor_batches", "Batches that ran.", labels=_MODEL)
        for key, total in list(self._executor.usage.totals.items()):
            device.add_metric(key, total.device_ns / _NS_PER_S)
            units.add_metric(key, total.compute_unit_ns / _NS_PER_S)
            batches.add_metric(key, total.batches)
        yield from (device, units, batches)

    def _requests(self) -> Iterator[Metric]:
        labels = (*_MODEL, "version", "replica")
        outcomes = CounterMetricFamily(
            "apportion_executor_requests", "Requests by outcome.", labels=(*labels, "outcome")
        )
        rows = CounterMetricFamily("apportion_executor_rows", "Rows of requests that ran.", labels=labels)
        queue = CounterMetricFamily(
            "apportion_executor_queue_seconds", "Time spent waiting for a batch.", labels=labels
        )
        compute = CounterMetricFamily("apportion_executor_compute_seconds", "Time spent in batches.", labels=labels)
        waiting = GaugeMetricFamily("apportion_executor_outstanding_requests", "Requests in hand.", labels=labels)
        for serving in list(self._executor.calls.serving.values()):
            key = (serving.tenant, serving.model, str(serving.version), str(serving.replica))
            for outcome, number in list(serving.outcomes.items()):
                outcomes.add_metric((*key, outcome), number)
            rows.add_metric(key, serving.rows)
            queue.add_metric(key, serving.queue_ns / _NS_PER_S)
            compute.add_metric(key, serving.compute_ns / _NS_PER_S)
            waiting.add_metric(key, serving.outstanding)
        yield from (outcomes, rows, queue, compute, waiting)

    def _accounts(self) -> Iterator[Metric]:
        """A tenant of a lane: what it used of what it had been promised, of what was left over, and in gaps."""
        labels = ("lane", "tenant", "account")
        device = CounterMetricFamily(
            "apportion_executor_account_seconds", "Device time, by whose account it went on.", labels=labels
        )
        requests = CounterMetricFamily(
            "apportion_executor_admitted_requests", "Requests, by the terms that they were admitted on.", labels=labels
        )
        for (lane, tenant), total in list(self._executor.accounts.totals.items()):
            for account in ("guaranteed", "surplus", "gap"):
                device.add_metric((str(lane), tenant, account), getattr(total, f"{account}_ns") / _NS_PER_S)
                requests.add_metric((str(lane), tenant, account), getattr(total, account))
            requests.add_metric((str(lane), tenant, "refused"), total.refused)
            requests.add_metric((str(lane), tenant, "revoked"), total.revoked)
        yield from (device, requests)

    def _lanes(self) -> Iterator[Metric]:
        busy = CounterMetricFamily("apportion_executor_lane_busy_seconds", "Device time in use.", labels=_LANE)
        up = GaugeMetricFamily("apportion_executor_worker_up", "Whether the lane has a worker.", labels=_LANE)
        arena = GaugeMetricFamily("apportion_executor_input_arena_used_bytes", "Memory of requests.", labels=_LANE)
        memory = GaugeMetricFamily("apportion_executor_memory_used_bytes", "Memory of loaded models.", labels=_LANE)
        for number, lane in self._executor.lanes.items():
            key, use, client = (str(number),), self._executor.usage.lanes[number], lane.client
            busy.add_metric(key, use.busy_ns / _NS_PER_S)
            up.add_metric(key, client is not None)
            arena.add_metric(key, client.inputs.used_bytes if client is not None else 0)
            memory.add_metric(key, use.memory_used_bytes)
        yield from (busy, up, arena, memory)
