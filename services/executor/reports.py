"""What the scheduler is told of this executor, made from the executor's state as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from gpu_sharing.devices.base import Device
from services._proto.apportion.v1 import common_pb2, scheduler_pb2
from services.executor.convert import BACKENDS, report_of
from services.executor.core.usage import Model, Total
from services.executor.executor import Executor


class Reports:
    """Makes hello and reports. layout: the cores of each lane, by number."""

    def __init__(
        self,
        executor: Executor,
        device: Device,
        layout: dict[int, int],
        executor_id: str,
        incarnation: str,
        *,
        quantum_ns: int = 0,
        arrival_order: bool = False,
    ) -> None:
        """quantum_ns: what a slice may take; 0: any time. arrival_order: nobody is promised anything."""
        self._quantum_ns, self._arrival_order = quantum_ns, arrival_order
        self._executor, self._device, self._layout = executor, device, layout
        self._executor_id, self._incarnation = executor_id, incarnation
        self._reported_at = time.monotonic_ns()
        self._busy_ns = dict.fromkeys(layout, 0)
        self.draining = False

    def hello(self, address: str) -> scheduler_pb2.AttachRequest:
        """The first message: who we are, what we have, what we hold."""
        lanes = (
            scheduler_pb2.LaneInfo(lane=lane, worker=lane, compute_units=units) for lane, units in self._layout.items()
        )
        device = scheduler_pb2.DeviceInfo(
            backend=BACKENDS.get(self._device.backend, scheduler_pb2.BACKEND_UNSPECIFIED),
            device_kind=self._device.device_kind,
            compute_units=sum(self._layout.values()),
            memory_bytes=self._device.memory_bytes,
            lanes=lanes,
            backend_reason=self._device.reason,
            quantum_ns=self._quantum_ns,
            arrival_order=self._arrival_order,
        )
        return scheduler_pb2.AttachRequest(
            hello=scheduler_pb2.ExecutorHello(
                executor_id=self._executor_id,
                incarnation=self._incarnation,
                address=address,
                device=device,
                report=self._report(),
            )
        )

    def report(self) -> scheduler_pb2.AttachRequest:
        """How everything stands now."""
        return scheduler_pb2.AttachRequest(report=self._report())

    def _report(self) -> scheduler_pb2.ExecutorReport:
        executor = self._executor
        executor.read_meters()
        serving = executor.calls.serving
        replicas = (
            report_of(each, serving[each.wanted.replica].outstanding if each.wanted.replica in serving else 0)
            for each in executor.replicas.all()
        )
        return scheduler_pb2.ExecutorReport(
            replicas=replicas,
            lanes=self._lanes(),
            usage=self._usage(),
            memory_used_bytes=sum(use.memory_used_bytes for use in executor.usage.lanes.values()),
            draining=self.draining,
            measured_us=time.monotonic_ns() // 1_000,
        )

    def _usage(self) -> Iterator[scheduler_pb2.Usage]:
        books = self._executor.books
        for name, totals in [*books.earlier, (books.name or self._incarnation, self._executor.usage.totals)]:
            yield from usage_of(name, totals)

    def _lanes(self) -> list[scheduler_pb2.LaneReport]:
        now = time.monotonic_ns()
        passed_ns, self._reported_at = max(1, now - self._reported_at), now
        reports = []
        for lane, use in self._executor.usage.lanes.items():
            busy_ns, self._busy_ns[lane] = use.busy_ns - self._busy_ns[lane], use.busy_ns
            reports.append(
                scheduler_pb2.LaneReport(
                    lane=lane,
                    busy_ppm=min(1_000_000, busy_ns * 1_000_000 // passed_ns),
                    waiting_requests=use.waiting,
                )
            )
        return reports


def usage_of(book: str, totals: Mapping[Model, Total]) -> Iterator[scheduler_pb2.Usage]:
    """What was counted under one name."""
    for (tenant, model), total in totals.items():
        yield scheduler_pb2.Usage(
            key=common_pb2.ModelKey(tenant=tenant, name=model),
            device_ns=total.device_ns,
            compute_unit_ns=total.compute_unit_ns,
            requests=total.requests,
            batches=total.batches,
            incarnation=book,
        )
