from __future__ import annotations

from typing import Any

import pytest

from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.survey import Facts, choose
from gpu_sharing.devices.mps import Findings, MpsFailed
from gpu_sharing.partitioning.groups import Groups
from gpu_sharing.worker.client import WorkerClient
from services.common.process import StartupError
from services.executor import device as executor_device
from services.executor.device import Serving
from services.executor.serve import _workers, choose_partitions
from services.executor.settings import ExecutorSettings

HOPPER = Facts(0, "NVIDIA H200", 13_000, (9, 0), 132, 139 << 30, groups=Groups(8, 16, 4), mps="a daemon answers")


class Daemon:
    """An MPS daemon that starts, or does not."""

    broken = False
    stopped = 0
    pipe, log = "/run/x/pipe", "/run/x/log"

    def __init__(self, program: str) -> None:
        self.program = program

    def start(self) -> None:
        if self.broken:
            raise MpsFailed("does not answer")

    def stop(self) -> None:
        type(self).stopped += 1


def serving(monkeypatch: pytest.MonkeyPatch, **given: Any) -> Serving:
    monkeypatch.setattr(executor_device, "probe", lambda wanted=None: CudaDevice(HOPPER, choose(HOPPER, wanted=wanted)))
    monkeypatch.setattr(executor_device, "binary", lambda: "/usr/bin/nvidia-cuda-mps-control")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.setenv(name, "before")
    return Serving(ExecutorSettings(**given), daemon=Daemon)


def test_a_gpus_layouts_are_rounded_and_its_workers_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = serving(monkeypatch)
    settings = ExecutorSettings(layouts="0-98;99-131|0-131")
    partitions = choose_partitions(settings, found.device)
    assert partitions.names == ("0-95;96-131", "0-131")
    workers = _workers(settings, found, partitions)
    assert {each.host_bytes for each in workers.values()} == {0}
    assert [(len(each.cores), each.spare_cores, each.threads) for each in workers.values()] == [
        (96, (), 1),
        (36, (), 1),
        (132, (), 1),
    ]
    assert sum(each.capacity for each in list(workers.values())[:2]) <= 1000
    assert found.starts(partitions) is not WorkerClient.start


def test_by_itself_a_gpu_is_one_lane_of_all_its_sms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = serving(monkeypatch)
    assert choose_partitions(ExecutorSettings(), found.device).names == ("0-131",)


def test_isolation_by_process_starts_a_daemon_and_a_process_a_lane_with_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = serving(monkeypatch, isolation="process")
    assert found.device.backend == "cuda_mps"
    settings = ExecutorSettings(layouts="0-32;33-131")
    partitions = choose_partitions(settings, found.device)
    assert found.starts(partitions) == WorkerClient.start
    first = _workers(settings, found, partitions)[0].environment
    assert first["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert first["CUDA_MPS_PIPE_DIRECTORY"] == "/run/x/pipe"
    assert first["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"].startswith("0=")
    assert first["APPORTION_DEVICE_BACKEND"] == "cuda_mps"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in first


def test_what_cannot_be_had_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="device: backend: cuda_mig cannot be had: the device is whole"):
        serving(monkeypatch, device="cuda_mig")
    monkeypatch.setattr(Daemon, "broken", True)
    with pytest.raises(StartupError, match="isolation: does not answer"):
        serving(monkeypatch, isolation="process")


def test_isolation_by_process_without_the_daemons_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_device, "binary", lambda: None)
    with pytest.raises(StartupError, match="needs nvidia-cuda-mps-control, which is not installed"):
        Serving(ExecutorSettings(isolation="process"))


async def test_closing_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Daemon.stopped
    await serving(monkeypatch, isolation="process").close()
    assert Daemon.stopped == before + 1


def test_workers_that_the_daemon_does_not_know_or_whose_server_is_broken_are_ended() -> None:
    killed: dict[int, str] = {}

    class Worker:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def kill(self, reason: str) -> None:
            killed[self.pid] = reason

    running: Any = {0: Worker(10), 1: Worker(11), 2: Worker(12)}
    Serving.restart(Findings(missing=(0,), faulted=(2,), strangers=(99,)), running)
    assert killed == {10: "it runs without MPS", 12: "its MPS server is broken"}
