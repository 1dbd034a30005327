"""Which device this executor serves on, how its lanes are kept apart, and who starts their workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from gpu_sharing.devices.base import Device
from gpu_sharing.devices.mps import Daemon, Findings, MpsFailed, binary, compare, environment
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import MS, Bytes
from gpu_sharing.worker.client import WorkerClient
from gpu_sharing.worker.hosting import HostConfig, HostReady
from gpu_sharing.worker.lane_host import LaneHost
from gpu_sharing.worker.process import cuda_environment
from services.common.process import StartupError
from services.executor.executor import StartsWorker
from services.executor.settings import ExecutorSettings

log = structlog.get_logger()

_SHARES_ONE_PROCESS = frozenset({"cuda_green", "cuda_streams", "cuda_mig"})
MPS_LOOK_S = 5.0


class Serving:
    """The device, and what stands between it and workers: nothing on a processor, one process for all lanes of a GPU, or a
    daemon of NVIDIA's and a process a lane (isolation "process")."""

    def __init__(self, settings: ExecutorSettings, *, daemon: Callable[[str], Daemon] = Daemon) -> None:
        """Probes; starts the daemon where one is needed. StartupError, naming the setting, where what is asked for cannot be had."""
        self._settings = settings
        self._daemon: Daemon | None = self._started(daemon) if settings.isolation == "process" else None
        wanted = "cuda_mps" if self._daemon is not None else settings.device
        try:
            self.device: Device = probe(wanted=None if wanted == "auto" else wanted)
        except ValueError as error:
            self._stop_daemon()
            raise StartupError(f"executor: device: {error}") from None
        self._host: LaneHost | None = None
        log.info(
            "device chosen", backend=self.device.backend, device=self.device.device_kind, reason=self.device.reason
        )

    @property
    def is_cpu(self) -> bool:
        """Whether lanes are processor cores."""
        return self.device.backend == "cpu"

    def starts(self, partitions: Partitions) -> StartsWorker:
        """How a lane's worker is started."""
        if self.device.backend in _SHARES_ONE_PROCESS:
            self._host = LaneHost(
                HostConfig(
                    self.device.backend,
                    "|".join(partitions.names),
                    graph_bytes=self._settings.graph_bytes,
                    ahead=self._settings.launch_ahead,
                ),
                on_ready=_told_of_layouts,
            )
            return self._host.start_worker
        return WorkerClient.start

    def environment(self, partitions: Partitions, lane: int, memory_bytes: Bytes | None) -> dict[str, str]:
        """Of a lane's own process, where it has one on a GPU."""
        if self.is_cpu:
            return {}
        shared = cuda_environment(self.device.backend)
        if self._daemon is None:
            return shared
        percentage = 100 * len(partitions.lanes[lane]) / self.device.compute_units
        mps = environment(self._daemon.pipe, self._daemon.log, percentage=percentage, memory_bytes=memory_bytes)
        return {**shared, **mps}

    async def watch(self, workers: Callable[[], Mapping[int, WorkerClient]]) -> None:
        """For ever: workers that the daemon does not know, or whose server is broken, are ended, to be started anew."""
        if self._daemon is None:
            return
        while True:
            await asyncio.sleep(MPS_LOOK_S)
            with suppress(MpsFailed):
                running = dict(workers())
                servers = await asyncio.to_thread(self._daemon.servers)
                self.restart(compare({lane: each.pid for lane, each in running.items()}, servers), running)

    @staticmethod
    def restart(found: Findings, running: Mapping[int, WorkerClient]) -> None:
        """Ends the workers that were found amiss; their executor starts others and answers their calls."""
        for lane in found.to_restart:
            reason = "its MPS server is broken" if lane in found.faulted else "it runs without MPS"
            log.error("worker is ended", lane=lane, pid=running[lane].pid, reason=reason)
            running[lane].kill(reason)

    async def close(self) -> None:
        """Ends what was started."""
        if self._host is not None:
            await self._host.close()
        await asyncio.to_thread(self._stop_daemon)

    def _started(self, make: Callable[[str], Daemon]) -> Daemon:
        program = binary()
        if program is None:
            raise StartupError("executor: isolation: process needs nvidia-cuda-mps-control, which is not installed")
        daemon = make(program)
        try:
            daemon.start()
        except MpsFailed as error:
            raise StartupError(f"executor: isolation: {error}") from None
        # The probe asks the daemon that this process would reach.
        os.environ.update(CUDA_MPS_PIPE_DIRECTORY=daemon.pipe, CUDA_MPS_LOG_DIRECTORY=daemon.log)
        return daemon

    def _stop_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()


def _told_of_layouts(ready: HostReady) -> None:
    for each in ready.layouts:
        log.info("layout prepared", layout=each.name, ms=round(each.took_ns / MS, 2), memory_bytes=each.memory_bytes)
    for note in ready.notes:
        log.warning("layout not as asked for", note=note)
