"""What can only be shown on a real CUDA device: `make test-gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artefact_samples import exported, written

from bench.gpu import on_cuda
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.runtimes.base import LoadConfig
from gpu_sharing.runtimes.torch_export import TorchExportRuntime
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.worker.hosting import HostConfig
from gpu_sharing.worker.lane_host import LaneHost
from gpu_sharing.worker.messages import Done, Loaded

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", on_cuda.CHECKS)
def test_the_device_shows_what_it_is_to_show(name: str) -> None:
    found = on_cuda.run(name, on_cuda.LIMIT_S)
    assert "failed" not in found, found
    assert {what: holds for what, holds in found["holds"].items() if not holds} == {}, found


def deep() -> bytes:
    import torch

    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(64, 64), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers).eval()
    return exported(model, (torch.randn(2, 64),), ({0: torch.export.Dim("batch", max=64)},))


async def test_two_lanes_of_one_process_answer_what_the_processor_answers(tmp_path: Path) -> None:
    from test_worker_host import opened

    device = probe()
    assert isinstance(device, CudaDevice)
    assert device.backend == "cuda_green", device.reason
    half = device.compute_units // 2
    layouts = device.fitted(parse_layouts(f"0-{half - 1};{half}-{device.compute_units - 1}", device.units()))
    host = LaneHost(HostConfig("cuda_green", "|".join(layouts.names)))
    path = written(tmp_path, "deep.pt2", deep())
    on_cpu = TorchExportRuntime().load(path, LoadConfig(threads=1, compute_units=1))
    (spec,), (output,) = on_cpu.signature.inputs, on_cpu.signature.outputs
    try:
        lanes = [await opened(host, number, len(layouts.lanes[number])) for number in (0, 1)]
        assert lanes[0].client.pid == lanes[1].client.pid
        for books in lanes:
            loaded = await books.load(path, format="torch_export")
            assert isinstance(loaded, Loaded), loaded
        chance = np.random.default_rng(0)
        for _ in range(6):
            for books in lanes:
                x = chance.standard_normal((4, 64)).astype(np.float32)
                done: Any = await books.submit([x], rows=4)
                assert isinstance(done, Done), done
                expected = finish(on_cpu.run({spec.name: x}))[output.name]
                np.testing.assert_allclose(books.read(done), expected, rtol=2e-3, atol=2e-3)
        for books in lanes:
            await books.client.stop(2.0)
    finally:
        await host.close()


def test_everything_of_a_model_on_a_lane_is_launched_on_its_streams(tmp_path: Path) -> None:
    from gpu_sharing.memory.grants import Grant
    from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime, LaneGraphs
    from gpu_sharing.runtimes.torch_guard import StreamGuard

    lanes = on_cuda.Lanes((1, 1))
    number = lanes.partitions.layouts[0][0]
    backend, lane = lanes.backend(number), lanes.made.lanes[number]
    with StreamGuard({int(lane.compute), int(lane.loading)}):
        backend.enter_loading()
        path = written(tmp_path, "deep.pt2", deep())
        accounts = lanes.pools(number)
        accounts.try_out(1, "a", 1 << 28)
        model = CudaExportRuntime(LaneGraphs(backend, accounts)).load(
            path, LoadConfig(threads=1, compute_units=1, tenant="a")
        )
        accounts.tried(1)
        accounts.settle(1, Grant(1 << 28, 1 << 28))
        (spec,) = model.signature.inputs
        backend.enter_lane()
        for _ in range(5):
            finish(model.run({spec.name: np.ones((4, 64), np.float32)}))
            backend.synchronize()


def test_memory_of_another_process_is_opened_read_written_and_refused_as_on_the_double() -> None:
    from gpu_sharing.devices.cuda.regions import CudaRegions
    from gpu_sharing.devices.regions import ABSENT, RegionRefused

    lanes = on_cuda.Lanes((1,))
    lane = next(iter(lanes.made.lanes.values()))
    regions = CudaRegions(lanes.driver, lanes.device.facts.ordinal, lanes.made.primary, lane.compute)
    with pytest.raises(RegionRefused, match=ABSENT):
        regions.open(os.urandom(64))
    exporter = subprocess.Popen(
        [sys.executable, "-c", EXPORTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert exporter.stdout is not None
        assert exporter.stdin is not None
        handle = bytes.fromhex(exporter.stdout.readline())
        opened = regions.open(handle)
        assert opened.size_bytes >= 1 << 21
        assert regions.open(handle).identity == opened.identity, "one memory, whoever asks"
        regions.close(opened)
        there = np.zeros(256, np.uint8)
        regions.read(opened, 1 << 20, there)
        assert (there == 7).all()
        regions.write(opened, 0, np.arange(256, dtype=np.uint8))
        exporter.stdin.write("look\n")
        exporter.stdin.flush()
        assert exporter.stdout.readline().strip() == bytes(range(256)).hex()
        regions.close(opened)
        regions.stop()
    finally:
        exporter.kill()
        exporter.wait()


EXPORTER = """
import ctypes, sys
from cuda.bindings import driver
def do(name, *arguments):
    result, *values = getattr(driver, name)(*arguments)
    assert int(result) == 0, (name, result)
    return values[0] if values else None
do("cuInit", 0)
do("cuCtxSetCurrent", do("cuDevicePrimaryCtxRetain", do("cuDeviceGet", 0)))
memory = do("cuMemAlloc", 1 << 21)
do("cuMemsetD8", memory, 7, 1 << 21)
do("cuCtxSynchronize")
print(ctypes.string_at(do("cuIpcGetMemHandle", memory).getPtr(), 64).hex(), flush=True)
sys.stdin.readline()
seen = bytearray(256)
do("cuMemcpyDtoH", seen, memory, 256)
print(seen.hex(), flush=True)
sys.stdin.readline()
"""
