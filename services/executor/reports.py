"""What the scheduler is told of this executor, made from the executor's state as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import chain

from gpu_sharing.devices.base import Device
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes
from services._proto.apportion.v1 import common_pb2, scheduler_pb2
from services.executor.convert import BACKENDS, report_of
from services.executor.core.books import Closed, entries_of, tenants_of
from services.executor.core.usage import FOLDED
from services.executor.executor import Executor


class Reports:
    """Makes hello and reports. memory_bytes: of each lane, what models may take; none: not told."""

    def __init__(
        self,
        executor: Executor,
        device: Device,
        partitions: Partitions,
        executor_id: str,
        incarnation: str,
        memory_bytes: Mapping[int, Bytes] | None = None,
        *,
        quantum_ns: int = 0,
        arrival_order: bool = False,
    ) -> None:
        """quantum_ns: what a slice may take; 0: any time. arrival_order: nobody is promised anything."""
        self._quantum_ns, self._arrival_order = quantum_ns, arrival_order
        self._executor, self._device, self._partitions = executor, device, partitions
        self._memory_bytes = memory_bytes or {}
        self._executor_id, self._incarnation = executor_id, incarnation
        self._reported_at = time.monotonic_ns()
        self._busy_ns = dict.fromkeys(range(len(partitions.lanes)), 0)
        self.draining = False

    def hello(self, address: str) -> scheduler_pb2.AttachRequest:
        """The first message: who we are, what we have, what we hold."""
        lanes = (
            scheduler_pb2.LaneInfo(
                lane=lane, worker=lane, compute_units=len(units), memory_bytes=self._memory_bytes.get(lane, 0)
            )
            for lane, units in enumerate(self._partitions.lanes)
        )
        layouts = (
            scheduler_pb2.LayoutInfo(name=name, lanes=lanes)
            for name, lanes in zip(self._partitions.names, self._partitions.layouts, strict=True)
        )
        device = scheduler_pb2.DeviceInfo(
            backend=BACKENDS.get(self._device.backend, scheduler_pb2.BACKEND_UNSPECIFIED),
            device_kind=self._device.device_kind,
            compute_units=self._partitions.compute_units,
            # More, where weights wait beside the device for their turn.
            memory_bytes=max(self._device.memory_bytes, self._most_bytes()),
            lanes=lanes,
            backend_reason=self._device.reason,
            layouts=layouts if len(self._partitions.layouts) > 1 else (),
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

    def _most_bytes(self) -> Bytes:
        """What models may take over the lanes of any layout."""
        return max(sum(self._memory_bytes.get(lane, 0) for lane in layout) for layout in self._partitions.layouts)

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
        accounts = self._accounts()
        return scheduler_pb2.ExecutorReport(
            replicas=replicas,
            lanes=self._lanes(),
            usage=chain.from_iterable(map(usage_of, accounts)),
            tenants=chain.from_iterable(map(tenants_to, accounts)),
            memory_used_bytes=sum(use.memory_used_bytes for use in executor.usage.lanes.values()),
            draining=self.draining,
            layout=executor.layout,
            layout_pinned=executor.layout_pinned,
            measured_us=time.monotonic_ns() // 1_000,
        )

    def _accounts(self) -> list[Closed]:
        """What was counted under each name."""
        books, usage = self._executor.books, self._executor.usage
        entries = entries_of(usage.totals, usage.lives)
        return [*books.accounts, Closed(books.name or self._incarnation, entries, usage.lives.last)]

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


def usage_of(account: Closed) -> Iterator[scheduler_pb2.Usage]:
    """What was counted under one name, of every model that is told apart."""
    for entry in account.entries:
        if entry.model != FOLDED:
            yield scheduler_pb2.Usage(
                key=common_pb2.ModelKey(tenant=entry.tenant, name=entry.model),
                device_ns=entry.total.device_ns,
                compute_unit_ns=entry.total.compute_unit_ns,
                requests=entry.total.requests,
                batches=entry.total.batches,
                incarnation=account.name,
                life=entry.life,
            )


def tenants_to(account: Closed) -> Iterator[scheduler_pb2.TenantUsage]:
    """The same by tenant, of all its models that there ever were."""
    for tenant, total in tenants_of(account.entries).items():
        yield scheduler_pb2.TenantUsage(
            tenant=tenant,
            device_ns=total.device_ns,
            compute_unit_ns=total.compute_unit_ns,
            requests=total.requests,
            batches=total.batches,
            incarnation=account.name,
            lives=account.lives,
        )
